"""The sweep: the score of every model over the temperatures that it was decoded at, with bands for the intervals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_ray.reporting.plots.canvas import COLORS, MARKERS, WIDTH, Picture, finish, style_of
from ssd_ray.reporting.words import percent, score

TEACHER = "teacher"


def sweep_plot(scores: Mapping[str, Any]) -> Picture | None:
    """Headline pass@k by temperature, a panel a benchmark; None where nothing was swept."""
    families = scores["families"]
    if not families:
        return None
    benchmarks = scores["order"]["benchmarks"]
    figure = Figure(figsize=(WIDTH, 0.35 + 2.15 * len(benchmarks)), layout="constrained")
    panels = figure.subplots(len(benchmarks), 1, squeeze=False)[:, 0]
    told = []
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        arms = scores["benchmarks"][benchmark]["all"]["arms"]
        for name, points in families.items():
            told.append(f"{benchmark}, {name}: {_drawn(axes, scores, name, points, arms)}")
        if TEACHER in scores["arms"] and arms[TEACHER]["score"][scores["headline"]]:
            _teacher(axes, scores, arms[TEACHER]["score"][scores["headline"]])
        axes.set_title(benchmark, loc="left", fontsize=9.0, fontweight="bold")
        axes.set_ylabel(f"{scores['headline']} (%)")
        axes.set_ylim(bottom=_floor(scores, benchmark))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
    panels[-1].set_xlabel("evaluation temperature")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=4, fontsize=8.5, handlelength=1.4
    )
    what = f"{scores['headline']} by evaluation temperature with {percent(scores['confidence'], 0)} intervals"
    caption = f"{what}. The peaks are selected on these problems; the gain with temperatures chosen on other problems is not."
    return finish("sweep", figure, f"Line plot of {what}. {'; '.join(told)}.", caption)


def _floor(scores: Mapping[str, Any], benchmark: str) -> float:
    """Ten percent or so below the lowest interval, and never below zero."""
    arms = scores["benchmarks"][benchmark]["all"]["arms"].values()
    lows = [100 * found["low"] for arm in arms if (found := arm["score"][scores["headline"]])]
    return max(0.0, 10 * ((min(lows, default=0.0) - 2) // 10))


def _drawn(
    axes: Axes, scores: Mapping[str, Any], name: str, points: list[str], arms: Mapping[str, Any]
) -> str:
    """Draw one model's line and band; returns what it shows."""
    known = [
        (scores["arms"][arm]["temperature"], found)
        for arm in points
        if (found := arms[arm]["score"][scores["headline"]])
    ]
    style = style_of(scores, points[0])
    temperatures = [temperature for temperature, _ in known]
    low, middle, high = (
        [100 * found[key] for _, found in known] for key in ("low", "estimate", "high")
    )
    axes.fill_between(temperatures, low, high, color=COLORS[style], alpha=0.13, linewidth=0)
    axes.plot(
        temperatures,
        middle,
        color=COLORS[style],
        marker=MARKERS[style],
        markersize=5,
        linewidth=1.6,
        label=name,
    )
    return ", ".join(f"T {t:g} {score(found)}" for t, found in known) or "no score"


def _teacher(axes: Axes, scores: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    temperature = scores["arms"][TEACHER]["temperature"]
    place = style_of(scores, TEACHER)
    span = [[100 * (found["estimate"] - found["low"])], [100 * (found["high"] - found["estimate"])]]
    axes.errorbar(
        [temperature],
        [100 * found["estimate"]],
        yerr=span,
        color=COLORS[place],
        marker=MARKERS[place],
        linestyle="",
        label=TEACHER,
    )
