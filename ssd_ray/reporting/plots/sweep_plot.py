"""The picture of a sweep: scores of every model by evaluation temperature, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_ray.reporting.numbers.scores import Scores
from ssd_ray.reporting.numbers.tables import ArmTable
from ssd_ray.reporting.plots.canvas import COLORS, MARKERS, WIDTH, Picture, finish, style_of
from ssd_ray.reporting.words import percent, score
from ssd_ray.statistics.metrics import Score

TEACHER = "teacher"


def sweep_plot(scores: Scores) -> Picture | None:
    """Draw headline pass@k by temperature, a panel for each benchmark; None without a sweep."""
    families = scores.families
    if not families:
        return None
    benchmarks = scores.order.benchmarks
    figure = Figure(figsize=(WIDTH, 0.35 + 2.15 * len(benchmarks)), layout="constrained")
    panels = figure.subplots(len(benchmarks), 1, squeeze=False)[:, 0]
    lines = []
    for axes, benchmark in zip(panels, benchmarks, strict=True):
        arms = scores.benchmarks[benchmark].all.arms
        for name, points in families.items():
            lines.append(f"{benchmark}, {name}: {_draw(axes, scores, name, points, arms)}")
        # The teacher has one temperature, that of sampling: a point, not a line.
        if TEACHER in scores.arms and (value := arms[TEACHER].score[scores.headline]):
            _teacher(axes, scores, value)
        axes.set_title(benchmark, loc="left", fontsize=9.0, fontweight="bold")
        axes.set_ylabel(f"{scores.headline} (%)")
        axes.set_ylim(bottom=_floor(scores, benchmark))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
        axes.grid(axis="y")
    panels[-1].set_xlabel("evaluation temperature")
    # One legend serves all panels: they show the same models.
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper right", ncols=4, fontsize=8.5, handlelength=1.4
    )
    content = (
        f"{scores.headline} by evaluation temperature with {percent(scores.confidence, 0)} "
        "intervals"
    )
    caption = (
        f"{content}. The peaks are selected on these problems; the gain with temperatures chosen "
        "on other problems is not."
    )
    return finish("sweep", figure, f"Line plot of {content}. {'; '.join(lines)}.", caption)


def _floor(scores: Scores, benchmark: str) -> float:
    """Return the multiple of 10 % below the lowest interval, at least zero."""
    arms = scores.benchmarks[benchmark].all.arms.values()
    lows = [100 * value.low for arm in arms if (value := arm.score[scores.headline])]
    return max(0.0, 10 * ((min(lows, default=0.0) - 2) // 10))


def _draw(
    axes: Axes, scores: Scores, name: str, points: Sequence[str], arms: Mapping[str, ArmTable]
) -> str:
    """Draw the line and band of a model, and return them in words."""
    known = [
        (scores.arms[arm].temperature, value)
        for arm in points
        if (value := arms[arm].score[scores.headline])
    ]
    style = style_of(scores, points[0])
    temperatures = [temperature for temperature, _ in known]
    low = [100 * value.low for _, value in known]
    middle = [100 * value.estimate for _, value in known]
    high = [100 * value.high for _, value in known]
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
    return ", ".join(f"T {t:g} {score(value)}" for t, value in known) or "no score"


def _teacher(axes: Axes, scores: Scores, value: Score) -> None:
    temperature = scores.arms[TEACHER].temperature
    place = style_of(scores, TEACHER)
    below = 100 * (value.estimate - value.low)
    above = 100 * (value.high - value.estimate)
    axes.errorbar(
        [temperature],
        [100 * value.estimate],
        yerr=[[below], [above]],
        color=COLORS[place],
        marker=MARKERS[place],
        linestyle="",
        label=TEACHER,
    )
