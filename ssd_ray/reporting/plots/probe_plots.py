"""Pictures of a probe: ranks, temperatures, types, kinds, and the course of a training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from ssd_ray.reporting.numbers.probe_groups import TYPES, Group
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers, Signals
from ssd_ray.reporting.plots.canvas import (
    COLORS,
    INK,
    MARKERS,
    WIDTH,
    Picture,
    canvas,
    finish,
    style,
)
from ssd_ray.statistics.metrics import Interval

TYPE_COLORS = {"lock": "#0072B2", "two": "#B8BEC6", "fork": "#D55E00"}
TYPE_WORDS = {
    "lock": "locks: one token in S",
    "two": "two tokens in S",
    "fork": "forks: three or more",
}


def probe_pictures(numbers: ProbeNumbers) -> dict[str, Picture]:
    """Draw all pictures that the numbers allow, by name."""
    with style():
        return {picture.name: picture for picture in _pictures(numbers) if picture is not None}


def _pictures(numbers: ProbeNumbers) -> Iterator[Picture | None]:
    yield rank_plot(numbers)
    yield mass_plot(numbers)
    yield temperature_plot(numbers)
    yield strata_plot(numbers)
    yield kind_plot(numbers)
    yield entropy_plot(numbers)
    yield course_plot(numbers)


def _shown(numbers: ProbeNumbers) -> tuple[str, ...]:
    """Return the models to draw: all of a few, else the first and the last."""
    models = numbers.models
    return models if len(models) <= len(COLORS) else (models[0], models[-1])


def rank_plot(numbers: ProbeNumbers) -> Picture:
    """Draw the mean probability by rank, a panel for each type of position (Fig. 5)."""
    names = [name for name in TYPES if any(curve.type == name for curve in numbers.rank_curves)]
    figure = Figure(figsize=(2 * WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
    models = _shown(numbers)
    for axes, name in zip(panels, names, strict=True):
        for curve in numbers.rank_curves:
            if curve.type != name or curve.model not in models:
                continue
            number = models.index(curve.model)
            ranks = np.arange(1, len(curve.probabilities) + 1)
            axes.plot(
                ranks, curve.probabilities, color=COLORS[number], linewidth=1.7, label=curve.model
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 1.5)
        axes.set_title(TYPE_WORDS[name], loc="left", fontsize=9.0, color=TYPE_COLORS_INK[name])
        axes.set_xlabel("rank of the token")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.grid(axis="both")
    panels[0].set_ylabel("mean probability")
    _legend(figure, panels[0])
    return finish(
        "ranks",
        figure,
        "Lines of the mean probability of the most likely tokens by rank, for each type of "
        f"position and for {', '.join(models)}.",
        "A lock is a spike with a long tail, a fork a plateau (Fig. 5 of the paper, for these "
        "models). Types are those of the base.",
    )


TYPE_COLORS_INK = {"lock": "#0072B2", "two": INK, "fork": "#D55E00"}


def mass_plot(numbers: ProbeNumbers) -> Picture:
    """Draw the mass outside of the most likely tokens by rank (Fig. 6a)."""
    figure, axes = canvas(2.9)
    group = numbers.views.everything
    for number, model in enumerate(_shown(numbers)):
        outside = [max(1 - mass, 1e-9) for mass in group.models[model].curves["rank_mass"]]
        axes.plot(
            numbers.ranks,
            outside,
            color=COLORS[number],
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.5,
            label=model,
        )
    axes.set_yscale("log")
    axes.set_xlabel("rank")
    axes.set_ylabel("mass beyond this rank")
    axes.grid(axis="y")
    _legend(figure, axes)
    return finish(
        "mass",
        figure,
        f"Lines of the mean mass beyond a rank for {', '.join(_shown(numbers))}.",
        "Mean mass of all tokens after a rank, over all positions (Fig. 6a of the paper).",
    )


def temperature_plot(numbers: ProbeNumbers) -> Picture:
    """Draw survivors and entropy after truncation by temperature (Fig. 6b, 6c)."""
    figure = Figure(figsize=(2 * WIDTH, 2.9), layout="constrained")
    panels = figure.subplots(1, 2)
    group = numbers.views.everything
    temperatures = numbers.settings.temperatures
    base = group.models[numbers.base]
    for axes, name, label in zip(
        panels,
        ("survivors", "truncated_entropy"),
        ("tokens after truncation", "entropy after truncation (nats)"),
        strict=True,
    ):
        for number, model in enumerate(_shown(numbers)):
            own = group.models[model]
            axes.plot(
                temperatures,
                own.curves[name],
                color=COLORS[number],
                marker=MARKERS[number],
                markersize=4.5,
                linewidth=1.6,
                label=model,
            )
            if name in own.curve_differences:
                # The interval is that of the paired difference to the base's line.
                band = own.curve_differences[name].values
                low = [start + each.low for start, each in zip(base.curves[name], band, strict=True)]
                high = [
                    start + each.high for start, each in zip(base.curves[name], band, strict=True)
                ]
                axes.fill_between(
                    temperatures, low, high, color=COLORS[number], alpha=0.16, linewidth=0
                )
        axes.set_xlabel("evaluation temperature")
        axes.set_ylabel(label)
        axes.grid(axis="y")
    _legend(figure, panels[0])
    return finish(
        "temperatures",
        figure,
        "Lines of the tokens after truncation and of their entropy by evaluation temperature for "
        f"{', '.join(_shown(numbers))}.",
        "Decoding at other temperatures, without another forward pass (Fig. 6b and 6c). Bands are "
        "95 % intervals of the difference to the base.",
    )


def strata_plot(numbers: ProbeNumbers) -> Picture | None:
    """Draw the change of the entropy after truncation by the base's top-20 mass (Fig. 6d)."""
    if len(numbers.models) == 1:
        return None
    groups = numbers.views.top_masses
    figure, axes = canvas(0.9 + 0.3 * len(groups))
    student = numbers.models[-1]
    temperatures = numbers.settings.temperatures
    place = min(
        range(len(temperatures)),
        key=lambda at: abs(temperatures[at] - numbers.settings.evaluation.temperature),
    )
    for y, group in enumerate(groups):
        change = group.models[student].curve_differences.get("truncated_entropy")
        if change is not None:
            _interval(axes, y, change.values[place], COLORS[1])
    axes.axvline(0, color=INK, linewidth=1.0)
    axes.set_yticks(range(len(groups)), [f"{group.name} %" for group in groups])
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.set_xlabel(f"change of the entropy after truncation at T {temperatures[place]:g} (nats)")
    axes.set_ylabel("mass of the base's top 20")
    axes.grid(axis="x")
    return finish(
        "strata",
        figure,
        "Dot plot of the change of the entropy after truncation by the mass of the base's 20 most "
        "likely tokens.",
        f"{student} minus base within bins of the base's top-20 mass (Fig. 6d), 95 % intervals.",
    )


