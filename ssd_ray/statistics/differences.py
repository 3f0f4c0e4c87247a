"""Two arms on the same problems: the paired difference with its interval, its p-value and the detectable effect.

One idea: all three come from one score test, so they agree. Two arms are called different only when it rejects, over enough
problems; otherwise the page says how large a difference would have been seen. Pure functions on arrays of per-problem pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssd_ray.config import Recipe
from ssd_ray.statistics import metrics, paired, significance
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.paired import Discordance

MIN_PROBLEMS = 10
"""Below this many problems reports print counts and call no two arms different: a convention of this report."""

_ZERO = 1e-9
"""Differences up to this are sums of rounding errors."""

Reading = Literal["higher", "lower", "cannot tell", "too few problems"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the per-problem differences to the baseline, as a share of one, over problems that both arms have graded.

    `better` and `worse` count the problems on which the arm did better or worse. `p_value` is two-sided, of the score test
    that the interval inverts. `standard_error` is the interval's longer side over the normal quantile, and
    `smallest_detectable_effect` 2.8 of them at 95 %.
    """

    estimate: float
    low: float
    high: float
    problems: int
    better: int
    worse: int
    p_value: float
    standard_error: float
    smallest_detectable_effect: float
    reading: Reading


def pass_at_values(counts: Sequence[tuple[int, int]], k: int) -> Values:
    """pass@k of each problem from its (graded, accepted) answers, NaN where fewer than k were graded; shape (problems,)."""
    return np.array(
        [metrics.pass_at_k(n, c, k) if n >= k else math.nan for n, c in counts], dtype=np.float64
    )


def difference(
    recipe: Recipe, values: Values, baseline: Values, *, answers: int | None = None
) -> Difference | None:
    """Subtract `baseline` from `values` problem by problem; both of shape (problems,) in one order, NaN where ungraded.

    `answers` is the largest number of answers behind a value, by default the recipe's samples per problem. None is returned
    where no problem is graded in both.
    """
    both = ~(np.isnan(values) | np.isnan(baseline))
    if not both.any():
        return None
    here, there = values[both], baseline[both]
    pair = paired.discordance(here, there, answers=answers or recipe.evaluate.samples_per_problem)
    better, worse = int((here > there + _ZERO).sum()), int((here < there - _ZERO).sum())
    return judged(pair, better, worse, problems=len(here), confidence=recipe.evaluate.confidence)


def judged(
    pair: Discordance, better: int, worse: int, *, problems: int, confidence: float
) -> Difference:
    """Attach interval, p-value, detectable effect and reading to a disagreement over `problems` problems."""
    interval = paired.difference_interval(pair, confidence=confidence)
    error = significance.standard_error(interval, confidence=confidence)
    p_value = significance.p_value(pair)
    return Difference(
        estimate=interval.estimate,
        low=interval.low,
        high=interval.high,
        problems=problems,
        better=better,
        worse=worse,
        p_value=p_value,
        standard_error=error,
        smallest_detectable_effect=significance.smallest_detectable_effect(
            error, confidence=confidence
        ),
        reading=_reading(interval.estimate, p_value <= 1 - confidence, problems),
    )


def _reading(estimate: float, unlikely: bool, problems: int) -> Reading:
    if problems < MIN_PROBLEMS:
        return "too few problems"
    if not unlikely:
        return "cannot tell"
    return "higher" if estimate > 0 else "lower"
