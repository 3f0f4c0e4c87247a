"""The numbers of a report: pass@k with intervals, paired differences, outcomes, training data; all of scores.json.

One idea: a problem is the unit. Each problem gives one value per arm, intervals are over problems, and a difference is
taken problem by problem. An answer that could not be graded is neither right nor wrong: it is left out and counted, and
too many of them refuse the score. Pure functions: they read counts and facts, and write nothing.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
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
    """Mean pass@k over problems with its interval, as shares of one; `problems` is how many had k graded answers."""

    estimate: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One arm on one group of problems; rates are shares of one.

    `base_score` is the score on EvalPlus's base tests alone, beside `score` on all tests; empty where no tests are so called.
    `no_code_rate` and `time_limit_rate` are of graded answers, `cap_hit_rate` (cut off at the token limit) of all answers,
    and `think_close_rate` (their reasoning ended) of those that reason; None where there are none.
    """

    refused: str | None
    score: Mapping[str, Score | None]
    base_score: Mapping[str, Score | None]
    difference: Mapping[str, Difference | None]
    answers: int
    graded: int
    accepted: int
    infrastructure_errors: int
    outcomes: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    no_code_rate: float | None
    time_limit_rate: float | None
    cap_hit_rate: float | None
    thinking: int
    think_close_rate: float | None
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
    """Every result number of the page as plain JSON, the same for the same artifacts.

    `by_profile` holds for each profile of grading each arm's problems by id, the same ids for every arm; the first profile
    gives the scores. `trained` holds for each trained model (`ssd`, and the controls) its samples, loss, held-out measures and
    facts by stage name; `contamination` is what the training prompts share with the benchmarks.
    """
    evaluate, every, baseline = recipe.evaluate, arms.arms(recipe), arms.baseline(recipe)
    results = by_profile[evaluate.profiles[0]]
    present = {result.benchmark for result in results[baseline].values()}
    named = [benchmark.name for benchmark in evaluate.benchmarks]
    benchmarks = [name for name in named if name in present] + sorted(present - set(named))
    seen = {result.difficulty for result in results[baseline].values()}
    plain = {
        "format": FORMAT,
        "recipe": recipe.name,
        "model": recipe.model.source,
        "baseline": baseline,
        "confidence": evaluate.confidence,
        "bootstrap_samples": evaluate.bootstrap_samples,
        "headline": f"pass@{min(evaluate.pass_at)}",
        "order": {
            "arms": list(every),
            "benchmarks": benchmarks,
            "difficulties": sorted(seen, key=_difficulty_order),
            "pass_at": [f"pass@{k}" for k in sorted(evaluate.pass_at)],
        },
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
        "controls": {name: training(*given) for name, given in trained.items() if name != "ssd"},
        "problems": {name: _problems(_only(results, benchmark=name)) for name in benchmarks},
    }
    rounded: dict[str, Any] = rounded_to_ten_digits(plain)
    return rounded


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
    """The scores of every arm under each profile, on the benchmarks that it graded, and the answers whose verdict flips."""
    first, *others = recipe.evaluate.profiles
    return {
        "order": [first, *others],
        "scores": {
            profile: {
                name: _scores(recipe, only)
                for name in benchmarks
                if (only := _only(by_profile[profile], benchmark=name))[arms.baseline(recipe)]
            }
            for profile in (first, *others)
            if others
        },
        "official_grader": dict(GRADER) if "lcb-compat" in recipe.evaluate.profiles else None,
        "flips": {profile: flips(by_profile[first], by_profile[profile]) for profile in others},
    }


def _scores(recipe: Recipe, results: Results) -> dict[str, Any]:
    """The headline pass@k of every arm on one benchmark, None where it is refused."""
    refusals, k = _refusals(recipe, results), min(recipe.evaluate.pass_at)
    values = {
        arm: pass_at_values([(p.graded, p.accepted) for p in problems.values()], k)
        for arm, problems in results.items()
    }
    found = {arm: None if refusals[arm] else _score(recipe, each) for arm, each in values.items()}
    return {arm: score and dataclasses.asdict(score) for arm, score in found.items()}


