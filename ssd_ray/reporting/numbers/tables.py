"""Tables of arms on a group of problems: scores, differences, counts of answers.

The statistical unit is the problem, not the answer.

- Each problem gives one value per arm. Intervals are over problems; differences are taken problem
  by problem.
- An ungraded answer is neither right nor wrong: it is left out and counted. Too many of them refuse
  the score.

Pure functions of counted results: the part `benchmarks` of scores.json.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ssd_ray.config import EvaluateConfig, Recipe, arms
from ssd_ray.reporting.numbers.counts import FINISH_REASONS, OUTCOMES, ProblemResult, Results
from ssd_ray.statistics import metrics
from ssd_ray.statistics.differences import Difference, difference, pass_at_values
from ssd_ray.statistics.metrics import Score, Values

DIFFICULTIES = ("warmup", "easy", "medium", "hard")


@dataclass(frozen=True, kw_only=True)
class ArmTable:
    """One arm on one group of problems; rates are shares of one, None without answers."""

    refused: str | None
    """Reason for the absence of a score."""
    score: Mapping[str, Score | None]
    """By metric, such as `pass@1`."""
    base_score: Mapping[str, Score | None]
    """On EvalPlus's base tests alone; empty for benchmarks without such tests."""
    difference: Mapping[str, Difference | None]
    """To the baseline, by metric; None for the baseline itself."""
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


@dataclass(frozen=True, kw_only=True)
class BenchmarkTables:
    """The tables of a benchmark."""

    all: Group
    """All of its problems."""
    difficulties: Mapping[str, Group]
    """Empty if all problems have one difficulty."""


def only(
    results: Results, *, benchmark: str | None = None, difficulty: str | None = None
) -> Results:
    """Return the results on the problems of a benchmark or a difficulty."""
    return {
        arm: {
            problem_id: problem
            for problem_id, problem in problems.items()
            if benchmark in (None, problem.benchmark) and difficulty in (None, problem.difficulty)
        }
        for arm, problems in results.items()
    }


def difficulty_order(name: str) -> tuple[int, str]:
    """Return the key to sort difficulties by: the known ones by rank, then any others by name."""
    return (DIFFICULTIES.index(name) if name in DIFFICULTIES else len(DIFFICULTIES), name)


def refusals(recipe: Recipe, results: Results) -> dict[str, str | None]:
    """Return, for each arm, the reason to refuse it a score on a benchmark, or None."""
    return {
        arm: _refusal(recipe.evaluate, list(problems.values())) for arm, problems in results.items()
    }


def _refusal(evaluate: EvaluateConfig, problems: Sequence[ProblemResult]) -> str | None:
    # Ungraded answers are not a random sample: many of them would bias a score.
    answers = sum(len(problem.answers) for problem in problems)
    ungraded = answers - sum(problem.graded for problem in problems)
    if ungraded <= evaluate.max_infrastructure_errors * answers:
        return None
    return (
        f"{ungraded} of {answers} answers could not be graded, {100 * ungraded / answers:.3g} %, "
        f"above evaluate.max_infrastructure_errors {100 * evaluate.max_infrastructure_errors:.3g} %"
    )


def benchmark_tables(recipe: Recipe, results: Results) -> BenchmarkTables:
    """Return the tables of a benchmark, and of each difficulty if it has more than one."""
    refused = refusals(recipe, results)
    baseline = arms.baseline(recipe)
    difficulties = sorted(
        {problem.difficulty for problem in results[baseline].values()}, key=difficulty_order
    )
    return BenchmarkTables(
        all=_group(recipe, results, refused),
        difficulties={
            name: _group(recipe, only(results, difficulty=name), refused)
            # A single difficulty would repeat the table of all problems.
            for name in difficulties
            if len(difficulties) > 1
        },
    )


def _group(recipe: Recipe, results: Results, refused: Mapping[str, str | None]) -> Group:
    """Return tables of every arm on the problems of `results`; `refused` holds reasons by arm."""
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
        unpaired = arm == baseline or refused[arm] is not None or refused[baseline] is not None
        tables[arm] = _arm_table(
            list(problems.values()),
            refused[arm],
            {
                name: None if refused[arm] else score(recipe, value)
                for name, value in values[arm].items()
            },
            {name: None if refused[arm] else score(recipe, value) for name, value in base.items()},
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


def score(recipe: Recipe, values: Values) -> Score | None:
    """Return the score over float64[num_problems] of pass@k, or None if all of them are NaN."""
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
    scores: Mapping[str, Score | None],
    base_scores: Mapping[str, Score | None],
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
        score=scores,
        base_score=base_scores,
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
