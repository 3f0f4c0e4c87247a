"""Dot plots of scores and paired differences with intervals, by benchmark or difficulty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ssd_ray.reporting import words
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.plots.canvas import (
    COLORS,
    INK,
    MARKERS,
    QUIET,
    Bar,
    Picture,
    canvas,
    finish,
    short,
    style_of,
)
from ssd_ray.reporting.words import MINUS, decimals, is_few, percent, points, rounded
from ssd_ray.statistics.differences import Difference
from ssd_ray.statistics.metrics import Score


@dataclass(frozen=True, kw_only=True)
class _Mark:
    """One row of a dot plot."""

    section: str
    label: str
    style: int
    value: Score | Difference | None
    """None without a score."""
    rows: str
    """Place of the rows behind it, as by `words.rows`."""


def score_plot(scores: Scores) -> Picture:
    """Draw the headline pass@k of each arm on each benchmark, with its interval."""
    marks = [
        _Mark(
            section=benchmark,
            label=arm,
            style=style_of(scores, arm),
            value=scores.benchmarks[benchmark].all.arms[arm].score[scores.headline],
            rows=words.rows("answers", stage="generations", arm=arm, benchmark=benchmark),
        )
        for benchmark in scores.order.benchmarks
        for arm in scores.order.arms
    ]
    content = f"{scores.headline} of each arm with its {percent(scores.confidence, 0)} interval"
    return _dots(
        "scores",
        marks,
        f"{scores.headline} (%)",
        f"Dot plot of {content}.",
        f"{_capital(content)} over problems.",
    )


def difference_plot(scores: Scores) -> Picture | None:
    """Draw the paired difference of each arm to the baseline, in points, around a zero line."""
    baseline = scores.baseline
    marks = [
        _Mark(
            section=benchmark,
            label=arm if scores.families else f"{arm} {MINUS} {baseline}",
            style=style_of(scores, arm),
            value=scores.benchmarks[benchmark].all.arms[arm].difference[scores.headline],
            rows=words.rows(
                "changes",
                **{"from": baseline},
                to=arm,
                benchmark=benchmark,
                metric=scores.headline,
            ),
        )
        for benchmark in scores.order.benchmarks
        for arm in scores.order.arms
        if arm != baseline
    ]
    if not marks:
        return None
    content = f"Paired difference of {scores.headline} to {baseline}, problem by problem"
    caption = (
        f"{content}: an interval that crosses the line at zero is a difference this run cannot "
        "tell from none."
    )
    return _dots(
        "differences",
        marks,
        "difference (percentage points)",
        f"Dot plot. {content}.",
        caption,
        signed=True,
    )


def difficulty_plot(scores: Scores) -> Picture | None:
    """Draw the headline pass@k by difficulty; None if every benchmark has only one."""
    marks = [
        _Mark(
            section=f"{benchmark}, {difficulty}",
            label=arm,
            style=style_of(scores, arm),
            value=scores.benchmarks[benchmark]
            .difficulties[difficulty]
            .arms[arm]
            .score[scores.headline],
            rows=words.rows(
                "answers",
                stage="generations",
                arm=arm,
                benchmark=benchmark,
                difficulty=difficulty,
            ),
        )
        for benchmark in scores.order.benchmarks
        for difficulty in scores.order.difficulties
        if difficulty in scores.benchmarks[benchmark].difficulties
        for arm in scores.order.arms
    ]
    if not marks:
        return None
    content = f"{scores.headline} by difficulty"
    caption = f"{_capital(content)}: fewer problems to a group, so wider intervals."
    return _dots(
        "difficulties", marks, f"{scores.headline} (%)", f"Dot plot of {content}.", caption
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:] if not text.startswith("pass@") else text


def _dots(
    name: str, marks: Sequence[_Mark], xlabel: str, alt: str, caption: str, *, signed: bool = False
) -> Picture:
    """Draw rows of points with intervals, under a heading for each section."""
    labels: list[str] = []
    headings: list[int] = []
    rows: list[tuple[int, _Mark]] = []
    for mark in marks:
        if not rows or rows[-1][1].section != mark.section:
            headings.append(len(labels))
            labels.append(short(mark.section))
        rows.append((len(labels), mark))
        labels.append(short(mark.label))
    figure, axes = canvas(0.55 + 0.235 * len(labels))
    for y, mark in rows:
        _dot(axes, y, mark)
    axes.set_yticks(range(len(labels)), labels)
    for y in headings:
        axes.get_yticklabels()[y].set_fontweight("bold")
    axes.set_ylim(len(labels) - 0.4, -0.6)
    # Differences over few problems are written as counts, and need no room on the axis.
    drawn = [mark.value for mark in marks if mark.value is not None and not _is_counted(mark.value)]
    _limits(axes, drawn, signed)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    values = " ".join(_in_words(mark) for mark in marks)
    bars = [Bar(y=y, label=_in_words(mark), rows=mark.rows) for y, mark in rows]
    return finish(name, figure, f"{alt} {values}", caption, bars)


def _is_counted(value: Score | Difference) -> bool:
    """Return True for a difference over few problems: it has counts, and no interval to draw."""
    return isinstance(value, Difference) and is_few(value.problems)


def _dot(axes: Axes, y: int, mark: _Mark) -> None:
    value = mark.value
    if value is None:
        axes.text(0, y, " no score", va="center", color=QUIET, style="italic")
        return
    if isinstance(value, Difference) and is_few(value.problems):
        axes.text(0, y, f" {words.tally(value)}", va="center", color=QUIET, style="italic")
        return
    color = COLORS[mark.style]
    marker = MARKERS[mark.style]
    low, middle, high = (100 * end for end in (value.low, value.estimate, value.high))
    axes.plot([low, high], [y, y], color=color, linewidth=2.2, alpha=0.55, solid_capstyle="butt")
    axes.plot([middle], [y], marker=marker, color=color, markersize=6, clip_on=False, zorder=3)
    digits = decimals(value.problems)
    if isinstance(value, Difference):
        text = points(value.estimate, digits)
    else:
        text = words.score(value) if is_few(value.problems) else rounded(middle, digits)
    axes.annotate(
        text,
        (high, y),
        (6, 0),
        textcoords="offset points",
        va="center",
        color=color,
        fontsize=8.5,
        fontweight="bold",
    )


def _limits(axes: Axes, values: Sequence[Score | Difference], signed: bool) -> None:
    """Set the limits of the axis: from zero for shares, around zero for differences.

    Both leave room for the number to the right of each interval.
    """
    low = min((100 * value.low for value in values), default=0.0)
    high = max((100 * value.high for value in values), default=0.0)
    if signed:
        axes.axvline(0, color=INK, linewidth=1.0)
        # At least 5 points, or tiny differences would fill the width.
        reach = max(-low, high, 5.0)
        axes.set_xlim(
            min(low, -0.15 * reach) - 0.05 * reach, max(high, 0.15 * reach) + 0.32 * reach
        )
    else:
        axes.set_xlim(0, max(high, 1.0) * 1.18)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))


def _in_words(mark: _Mark) -> str:
    """Return a row as a sentence, for the alternative text."""
    name = f"{mark.section}, {mark.label}"
    value = mark.value
    if value is None:
        return f"{name}: no score."
    if isinstance(value, Score):
        return f"{name}: {words.score(value)}, {words.score_range(value)}."
    if is_few(value.problems):
        return f"{name}: {words.tally(value)}."
    digits = decimals(value.problems)
    estimate, low, high = (
        points(share, digits) for share in (value.estimate, value.low, value.high)
    )
    return f"{name}: {estimate}, {low} to {high}."
