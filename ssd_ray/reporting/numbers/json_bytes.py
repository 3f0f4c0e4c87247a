"""JSON of a report with equal bytes for equal values: rounded floats, sorted keys."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from ssd_ray.artifacts.facts import Facts
from ssd_ray.config import Section

T = TypeVar("T")


def plain(value: Any) -> Any:
    """Return nested dataclasses and sections of a recipe as plain JSON values."""
    if isinstance(value, Facts):
        # A manifest lists its shards outside of the facts.
        return plain(value.document())
    if dataclasses.is_dataclass(value):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def rounded_to_ten_digits(value: T) -> T:
    """Round the floats of nested values to ten significant digits; None if not finite.

    Dataclasses, mappings, lists and tuples are nested.
    """
    result: Any = value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value)]
        nested = {name: rounded_to_ten_digits(getattr(value, name)) for name in names}
        result = dataclasses.replace(value, **nested)
    elif isinstance(value, Mapping):
        result = {str(key): rounded_to_ten_digits(item) for key, item in value.items()}
    elif isinstance(value, list | tuple):
        result = type(value)(rounded_to_ten_digits(item) for item in value)
    elif isinstance(value, float):
        # Adding zero turns -0.0 into 0.0: equal results give equal bytes.
        result = float(f"{value:.10g}") + 0.0 if math.isfinite(value) else None
    rounded: T = result
    return rounded


def canonical(value: Any, indent: int = 0) -> str:
    """Return JSON with sorted keys, one key per line, and each list of numbers on one line.

    Equal values give equal bytes.
    """
    pad = " " * (indent + 1)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        rows = (f"{pad}{json.dumps(item, sort_keys=True, allow_nan=False)}" for item in value)
        return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    lines = (
        f"{pad}{json.dumps(key)}: {canonical(value[key], indent + 1)}" for key in sorted(value)
    )
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
