"""Pictures of a probe: its models by rank, temperature and kind of token."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from ssd_ray.reporting.numbers.probe_groups import TYPES
from ssd_ray.reporting.numbers.probe_numbers import ProbeNumbers
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
from ssd_ray.reporting.plots.probe_change_plots import (
    TYPE_COLORS,
    course_plot,
    entropy_plot,
    strata_plot,
)

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
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
    yield kind_plot(numbers)
    yield entropy_plot(numbers)
    yield strata_plot(numbers)
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
            if curve.intervals is not None:
                # A logarithmic axis has no place for 0 and below.
                low = [max(each.low, 1e-12) for each in curve.intervals.values]
                high = [each.high for each in curve.intervals.values]
                axes.fill_between(ranks, low, high, color=COLORS[number], alpha=0.16, linewidth=0)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(1e-6, 1.5)
        _powers_of_ten(axes)
        axes.set_title(TYPE_WORDS[name], loc="left", fontsize=9.0, color=TYPE_COLORS_INK[name])
        axes.set_xlabel("rank of the token")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="both")
    panels[0].set_ylabel("mean probability")
    _legend(figure, panels[0])
    return finish(
        "ranks",
        figure,
        "Lines of the mean probability of the most likely tokens by rank, for each type of "
        f"position and for {', '.join(models)}.",
        "A lock is a spike with a long tail, a fork a plateau (Fig. 5 of the paper, for these "
        "models). Types are those of the base. Bands are 95 % intervals over problems.",
    )


TYPE_COLORS_INK = {"lock": "#0072B2", "two": INK, "fork": "#D55E00"}


def mass_plot(numbers: ProbeNumbers) -> Picture:
    """Draw the mass outside of the most likely tokens by rank (Fig. 6a)."""
    figure, axes = canvas(2.9)
    group = numbers.views.everything
    for number, model in enumerate(_shown(numbers)):
        means = group.models[model]
        outside = [max(1 - mass, 1e-9) for mass in means.curves["rank_mass"]]
        axes.plot(
            numbers.ranks,
            outside,
            color=COLORS[number],
            marker=MARKERS[number],
            markersize=4,
            linewidth=1.5,
            label=model,
        )
        if "rank_mass" in means.curve_differences:
            # The interval is that of the paired difference to the base's line.
            base = group.models[numbers.base].curves["rank_mass"]
            band = list(zip(base, means.curve_differences["rank_mass"].values, strict=True))
            least = [max(1 - start - each.high, 1e-9) for start, each in band]
            most = [max(1 - start - each.low, 1e-9) for start, each in band]
            axes.fill_between(
                numbers.ranks, least, most, color=COLORS[number], alpha=0.16, linewidth=0
            )
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    axes.set_ylim(10 ** np.floor(np.log10(low)), 10 ** np.ceil(np.log10(high)))
    _powers_of_ten(axes)
    axes.set_xlabel("rank")
    axes.set_ylabel("mass beyond this rank")
    axes.grid(axis="y")
    _legend(figure, axes)
    return finish(
        "mass",
        figure,
        f"Lines of the mean mass beyond a rank for {', '.join(_shown(numbers))}.",
        "Mean mass of all tokens after a rank, over all positions (Fig. 6a of the paper). "
        "Bands are 95 % intervals of the difference to the base.",
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
                band = list(zip(base.curves[name], own.curve_differences[name].values, strict=True))
                low = [start + each.low for start, each in band]
                high = [start + each.high for start, each in band]
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


def _powers_of_ten(axes: Axes) -> None:
    """Label powers of ten; matplotlib's own labels are formulas, which the style does not parse."""
    axes.yaxis.set_major_locator(LogLocator(10))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "10" + f"{np.log10(value):.0f}".translate(_SUPERSCRIPTS))
    )


def _legend(figure: Figure, axes: Axes) -> None:
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="outside upper right",
        ncols=4,
        fontsize=8.5,
        handlelength=1.4,
    )
