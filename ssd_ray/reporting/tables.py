"""The numbers of a report: pass@k with intervals, paired differences, outcomes, training data; all of scores.json.

One idea: a problem is the unit. Each problem gives one value per arm, intervals resample problems, and a difference is
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
from typing import Any, Literal

import numpy as np

from ssd_ray.config import EvaluateConfig, Recipe
from ssd_ray.evaluation import metrics
from ssd_ray.reporting.counts import FINISH_REASONS, OUTCOMES, Loss, ProblemResult, SampleCounts
from ssd_ray.reporting.training_data import training

FORMAT = 1
DIFFICULTIES = ("warmup", "easy", "medium", "hard")

MIN_PROBLEMS = 10
"""Below this many problems a bootstrap interval means too little to call two arms different: a convention of this report."""

DETECTABLE = 2.8
"""1.96 + 0.84: a true difference of so many standard errors is found in 8 of 10 runs by a two-sided test at 5 %."""

_ZERO = 1e-9
"""Differences up to this are sums of rounding errors."""

Reading = Literal["higher", "lower", "cannot tell", "too few problems"]
Results = Mapping[str, Mapping[str, ProblemResult]]


@dataclass(frozen=True, kw_only=True)
class Score:
    """Mean pass@k over problems with its bootstrap interval, as shares of one; `problems` is how many had k graded answers."""

    estimate: float
    low: float
    high: float
    problems: int


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the per-problem differences to the baseline, as a share of one, over problems that both arms have graded.

    `standard_error` is the standard deviation of the differences over the root of their number; it and the
    `smallest_detectable_effect` (2.8 standard errors) are None where fewer than two problems or no spread give none.
    """

    estimate: float
    low: float
    high: float
    problems: int
    standard_error: float | None
    smallest_detectable_effect: float | None
    reading: Reading


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One arm on one group of problems. Rates are shares: of graded answers for `no_code_rate`, else of all answers."""

    refused: str | None
    score: Mapping[str, Score | None]
    difference: Mapping[str, Difference | None]
    answers: int
    graded: int
    accepted: int
    infrastructure_errors: int
    outcomes: Mapping[str, int]
    finish_reasons: Mapping[str, int]
    no_code_rate: float | None
    cap_hit_rate: float | None
    mean_answer_tokens: float | None
    median_answer_tokens: float | None


@dataclass(frozen=True, kw_only=True)
class Group:
    """All arms on the same problems: those of a benchmark, or of one difficulty in it."""

    problems: int
    samples_per_problem: int
    arms: Mapping[str, ArmTable]


def scores(
    recipe: Recipe, results: Results, samples: SampleCounts, loss: Loss | None, facts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Every result number of the page as plain JSON, the same for the same artifacts.

    `results` holds each arm's problems by id, the same ids for every arm; `facts` the manifests' facts by stage name.
    """
    evaluate = recipe.evaluate
    present = {result.benchmark for result in results[evaluate.baseline].values()}
    benchmarks = [name for name in evaluate.benchmarks if name in present] + sorted(present - set(evaluate.benchmarks))
    seen = {result.difficulty for result in results[evaluate.baseline].values()}
    plain = {
        "format": FORMAT,
        "recipe": recipe.name,
        "model": recipe.model.source,
        "baseline": evaluate.baseline,
        "confidence": evaluate.confidence,
        "bootstrap_samples": evaluate.bootstrap_samples,
        "headline": f"pass@{min(evaluate.pass_at)}",
        "order": {
            "arms": list(evaluate.arms),
            "benchmarks": benchmarks,
            "difficulties": sorted(seen, key=_difficulty_order),
            "pass_at": [f"pass@{k}" for k in sorted(evaluate.pass_at)],
        },
        "arms": {name: arm.model_dump(mode="json") for name, arm in evaluate.arms.items()},
        "benchmarks": {name: _benchmark(recipe, _only(results, benchmark=name)) for name in benchmarks},
        "training": training(samples, loss, facts),
        "problems": {name: _problems(_only(results, benchmark=name)) for name in benchmarks},
    }
    rounded: dict[str, Any] = rounded_to_ten_digits(plain)
    return rounded


def _difficulty_order(name: str) -> tuple[int, str]:
    return (DIFFICULTIES.index(name) if name in DIFFICULTIES else len(DIFFICULTIES), name)


def _only(results: Results, *, benchmark: str | None = None, difficulty: str | None = None) -> Results:
    return {
        arm: {
            problem_id: problem
            for problem_id, problem in problems.items()
            if benchmark in (None, problem.benchmark) and difficulty in (None, problem.difficulty)
        }
        for arm, problems in results.items()
    }


