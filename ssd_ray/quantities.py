"""Format quantities as short text: rates, times, and numbers with a magnitude prefix."""

from __future__ import annotations

from typing import Literal


def rate(value: float) -> str:
    """Format a rate: two significant digits below 10, an integer from 10 on."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def clock(seconds: float) -> str:
    """Format seconds as m:ss, h:mm:ss or days and h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days} d {hour}:{minute:02}:{second:02}"
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def magnitude(
    value: float, *, digits: int = 3, billion: Literal["G", "B"] = "G", space: str = ""
) -> str:
    """Format a number with k, M, G (or B) or T, as `1.5M`; below 1,000 it has no suffix.

    `digits` is the number of significant digits before a suffix, `space` comes in between.
    """
    for unit, suffix in ((1e12, "T"), (1e9, billion), (1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:.{digits}g}{space}{suffix}"
    return f"{value:g}"
