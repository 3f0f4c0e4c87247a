"""The numbers of a report: all of scores.json, from counts and facts.

Equal artifacts give equal numbers, so equal bytes. Every result on the page is a field of `Scores`.
Pure functions; `scores_file` reads and writes the file.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ssd_ray.artifacts.problem_facts import ContaminationFacts, ProblemLeftOut
from ssd_ray.config import Arm, Recipe, arms
from ssd_ray.reporting.numbers.counts import ProblemResult, Results
from ssd_ray.reporting.numbers.json_bytes import rounded_to_ten_digits
from ssd_ray.reporting.numbers.profiles import Profiles, profiles
from ssd_ray.reporting.numbers.sweeps import FamilyGain, selections
from ssd_ray.reporting.numbers.tables import (
    BenchmarkTables,
    benchmark_tables,
    difficulty_order,
    only,
    refusals,
)
from ssd_ray.reporting.numbers.training_data import TrainedModelFacts, Training, training

FORMAT = 4
"""Number of the layout of scores.json."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Names in the order of the page."""

    arms: tuple[str, ...]
    benchmarks: tuple[str, ...]
    difficulties: tuple[str, ...]
    pass_at: tuple[str, ...]
    """Metrics, such as `pass@1`."""


@dataclass(frozen=True, kw_only=True)
class ProblemCounts:
    """Answers of every arm to one problem."""

    difficulty: str
    accepted: Mapping[str, int]
    """By arm."""
    graded: Mapping[str, int]
    """By arm."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Every result of a run; floats have ten significant digits."""

    format: int
    recipe: str
    """Name of the recipe."""
    model: str
    baseline: str
    """Arm to which the others are compared."""
    confidence: float
    bootstrap_samples: int
    headline: str
    """Metric of the smallest k."""
    order: Order
    arms: Mapping[str, Arm]
    families: Mapping[str, tuple[str, ...]]
    """Arms of each swept name by rising temperature; empty without a sweep."""
    selection: Mapping[str, tuple[FamilyGain, ...]]
    """Gains free of selection bias, by benchmark; empty without a sweep."""
    benchmarks: Mapping[str, BenchmarkTables]
    profiles: Profiles
    contamination: ContaminationFacts
    training: Training
    controls: Mapping[str, Training]
    """Training of the controls, by name."""
    problems: Mapping[str, Mapping[str, ProblemCounts]]
    """By benchmark and problem id."""
    problems_left_out: tuple[ProblemLeftOut, ...] = ()
    """Problems on which no program can be graded."""


@dataclass(frozen=True, kw_only=True)
class RunCounts:
    """Counts and facts of the artifacts behind a report."""

    by_profile: Mapping[str, Results]
    """Results of each profile of grading, with the same problems for every arm.

    The first profile gives the scores.
    """
    trained: Mapping[str, TrainedModelFacts]
    """Trained models: `ssd` and the controls."""
    contamination: ContaminationFacts
    problems_left_out: tuple[ProblemLeftOut, ...]


def scores(recipe: Recipe, counted: RunCounts) -> Scores:
    """Return every result number of the page, equal for equal artifacts."""
    evaluate = recipe.evaluate
    baseline = arms.baseline(recipe)
    results = counted.by_profile[evaluate.profiles[0]]
    order = _order(recipe, results[baseline].values())
    by_benchmark = {name: only(results, benchmark=name) for name in order.benchmarks}
    trained = {name: training(model) for name, model in counted.trained.items()}
    return rounded_to_ten_digits(
        Scores(
            format=FORMAT,
            recipe=recipe.name,
            model=recipe.model.source,
            baseline=baseline,
            confidence=evaluate.confidence,
            bootstrap_samples=evaluate.bootstrap_samples,
            headline=f"pass@{min(evaluate.pass_at)}",
            order=order,
            arms=arms.arms(recipe),
            families={
                name: tuple(points.values()) for name, points in arms.families(recipe).items()
            },
            selection={
                name: selections(recipe, graded, refusals(recipe, graded))
                for name, graded in by_benchmark.items()
            },
            benchmarks={
                name: benchmark_tables(recipe, graded) for name, graded in by_benchmark.items()
            },
            profiles=profiles(recipe, counted.by_profile, order.benchmarks),
            contamination=counted.contamination,
            training=trained["ssd"],
            controls={name: model for name, model in trained.items() if name != "ssd"},
            problems={name: _problems(graded) for name, graded in by_benchmark.items()},
            problems_left_out=counted.problems_left_out,
        )
    )


def _order(recipe: Recipe, problems: Collection[ProblemResult]) -> Order:
    # Benchmarks in the order of the recipe, then any others by name.
    present = {problem.benchmark for problem in problems}
    stated = [benchmark.name for benchmark in recipe.evaluate.benchmarks]
    named = [name for name in stated if name in present]
    difficulties = {problem.difficulty for problem in problems}
    return Order(
        arms=tuple(arms.arms(recipe)),
        benchmarks=(*named, *sorted(present - set(stated))),
        difficulties=tuple(sorted(difficulties, key=difficulty_order)),
        pass_at=tuple(f"pass@{k}" for k in sorted(recipe.evaluate.pass_at)),
    )


def _problems(results: Results) -> dict[str, ProblemCounts]:
    """Return accepted and graded answers of every arm, problem by problem."""
    by_id: dict[str, dict[str, ProblemResult]] = {}
    for arm, problems in results.items():
        for problem_id, problem in problems.items():
            by_id.setdefault(problem_id, {})[arm] = problem
    return {
        problem_id: ProblemCounts(
            difficulty=next(iter(by_arm.values())).difficulty,
            accepted={arm: problem.accepted for arm, problem in by_arm.items()},
            graded={arm: problem.graded for arm, problem in by_arm.items()},
        )
        for problem_id, by_arm in by_id.items()
    }
