"""The two pictures of data health: weights of the classes, and lengths of the answers.

Pure functions of the `health` facts of a data set (`training/data/health.py`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ssd_ray.artifacts.dataset_facts import HealthCounts
from ssd_ray.quantities import magnitude
from ssd_ray.reporting.plots.canvas import (
    COLORS,
    INK,
    PAPER,
    QUIET,
    RULE,
    WIDTH,
    Picture,
    canvas,
    finish,
    style,
)
from ssd_ray.reporting.words import count, percent, plain

GROUP_COLORS = {
    "none of these": "#0072B2",
    "no_code": "#56B4E9",
    "empty or stub": "#B8BEC6",
    "cut_off": "#E69F00",
    "loop": "#D55E00",
}
"""Drawn from the bottom to the top."""


def health_pictures(health: HealthCounts) -> dict[str, Picture]:
    """Draw both figures, by name."""
    with style():
        return {picture.name: picture for picture in (class_plot(health), token_plot(health))}


def shares(health: HealthCounts, name: str) -> tuple[float, float]:
    """Return the shares of a class of the answers and of all sampled tokens."""
    members = health.classes[name]
    return members.rows / health.rows, members.tokens / max(health.tokens, 1)


def class_plot(health: HealthCounts) -> Picture:
    """Draw the shares of each class of the answers and of the tokens, a line between them."""
    rows = [(name, *shares(health, name)) for name in health.classes]
    figure, axes = canvas(0.85 + 0.34 * len(rows))
    for place, (_, answers, tokens) in enumerate(rows):
        axes.plot(
            [100 * answers, 100 * tokens],
            [place, place],
            color=RULE,
            linewidth=3,
            solid_capstyle="round",
            zorder=1,
        )
    places = range(len(rows))
    of_answers = [100 * answers for _, answers, _ in rows]
    of_tokens = [100 * tokens for _, _, tokens in rows]
    for shares_of, color, marker, label in (
        (of_answers, COLORS[0], "o", "of the answers"),
        (of_tokens, COLORS[2], "D", "of the tokens"),
    ):
        axes.scatter(shares_of, places, s=42, zorder=2, color=color, marker=marker, label=label)
    farthest = max(1.0, *of_answers, *of_tokens)
    for place, (_, answers, tokens) in enumerate(rows):
        end = 100 * max(answers, tokens) + 0.035 * farthest
        label = f"{percent(answers)} → {percent(tokens)}" if answers or tokens else "none"
        axes.text(end, place, label, va="center", fontsize=8.0, color=INK if answers else QUIET)
    axes.set_yticks(places, [plain(name) for name, *_ in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(-0.02 * farthest, 1.34 * farthest)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axes.set_xlabel("share (%)")
    axes.grid(axis="x")
    axes.spines["left"].set_visible(False)
    figure.legend(
        loc="outside upper right", ncols=2, fontsize=8.5, handletextpad=0.2, columnspacing=1.2
    )
    values = "; ".join(
        f"{plain(name)}: {percent(answers)} of the answers, {percent(tokens)} of the tokens"
        for name, answers, tokens in rows
    )
    caption = (
        "Weight of each class: its share of the answers, and its share of the tokens that training "
        "would see."
    )
    return finish("classes", figure, f"Dot plot. {values}.", caption)


def token_plot(health: HealthCounts) -> Picture:
    """Draw answers by length above and their tokens below, on one logarithmic axis."""
    lengths = health.lengths
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    # A logarithmic axis has no zero: empty answers are drawn next to one token.
    edges = [max(edge, 0.75) for edge in lengths.edges]
    for axes, groups, unit in (
        (above, lengths.counts, "answers"),
        (below, lengths.tokens, "tokens"),
    ):
        _stack(axes, edges, groups)
        axes.set_ylabel(unit)
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _place: magnitude(value)))
        axes.grid(axis="y")
    below.set_xscale("log", base=2)
    # At most ten powers of two as ticks, or the labels overlap.
    first = lengths.edges[0]
    last = lengths.edges[-1]
    powers = [2**power for power in range(64) if first <= 2**power <= last]
    below.xaxis.set_major_locator(FixedLocator(powers[:: 1 + len(powers) // 9] or [max(first, 1)]))
    below.xaxis.set_minor_locator(NullLocator())
    below.xaxis.set_major_formatter(FuncFormatter(lambda value, _place: magnitude(value)))
    below.set_xlabel("answer tokens")
    present = [group for group in GROUP_COLORS if any(lengths.counts[group])]
    handles, labels = above.get_legend_handles_labels()
    chosen = [
        (handle, label)
        for handle, label in zip(handles, labels, strict=True)
        if label in map(plain, present)
    ]
    figure.legend(
        *zip(*chosen, strict=True),
        loc="outside upper right",
        ncols=len(chosen),
        fontsize=8.5,
        handlelength=1.0,
    )
    values = "; ".join(
        f"{plain(group)}: {count(sum(lengths.counts[group]))} answers, "
        f"{count(sum(lengths.tokens[group]))} tokens"
        for group in present
    )
    caption = (
        f"Above, answers by length; below, their tokens. Median {count(lengths.p50)}, longest "
        f"{count(lengths.max)}. An answer counts once, in the topmost of its classes."
    )
    return finish(
        "health-lengths", figure, f"Two histograms over length in tokens. {values}.", caption
    )


def _stack(axes: Axes, edges: list[float], groups: Mapping[str, Sequence[int]]) -> None:
    widths = [end - begin for begin, end in itertools.pairwise(edges)]
    bottoms = [0.0] * len(widths)
    for group, color in GROUP_COLORS.items():
        heights = groups[group]
        axes.bar(
            edges[:-1],
            heights,
            width=widths,
            bottom=bottoms,
            align="edge",
            color=color,
            edgecolor=PAPER,
            linewidth=0.4,
            label=plain(group),
        )
        bottoms = [bottom + height for bottom, height in zip(bottoms, heights, strict=True)]
