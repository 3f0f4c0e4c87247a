"""Pictures of a probe: changes by training, over entropy, top-20 mass and steps."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers, Signals
from ssd_ray.reporting.plots.canvas import COLORS, INK, MARKERS, WIDTH, Picture, canvas, finish
from ssd_ray.statistics.metrics import Interval

TYPE_COLORS = {"lock": "#0072B2", "two": "#B8BEC6", "fork": "#D55E00"}


def strata_plot(numbers: ProbeNumbers) -> Picture | None:
    """Draw the change of the entropy after truncation by the base's top-20 mass (Fig. 6d)."""
    if len(numbers.models) == 1:
        return None
    groups = numbers.views.top_masses
    figure, axes = canvas(0.9 + 0.3 * len(groups))
    student = numbers.models[-1]
    temperatures = numbers.settings.temperatures
    # The sweep need not hold the decoding of the student: the nearest temperature is drawn.
    place = min(
        range(len(temperatures)),
        key=lambda at: abs(temperatures[at] - numbers.settings.evaluation.temperature),
    )
    for y, group in enumerate(groups):
        change = group.models[student].curve_differences.get("truncated_entropy")
        if change is not None:
            _interval(axes, y, change.values[place], COLORS[1])
    axes.axvline(0, color=INK, linewidth=1.0)
    names = [f"{group.name} %".replace("and more %", "% and more") for group in groups]
    axes.set_yticks(range(len(groups)), names)
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
        ("change of p(S) (points)", "change of the entropy (nats)"),
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
    steps = [student.step or 0 for student in students]
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
    axes: Axes, steps: Sequence[int], rows: Sequence[Signals], name: str, number: int
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
