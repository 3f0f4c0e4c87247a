"""Findings of a sweep in words: gains without luck, the peak over T_eff, its warnings.

Pure functions of the contents of sweep.json.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from ssd_ray.reporting.numbers.sweep_document import (
    GroupFit,
    Luck,
    MetricSweep,
    Paired,
    Row,
    SweepDocument,
)
from ssd_ray.reporting.words import NBSP, counted, points
from ssd_ray.statistics.differences import MIN_PROBLEMS
from ssd_ray.statistics.metrics import Interval
from ssd_ray.statistics.peaks import FEW, Fit

REJECTED = 0.05
"""p of a test below which its hypothesis is rejected."""
_CONTROLS = {"base": "the base", "naive": "the students at T_train 1 without truncation"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One answer of a sweep."""

    where: str
    """Question or subject."""
    what: str
    note: str
    warns: bool = False


def findings(document: SweepDocument) -> Iterator[Finding]:
    """Yield the findings of every benchmark, by its first measure."""
    if document.measure == "probe":
        yield from probe_findings(document)
        return
    for benchmark, measures in document.sets.items():
        measure = measures[0]
        where = f"{benchmark}, {measure.metric}"
        for luck in measure.luck:
            yield _gain(luck, where)
        for group in measure.fits:
            yield _peak(group, where, measure)


def probe_findings(document: SweepDocument) -> Iterator[Finding]:
    """Yield the temperature that each student reached, and how far values follow T_eff."""
    for effective, *measures in document.sets.values():
        rows = {row.name: row for row in document.rows}
        t_eval = {column.name: column.temperature for column in document.columns}
        for name in dict.fromkeys(cell.row for cell in effective.cells):
            # Decoded at T_eval, the temperature is that many times as high.
            cell = next(each for each in effective.cells if each.row == name)
            yield _reached(rows[name], cell.value, t_eval[cell.column or ""])
        for measure in measures:
            for group in measure.fits:
                yield _follows(group, measure)


def _reached(row: Row, value: Interval | None, t_eval: float) -> Finding:
    where = f"{row.name}: temperature reached by training"
    if value is None:
        return Finding(
            where=where,
            what="No temperature: the student is no tempering of the base.",
            note=f"Its samples had T_train {row.t_train:g}.",
            warns=True,
        )
    at, low, high = (end / t_eval for end in (value.estimate, value.low, value.high))
    return Finding(
        where=where,
        what=f"{at:.3f} ({low:.3f} to {high:.3f})",
        note=(
            f"Its samples had T_train {row.t_train:g}. Decoded at T_eval, its temperature is "
            "T_eval times this number."
        ),
        warns=False,
    )


def _follows(group: GroupFit, measure: MetricSweep) -> Finding:
    """Return how far a value depends on T_eff alone."""
    where = f"{measure.metric} over T_eff, {group.group}"
    if group.fit is None:
        return Finding(where=where, what="No fit.", note=f"{group.refused}.", warns=True)
    fit = group.fit
    explained = "none, all cells are equal"
    if fit.curve.r2 is not None:
        explained = f"{fit.curve.r2:.3f}"
    return Finding(
        where=where,
        what=f"R² of a quadratic in T_eff: {explained}.",
        note=" ".join(
            [
                f"{counted(fit.curve.cells, 'cell')} at {fit.curve.temperatures} T_eff.",
                # The scatter of exact values is rounding, so it tests no fit.
                *_tests(replace(fit, lack_of_fit=None)),
            ]
        ),
    )


