"""Questions that the arms of a run answer: each arm next to the control that it answers.

- A question names two arms or families and asks for one thing: was it the temperature, the
  truncation, the selection, the training at all, or could decoding have done it?
- In a sweep both sides are taken at the best cells of one half of the problems, and compared on the
  other half (`statistics/selection.py`). The base has a cell for each temperature and top-p.
- With repeated trainings, `trainings` separates their spread from that of problems.

Pure functions of counted results: the file questions.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssd_ray.config import Recipe, arms
from ssd_ray.config.trained_models import STUDENT, TRAINED_CONTROLS, repetition
from ssd_ray.reporting.numbers.counts import Results
from ssd_ray.reporting.numbers.tables import only, refusals
from ssd_ray.statistics import selection
from ssd_ray.statistics.differences import Difference, difference, judged, pass_at_values
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.trainings import TrainingSpread, spread_of_trainings

PAPER_NO_CODE = 0.62
"""Share of answers without code among the bad data of the paper's section 4.4."""
_ASKS = {
    "base": "Would the base do as well at its best decoding?",
    arms.TEACHER: "Would the base do as well, decoded as the training samples were?",
    arms.ADAPTIVE: "Would the base do as well with a decoder that adapts to each token?",
    "naive": "Would training on the model's plain samples do as well?",
    "accepted": "Would training on accepted answers alone do better?",
    "compression": "Is truncation at T_train 1 enough, without the temperature?",
    "reshaping": "Is the temperature enough, without truncation?",
    "bad-data": "Does training on samples at T 2 without truncation help at all?",
    "token-mean": "Does the mean of the loss matter?",
    "sequence-mean": "Does the mean of the loss matter?",
}