def _benchmark(recipe: Recipe, results: Results) -> dict[str, Any]:
    """All problems of a benchmark, and each difficulty where it has more than one."""
    refusals, baseline = _refusals(recipe, results), arms.baseline(recipe)
    difficulties = sorted(
        {problem.difficulty for problem in results[baseline].values()}, key=_difficulty_order
    )
    return {
        "all": dataclasses.asdict(group(recipe, results, refusals)),
        "difficulties": {
            name: dataclasses.asdict(group(recipe, _only(results, difficulty=name), refusals))
            for name in difficulties
            if len(difficulties) > 1
        },
    }


def _refusal(evaluate: EvaluateConfig, problems: Sequence[ProblemResult]) -> str | None:
    """Why an arm gets no score on a benchmark, or None."""
    answers = sum(len(problem.answers) for problem in problems)
    ungraded = answers - sum(problem.graded for problem in problems)
    if ungraded <= evaluate.max_infrastructure_errors * answers:
        return None
    return (
        f"{ungraded} of {answers} answers could not be graded, {100 * ungraded / answers:.3g} %, "
        f"above evaluate.max_infrastructure_errors {100 * evaluate.max_infrastructure_errors:.3g} %"
    )


def group(recipe: Recipe, results: Results, refusals: Mapping[str, str | None]) -> Group:
    """Every arm on the problems in `results`, scored unless `refusals` says why not."""
    baseline = arms.baseline(recipe)
    values = {
        arm: _values(recipe, [(problem.graded, problem.accepted) for problem in problems.values()])
        for arm, problems in results.items()
    }
    every = (
        answer
        for problems in results.values()
        for problem in problems.values()
        for answer in problem.answers
    )
    has_base = any(answer.outcome_base for answer in every)
    tables = {}
    for arm, problems in results.items():
        base = (
            _values(
                recipe, [(problem.graded, problem.accepted_base) for problem in problems.values()]
            )
            if has_base
            else {}
        )
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
    """Every pass@k of a recipe, of each problem from its (graded, accepted) answers."""
    return {f"pass@{k}": pass_at_values(counts, k) for k in sorted(recipe.evaluate.pass_at)}


def _score(recipe: Recipe, values: Values) -> Score | None:
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    found = metrics.score_interval(kept, confidence=recipe.evaluate.confidence)
    return Score(estimate=found.estimate, low=found.low, high=found.high, problems=len(kept))


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
    """Accepted and graded answers of every arm, problem by problem."""
    found: dict[str, Any] = {}
    for arm, problems in results.items():
        for problem_id, problem in problems.items():
            entry = found.setdefault(
                problem_id, {"difficulty": problem.difficulty, "accepted": {}, "graded": {}}
            )
            entry["accepted"][arm], entry["graded"][arm] = problem.accepted, problem.graded
    return found


def rounded_to_ten_digits(value: Any) -> Any:
    """Nested plain values with floats at ten significant digits and None for what is no finite number."""
    if isinstance(value, Mapping):
        return {str(key): rounded_to_ten_digits(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded_to_ten_digits(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.10g}") + 0.0 if math.isfinite(value) else None
    return value


def canonical(value: Any, indent: int = 0) -> str:
    """JSON with sorted keys, one key a line and lists of numbers on one line: the same bytes for the same value."""
    pad = " " * (indent + 1)
    if isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        rows = (f"{pad}{json.dumps(item, sort_keys=True, allow_nan=False)}" for item in value)
        return "[\n" + ",\n".join(rows) + "\n" + " " * indent + "]"
    if not isinstance(value, Mapping) or not value:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    lines = (
        f"{pad}{json.dumps(key)}: {canonical(value[key], indent + 1)}" for key in sorted(value)
    )
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
