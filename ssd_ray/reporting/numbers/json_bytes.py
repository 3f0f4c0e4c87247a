"""JSON of a report with equal bytes for equal values: rounded floats, sorted keys."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def rounded_to_ten_digits(value: Any) -> Any:
    """Round the floats of nested plain values to ten significant digits; None if not finite."""
    if isinstance(value, Mapping):
        return {str(key): rounded_to_ten_digits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded_to_ten_digits(item) for item in value]
    if isinstance(value, float):
        # Adding zero turns -0.0 into 0.0: equal results give equal bytes.
        return float(f"{value:.10g}") + 0.0 if math.isfinite(value) else None
    return value


def canonical(value: Any, indent: int = 0) -> str:
    """Return JSON with sorted keys, a key a line and a list of numbers a line.

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