@dataclass(frozen=True, kw_only=True)
class Question:
    """Two arms, or two families of a sweep, and what their difference answers."""

    asks: str
    treated: str
    control: str
    treated_cells: tuple[str, ...]
    """Arms to choose from; one without a sweep."""
    control_cells: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Answered:
    """A question on one benchmark."""

    benchmark: str
    question: Question
    differences: Mapping[str, Difference | None]
    """Treated minus control by metric, free of selection; None without enough graded answers."""
    refused: str
    """Reason for the absence of a difference."""


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """Repeated trainings of one arm, as differences to the baseline on one benchmark."""

    benchmark: str
    arm: str
    metric: str
    spread: TrainingSpread


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Everything that the arms of a run say about its method."""

    answers: tuple[Answered, ...]
    trainings: tuple[Repeated, ...]

    @property
    def is_shown(self) -> bool:
        """True if there is more than student and base, which the scores show already."""
        asked = {answer.question.asks for answer in self.answers}
        return bool(asked - {_ASKS["base"]} or self.trainings)


def arguments(recipe: Recipe, results: Results, benchmarks: Sequence[str]) -> Arguments:
    """Answer the questions of a run on each benchmark."""
    answers = []
    trainings: list[Repeated] = []
    for benchmark in benchmarks:
        graded = only(results, benchmark=benchmark)
        refused = refusals(recipe, graded)
        answers += [
            _answered(recipe, benchmark, graded, question, refused)
            for question in questions(recipe)
        ]
        trainings += _trainings(recipe, benchmark, graded, refused)
    return Arguments(answers=tuple(answers), trainings=tuple(trainings))


def questions(recipe: Recipe) -> tuple[Question, ...]:
    """Return the questions that the arms of a recipe can answer; none without an ssd arm."""
    named = arms.named(recipe)
    students = [name for name, arm in named.items() if arm.model == STUDENT and arm.training == 1]
    if not students:
        return ()
    student, base = students[0], recipe.evaluate.baseline
    asked = []
    for control, arm in named.items():
        if control == base and control != student:
            cells = arms.of_base(recipe, base)
            asked.append(_question(recipe, _ASKS["base"], [student], cells))
        elif arm.is_adaptive and arm.model == arms.BASE:
            asked.append(_question(recipe, _ASKS[arms.ADAPTIVE], [student], [control]))
        elif arm.model == "bad-data":
            asked.append(_question(recipe, _ASKS[arm.model], [control], [base]))
        elif arm.model in TRAINED_CONTROLS:
            asked.append(_question(recipe, _ASKS[arm.model], [student], [control]))
    if arms.TEACHER in arms.controls(recipe):
        asked.append(_question(recipe, _ASKS[arms.TEACHER], [student], [arms.TEACHER]))
    return tuple(asked)


def _question(
    recipe: Recipe, asks: str, treated: Sequence[str], control: Sequence[str]
) -> Question:
    families = arms.families(recipe)

    def cells(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(arm for name in names for arm in families.get(name, {0.0: name}).values())

    return Question(
        asks=asks,
        treated=treated[0],
        control=control[0] if len(control) == 1 else f"{control[0]} over top-p",
        treated_cells=cells(treated),
        control_cells=cells(control),
    )


def _answered(
    recipe: Recipe,
    benchmark: str,
    results: Results,
    question: Question,
    refused: Mapping[str, str | None],
) -> Answered:
    both = (*question.treated_cells, *question.control_cells)
    reason = next((refused[arm] for arm in both if refused[arm]), None)
    metrics = sorted(recipe.evaluate.pass_at)
    return Answered(
        benchmark=benchmark,
        question=question,
        differences={
            f"pass@{k}": None if reason else _difference(recipe, results, question, k)
            for k in metrics
        },
        refused=reason or "fewer than two problems have enough graded answers in all cells",
    )


def _difference(recipe: Recipe, results: Results, question: Question, k: int) -> Difference | None:
    evaluate = recipe.evaluate
    treated = _values(results, question.treated_cells, k)
    control = _values(results, question.control_cells, k)
    if treated.shape[1] == control.shape[1] == 1:
        return difference(recipe, treated[:, 0], control[:, 0])
    kept = np.isfinite(np.concatenate([treated, control], axis=1)).all(axis=1)
    if kept.sum() < 2:
        return None
    ordered = sorted(results[question.treated_cells[0]].items())
    problems = [problem for (_, problem), known in zip(ordered, kept, strict=True) if known]
    cut = selection.halves(
        [problem.problem_id for problem in problems],
        [problem.difficulty for problem in problems],
        seed=recipe.seed,
    )
    gain = selection.Sweep(treated[kept], control[kept], cut).gain(
        samples=evaluate.bootstrap_samples, answers=evaluate.samples_per_problem, seed=recipe.seed
    )
    return judged(
        gain.pair,
        gain.better,
        gain.worse,
        problems=len(problems),
        confidence=evaluate.confidence,
    )


def _trainings(
    recipe: Recipe, benchmark: str, results: Results, refused: Mapping[str, str | None]
) -> Iterator[Repeated]:
    """Yield the spread of trainings of each arm with model ssd, at its own decoding."""
    if recipe.train.seeds < 2:
        return
    baseline = arms.baseline(recipe)
    for name, arm in recipe.evaluate.arms.items():
        if arm.model != STUDENT or arm.training != 1:
            continue
        suffixes = [repetition(each).removeprefix(STUDENT) for each in _repeated(recipe)]
        cells = [arms.point(recipe, f"{name}{suffix}") for suffix in suffixes]
        if any(refused[each] for each in (*cells, baseline)):
            continue
        for k in sorted(recipe.evaluate.pass_at):
            values = _values(results, (*cells, baseline), k)
            values = values[np.isfinite(values).all(axis=1)]
            if len(values) < 2:
                continue
            spread = spread_of_trainings(
                (values[:, :-1] - values[:, -1:]).T, confidence=recipe.evaluate.confidence
            )
            yield Repeated(benchmark=benchmark, arm=name, metric=f"pass@{k}", spread=spread)


def _repeated(recipe: Recipe) -> range:
    return range(1, recipe.train.seeds + 1)


def _values(results: Results, names: Sequence[str], k: int) -> Values:
    """Return float64[problems, arms] of pass@k, problems in the order of their ids."""
    columns = [
        pass_at_values(
            [(problem.graded, problem.accepted) for _, problem in sorted(results[name].items())], k
        )
        for name in names
    ]
    return np.column_stack(columns)
