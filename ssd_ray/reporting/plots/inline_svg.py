"""Lines, bars and maps as inline SVG, for pages written in a moment.

- matplotlib needs about a second for its import and a page of figures. This module needs none.
- Inline, a chart has the page's font and its colors, in the dark too.

Each function returns a `Drawing`. Does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

_WIDTH, _HEIGHT = 520, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 16, 26, 44
_MOST_TICKS = 7


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A chart with its texts."""

    svg: str
    """Markup of the chart, with all texts escaped."""
    caption: str
    """One or two sentences."""


@dataclass(frozen=True, kw_only=True)
class Words:
    """The texts of a chart."""

    title: str = ""
    x: str
    y: str
    alt: str
    """The chart in words, for a reader who cannot see it."""
    caption: str


@dataclass(frozen=True, kw_only=True)
class Mark:
    """A point with its text."""

    x: float
    y: float
    text: str
    shift: tuple[float, float] = (4, -9)
    """Pixels from the point to the text, rightwards and downwards."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line; its color is that of an arm of the page."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    color: int
    mark: Mark | None = None


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The place of the axes, and their scales."""

    width: int
    height: int
    x_low: float
    x_high: float
    y_low: float
    y_high: float

    def x(self, value: float) -> float:
        share = (value - self.x_low) / (self.x_high - self.x_low)
        return round(_LEFT + share * (self.width - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        share = (value - self.y_low) / (self.y_high - self.y_low)
        return round(self.height - _BOTTOM - share * (self.height - _TOP - _BOTTOM), 1)


def lines(series: Sequence[Line], words: Words, rule: tuple[float, str] | None = None) -> Drawing:
    """Draw lines from zero upwards; `rule` is a horizontal line with its text."""
    ys = [value for line in series for value in line.ys] + ([rule[0]] if rule else [])
    xs = [value for line in series for value in line.xs]
    frame = _Frame(
        width=_WIDTH,
        height=_HEIGHT,
        x_low=min(xs),
        x_high=max(xs),
        y_low=0.0,
        y_high=max([*ys, 1e-9]) * 1.12,
    )
    x_ticks = ticks(frame.x_low, frame.x_high)
    if all(float(x).is_integer() for x in xs):
        # Rounds and steps have nothing between their numbers.
        x_ticks = [tick for tick in x_ticks if tick.is_integer()]
    parts = list(_axes(frame, words, x_ticks))
    if rule is not None:
        height = frame.y(rule[0])
        parts.append(_segment("rule", frame.x(frame.x_low), height, frame.x(frame.x_high), height))
        parts.append(_text(frame.x(frame.x_high), height - 6, rule[1], "end"))
    for line in series:
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in zip(line.xs, line.ys, strict=True))
        parts.append(
            f'<polyline class="line" points="{path}" style="stroke:{_color(line.color)}"/>'
        )
    for line in series:
        parts += _mark(frame, line)
    parts += _legend([(line.label, line.color) for line in series], words)
    return _drawing(frame, parts, words)


def bars(groups: Sequence[Sequence[float]], labels: Sequence[str], words: Words) -> Drawing:
    """Draw groups of bars next to one another; `groups` has values by label, then by place."""
    count = len(groups[0])
    frame = _Frame(
        width=350,
        height=230,
        x_low=-0.6,
        x_high=count - 0.4,
        y_low=0.0,
        y_high=max(max(values) for values in groups) * 1.1,
    )
    parts = list(_axes(frame, words, list(range(count))))
    # Groups fill 0.8 of their place, so neighbors stay apart.
    width = 0.8 / len(groups)
    for index, values in enumerate(groups):
        for place, value in enumerate(values):
            left, right = (place - 0.4 + width * (index + end) for end in (0, 1))
            top = frame.y(value)
            parts.append(
                f'<rect x="{frame.x(left)}" y="{top}" width="{frame.x(right) - frame.x(left):.1f}" '
                f'height="{frame.y(0) - top:.1f}" style="fill:{_color(index)}">'
                f"<title>{escape(labels[index])}: {value:.1f}</title></rect>"
            )
    parts += _legend(list(zip(labels, range(len(labels)), strict=True)), words)
    return _drawing(frame, parts, words)


@dataclass(frozen=True, kw_only=True)
class Cells:
    """Values over two numbers."""

    xs: Sequence[float]
    ys: Sequence[float]
    values: Sequence[Sequence[float]]
    """A row for each x."""
    highest: float
    """The value with the full color."""
    best: tuple[float, float, str]
    """The best cell with its text."""
    rule: float
    """A y to mark by a line."""


def cells(grid: Cells, words: Words) -> Drawing:
    """Draw a map: the larger a value, the stronger the color."""
    x_half, y_half = ((each[1] - each[0]) / 2 for each in (grid.xs, grid.ys))
    frame = _Frame(
        width=_WIDTH,
        height=_HEIGHT,
        x_low=grid.xs[0] - x_half,
        x_high=grid.xs[-1] + x_half,
        y_low=grid.ys[0] - y_half,
        y_high=grid.ys[-1] + y_half,
    )
    # All values are 0 if no decoding ever succeeds.
    highest = grid.highest or 1.0
    parts = []
    for x, row in zip(grid.xs, grid.values, strict=True):
        left, width = frame.x(x - x_half), frame.x(x + x_half) - frame.x(x - x_half)
        for y, value in zip(grid.ys, row, strict=True):
            top, bottom = frame.y(y + y_half), frame.y(y - y_half)
            parts.append(
                f'<rect class="cell" x="{left}" y="{top}" width="{width:.1f}" '
                f'height="{bottom - top:.1f}" fill-opacity="{value / highest:.2f}"/>'
            )
    parts += _axes(frame, words, ticks(grid.xs[0], grid.xs[-1]), lines_behind=False)
    height = frame.y(grid.rule)
    parts.append(_segment("rule", frame.x(frame.x_low), height, frame.x(frame.x_high), height))
    # The text goes to the side with room, below the point: cells next to it have full color.
    x, y, text = grid.best
    at_right = x > (frame.x_low + frame.x_high) / 2
    parts.append(f'<circle class="ring" cx="{frame.x(x)}" cy="{frame.y(y)}" r="6"/>')
    anchor, shift = ("end", 7) if at_right else ("start", -7)
    down = 20 if frame.y(y) + 24 < frame.y(frame.y_low) else -12
    parts.append(_text(frame.x(x) + shift, frame.y(y) + down, text, anchor, "strong"))
    parts += _legend([], words)
    return _drawing(frame, parts, words)


@dataclass(frozen=True, kw_only=True)
class Dots:
    """Points of one color, each with an interval (low, high) and a text."""

    label: str
    xs: Sequence[float]
    ys: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    texts: Sequence[str]
    color: int


def scatter(
    groups: Sequence[Dots],
    words: Words,
    curve: Sequence[tuple[float, float]] = (),
    band: tuple[float, float] | None = None,
) -> Drawing:
    """Draw points with intervals, a curve through them, and a band of x."""
    ys = [end for dots in groups for interval in dots.intervals for end in interval]
    ys += [y for _, y in curve]
    xs = [x for dots in groups for x in dots.xs]
    # Values start anywhere, not at zero: differences between points are the subject.
    room = 0.06 * (max(ys) - min(ys) or 1.0)
    side = 0.04 * (max(xs) - min(xs) or 1.0)
    frame = _Frame(
        width=_WIDTH,
        height=_HEIGHT,
        x_low=min(xs) - side,
        x_high=max(xs) + side,
        y_low=min(ys) - room,
        y_high=max(ys) + room,
    )
    parts = []
    if band is not None:
        # An interval may leave the chart.
        left, right = (frame.x(min(max(x, frame.x_low), frame.x_high)) for x in band)
        parts.append(
            f'<rect class="band" x="{left}" y="{_TOP}" width="{max(right - left, 1):.1f}" '
            f'height="{_HEIGHT - _TOP - _BOTTOM}"/>'
        )
    parts += _axes(frame, words, ticks(frame.x_low, frame.x_high))
    if curve:
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y in curve)
        parts.append(f'<polyline class="line fit" points="{path}"/>')
    for dots in groups:
        color = _color(dots.color)
        for x, y, (low, high), text in zip(
            dots.xs, dots.ys, dots.intervals, dots.texts, strict=True
        ):
            at = frame.x(x)
            parts.append(
                f'<g style="stroke:{color};fill:{color}"><title>{escape(text)}</title>'
                f'<line x1="{at}" y1="{frame.y(low)}" x2="{at}" y2="{frame.y(high)}" '
                f'stroke-opacity="0.35"/><circle cx="{at}" cy="{frame.y(y)}" r="4"/></g>'
            )
    parts += _legend([(dots.label, dots.color) for dots in groups], words)
    return _drawing(frame, parts, words)


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers from `low` to `high`, at most seven."""
    rough = (high - low) / (_MOST_TICKS - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough - 1e-12)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 10) for number in range(first, last + 1)]


def _axes(
    frame: _Frame, words: Words, x_ticks: Sequence[float], *, lines_behind: bool = True
) -> Iterator[str]:
    left, right = frame.x(frame.x_low), frame.x(frame.x_high)
    bottom = frame.height - _BOTTOM
    for value in ticks(frame.y_low, frame.y_high):
        height = frame.y(value)
        if lines_behind:
            yield _segment("grid", left, height, right, height)
        yield _text(left - 8, height + 4, f"{value:g}", "end")
    yield _segment("axis", left, bottom, right, bottom)
    for value in x_ticks:
        yield _text(frame.x(value), bottom + 17, f"{value:g}", "middle")
    yield _text((left + right) / 2, frame.height - 6, words.x, "middle")
    # Above the axis, to be read without a tilted head.
    yield _text(2, 14, words.y, "start")


def _mark(frame: _Frame, line: Line) -> Iterator[str]:
    if line.mark is None:
        return
    x, y = frame.x(line.mark.x), frame.y(line.mark.y)
    color = _color(line.color)
    yield f'<circle cx="{x}" cy="{y}" r="4" style="fill:{color}"/>'
    right, down = line.mark.shift
    at_right = line.mark.x > frame.x_low + 0.7 * (frame.x_high - frame.x_low)
    place, anchor = (x - 4, "end") if at_right else (x + right, "start")
    yield _text(place, y + down, line.mark.text, anchor, "strong", color)


def _legend(entries: Sequence[tuple[str, int]], words: Words) -> Iterator[str]:
    # The name of the y axis comes first in this line.
    at = max(110.0, 7.0 * len(words.y) + 16)
    if words.title:
        yield _text(at, 14, words.title, "start", "strong")
        at += 7.5 * len(words.title) + 20
    for label, color in entries:
        yield f'<rect x="{at}" y="5" width="11" height="11" rx="2" style="fill:{_color(color)}"/>'
        yield _text(at + 16, 14, label, "start")
        at += 16 + 8 * len(label) + 18


def _text(x: float, y: float, text: str, anchor: str, kind: str = "", color: str = "") -> str:
    style = f' style="fill:{color}"' if color else ""
    name = f' class="{kind}"' if kind else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}{style}>{escape(text)}</text>'
    )


def _segment(kind: str, x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line class="{kind}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>'


def _color(index: int) -> str:
    return f"var(--arm-{index})"


def _drawing(frame: _Frame, parts: Sequence[str], words: Words) -> Drawing:
    svg = (
        f'<svg class="chart" viewBox="0 0 {frame.width} {frame.height}" role="img" '
        f'aria-label="{escape(words.alt, quote=True)}">' + "".join(parts) + "</svg>"
    )
    return Drawing(svg=svg, caption=words.caption)
