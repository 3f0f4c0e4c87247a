"""Numbers of a sweep of distributions, from sums over the positions of each problem.

- A value of a problem is its mean over positions, and that of a cell the mean over problems.
- The effective temperature of a cell is the one of the base, on the support of the samples, that is
  nearest to the student at T_eval. By theory it is T_train T_eval.

Reads and writes sums.json of a student.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from ssd_ray.artifacts import files
from ssd_ray.config import Decoding
from ssd_ray.recipes.cells import Cell, decoding_name
from ssd_ray.recipes.sweeps import Design
from ssd_ray.reporting.numbers.json_bytes import canonical, plain
from ssd_ray.reporting.numbers.sweep_document import (
    CellValue,
    MetricSweep,
    Paired,
    SweepDocument,
)
from ssd_ray.reporting.numbers.sweep_numbers import document, fits
from ssd_ray.statistics.differences import Reading
from ssd_ray.statistics.means import jackknife_interval, ratio_interval
from ssd_ray.statistics.metrics import Interval, Values

ENTROPY = "entropy after the cut (nats)"
SURVIVORS = "survivors"
DISTANCE = "distance to the ideal student"
EFFECTIVE = "effective temperature"
_MEANS = {ENTROPY: (0, 2), SURVIVORS: (1, 3), DISTANCE: (6, 7)}
"""Columns of student and base behind each mean (`analysis.sweep_measures.COLUMNS`)."""
_ROUNDING = 1e-5
PLACE = "held-out answers of the base"


@dataclass(frozen=True, kw_only=True)
class ProbeSums:
    """Contents of sums.json: sums over the positions of each problem."""

    problems: tuple[str, ...]
    positions: tuple[float, ...]
    decoded: tuple[tuple[tuple[float, ...], ...], ...]
    """By problem, decoding and column."""
    progress: tuple[tuple[float, ...], ...]
    """Summands of the signals of progress, by problem."""


def sums_text(sums: ProbeSums) -> str:
    """Return the text of sums.json."""
    return canonical(plain(sums)) + "\n"


def read_sums(path: Path) -> ProbeSums:
    """Read a sums.json."""
    return TypeAdapter(ProbeSums).validate_python(files.read_json(path))


def of_probes(design: Design, sums: Mapping[str, ProbeSums]) -> SweepDocument:
    """Return the document of the distributions of students, by name of the model."""
    measures = [_mean(design, sums, metric) for metric in _MEANS]
    effective = _effective(design, sums)
    first = next(iter(sums.values()))
    note = (
        f"Measured on {int(sum(first.positions)):,} positions of the base’s own answers to "
        f"{len(first.problems)} training prompts that every training holds out. The base and the "
        "students are decoded alike."
    )
    return document(design, "probe", {PLACE: (effective, *measures)}, (note,))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """A cell with its values of the problems and those of the base at the same decoding."""

    cell: Cell
    own: Values
    base: Values


def _measured(
    design: Design, sums: Mapping[str, ProbeSums], columns: tuple[int, int]
) -> list[_Measured]:
    measured = []
    for cell in design.cells:
        if cell.student is not None:
            each = sums[cell.model]
            decoded = np.array(each.decoded)[:, design.decodings.index(cell.decoding)]
            means = decoded / np.array(each.positions)[:, None]
            measured.append(
                _Measured(cell=cell, own=means[:, columns[0]], base=means[:, columns[1]])
            )
    return measured


def _mean(design: Design, sums: Mapping[str, ProbeSums], metric: str) -> MetricSweep:
    """Return a mean over positions in every cell, paired with the base at the same decoding."""
    measured = _measured(design, sums, _MEANS[metric])
    confidence = design.recipe.evaluate.confidence
    # The base is decoded like the students, so any student's sums have its values. Its distance
    # depends on the student, whose ideal it is measured to.
    by_name = {} if metric == DISTANCE else {decoding_name(m.cell.decoding): m for m in measured}
    cells = [
        _base(each.cell.decoding, _interval(each.base, confidence)) for each in by_name.values()
    ]
    cells += [
        CellValue(
            cell=each.cell.name,
            row=each.cell.model,
            column=decoding_name(each.cell.decoding),
            t_eff=each.cell.t_eff,
            value=_interval(each.own, confidence),
            difference=_paired(_interval(each.own - each.base, confidence)),
        )
        for each in measured
    ]
    values = np.column_stack([each.own for each in measured])
    return MetricSweep(
        metric=metric,
        problems=len(values),
        cells=tuple(cells),
        # A distance is to another student in every row, so it has no common curve.
        fits=() if metric == DISTANCE else fits(design, [m.cell for m in measured], values),
        luck=(),
    )


def _base(decoding: Decoding, value: Interval) -> CellValue:
    cell = Cell(student=None, step=None, decoding=decoding)
    return CellValue(
        cell=cell.name,
        row=cell.model,
        column=decoding_name(decoding),
        t_eff=cell.t_eff,
        value=value,
        difference=None,
    )


def _effective(design: Design, sums: Mapping[str, ProbeSums]) -> MetricSweep:
    """Return the effective temperature of every cell, compared with T_eval."""
    cells = []
    for cell in design.cells:
        temperature = cell.decoding.temperature
        if cell.student is None or temperature == 0:
            continue
        value = _reached(sums[cell.model], temperature, design.recipe.evaluate.confidence)
        gap = None
        if value is not None:
            # The base has T_eval itself, without an error.
            ends = (value.estimate, value.low, value.high)
            estimate, low, high = (end - temperature for end in ends)
            gap = _paired(Interval(estimate=estimate, low=low, high=high))
        cells.append(
            CellValue(
                cell=cell.name,
                row=cell.model,
                column=decoding_name(cell.decoding),
                t_eff=cell.t_eff,
                value=value,
                difference=gap,
            )
        )
    first = next(iter(sums.values()))
    return MetricSweep(
        metric=EFFECTIVE, problems=len(first.problems), cells=tuple(cells), fits=(), luck=()
    )


def _reached(sums: ProbeSums, temperature: float, confidence: float) -> Interval | None:
    """Return the temperature of the base nearest to the student at T_eval."""
    import torch

    from ssd_ray.analysis import signals

    progress = np.array(sums.progress)

    def reached(total: Values) -> float | None:
        return signals.effective_temperature(torch.from_numpy(total), temperature)

    weights = signals.weights(torch.from_numpy(progress))["temperature_reached"].numpy()
    return jackknife_interval(reached, progress, confidence=confidence, weights=weights)


def _interval(values: Values, confidence: float) -> Interval:
    return ratio_interval(values, np.ones_like(values), confidence=confidence)


def _paired(gap: Interval) -> Paired:
    """Return a difference; it is read as higher or lower where its interval leaves out zero."""
    reading: Reading = "cannot tell"
    # Logits are float32: a smaller difference is rounding.
    if gap.low > _ROUNDING:
        reading = "higher"
    elif gap.high < -_ROUNDING:
        reading = "lower"
    return Paired(estimate=gap.estimate, low=gap.low, high=gap.high, reading=reading)