def _gain(luck: Luck, where: str) -> Finding:
    control = _CONTROLS[luck.control]
    chosen = luck.chosen
    if chosen.reading == "too few problems":
        return Finding(
            where=f"{where}: gain over {control}",
            what="Too few problems for a gain.",
            note=f"A gain needs {MIN_PROBLEMS} problems with a value in every cell.",
            warns=True,
        )
    reading = {
        "higher": "A gain",
        "lower": "A loss",
        "cannot tell": "No gain can be told from chance",
    }[chosen.reading]
    return Finding(
        where=f"{where}: gain over {control}",
        what=f"{reading}: {points(chosen.estimate)} points ({span(chosen)}).",
        note=(
            f"Cells are chosen on other problems. The best cell, {luck.best_cell}, is "
            f"{points(luck.best)} points above {luck.control_cell}; {points(luck.luck)} of them "
            "are luck."
        ),
        warns=chosen.reading == "lower",
    )


def _peak(group: GroupFit, where: str, measure: MetricSweep) -> Finding:
    where = f"{where}: peak over T_eff, {group.group}"
    if group.fit is None:
        return Finding(where=where, what="No fit.", note=f"{group.refused}.", warns=True)
    fit = group.fit
    # Warnings come first: they decide if the peak is a finding.
    warnings = list(peak_warnings(fit))
    explained = "" if fit.curve.r2 is None else f"R² {fit.curve.r2:.2f}. "
    notes = [f"{explained}{counted(fit.curve.cells, 'cell')} at {fit.curve.temperatures} T_eff."]
    interval = fit.peak.interval
    if interval is None:
        what = "No peak can be told from these cells."
    else:
        at = f"{interval.estimate:.2f} ({interval.low:.2f} to {interval.high:.2f})"
        # Beyond the cells, the fit is an extrapolation.
        within = fit.peak.inside and fit.peak.interval_inside
        what = f"T_eff {at}." if within else f"No peak within the cells: the fit has it at {at}."
    return Finding(
        where=where,
        what=what,
        note=" ".join([*warnings, *notes, *_tests(fit)]),
        warns=bool(warnings),
    )


def peak_warnings(fit: Fit) -> Iterator[str]:
    """Yield the reasons for which a peak is no finding."""
    peak, curve = fit.peak, fit.curve
    if peak.interval is None:
        reason = "has no maximum" if curve.peak is None else "may as well have none"
        yield f"The fit {reason}: values do not rise and fall over T_eff."
        return
    if not peak.inside:
        yield (
            f"The peak lies outside of the cells, whose T_eff are {curve.low:g} to {curve.high:g}."
        )
    elif not peak.interval_inside:
        yield f"Its interval leaves the cells, whose T_eff are {curve.low:g} to {curve.high:g}."
    if peak.rests_on is not None and peak.rests_on <= FEW * curve.cells:
        end = "largest" if peak.rests_above else "smallest"
        yield (
            f"It rests on {peak.rests_on} of {curve.cells} cells: without those of the {end} "
            "T_eff, the fit has no peak inside."
        )


def _tests(fit: Fit) -> Iterator[str]:
    if fit.agreement is not None:
        differ = "differ" if fit.agreement.p_value < REJECTED else "do not differ beyond chance"
        yield (
            f"Cells of equal T_eff {differ} (p {fit.agreement.p_value:.3f}, "
            f"{fit.agreement.groups} T_eff)."
        )
    if fit.lack_of_fit is not None:
        lacks = "is rejected" if fit.lack_of_fit.p_value < REJECTED else "is not rejected"
        yield f"The quadratic {lacks} by their scatter (p {fit.lack_of_fit.p_value:.3f})."
    if fit.surface is not None and fit.surface.r2_adjusted is not None:
        at = ""
        if fit.surface.t_train is not None and fit.surface.t_eval is not None:
            at = f", with a peak at {fit.surface.t_train:.2f} and {fit.surface.t_eval:.2f}"
        yield (
            f"A quadratic in T_train and T_eval has an adjusted R² of "
            f"{fit.surface.r2_adjusted:.2f}, that in T_eff one of {fit.curve.r2_adjusted:.2f}{at}."
        )


def span(value: Interval | Paired) -> str:
    """Format the interval of a difference in points: `−1.2 to +3.4`."""
    return f"{points(value.low)}{NBSP}to{NBSP}{points(value.high)}"
