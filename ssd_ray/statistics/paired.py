"""Paired differences: the score interval of two arms compared problem by problem.

- One answer: Tango's interval (1998) for paired proportions, from the problems solved by one arm
  only.
- Several answers: the same interval at the effective number of problems, n / D. The design effect D
  is the variance of the differences, divided by that of single answers (Rao and Scott 1992; Yang,
  Sun and Hardin 2012 for clustered pairs).

The interval excludes zero exactly where `significance.p_value` is below 1 - confidence: both are
one score test. Pure functions on arrays, without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from ssd_ray.errors import UserError
from ssd_ray.statistics.metrics import Interval, Values, check_values, effective_number

_HALVINGS = 60
"""Of an interval of at most 2: the remaining error is below 2e-18."""
_LEAST = 1e-9
"""Smaller variances are rounding errors, and no design effect is smaller."""


@dataclass(frozen=True, kw_only=True)
class Discordance:
    """Disagreement of two arms over the same problems."""

    better: float
    """Chance that the first arm alone solves a problem, with one answer of each arm."""
    worse: float
    """Chance that the second arm alone does."""
    size: float
    """Effective number of problems: pairs of single answers with the same information."""

    @property
    def estimate(self) -> float:
        """The difference of the arms, as a share of one."""
        return self.better - self.worse


def discordance(first: Values, second: Values, *, answers: int) -> Discordance:
    """Measure the disagreement of two arms from float64[num_problems] shares in 0..1.

    `answers` is the largest number of answers behind a share. The design effect is at least
    1 / answers.

    Raises:
        UserError: the arms differ in their number of problems, there is none, or a share is outside
            of 0..1.
    """
    if first.shape != second.shape:
        raise UserError(
            "arms to be compared need the same problems, "
            f"not {first.shape} and {second.shape} of them"
        )
    for values in (first, second):
        check_values(values)
        if values.min() < 0 or values.max() > 1:
            raise UserError("a paired difference needs shares between 0 and 1")
    differences = first - second
    better = float((first * (1 - second)).mean())
    worse = float((second * (1 - first)).mean())
    effect = design_effect(differences, better + worse, answers=answers)
    return Discordance(better=better, worse=worse, size=first.size / effect)


def design_effect(differences: Values, disagreement: float, *, answers: int) -> float:
    """Estimate D from float64[num_problems] differences.

    D is their variance, divided by that of pairs of single answers (`disagreement` minus the square
    of the mean). It is 1 for one answer per problem and near 1 / answers where all problems are
    alike. Its estimate is uncertain:

    - it is at least 1 / answers and at most 1;
    - it is replaced by D + (1 - D) exp(-3K/2), K the effective number of differing problems;
    - it is multiplied by 1 + (1 - D) (t² - 1). Here t is the ratio of Student's t with n - 1
      degrees of freedom to the normal quantile. So a D of 1 stays as it is.
    """
    from scipy.special import stdtrit

    mean = float(differences.mean())
    single = disagreement - mean**2
    if differences.size == 1 or single < _LEAST:
        return 1.0
    effect = max(float(differences.var()) / single, 1 / answers)
    effect += (1 - effect) * math.exp(-1.5 * effective_number(differences))
    student = float(stdtrit(differences.size - 1, 0.975)) / NormalDist().inv_cdf(0.975)
    return min(1.0, max(_LEAST, effect * (1 + (1 - effect) * (student**2 - 1))))


def difference_interval(pair: Discordance, *, confidence: float) -> Interval:
    """Return the differences not rejected by the score test at 1 - confidence.

    Raises:
        UserError: a confidence not in (0, 1).
    """
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must be between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    exchanged = Discordance(better=pair.worse, worse=pair.better, size=pair.size)
    return Interval(
        estimate=pair.estimate, low=_lower_limit(pair, z), high=-_lower_limit(exchanged, z)
    )


def score(pair: Discordance, difference: float) -> float:
    """Return Tango's score statistic of a hypothetical difference: its distance to the estimate.

    The distance is in standard errors under the hypothesis, from the constrained maximum likelihood
    estimate of `worse`.
    """
    distance = pair.estimate - difference
    if distance == 0:
        return 0.0
    variance = 2 * _constrained_worse(pair, difference) + difference * (1 - difference)
    # Without variance the hypothesis allows no other estimate than itself.
    if variance <= 0:
        return math.copysign(math.inf, distance)
    return distance / math.sqrt(variance / pair.size)


def _constrained_worse(pair: Discordance, difference: float) -> float:
    """Return the larger root of 2 q² + b q + c = 0 (Tango 1998) without cancellation."""
    b = (2 - pair.estimate) * difference - pair.better - pair.worse
    c = -pair.worse * difference * (1 - difference)
    root = math.sqrt(max(0.0, b * b - 8 * c))
    # Of both forms of the root, take the one without a difference of nearly equal numbers.
    if b <= 0:
        return (root - b) / 4
    return -2 * c / (root + b)


def _lower_limit(pair: Discordance, z: float) -> float:
    """Bisect for the smallest difference scored at most z; larger ones have lower scores."""
    rejected = -1.0
    kept = pair.estimate
    if score(pair, rejected) <= z:
        return rejected
    for _ in range(_HALVINGS):
        middle = (rejected + kept) / 2
        if score(pair, middle) > z:
            rejected = middle
        else:
            kept = middle
    return kept
