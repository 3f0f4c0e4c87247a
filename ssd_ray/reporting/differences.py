"""Two arms on the same problems: the paired difference with its interval, its p-value and what it could have shown.

One idea: two arms are called different only when the interval leaves out zero and the permutation test agrees, over enough
problems; otherwise the page says how large a difference would have been seen. Pure functions on arrays of per-problem pass@k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssd_ray.config import Recipe
from ssd_ray.evaluation import metrics, significance
from ssd_ray.evaluation.metrics import Interval, Values
from ssd_ray.evaluation.significance import PValue

MIN_PROBLEMS = 10
"""Below this many problems an interval means too little to call two arms different: a convention of this report."""

_ZERO = 1e-9
"""Differences up to this are sums of rounding errors."""

Reading = Literal["higher", "lower", "cannot tell", "too few problems"]


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Mean of the per-problem differences to the baseline, as a share of one, over problems that both arms have graded.

    `p_value` is two-sided, from sign flips by problem; `p_exact` says whether all flips were counted.
    `smallest_detectable_effect` is 2.8 times the `standard_error`, in which two imagined problems keep it above zero.
    """

    estimate: float
    low: float
    high: float
    problems: int
    p_value: float
    p_exact: bool
    standard_error: float
    smallest_detectable_effect: float
    reading: Reading


def pass_at_values(counts: Sequence[tuple[int, int]], k: int) -> Values:
    """pass@k of each problem from its (graded, accepted) answers, NaN where fewer than k were graded; shape (problems,)."""
    return np.array([metrics.pass_at_k(n, c, k) if n >= k else math.nan for n, c in counts], dtype=np.float64)


def difference(recipe: Recipe, values: Values, baseline: Values) -> Difference | None:
    """`values` minus `baseline`, problem by problem; both of shape (problems,) in the same order, NaN where ungraded."""
    both = ~(np.isnan(values) | np.isnan(baseline))
    if not both.any():
        return None
    here, there, evaluate = values[both], baseline[both], recipe.evaluate
    samples, confidence = evaluate.bootstrap_samples, evaluate.confidence
    found = metrics.paired_bootstrap(here, there, samples=samples, confidence=confidence, seed=recipe.seed)
    p_value = significance.sign_flip_p_value(here - there, permutations=samples, seed=recipe.seed)
    return judged(found, p_value, significance.standard_error(here - there), len(here), confidence)


def judged(found: Interval, p_value: PValue, error: float, problems: int, confidence: float) -> Difference:
    """A difference with all that stands beside it, and in one word what it shows."""
    return Difference(
        estimate=found.estimate,
        low=found.low,
        high=found.high,
        problems=problems,
        p_value=p_value.value,
        p_exact=p_value.exact,
        standard_error=error,
        smallest_detectable_effect=significance.smallest_detectable_effect(error),
        reading=_reading(found, p_value.value <= 1 - confidence + _ZERO, problems),
    )


def _reading(found: Interval, unlikely: bool, problems: int) -> Reading:
    if problems < MIN_PROBLEMS:
        return "too few problems"
    if unlikely and found.low > _ZERO:
        return "higher"
    return "lower" if unlikely and found.high < -_ZERO else "cannot tell"
