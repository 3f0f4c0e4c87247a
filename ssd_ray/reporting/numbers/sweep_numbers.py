"""Numbers of a sweep: cells, fits over T_eff, and the luck in the best cell.

- A value is paired with the reference of its cell, problem by problem: answers with the base at the
  recipe's own decoding, distributions with the base at the same decoding.
- Cells that differ in T_train and T_eval alone are a group, and are fitted together.

Pure functions of counted results.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.recipes.cells import Cell, decoding_name
from ssd_ray.recipes.sweeps import Design
from ssd_ray.reporting.numbers.counts import ProblemResult
from ssd_ray.reporting.numbers.sweep_document import (
    FORMAT,
    CellValue,
    Column,
    GroupFit,
    Luck,
    MetricSweep,
    Paired,
    Row,
    SweepDocument,
)
from ssd_ray.statistics import metrics, peaks, selection
from ssd_ray.statistics.differences import difference, judged, pass_at_values
from ssd_ray.statistics.metrics import Interval, Values

Results = Mapping[str, Mapping[str, ProblemResult]]
"""Results by name of the cell and problem id."""


def of_answers(design: Design, results: Results) -> SweepDocument:
    """Return the document of graded answers."""
    recipe = design.recipe
    reference = _reference(design)
    benchmarks = sorted({p.benchmark for p in results[reference].values()})
    sets = {
        benchmark: tuple(
            _metric(design, _graded(results, benchmark), k) for k in sorted(recipe.evaluate.pass_at)
        )
        for benchmark in benchmarks
    }
    return document(design, "answers", sets)


def document(
    design: Design,
    measure: Literal["answers", "probe"],
    sets: Mapping[str, tuple[MetricSweep, ...]],
    notes: tuple[str, ...] = (),
) -> SweepDocument:
    """Return a document with the rows and columns of a design."""
    recipe = design.recipe
    rows = dict.fromkeys(cell.model for cell in design.cells)
    first = {name: next(c for c in design.cells if c.model == name) for name in rows}
    return SweepDocument(
        format=FORMAT,
        measure=measure,
        recipe=recipe.name,
        model=recipe.model.source,
        axes={axis.field: axis.values for axis in design.axes},
        shape=design.shape,
        rows=tuple(_row(cell) for cell in first.values()),
        columns=tuple(
            Column(name=decoding_name(each), **each.model_dump()) for each in design.decodings
        ),
        reference=_reference(design),
        sets=sets,
        confidence=recipe.evaluate.confidence,
        answers=recipe.evaluate.samples_per_problem,
        notes=notes,
    )


def column_of(design: Design, cell: Cell) -> str | None:
    """Return the column of a cell: the decoding of the students at the same place of the axes."""
    if cell.student is not None:
        return decoding_name(cell.decoding)
    # The base has the truncation of its own arm, so its names differ from the columns'.
    pairs = zip(design.base, design.decodings, strict=True)
    return next((decoding_name(own) for base, own in pairs if base == cell.decoding), None)


def fits(design: Design, cells: Sequence[Cell], values: Values) -> tuple[GroupFit, ...]:
    """Fit each group of students over T_eff, from float64[problems, cells] of all cells."""
    if not design.fits:
        return ()
    groups: dict[str, list[int]] = {}
    for place, cell in enumerate(cells):
        if cell.student is not None:
            groups.setdefault(cell.group, []).append(place)
    asked = {cell.group for cell in cells if cell.student and not cell.student.added}
    return tuple(
        _group_fit(design.recipe, [cells[place] for place in places], values[:, places])
        for group, places in groups.items()
        # The control alone is no group over T_train.
        if group in asked
    )


def _group_fit(recipe: Recipe, cells: Sequence[Cell], values: Values) -> GroupFit:
    fit, refused = None, ""
    # A group with too few T_eff is shown without a fit, next to those that have one.
    try:
        fit = peaks.fit(
            np.array([cell.t_train for cell in cells]),
            np.array([cell.decoding.temperature for cell in cells]),
            values,
            confidence=recipe.evaluate.confidence,
            seed=recipe.seed,
        )
    except UserError as error:
        refused = str(error)
    return GroupFit(
        group=_shared(cells[0]),
        rows=tuple(dict.fromkeys(cell.model for cell in cells)),
        cells=tuple(cell.name for cell in cells),
        fit=fit,
        refused=refused,
    )


def _shared(cell: Cell) -> str:
    """Return everything that the cells of a group share, in words."""
    assert cell.student is not None
    sample = cell.student.recipe.sample
    parts = [f"samples {_cut(sample.top_k, sample.top_p)}"]
    parts += [f"{name} {value}" for name, value in cell.student.settings.items()]
    parts += [] if cell.step is None else [f"step {cell.step}"]
    return ", ".join([*parts, f"decoded {_cut(cell.decoding.top_k, cell.decoding.top_p)}"])


def _cut(top_k: int | None, top_p: float) -> str:
    parts = [] if top_k is None else [f"top-k {top_k}"]
    parts += [] if top_p == 1 else [f"top-p {top_p:g}"]
    return f"with {' and '.join(parts)}" if parts else "without truncation"


def _reference(design: Design) -> str:
    return Cell(student=None, step=None, decoding=design.reference).name


def _row(cell: Cell) -> Row:
    student = cell.student
    if student is None:
        return Row(
            name=cell.model,
            kind="base",
            t_train=None,
            top_k=None,
            top_p=1.0,
            settings={},
            step=None,
            added=False,
        )
    sample = student.recipe.sample
    return Row(
        name=cell.model,
        kind="naive" if student.is_naive else "student",
        t_train=sample.temperature,
        top_k=sample.top_k,
        top_p=sample.top_p,
        settings=student.settings,
        step=cell.step,
        added=student.added,
    )


@dataclass(frozen=True, kw_only=True)
class _Graded:
    """Counts of graded and accepted answers to the problems of a benchmark, by cell."""

    problem_ids: tuple[str, ...]
    difficulties: tuple[str, ...]
    counts: Mapping[str, tuple[tuple[int, int], ...]]


def _graded(results: Results, benchmark: str) -> _Graded:
    first = next(iter(results.values()))
    names = sorted(name for name, each in first.items() if each.benchmark == benchmark)
    return _Graded(
        problem_ids=tuple(names),
        difficulties=tuple(first[name].difficulty for name in names),
        counts={
            cell: tuple((problems[name].graded, problems[name].accepted) for name in names)
            for cell, problems in results.items()
        },
    )


def _metric(design: Design, graded: _Graded, k: int) -> MetricSweep:
    recipe = design.recipe
    cells = design.cells
    columns = {name: pass_at_values(counts, k) for name, counts in graded.counts.items()}
    reference = _reference(design)
    values = np.column_stack([columns[cell.name] for cell in cells])
    # Fits and gains need a value of every problem in every cell; a map does not.
    kept = np.asarray(np.isfinite(values).all(axis=1))
    enough = int(kept.sum()) >= 2
    return MetricSweep(
        metric=f"pass@{k}",
        problems=int(kept.sum()),
        cells=tuple(
            CellValue(
                cell=cell.name,
                row=cell.model,
                column=column_of(design, cell),
                t_eff=cell.t_eff,
                value=_score(columns[cell.name], recipe.evaluate.confidence),
                difference=None
                if cell.name == reference
                else _paired(recipe, columns[cell.name], columns[reference]),
            )
            for cell in cells
        ),
        fits=fits(design, cells, values[kept]) if enough else (),
        luck=_luck(design, graded, values, kept) if enough else (),
    )


def _score(values: Values, confidence: float) -> Interval | None:
    known = values[np.isfinite(values)]
    return metrics.score_interval(known, confidence=confidence) if len(known) else None


def _paired(recipe: Recipe, values: Values, reference: Values) -> Paired | None:
    gap = difference(recipe, values, reference)
    if gap is None:
        return None
    return Paired(estimate=gap.estimate, low=gap.low, high=gap.high, reading=gap.reading)


def _luck(
    design: Design, graded: _Graded, values: Values, kept: selection.Halves
) -> tuple[Luck, ...]:
    """Return the gains over the base and over the control, each with its cell chosen or lucky."""
    ids = [each for each, known in zip(graded.problem_ids, kept, strict=True) if known]
    strata = [each for each, known in zip(graded.difficulties, kept, strict=True) if known]
    cut = selection.halves(ids, strata, seed=design.recipe.seed)
    cells = design.cells
    kinds = {cell.model: _row(cell).kind for cell in cells}
    places: dict[str, list[int]] = {}
    for place, cell in enumerate(cells):
        places.setdefault(kinds[cell.model], []).append(place)
    treated = places.get("student", [])
    gains = []
    # Over the base, tuned alike, and over fine-tuning on samples that teach nothing.
    for control in ("base", "naive"):
        others = places.get(control, [])
        if treated and others:
            gains.append(_gain(design, values[kept], (treated, others), cut, control))
    return tuple(gains)


def _gain(
    design: Design,
    values: Values,
    places: tuple[list[int], list[int]],
    cut: selection.Halves,
    control: str,
) -> Luck:
    evaluate = design.recipe.evaluate
    treated, others = (values[:, each] for each in places)
    gain = selection.Sweep(treated, others, cut).gain(
        samples=evaluate.bootstrap_samples,
        answers=evaluate.samples_per_problem,
        seed=design.recipe.seed,
    )
    free = judged(
        gain.pair,
        gain.better,
        gain.worse,
        problems=len(values),
        confidence=evaluate.confidence,
    )
    best, other = (
        design.cells[each[int(values[:, each].mean(0).argmax())]].name for each in places
    )
    return Luck(
        control=control,
        best_cell=best,
        control_cell=other,
        best=gain.best_cell,
        luck=gain.best_cell - free.estimate,
        chosen=Paired(estimate=free.estimate, low=free.low, high=free.high, reading=free.reading),
    )
