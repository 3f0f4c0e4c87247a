"""Recipe files: those of the package and the user's own.

A recipe is one YAML file with the sections of `ssd_ray.config`.

- `extends: NAME` takes everything else from another recipe.
- `--set section.key=value` overrides a field.
- A mistake is reported in one sentence, with the key.
- `dump` writes the resolved recipe, with every default.

Reads YAML.
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ssd_ray.config import Arm, EvaluateConfig, Recipe, arms, remedy
from ssd_ray.config.values import parsed
from ssd_ray.errors import UserError, single_line, system_reason
from ssd_ray.file_kinds import refuse_pointer

HERE = Path(__file__).parent
_MAX_PROBLEMS = 5


class _UniqueKeyLoader(yaml.SafeLoader):
    """Safe loader of YAML with an error for a repeated key."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        # PyYAML itself silently keeps the last of two sections with one name. Only the merge key
        # `<<` may occur again.
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for number, key in enumerate(keys):
            if key in keys[:number] and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} occurs twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def shipped() -> list[str]:
    """Return the names of the recipes in the package."""
    return sorted(path.stem for path in HERE.glob("*.yaml"))


def load(recipe: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a shipped name or a YAML file, with `section.key=value` overrides.

    Raises:
        UserError: There is no such recipe, it is not YAML, or it has an unknown key, a wrong type
            or an inconsistent choice.
    """
    path = _path(recipe, Path())
    document = _document(path)
    for override in overrides:
        _override(document, override)
    try:
        resolved = Recipe.model_validate(document)
    except ValidationError as error:
        raise UserError(f"recipe {path.stem}: {_explain(error)}") from error
    # Arms follow from several sections; an impossible sweep or control is refused here already.
    arms.arms(resolved)
    return resolved


def _path(recipe: str | Path, folder: Path) -> Path:
    """Return the file of a recipe: a shipped name, or a path within `folder`.

    Raises:
        UserError: there is no shipped recipe of the name.
    """
    path = folder / recipe
    if path.suffix not in {".yaml", ".yml"}:
        path = HERE / f"{recipe}.yaml"
        if not path.exists():
            raise UserError(
                f"there is no recipe {str(recipe)!r}: use a path ending in .yaml, or one of "
                f"{', '.join(shipped())}"
            )
    return path


def _document(path: Path, extending: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return the contents of a recipe file, and of those that it extends.

    Raises:
        UserError: a file cannot be read, is not a mapping, or extends itself.
    """
    if path.resolve() in extending:
        raise UserError(f"the recipe {path} extends itself: take one `extends` out")
    refuse_pointer(path, "the recipe")
    try:
        document = yaml.load(path.read_text(), Loader=_UniqueKeyLoader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"cannot read the recipe {path} ({system_reason(error)}): give a readable YAML file, "
            f"or one of {', '.join(shipped())}"
        ) from error
    # PyYAML raises a bare ValueError for an impossible date, such as 2026-02-30.
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"{path} is not valid YAML: {single_line(error)}") from error
    if not isinstance(document, dict):
        raise UserError(f"{path} must hold a mapping of sections, such as `model:` and `sample:`")
    if "extends" not in document:
        return document
    base = document.pop("extends")
    if not isinstance(base, str):
        raise UserError(f"{path}: extends={base!r}: use the name or the path of a recipe")
    parent = _document(_path(base, path.parent), (*extending, path.resolve()))
    # Two recipes with one name would share a run directory.
    parent.pop("name", None)
    # A stated source belongs to the parent's value, so a field set here loses it.
    stated = parent.get("sources")
    if isinstance(stated, dict):
        parent["sources"] = {
            field: source for field, source in stated.items() if not _sets(document, field)
        }
    return _merged(parent, document)


def _sets(document: dict[str, Any], field: str) -> bool:
    """Return True if a document holds a field, by its dotted name."""
    node: Any = document
    for part in field.split("."):
        if not isinstance(node, dict) or part not in node:
            return False
        node = node[part]
    return True


def _merged(parent: dict[str, Any], child: dict[str, Any]) -> dict[str, Any]:
    """Return the parent with the child's values, sections merged field by field."""
    merged = dict(parent)
    for key, value in child.items():
        inherited = merged.get(key)
        if isinstance(inherited, dict) and isinstance(value, dict):
            merged[key] = _merged(inherited, value)
        else:
            merged[key] = value
    return merged


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not all(name.split(".")):
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    value = parsed("--set", name, text)
    *parents, leaf = name.split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"--set {name}: {parent} is a value, not a section")
        node = child
    node[leaf] = value


def _explain(error: ValidationError) -> str:
    """Return the problems of a recipe in one line, unknown keys first."""
    # A misspelled key is also missing under its right name: the unknown key explains more.
    problems = sorted(
        (problem for problem in error.errors() if not _is_consequence(problem)),
        key=lambda problem: problem["type"] != "extra_forbidden",
    )
    num_more = len(problems) - _MAX_PROBLEMS
    more = f" (and {num_more} more)" if num_more > 0 else ""
    return "; ".join(map(_problem, problems[:_MAX_PROBLEMS])) + more


def _is_consequence(problem: Any) -> bool:
    """Return True if a list is called too short only because its entries are refused."""
    return problem["type"] == "too_short" and bool(problem["input"])


def _problem(first: Any) -> str:
    """Return one problem as a sentence, with the nearest key for an unknown one."""
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _known_keys(first["loc"])
        near = _elsewhere(first["loc"]) or difflib.get_close_matches(
            str(first["loc"][-1]), known, n=1
        )
        hint = f"did you mean {near[0]}?" if near else f"known here: {', '.join(known)}"
        return f"unknown key {where}, {hint}"
    if first["type"] == "missing":
        return f"{where} is required and was not given"
    message = remedy(first["type"], first["msg"])
    value = "" if isinstance(first["input"], Mapping) else f"={first['input']!r}"
    return f"{where}{value}: {message}" if where else message


def _elsewhere(location: tuple[int | str, ...]) -> list[str]:
    """Return keys of other sections that a location may mean.

    `train.workers` is `cluster.train_workers`, and `train.temperature` is `sample.temperature`.
    """
    section, leaf = str(location[0]), str(location[-1])
    names = {leaf, f"{section}_{leaf}"}
    if len(location) != 2:
        return []
    return [
        f"{other}.{name}"
        for other in Recipe.model_fields
        for name in _known_keys((other, ""))
        if name in names
    ]


def _known_keys(location: tuple[int | str, ...]) -> list[str]:
    """Return the keys of the section of a location."""
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
    # A field without a section has no keys.
    return list(getattr(section, "model_fields", ()))


def dump(recipe: Recipe) -> str:
    """Return the resolved recipe as YAML, with every default."""
    return yaml.safe_dump(
        recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120
    )
