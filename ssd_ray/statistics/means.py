"""Intervals of means over problems of unequal size, and of functions of sums.

- Problems are the unit: positions of one answer depend on one another.
- A mean over all positions is a ratio of sums, and its variance that of the ratio's linearization
  (Cochran 1977, section 6.4). Its degrees of freedom are the effective number of problems less one.
- A function of sums has the interval of the jackknife, with the degrees of freedom of the weights
  that its problems have.

Pure functions on arrays, without I/O.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ssd_ray.errors import UserError
from ssd_ray.statistics.metrics import Interval, Values, effective_number

MIN_PROBLEMS = 2
"""Fewest problems of an interval."""


def ratio_interval(sums: Values, sizes: Values, *, confidence: float) -> Interval:
    """Return sum(sums) / sum(sizes) with its interval over problems.

    Args:
        sums: float64 [problems].
        sizes: float64 [problems], at least 0. Problems of size 0 are left out.
        confidence: level of the interval.

    Raises:
        UserError: fewer than two problems have a size, or a confidence not in (0, 1).
    """
    return ratio_intervals(sums[:, None], sizes, confidence=confidence)[0]


def ratio_intervals(sums: Values, sizes: Values, *, confidence: float) -> list[Interval]:
    """Return `ratio_interval` of each column of sums, float64 [problems, columns]."""
    _check(confidence)
    sums, sizes = sums[sizes > 0], sizes[sizes > 0]
    number = _require(len(sizes))
    total = float(sizes.sum())
    estimates = sums.sum(0) / total
    # The ratios vary as these do, to first order.
    residuals = sums - estimates * sizes[:, None]
    variances = number / (number - 1) * (residuals**2).sum(0) / total**2
    halves = _student(effective_number(sizes) - 1, confidence) * np.sqrt(variances)
    columns = zip(estimates.tolist(), halves.tolist(), strict=True)
    return [Interval(estimate=e, low=e - half, high=e + half) for e, half in columns]


def jackknife_interval(
    function: Callable[[Values], float | None],
    sums: Values,
    *,
    confidence: float,
    weights: Values | None = None,
) -> Interval | None:
    """Return function(total) with the jackknife's interval over problems.

    Args:
        function: of the total, float64 [columns]; None where it is undefined.
        sums: float64 [problems, columns].
        confidence: level of the interval.
        weights: weights of the problems in the function, float64 [problems]. The degrees of freedom
            are their effective number less one; by default all weigh the same.

    Returns:
        None if the function is undefined for the total, or without one of the problems.

    Raises:
        UserError: as for `ratio_interval`.
    """
    _check(confidence)
    number = _require(len(sums))
    total = sums.sum(0)
    estimate = function(total)
    others = [function(total - own) for own in sums]
    if estimate is None or any(value is None for value in others):
        return None
    values = np.array(others, dtype=np.float64)
    variance = (number - 1) / number * float(((values - values.mean()) ** 2).sum())
    freedom = (number if weights is None else effective_number(weights)) - 1
    half = _student(freedom, confidence) * math.sqrt(variance)
    return Interval(estimate=estimate, low=estimate - half, high=estimate + half)


def _student(freedom: float, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(freedom, 1.0), (1 + confidence) / 2))


def _require(problems: int) -> int:
    if problems < MIN_PROBLEMS:
        raise UserError(
            f"an interval needs at least {MIN_PROBLEMS} problems, not {problems}: "
            "give answers to more problems"
        )
    return problems


def _check(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must be between 0 and 1")