def kind_plot(numbers: ProbeNumbers) -> Picture:
    """Draw the shares of locks and forks within each kind of token."""
    kinds = sorted(numbers.kind_types, key=lambda name: -numbers.kind_types[name][0])
    figure, axes = canvas(0.8 + 0.3 * len(kinds))
    left = np.zeros(len(kinds))
    for number, name in enumerate(TYPES):
        shares = np.array([100 * numbers.kind_types[kind][number] for kind in kinds])
        axes.barh(
            range(len(kinds)),
            shares,
            left=left,
            height=0.72,
            color=TYPE_COLORS[name],
            label=TYPE_WORDS[name],
        )
        left += shares
    axes.set_yticks(range(len(kinds)), kinds)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the positions (%)")
    axes.spines["left"].set_visible(False)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper center",
        ncols=3,
        fontsize=8.0,
        handlelength=1.0,
        columnspacing=1.0,
    )
    return finish(
        "kinds",
        figure,
        "Stacked bars of the shares of locks and forks by kind of token.",
        "Locks and forks of the base by the kind of the token that is there.",
    )


def entropy_plot(numbers: ProbeNumbers) -> Picture | None:
    """Draw the change of mass and entropy over tenths of the base's entropy."""
    if len(numbers.models) == 1:
        return None
    student = numbers.models[-1]
    groups = numbers.views.entropies
    figure = Figure(figsize=(2 * WIDTH, 2.7), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, name, factor, label in zip(
        panels,
        ("kept_mass", "entropy"),
        (100.0, 1.0),
        ("change of the mass of S (points)", "change of the entropy (nats)"),
        strict=True,
    ):
        for x, group in enumerate(groups):
            change = group.models[student].differences.get(name)
            if change is not None:
                color = TYPE_COLORS["fork"] if change.estimate > 0 else TYPE_COLORS["lock"]
                ends = [factor * change.low, factor * change.high]
                axes.plot([x, x], ends, color=color, linewidth=2.2, alpha=0.5)
                axes.plot([x], [factor * change.estimate], marker="o", color=color, markersize=5)
        axes.axhline(0, color=INK, linewidth=1.0)
        axes.set_xticks(range(len(groups)), [group.name for group in groups], rotation=35)
        axes.tick_params(axis="x", labelsize=7.0)
        axes.set_xlabel("entropy of the base (nats), by tenths of the positions")
        axes.set_ylabel(label)
        axes.grid(axis="y")
    return finish(
        "entropies",
        figure,
        "Dots with intervals of the change of the mass of S and of the entropy over tenths of the "
        "base's entropy.",
        f"{student} minus base without any threshold: over the entropy of the base, 95 % "
        "intervals.",
    )


def course_plot(numbers: ProbeNumbers) -> Picture | None:
    """Draw the signals of progress by step; None unless there are several steps."""
    students = [student for student in numbers.students if student.step is not None]
    if len(students) < 2:
        return None
    figure = Figure(figsize=(2 * WIDTH, 2.7), layout="constrained")
    panels = figure.subplots(1, 2)
    steps = [student.step for student in students]
    first = [student.signals[0] for student in students]
    for name, number in (("gap_closed", 1), ("tail_removed", 3)):
        _line(panels[0], steps, first, name, number)
    panels[0].set_ylabel("share")
    panels[0].legend(fontsize=8.0)
    _line(panels[1], steps, first, "temperature_reached", 2)
    wanted = numbers.settings.training.temperature
    panels[1].axhline(wanted, color=INK, linestyle="--", linewidth=1.0)
    panels[1].set_ylabel("temperature reached; dashed: T_train")
    for axes in panels:
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.grid(axis="y")
    return finish(
        "course",
        figure,
        "Lines of gap closed, tail removed and temperature reached by step.",
        "The course of the training, at the same positions: 95 % intervals over problems.",
    )


def _line(
    axes: Axes, steps: Sequence[int | None], rows: Sequence[Signals], name: str, number: int
) -> None:
    points = [
        (step, value)
        for step, row in zip(steps, rows, strict=True)
        if (value := getattr(row, name)) is not None
    ]
    x = [step for step, _ in points]
    color = COLORS[number]
    axes.plot(
        x,
        [value.estimate for _, value in points],
        color=color,
        marker=MARKERS[number],
        markersize=4.5,
        label=name.replace("_", " "),
    )
    axes.fill_between(
        x,
        [value.low for _, value in points],
        [value.high for _, value in points],
        color=color,
        alpha=0.15,
        linewidth=0,
    )


def _interval(axes: Axes, y: float, value: Interval, color: str) -> None:
    axes.plot([value.low, value.high], [y, y], color=color, linewidth=2.2, alpha=0.5)
    axes.plot([value.estimate], [y], marker="o", color=color, markersize=5.5)


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper right",
        ncols=4,
        fontsize=8.5,
        handlelength=1.4,
    )
    axes.xaxis.set_minor_formatter(NullFormatter())
