"""The numbers of a report: all of scores.json, from counts and facts.

One idea: a problem is the unit.

- Each problem gives one value per arm. Intervals are over problems; differences are taken problem
  by problem.
- An ungraded answer is neither right nor wrong: it is left out and counted. Too many of them refuse
  the score.

Pure functions.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ssd_ray.config import EvaluateConfig, Recipe, arms
from ssd_ray.lcb_official import GRADER
from ssd_ray.reporting.numbers.counts import (
    FINISH_REASONS,
    OUTCOMES,
    Loss,
    ProblemResult,
    SampleCounts,
)
from ssd_ray.reporting.numbers.json_bytes import rounded_to_ten_digits
from ssd_ray.reporting.numbers.profiles import flips
from ssd_ray.reporting.numbers.sweeps import selections
from ssd_ray.reporting.numbers.training_data import training
from ssd_ray.statistics import metrics
from ssd_ray.statistics.differences import Difference, difference, pass_at_values
from ssd_ray.statistics.metrics import Values

FORMAT = 4
DIFFICULTIES = ("warmup", "easy", "medium", "hard")

Results = Mapping[str, Mapping[str, ProblemResult]]
Trained = tuple[
    SampleCounts, Loss | None, Mapping[str, Any] | None, Mapping[str, Mapping[str, Any]]
]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean pass@k over problems with its interval, as shares of one."""

    estimate: float
    low: float
    high: float
    problems: int
    """Problems with at least k graded answers."""


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One arm on one group of problems; rates are shares of one, None without answers."""

    refused: str | None
    """Reason for the absence of a score."""
    score: Mapping[str, Score | None]
    base_score: Mapping[str, Score | None]
    """On EvalPlus's base tests alone; empty for benchmarks without such tests."""
    difference: Mapping[str, Difference | None]
    answers: int
    graded: int
    accepted: int
    infrastructure_errors: int
    outcomes: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    no_code_rate: float | None
    """Of the graded answers."""
    time_limit_rate: float | None
    """Of the graded answers."""
    cap_hit_rate: float | None
    """Answers cut off at the token limit, of all answers."""
    thinking: int
    """Answers with reasoning."""
    think_close_rate: float | None
    """Answers with ended reasoning, of those with reasoning."""
    mean_answer_tokens: float | None
    median_answer_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """All arms on the same problems: those of a benchmark, or of one difficulty in it."""

    problems: int
    samples_per_problem: int
    arms: Mapping[str, ArmTable]


def scores(
    recipe: Recipe,
    by_profile: Mapping[str, Results],
    trained: Mapping[str, Trained],
    contamination: Mapping[str, Any],
) -> dict[str, Any]:
    """Return every result number of the page as plain JSON, equal for equal artifacts.

    Args:
        recipe: the recipe of the run.
        by_profile: results of each profile of grading, with the same problems for every arm. The
            first profile gives the scores.
        trained: samples, loss, held-out measures and facts by stage of each trained model: `ssd`
            and the controls.
        contamination: facts on the overlaps of training prompts and benchmarks.
    """
    evaluate = recipe.evaluate
    every = arms.arms(recipe)
    baseline = arms.baseline(recipe)
    results = by_profile[evaluate.profiles[0]]
    order = _order(recipe, results[baseline].values())
    benchmarks = order["benchmarks"]
    plain = {
        "format": FORMAT,
        "recipe": recipe.name,
        "model": recipe.model.source,
        "baseline": baseline,
        "confidence": evaluate.confidence,
        "bootstrap_samples": evaluate.bootstrap_samples,
        "headline": f"pass@{min(evaluate.pass_at)}",
        "order": order,
        "arms": {name: arm.model_dump(mode="json") for name, arm in every.items()},
        "families": {name: list(points.values()) for name, points in arms.families(recipe).items()},
        "selection": {
            name: _selection(recipe, _only(results, benchmark=name)) for name in benchmarks
        },
        "benchmarks": {
            name: _benchmark(recipe, _only(results, benchmark=name)) for name in benchmarks
        },
        "profiles": _profiles(recipe, by_profile, benchmarks),
        "contamination": contamination,
        "training": training(*trained["ssd"]),
        "controls": {name: training(*model) for name, model in trained.items() if name != "ssd"},
        "problems": {name: _problems(_only(results, benchmark=name)) for name in benchmarks},
    }
    rounded: dict[str, Any] = rounded_to_ten_digits(plain)
    return rounded