def _benchmark(recipe: Recipe, results: Results) -> dict[str, Any]:
    """All problems of a benchmark, and each difficulty where it has more than one."""
    refusals = {arm: _refusal(recipe.evaluate, list(problems.values())) for arm, problems in results.items()}
    difficulties = sorted({problem.difficulty for problem in results[recipe.evaluate.baseline].values()}, key=_difficulty_order)
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
    evaluate = recipe.evaluate
    values = {
        arm: {
            f"pass@{k}": pass_at_values([(problem.graded, problem.accepted) for problem in problems.values()], k)
            for k in sorted(evaluate.pass_at)
        }
        for arm, problems in results.items()
    }
    tables = {}
    for arm, problems in results.items():
        unpaired = arm == evaluate.baseline or refusals[arm] is not None or refusals[evaluate.baseline] is not None
        tables[arm] = _arm_table(
            list(problems.values()),
            refusals[arm],
            {name: None if refusals[arm] else _score(recipe, value) for name, value in values[arm].items()},
            {
                name: None if unpaired else difference(recipe, value, values[evaluate.baseline][name])
                for name, value in values[arm].items()
            },
        )
    return Group(problems=len(results[evaluate.baseline]), samples_per_problem=evaluate.samples_per_problem, arms=tables)


def pass_at_values(counts: Sequence[tuple[int, int]], k: int) -> np.ndarray[Any, Any]:
    """pass@k of each problem from its (graded, accepted) answers, NaN where fewer than k were graded; shape (problems,)."""
    return np.array([metrics.pass_at_k(n, c, k) if n >= k else math.nan for n, c in counts], dtype=np.float64)


def _score(recipe: Recipe, values: np.ndarray[Any, Any]) -> Score | None:
    kept = values[~np.isnan(values)]
    if not len(kept):
        return None
    evaluate = recipe.evaluate
    found = metrics.bootstrap(kept, samples=evaluate.bootstrap_samples, confidence=evaluate.confidence, seed=recipe.seed)
    return Score(estimate=found.estimate, low=found.low, high=found.high, problems=len(kept))


def difference(recipe: Recipe, values: np.ndarray[Any, Any], baseline: np.ndarray[Any, Any]) -> Difference | None:
    """`values` minus `baseline`, problem by problem; both of shape (problems,) in the same order, NaN where ungraded."""
    both = ~(np.isnan(values) | np.isnan(baseline))
    if not both.any():
        return None
    here, there, evaluate = values[both], baseline[both], recipe.evaluate
    found = metrics.paired_bootstrap(
        here, there, samples=evaluate.bootstrap_samples, confidence=evaluate.confidence, seed=recipe.seed
    )
    error = float(np.std(here - there, ddof=1)) / math.sqrt(len(here)) if len(here) > 1 else 0.0
    spread = error > _ZERO
    return Difference(
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        problems=len(here),
        standard_error=error if spread else None,
        smallest_detectable_effect=DETECTABLE * error if spread else None,
        reading=_reading(found.low, found.high, len(here)),
    )


def _reading(low: float, high: float, problems: int) -> Reading:
    if problems < MIN_PROBLEMS:
        return "too few problems"
    if low > _ZERO:
        return "higher"
    return "lower" if high < -_ZERO else "cannot tell"


def _arm_table(
    problems: Sequence[ProblemResult],
    refused: str | None,
    score: Mapping[str, Score | None],
    paired: Mapping[str, Difference | None],
) -> ArmTable:
    answers = [answer for problem in problems for answer in problem.answers]
    outcomes = Counter(answer.outcome for answer in answers)
    finish_reasons = Counter(answer.finish_reason for answer in answers)
    graded = len(answers) - outcomes["infrastructure_error"]
    tokens = [answer.tokens for answer in answers]
    return ArmTable(
        refused=refused,
        score=score,
        difference=paired,
        answers=len(answers),
        graded=graded,
        accepted=outcomes["accepted"],
        infrastructure_errors=outcomes["infrastructure_error"],
        outcomes={name: outcomes[name] for name in OUTCOMES},
        finish_reasons={name: finish_reasons[name] for name in FINISH_REASONS},
        no_code_rate=outcomes["no_code"] / graded if graded else None,
        cap_hit_rate=finish_reasons["length"] / len(answers) if answers else None,
        mean_answer_tokens=float(np.mean(tokens)) if tokens else None,
        median_answer_tokens=float(np.median(tokens)) if tokens else None,
    )


def _problems(results: Results) -> dict[str, Any]:
    """Accepted and graded answers of every arm, problem by problem."""
    found: dict[str, Any] = {}
    for arm, problems in results.items():
        for problem_id, problem in problems.items():
            entry = found.setdefault(problem_id, {"difficulty": problem.difficulty, "accepted": {}, "graded": {}})
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
    lines = (f"{pad}{json.dumps(key)}: {canonical(value[key], indent + 1)}" for key in sorted(value))
    return "{\n" + ",\n".join(lines) + "\n" + " " * indent + "}"
