"""Pictures of a forecast: training settings, and diversity by temperature."""

from __future__ import annotations

from collections.abc import Mapping

from ssd_ray.reporting.numbers.forecast import ForecastDocument, own_cells
from ssd_ray.reporting.plots.canvas import COLORS, MARKERS, Picture, canvas, finish, style


def forecast_pictures(document: ForecastDocument) -> Mapping[str, Picture]:
    """Draw all pictures of a forecast, by name."""
    with style():
        return {each.name: each for each in (_loss_plot(document), _diversity_plot(document))}


def _loss_plot(document: ForecastDocument) -> Picture:
    """Draw the loss at the start and its floor by T_train."""
    figure, axes = canvas(2.5)
    cells = own_cells(document.outlook, document.train)
    temperatures = [cell.temperature for cell in cells]
    starts = [cell.start for cell in cells]
    floors = [cell.floor for cell in cells]
    axes.fill_between(temperatures, floors, starts, color=COLORS[1], alpha=0.13, linewidth=0)
    axes.plot(temperatures, starts, color=COLORS[1], marker=MARKERS[1], label="loss at the start")
    axes.plot(
        temperatures,
        floors,
        color=COLORS[0],
        marker=MARKERS[0],
        linestyle="--",
        label="floor: entropy of the samples",
    )
    # The recipe's choice among the T_train of the forecast.
    axes.axvline(document.train.temperature, color=COLORS[2], linewidth=0.8, linestyle=":")
    axes.set_xlabel("T_train")
    axes.set_ylabel("nats per token")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    figure.legend(loc="outside upper right", ncols=2, fontsize=8.0, handlelength=1.6)
    values = "; ".join(
        f"T_train {cell.temperature:g}: {cell.start:.3f} to {cell.floor:.3f}" for cell in cells
    )
    return finish(
        "forecast-loss",
        figure,
        f"Lines of the loss at the start and its floor by T_train, in nats. {values}.",
        "The room of a training: the loss can fall from the upper line towards the lower one. "
        "The dotted line is the recipe's T_train.",
    )


def _diversity_plot(document: ForecastDocument) -> Picture:
    """Draw entropy after the cut by T_eval, for the base and for each ideal student."""
    figure, axes = canvas(2.8)
    cells = own_cells(document.outlook, document.train)
    number = len(cells[0].student)
    curves = {"base": document.outlook.base[:number]}
    curves |= {f"T_train {cell.temperature:g}": cell.student for cell in cells}
    lines = []
    for place, (name, decoded) in enumerate(curves.items()):
        temperatures = [each.temperature for each in decoded]
        entropies = [each.entropy for each in decoded]
        axes.plot(
            temperatures,
            entropies,
            color=COLORS[place % len(COLORS)],
            linewidth=2.2 if name == "base" else 1.4,
            linestyle="--" if name == "base" else "-",
            marker=MARKERS[place % len(MARKERS)],
            markersize=3.5,
            label=name,
        )
        lines.append(f"{name}: {entropies[0]:.3f} to {entropies[-1]:.3f}")
    axes.set_xlabel("T_eval")
    axes.set_ylabel("entropy after the cut (nats)")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y")
    figure.legend(loc="outside upper right", ncols=3, fontsize=8.0, handlelength=1.6)
    return finish(
        "forecast-diversity",
        figure,
        f"Lines of the entropy after the cut by T_eval, in nats. {'; '.join(lines)}.",
        "Diversity after the evaluation's truncation. Where a student's line falls below the "
        "base's, training makes the model less diverse than decoding alone.",
    )
