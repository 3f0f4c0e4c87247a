"""Pictures of the held-out measurements of a training, by step."""

from __future__ import annotations

import math

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_ray.reporting.numbers.logs import Series
from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.plots.canvas import COLORS, PAPER, QUIET, WIDTH, Picture, canvas, finish


def progress_plot(scores: Scores) -> Picture | None:
    """Draw the signals of progress by step; None if they were not measured."""
    columns = scores.training.held_out
    if columns is None:
        return None
    shares = {"gap closed": columns.gap_closed, "tail removed": columns.tail_removed}
    known = {name: values for name, values in shares.items() if _has_number(values)}
    reached = columns.temperature_reached
    if not known and not _has_number(reached):
        return None
    figure = Figure(figsize=(WIDTH, 2.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for (name, values), color in zip(known.items(), (COLORS[1], COLORS[5]), strict=False):
        heights = [100 * height for height in _heights(values or ())]
        left.plot(columns.step, heights, color=color, linewidth=1.6, label=name)
    _by_step(left, "share of the way (%)")
    left.axhline(0, color=QUIET, linewidth=0.8)
    if _has_number(reached):
        heights = _heights(reached or ())
        right.plot(columns.step, heights, color=COLORS[2], linewidth=1.6, label="reached")
    if columns.sampling_temperature is not None:
        right.axhline(
            columns.sampling_temperature,
            color=COLORS[0],
            linewidth=1.2,
            linestyle="--",
            label="T_train",
        )
    _by_step(right, "temperature")
    for axes in (left, right):
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8.0, handlelength=1.4)
    words = ", ".join(
        [f"{name} from {_ends(values)}" for name, values in known.items() if values]
        + ([f"temperature reached from {_ends(reached)}"] if reached else [])
    )
    caption = (
        "Progress on held-out samples. Left: the base is at 0 and the distribution of the samples "
        "at 100. Right: the temperature of the base that fits the model best."
    )
    return finish("progress", figure, f"Lines of the signals of progress: {words}.", caption)


def likelihood_plot(scores: Scores) -> Picture | None:
    """Draw the held-out likelihood, its expectation and their floor; None without held-out data."""
    columns = scores.training.held_out
    if columns is None:
        return None
    figure, axes = canvas(2.6)
    steps = columns.step
    axes.plot(
        steps,
        _heights(columns.nll),
        color=COLORS[1],
        linewidth=1.6,
        label="negative log-likelihood",
    )
    axes.plot(
        steps,
        _heights(columns.cross_entropy),
        color=COLORS[5],
        linewidth=1.4,
        label="its expectation",
    )
    axes.plot(
        steps,
        _heights(columns.floor),
        color=COLORS[0],
        linewidth=1.2,
        linestyle="--",
        label="floor: sampling entropy",
    )
    _by_step(axes, "nats per token")
    axes.set_ylim(bottom=0)
    figure.legend(
        loc="outside upper right", ncols=3, fontsize=8.0, handlelength=1.4, columnspacing=1.2
    )
    alt = (
        f"Lines of the negative log-likelihood of {columns.tokens} held-out tokens, from "
        f"{_ends(columns.nll)} nats, its expectation, from {_ends(columns.cross_entropy)}, "
        f"and the floor at {_nats(columns.floor[-1])}."
    )
    caption = (
        "Samples kept out of training: no model has a lower value on them, on average, than the "
        "entropy of the distribution that they were drawn from."
    )
    return finish("likelihood", figure, alt, caption)


def drift_plot(scores: Scores) -> Picture | None:
    """Draw the distance to the base by step; None without held-out data."""
    columns = scores.training.held_out
    if columns is None:
        return None
    figure, axes = canvas(2.2)
    axes.plot(columns.step, _heights(columns.kl_to_base), color=COLORS[2], linewidth=1.6)
    _by_step(axes, "KL to the base (nats)")
    axes.set_ylim(bottom=0)
    alt = (
        "Line of the divergence from the base at held-out positions, from "
        f"{_ends(columns.kl_to_base)} nats."
    )
    return finish(
        "drift",
        figure,
        alt,
        "Distance of the model from the base, over the full vocabulary.",
    )


def entropy_plot(scores: Scores) -> Picture | None:
    """Draw the entropy by step as the sum of three parts; None without held-out data."""
    columns = scores.training.held_out
    if columns is None:
        return None
    figure, axes = canvas(2.6)
    parts = {
        "entropy_head": "within the support",
        "entropy_gate": "in or out of it",
        "entropy_tail": "outside of it",
    }
    colors = [COLORS[1], COLORS[5], COLORS[4]]
    axes.stackplot(
        columns.step,
        *(_heights(getattr(columns, name)) for name in parts),
        labels=list(parts.values()),
        colors=colors,
        edgecolor=PAPER,
        linewidth=0.6,
    )
    _by_step(axes, "entropy (nats)")
    figure.legend(
        loc="outside upper right", ncols=3, fontsize=8.0, handlelength=1.0, columnspacing=1.2
    )
    ranges = ", ".join(f"{label} {_ends(getattr(columns, name))}" for name, label in parts.items())
    alt = (
        "Stacked areas of the model's entropy at held-out positions, from "
        f"{_ends(columns.entropy)} nats: {ranges}."
    )
    caption = (
        "The model's entropy in three parts: within the tokens that sampling could draw (the "
        "support), of being in or out of them, and outside of them."
    )
    return finish("entropy", figure, alt, caption)


def _by_step(axes: Axes, ylabel: str) -> None:
    axes.set_xlabel("step")
    axes.set_ylabel(ylabel)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.grid(axis="y")


def _has_number(values: Series | None) -> bool:
    return any(value is not None for value in values or ())


def _ends(values: Series) -> str:
    return f"{_nats(values[0])} to {_nats(values[-1])}"


def _nats(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.3f}"


def _heights(values: Series) -> list[float]:
    """Return a series to draw, with gaps for None."""
    return [math.nan if value is None else value for value in values]
