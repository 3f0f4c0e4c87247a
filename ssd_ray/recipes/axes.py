"""Axes of a sweep: `--over FIELD=v1,v2`, read and checked. Reads no file."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from ssd_ray import config
from ssd_ray.config import Recipe
from ssd_ray.config.values import parsed
from ssd_ray.errors import UserError

CHECKPOINT = "checkpoint"
"""Axis of the exported steps of each training."""
Value = float | int | str | bool | None
DECODING = ("temperature", "top_k", "top_p")
EVALUATE = tuple(f"evaluate.{name}" for name in DECODING)
"""Axes of the decoding of each model, which are no fields of a recipe: arms have them."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A field and its values, as written."""

    field: str
    values: tuple[Value, ...]


def text_of(value: Value) -> str:
    """Return the shortest text of a value, so that a cell keeps its directory: 1 for 1.0."""
    return value if isinstance(value, str) else json.dumps(value).removesuffix(".0")


def axis_of(recipe: Recipe, text: str) -> Axis:
    """Return the axis of one `--over`.

    Raises:
        UserError: it is no field, or has one value.
    """
    field, equals, listed = text.partition("=")
    if not equals:
        raise UserError(f"--over {text!r} is not of the form FIELD=v1,v2")
    _check_field(recipe, field)
    values = parsed("--over", field, f"[{listed}]")
    if any(isinstance(value, list | dict) for value in values):
        raise UserError(f"--over {field}={listed}: give numbers or words, separated by commas")
    if len(values) < 2:
        is_settable = values and field not in EVALUATE and field != CHECKPOINT
        instead = f", or --set {text}" if is_settable else ""
        stated = "1 value" if values else "no value"
        raise UserError(f"--over {text} has {stated}: give two or more{instead}")
    return Axis(field=field, values=tuple(values))


def _check_field(recipe: Recipe, field: str) -> None:
    section, _, leaf = field.partition(".")
    known = {
        each.name
        for each in config.defaults(Recipe)
        if each.name.startswith(("sample.", "train.")) and "[]" not in each.name
    }
    if field in EVALUATE or field == CHECKPOINT:
        return
    if field not in known:
        near = difflib.get_close_matches(field, [*known, *EVALUATE, CHECKPOINT], n=1)
        hint = f"did you mean {near[0]}?" if near else "ssd-ray recipes --fields lists them"
        raise UserError(
            f"--over {field} is no axis, which is a field of sample or train, "
            f"evaluate.temperature, evaluate.top_k, evaluate.top_p or {CHECKPOINT}: {hint}"
        )
    if field == "train.seeds":
        raise UserError(
            "--over train.seeds is no axis, since a sweep trains each student once: repeat "
            "trainings with `ssd-ray run --set train.seeds=N`"
        )
    if leaf.partition(".")[0] not in config.choices(getattr(recipe, section)):
        raise UserError(
            f"--over {field} changes no result, so all its cells would be one: sweep another field"
        )


def check_axes(recipe: Recipe, axes: Sequence[Axis]) -> None:
    """Check that there are axes, each once, and that the recipe can be swept.

    Raises:
        UserError: there is no axis, one twice, or the recipe selects its samples.
    """
    if not axes:
        raise UserError("a sweep needs an axis: give --over FIELD=v1,v2")
    fields = [axis.field for axis in axes]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise UserError(f"--over {twice} is given twice: list all its values in one --over")
    if recipe.prepare.select != "all":
        raise UserError(
            f"prepare.select {recipe.prepare.select} needs verdicts on every set of samples, and a "
            "sweep has none: set prepare.select=all"
        )
