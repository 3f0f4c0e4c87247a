"""Significance of a paired difference: its p-value and the detectable effect.

P-value, interval and detectable effect come from one score test, so they cannot contradict one
another. Pure functions, without I/O.
"""

from __future__ import annotations

import math
from statistics import NormalDist

from ssd_ray.statistics.metrics import Interval
from ssd_ray.statistics.paired import Discordance, score

POWER = 0.8
"""Probability of finding a true difference of the detectable size (Cohen 1988)."""


def p_value(pair: Discordance) -> float:
    """Return the two-sided p-value of no difference, by the score test behind the interval.

    With one answer per problem it is McNemar's asymptotic test (1947), without a continuity
    correction: (b - c)² / (b + c) is chi-square with one degree of freedom, for b problems solved
    by the first arm alone and c by the second alone. Fagerland, Lydersen and Laake (2013) recommend
    it for small numbers too.
    """
    return math.erfc(abs(score(pair, 0.0)) / math.sqrt(2))


def standard_error(interval: Interval, *, confidence: float) -> float:
    """Return the standard error of an interval: its longer side, divided by the normal quantile."""
    longer = max(interval.high - interval.estimate, interval.estimate - interval.low)
    return longer / NormalDist().inv_cdf((1 + confidence) / 2)


def smallest_detectable_effect(error: float, *, confidence: float) -> float:
    """Return the true difference, at most 1, found by the test with probability `POWER`.

    At 95 % it is 2.80 standard errors: 1.43 times the longer side of the interval. So the interval
    of an estimate of this size leaves out zero.
    """
    normal = NormalDist()
    return min(1.0, (normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(POWER)) * error)