def _order(recipe: Recipe, problems: Collection[ProblemResult]) -> dict[str, list[str]]:
    """Return the names of arms, benchmarks, difficulties and metrics in the order of the page."""
    # Benchmarks in the order of the recipe, then any others by name.
    present = {problem.benchmark for problem in problems}
    stated = [benchmark.name for benchmark in recipe.evaluate.benchmarks]
    return {
        "arms": list(arms.arms(recipe)),
        "benchmarks": [name for name in stated if name in present] + sorted(present - set(stated)),
        "difficulties": sorted({found.difficulty for found in problems}, key=_difficulty_order),
        "pass_at": [f"pass@{k}" for k in sorted(recipe.evaluate.pass_at)],
    }


def _difficulty_order(name: str) -> tuple[int, str]:
    return (DIFFICULTIES.index(name) if name in DIFFICULTIES else len(DIFFICULTIES), name)


def _only(
    results: Results, *, benchmark: str | None = None, difficulty: str | None = None
) -> Results:
    return {
        arm: {
            problem_id: problem
            for problem_id, problem in problems.items()
            if benchmark in (None, problem.benchmark) and difficulty in (None, problem.difficulty)
        }
        for arm, problems in results.items()
    }


def _refusals(recipe: Recipe, results: Results) -> dict[str, str | None]:
    return {
        arm: _refusal(recipe.evaluate, list(problems.values())) for arm, problems in results.items()
    }


def _selection(recipe: Recipe, results: Results) -> list[dict[str, Any]]:
    return selections(recipe, results, _refusals(recipe, results))


def _profiles(
    recipe: Recipe, by_profile: Mapping[str, Results], benchmarks: Sequence[str]
) -> dict[str, Any]:
    """Return scores of every arm under each profile, and the answers with flipping verdicts.

    A profile has scores on the benchmarks that it graded.
    """
    first, *others = recipe.evaluate.profiles
    return {
        "order": [first, *others],
        "scores": {
            profile: {
                name: _scores(recipe, only)
                for name in benchmarks
                if (only := _only(by_profile[profile], benchmark=name))[arms.baseline(recipe)]
            }
            # A single profile has nothing to be compared with.
            for profile in (first, *others)
            if others
        },
        "official_grader": dict(GRADER) if "lcb-compat" in recipe.evaluate.profiles else None,
        "flips": {profile: flips(by_profile[first], by_profile[profile]) for profile in others},
    }


def _scores(recipe: Recipe, results: Results) -> dict[str, Any]:
    """Return the headline pass@k of every arm on one benchmark, None if it is refused."""
    refusals = _refusals(recipe, results)
    k = min(recipe.evaluate.pass_at)
    by_arm: dict[str, Any] = {}
    for arm, problems in results.items():
        values = pass_at_values([(p.graded, p.accepted) for p in problems.values()], k)
        score = None if refusals[arm] else _score(recipe, values)
        by_arm[arm] = None if score is None else dataclasses.asdict(score)
    return by_arm


def _benchmark(recipe: Recipe, results: Results) -> dict[str, Any]:
    """Return the tables of a benchmark, and of each difficulty if it has more than one."""
    refusals = _refusals(recipe, results)
    baseline = arms.baseline(recipe)
    difficulties = sorted(
        {problem.difficulty for problem in results[baseline].values()}, key=_difficulty_order
    )
    return {
        "all": dataclasses.asdict(group(recipe, results, refusals)),
        "difficulties": {
            name: dataclasses.asdict(group(recipe, _only(results, difficulty=name), refusals))
            # A single difficulty would repeat the table of all problems.
            for name in difficulties
            if len(difficulties) > 1
        },
    }


def _refusal(evaluate: EvaluateConfig, problems: Sequence[ProblemResult]) -> str | None:
    """Return the reason to refuse an arm a score on a benchmark, or None."""
    # Ungraded answers are no random sample: many of them would bias a score.
    answers = sum(len(problem.answers) for problem in problems)
    ungraded = answers - sum(problem.graded for problem in problems)
    if ungraded <= evaluate.max_infrastructure_errors * answers:
        return None
    return (
        f"{ungraded} of {answers} answers could not be graded, {100 * ungraded / answers:.3g} %, "
        f"above evaluate.max_infrastructure_errors {100 * evaluate.max_infrastructure_errors:.3g} %"
    )


