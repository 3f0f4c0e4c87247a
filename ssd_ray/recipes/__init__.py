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

from ssd_ray import arms
from ssd_ray.config import Arm, EvaluateConfig, Recipe
from ssd_ray.errors import UserError

HERE = Path(__file__).parent
_MENDS = {**dict.fromkeys(("model_type", "dict_type"), "use a mapping of keys to values"), "bool_parsing": "use true or false"}


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
            raise UserError(f"there is no recipe {str(recipe)!r}: use a path ending in .yaml, or one of {', '.join(shipped())}")
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the recipe {path}: {getattr(error, 'strerror', None) or error}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
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
    except yaml.YAMLError as error:
        raise UserError(f"--set {name}: {text!r} is not a YAML value") from error
    *parents, leaf = name.split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {name}: {parent} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: ValidationError) -> str:
    """The first problem of a validation in one sentence, with the nearest key where one was misspelt."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(first["loc"][-1]), _keys_beside(first["loc"]), n=1)
        hint = f"; did you mean {near[0]}?" if near else f"; known here: {', '.join(_keys_beside(first['loc']))}"
        return f"unknown key {where}{hint}{more}"
    if first["type"] == "missing":
        return f"{where} is required and was not given{more}"
    message = _mend(first["type"], first["msg"])
    value = "" if isinstance(first["input"], Mapping) else f"={first['input']!r}"
    return f"{where}{value}: {message}{more}" if where else f"{message}{more}"


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
            section = next((each for each in typing.get_args(section) if hasattr(each, "model_fields")), section)
    return list(section.model_fields)


def dump(recipe: Recipe) -> str:
    """The resolved recipe as YAML, every default written out."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)
