"""The charts of sweep.html: a value over T_eff, with its fit and the interval of the peak.

Pure functions of the contents of sweep.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ssd_ray.reporting.numbers.sweep_document import (
    CellValue,
    GroupFit,
    MetricSweep,
    SweepDocument,
)
from ssd_ray.reporting.plots.inline_svg import Dots, Drawing, Words, scatter
from ssd_ray.statistics.metrics import Interval
from ssd_ray.statistics.peaks import Curve

_COLORS = 7
_CURVE_POINTS = 60


def fit_charts(document: SweepDocument, measure: MetricSweep) -> Iterator[Drawing]:
    """Yield a chart for each fitted group of cells."""
    for group in measure.fits:
        chart = _chart(document, measure, group)
        if chart is not None:
            yield chart


def _chart(document: SweepDocument, measure: MetricSweep, group: GroupFit) -> Drawing | None:
    by_cell = {cell.cell: cell for cell in measure.cells}
    known = [by_cell[name] for name in group.cells if by_cell[name].value is not None]
    if not known:
        return None
    scale, unit = unit_of(measure.metric)
    curve: list[tuple[float, float]] = []
    # Without a fit, the points alone are drawn.
    if group.fit is not None:
        curve = _curve(group.fit.curve, scale)
    # Distributions have no best value: their curve is only a description.
    band = _peak(group) if document.measure == "answers" else None
    peak = "The line is a quadratic in T_eff."
    if band is not None:
        peak = f"Peak at {band.estimate:.2f}, {band.low:.2f} to {band.high:.2f}: the band."
    elif document.measure == "answers":
        peak = "No peak can be told."
    text = f"{group.group[:1].upper()}{group.group[1:]}. " if len(measure.fits) > 1 else ""
    return scatter(
        list(_dots(document, known, scale)),
        Words(
            x="T_eff = T_train × T_eval",
            y=unit,
            alt=f"{measure.metric} of {len(known)} cells over T_eff, {group.group}. {peak}",
            caption=f"{text}{peak}",
        ),
        curve,
        None if band is None else (band.low, band.high),
    )


def _peak(group: GroupFit) -> Interval | None:
    return None if group.fit is None else group.fit.peak.interval


def unit_of(metric: str) -> tuple[float, str]:
    """Return the factor in which a measure is drawn, and the text of its axis."""
    if metric.startswith("pass@"):
        return 100.0, f"{metric} (%)"
    # A legend follows the text, so it is short.
    return 1.0, "nats" if "nats" in metric else metric.split()[0]


def _curve(curve: Curve, scale: float) -> list[tuple[float, float]]:
    step = (curve.high - curve.low) / (_CURVE_POINTS - 1)
    xs = [curve.low + step * place for place in range(_CURVE_POINTS)]
    return [(x, scale * (curve.a + curve.b * x + curve.c * x**2)) for x in xs]


def _dots(document: SweepDocument, cells: Sequence[CellValue], scale: float) -> Iterator[Dots]:
    t_train = {row.name: row.t_train for row in document.rows}
    temperatures = sorted({t_train[cell.row] or 1.0 for cell in cells})
    for place, temperature in enumerate(temperatures):
        own = [cell for cell in cells if (t_train[cell.row] or 1.0) == temperature]
        values = [cell.value for cell in own if cell.value is not None]
        yield Dots(
            label=f"T_train {temperature:g}",
            xs=[cell.t_eff for cell in own],
            ys=[scale * value.estimate for value in values],
            intervals=[(scale * value.low, scale * value.high) for value in values],
            texts=[
                f"{cell.cell}: {scale * value.estimate:.3g} "
                f"({scale * value.low:.3g} to {scale * value.high:.3g})"
                for cell, value in zip(own, values, strict=True)
            ],
            color=1 + place % (_COLORS - 1),
        )
