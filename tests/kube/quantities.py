"""Amounts of resources as Kubernetes writes them."""

from __future__ import annotations

import math

_UNITS = {
    "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50,
}  # fmt: skip


def quantity(text: str | float) -> float:
    """Return an amount such as `500m`, `2` or `16Gi` as a number."""
    text = str(text)
    unit = text.lstrip("0123456789.-")
    return float(text.removesuffix(unit)) * (_UNITS[unit] if unit else 1.0)


def ceiling(text: str | float) -> int:
    """Return an amount rounded up, as Kubernetes' `Quantity.Value` does."""
    return math.ceil(quantity(text))