def group(recipe: Recipe, results: Results, refusals: Mapping[str, str | None]) -> Group:
    """Return tables of every arm on the problems of `results`; `refusals` are reasons by arm."""
    baseline = arms.baseline(recipe)
    values = {
        arm: _values(recipe, [(problem.graded, problem.accepted) for problem in problems.values()])
        for arm, problems in results.items()
    }
    has_base = _has_base(results)
    tables = {}
    for arm, problems in results.items():
        base_counts = [(problem.graded, problem.accepted_base) for problem in problems.values()]
        base = _values(recipe, base_counts) if has_base else {}
        # The baseline has no difference to itself, and a refused score none to any other.
        unpaired = arm == baseline or refusals[arm] is not None or refusals[baseline] is not None
        tables[arm] = _arm_table(
            list(problems.values()),
            refusals[arm],
            {
                name: None if refusals[arm] else _score(recipe, value)
                for name, value in values[arm].items()
            },
            {
                name: None if refusals[arm] else _score(recipe, value)
                for name, value in base.items()
            },
            {
                name: None if unpaired else difference(recipe, value, values[baseline][name])
                for name, value in values[arm].items()
            },
        )
    return Group(
        problems=len(results[baseline]),
        samples_per_problem=recipe.evaluate.samples_per_problem,
        arms=tables,
    )


def _values(recipe: Recipe, counts: Sequence[tuple[int, int]]) -> dict[str, Values]:
    """Return every pass@k of a recipe, of each problem from its (graded, accepted) answers."""
    return {f"pass@{k}": pass_at_values(counts, k) for k in sorted(recipe.evaluate.pass_at)}


def _has_base(results: Results) -> bool:
    """Return True if any answer of any arm ran EvalPlus's base tests."""
    return any(
        answer.outcome_base
        for problems in results.values()
        for problem in problems.values()
        for answer in problem.answers
    )


def _score(recipe: Recipe, values: Values) -> Score | None:
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    interval = metrics.score_interval(kept, confidence=recipe.evaluate.confidence)
    return Score(
        estimate=interval.estimate, low=interval.low, high=interval.high, problems=len(kept)
    )


def _arm_table(
    problems: Sequence[ProblemResult],
    refused: str | None,
    score: Mapping[str, Score | None],
    base_score: Mapping[str, Score | None],
    paired: Mapping[str, Difference | None],
) -> ArmTable:
    answers = [answer for problem in problems for answer in problem.answers]
    outcomes = Counter(answer.outcome for answer in answers)
    finish_reasons = Counter(answer.finish_reason for answer in answers)
    graded = len(answers) - outcomes["infrastructure_error"]
    tokens = [answer.tokens for answer in answers]
    thinking = [answer.thought_ended for answer in answers if answer.thought_ended is not None]
    return ArmTable(
        refused=refused,
        score=score,
        base_score=base_score,
        difference=paired,
        answers=len(answers),
        graded=graded,
        accepted=outcomes["accepted"],
        infrastructure_errors=outcomes["infrastructure_error"],
        outcomes={name: outcomes[name] for name in OUTCOMES},
        finish_reasons={name: finish_reasons[name] for name in FINISH_REASONS},
        no_code_rate=outcomes["no_code"] / graded if graded else None,
        time_limit_rate=outcomes["time_limit"] / graded if graded else None,
        cap_hit_rate=finish_reasons["length"] / len(answers) if answers else None,
        thinking=len(thinking),
        think_close_rate=sum(thinking) / len(thinking) if thinking else None,
        mean_answer_tokens=float(np.mean(tokens)) if tokens else None,
        median_answer_tokens=float(np.median(tokens)) if tokens else None,
    )


def _problems(results: Results) -> dict[str, Any]:
    """Return accepted and graded answers of every arm, problem by problem."""
    by_id: dict[str, Any] = {}
    for arm, problems in results.items():
        for problem_id, problem in problems.items():
            entry = by_id.setdefault(
                problem_id, {"difficulty": problem.difficulty, "accepted": {}, "graded": {}}
            )
            entry["accepted"][arm] = problem.accepted
            entry["graded"][arm] = problem.graded
    return by_id
