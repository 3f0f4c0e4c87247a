"""A section from its defaults and the `NAME=VALUE` options of a command line. Does no I/O."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from ssd_ray.config.section import Section, fields, remedy
from ssd_ray.config.values import parsed
from ssd_ray.errors import UserError

SectionT = TypeVar("SectionT", bound=Section)


def overridden(section: type[SectionT], option: str, overrides: Sequence[str]) -> SectionT:
    """Return a section with `NAME=VALUE` overrides; names of nested fields are dotted.

    Args:
        section: the type; every field has a default.
        option: the option's name, for messages.
        overrides: the values of the option.

    Raises:
        UserError: an unknown name, or an invalid value.
    """
    names = [name for name, _, _ in fields(section())]
    defaults: dict[str, Any] = section().model_dump()
    document: dict[str, Any] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            hint = f": did you mean {near[0]}=VALUE?" if near else ""
            raise UserError(
                f"{option} {override!r} is not NAME=VALUE with one of {', '.join(names)}{hint}"
            )
        value = parsed(option, name, text)
        *parents, leaf = name.split(".")
        node = document
        if parents:
            # A section that is set in part keeps its other defaults. Fields left alone stay unset.
            node = document.setdefault(parents[0], defaults[parents[0]])
        for parent in parents[1:]:
            node = node[parent]
        node[leaf] = value
    try:
        return section.model_validate(document)
    except ValidationError as error:
        raise UserError(f"{option} {_problem(error)}") from error


def _problem(error: ValidationError) -> str:
    """Return the first problem: field, value and remedy."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    # A rule over several fields has their section as input, and names its values itself.
    value = "" if isinstance(first["input"], Mapping) else f"={first['input']!r}"
    return ": ".join(filter(None, [f"{where}{value}", remedy(first["type"], first["msg"])]))
