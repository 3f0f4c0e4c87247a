"""Recipes as files: the ones that come with the package, and the user's own.

A recipe is one YAML file with the sections of `ssd_ray.config`; `--set section.key=value` overrides a field. Mistakes come
back as one sentence that names the key. Reads YAML; `dump` gives the resolved recipe, every default written out.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ssd_ray.config import Arm, EvaluateConfig, Recipe, arms
from ssd_ray.errors import UserError, single_line, system_reason
from ssd_ray.file_kinds import refuse_pointer

HERE = Path(__file__).parent
_MOST_TOLD = 5
_MENDS = {
    **dict.fromkeys(("model_type", "dict_type"), "use a mapping of keys to values"),
    "bool_parsing": "use true or false",
}


class _OnceLoader(yaml.SafeLoader):
    """YAML's safe loader, which takes a key once: of two sections of one name it would keep the last, without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next(
            (key for number, key in enumerate(keys) if key in keys[:number] and key != "<<"), None
        ):
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice!r} stands there twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def shipped() -> list[str]:
    """The names of the recipes that come with the package."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """A recipe from its shipped name or a YAML file, with `section.key=value` overrides.

    Raises:
        UserError: no such recipe, not YAML, an unknown key, a wrong type or an inconsistent choice.
    """
    path = Path(recipe)
    if path.suffix not in {".yaml", ".yml"}:
        path = HERE / f"{recipe}.yaml"
        if not path.exists():
            raise UserError(
                f"there is no recipe {str(recipe)!r}: use a path ending in .yaml, or one of {', '.join(shipped())}"
            )
    refuse_pointer(path, "the recipe")
    try:
        document = yaml.load(path.read_text(), Loader=_OnceLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {system_reason(error)}") from error
    except (
        yaml.YAMLError,
        ValueError,
    ) as error:  # a date that no calendar has is a bare ValueError
        raise UserError(f"{path} is not valid YAML: {single_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of sections, such as `model:` and `sample:`")
    for override in overrides:
        _override(document, override)
    try:
        resolved = Recipe.model_validate(document)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_explain(error)}") from error
    arms.arms(resolved)  # refuses a sweep or a control that cannot be
    return resolved


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(
            f"--set {name}: {text!r} is not a YAML value ({single_line(error)})"
        ) from error
    *parents, leaf = name.split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {name}: {parent} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: ValidationError) -> str:
    """What is wrong, unknown keys first: what was misspelt is missing elsewhere."""
    found = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    more = f" (and {len(found) - _MOST_TOLD} more)" if len(found) > _MOST_TOLD else ""
    return "; ".join(map(_problem, found[:_MOST_TOLD])) + more


def _problem(first: Any) -> str:
    """One problem in one sentence, with the nearest key where one was misspelt."""
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
        hint = (
            f", did you mean {near[0]}?"
            if near
            else f", known here: {', '.join(_keys_beside(first['loc']))}"
        )
        return f"unknown key {where}{hint}"
    if first["type"] == "missing":
        return f"{where} is required and was not given"
    message = _mend(first["type"], first["msg"])
    value = "" if isinstance(first["input"], Mapping) else f"={first['input']!r}"
    return f"{where}{value}: {message}" if where else message


def _mend(kind: str, message: str) -> str:
    """What to do instead: pydantic says what an input should be."""
    said = message.removeprefix("Value error, ").removeprefix("Input should be ")
    if kind.startswith(("greater_than", "less_than")):
        return f"use a number {said}"
    if kind in _MENDS:
        return _MENDS[kind]
    if kind == "literal_error":
        return f"use {'one of ' if ', ' in said or ' or ' in said else ''}{said}"
    return f"use {said}" if message.startswith("Input should be ") else said


def _keys_beside(location: tuple[int | str, ...]) -> list[str]:
    section: Any = Recipe
    for part in location[:-1]:
        if section is EvaluateConfig and part == "arms":
            section = Arm
        elif isinstance(part, str) and part in section.model_fields:
            section = section.model_fields[part].annotation
            section = next(
                (each for each in typing.get_args(section) if hasattr(each, "model_fields")),
                section,
            )
    return list(section.model_fields)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
