"""Two arms on the same problems: paired difference, interval, p-value and detectable effect.

All of them come from one score test, so they agree. Two arms are called different only if the test
rejects, over enough problems. Otherwise a report names the detectable effect. Pure functions on
arrays of per-problem pass@k.
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
"""Below it, reports print counts and call no two arms different: a convention."""

_ZERO = 1e-9
"""Smaller differences are sums of rounding errors."""

Reading = Literal["higher", "lower", "cannot tell", "too few problems"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of per-problem differences to the baseline, as a share of one.

    It is taken over the problems with graded answers in both arms.
    """

    estimate: float
    low: float
    high: float
    problems: int
    better: int
    """Problems on which the arm did better than the baseline."""
    worse: int
    """Problems on which it did worse."""
    p_value: float
    """Two-sided, of the score test behind the interval."""
    standard_error: float
    """The longer side of the interval, divided by the normal quantile."""
    smallest_detectable_effect: float
    """2.8 standard errors at 95 % confidence."""
    reading: Reading


def pass_at_values(counts: Sequence[tuple[int, int]], k: int) -> Values:
    """Return float64[num_problems] of pass@k from (graded, accepted) answers of each problem.

    The value is NaN where fewer than k answers were graded.
    """
    return np.array(
        [metrics.pass_at_k(n, c, k) if n >= k else math.nan for n, c in counts], dtype=np.float64
    )


def difference(
    recipe: Recipe, values: Values, baseline: Values, *, answers: int | None = None
) -> Difference | None:
    """Compare two arms problem by problem: `values` minus `baseline`.

    Args:
        recipe: gives the confidence, and the default of `answers`.
        values: float64[num_problems] of pass@k, NaN where ungraded.
        baseline: the same of the baseline, in the same order of problems.
        answers: largest number of answers behind a value; default evaluate.samples_per_problem.

    Returns:
        The difference, or None if no problem is graded in both arms.
    """
    # A problem ungraded in one arm has no difference.
    both = ~(np.isnan(values) | np.isnan(baseline))
    if not both.any():
        return None
    first = values[both]
    second = baseline[both]
    most = answers or recipe.evaluate.samples_per_problem
    pair = paired.discordance(first, second, answers=most)
    better = int((first > second + _ZERO).sum())
    worse = int((first < second - _ZERO).sum())
    return judged(pair, better, worse, problems=len(first), confidence=recipe.evaluate.confidence)


def judged(
    pair: Discordance, better: int, worse: int, *, problems: int, confidence: float
) -> Difference:
    """Test the disagreement of two arms: interval, p-value, detectable effect and reading.

    `better` and `worse` are counts of problems, out of `problems`.
    """
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
    # Checked first: with few problems no difference is reported, not even a significant one.
    if problems < MIN_PROBLEMS:
        return "too few problems"
    if not unlikely:
        return "cannot tell"
    return "higher" if estimate > 0 else "lower"
