"""Unbiased pass@k of each problem, and the interval of a score over problems.

- Problems are the unit: an interval is about scores on other problems like these. Samples of one
  problem depend on one another.
- The interval has a width even if all answers are right, or all are wrong. Its coverage was
  simulated (docs/statistics.md, tests/statistics/test_statistics.py).

Differences are in `paired`. Pure functions on arrays, without I/O.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from ssd_ray.errors import UserError

Values = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its confidence interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Score(Interval):
    """Mean pass@k over problems with its interval, as shares of one."""

    problems: int
    """Problems with at least k graded answers."""


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the chance of a right answer among k drawn from n answers, c of them right.

    Draws are without replacement: 1 - C(n-c, k) / C(n, k), the unbiased estimator of Chen et al.
    2021 (arXiv:2107.03374, equation 1), in exact integers.

    Raises:
        UserError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= n:
        raise UserError(
            f"pass@{k} needs 1 <= k <= n, but there are n={n} answers: "
            "draw more samples, or ask for a smaller k"
        )
    if not 0 <= c <= n:
        raise UserError(
            f"c={c} right answers are impossible among n={n}: counts must be between 0 and n"
        )
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def pass_at_k_matrix(
    num_samples: npt.NDArray[np.int64], num_correct: npt.NDArray[np.int64], ks: Sequence[int]
) -> Values:
    """Return float64[num_problems, len(ks)] of pass@k.

    `num_samples` and `num_correct`, int64[num_problems], count graded and right answers.

    Raises:
        UserError: the counts differ in length, or a problem has fewer graded answers than a k.
    """
    if num_samples.ndim != 1 or num_samples.shape != num_correct.shape:
        raise UserError(
            f"num_samples {num_samples.shape} and num_correct {num_correct.shape} must have "
            "one count for each problem"
        )
    counts = zip(num_samples.tolist(), num_correct.tolist(), strict=True)
    rows = [[pass_at_k(n, c, k) for k in ks] for n, c in counts]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(ks))


def score_interval(values: Values, *, confidence: float) -> Interval:
    """Return the mean of shares and Wilson's score interval at the effective number of answers.

    `values`, float64[num_problems], are shares in 0..1. The interval is Wilson's (1927) for n/D
    Bernoulli draws. The design effect D is the variance of the values, divided by that of a
    Bernoulli variable with the same mean (Kish 1965; Korn and Graubard 1998 for intervals).

    - D is 1 for one answer per problem.
    - D is near 1/m for m answers with no more agreement within a problem than between problems.
    - D is replaced by D + (1 - D) exp(-K/2), because few problems say little about D. K is the
      effective number of problems with a right answer, or of those with a wrong one if fewer.
    - So 0 of n has the width of n single answers.

    Raises:
        UserError: no problems, a value outside of 0..1, or a confidence not in (0, 1).
    """
    check_values(values)
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must be between 0 and 1")
    if values.min() < 0 or values.max() > 1:
        raise UserError("a score interval needs shares between 0 and 1")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    mean = float(values.mean())
    spread = mean * (1 - mean)
    effect = float(values.var()) / spread if spread > 0 else 1.0
    # The rarer of failure and success limits the knowledge of the variance.
    known = min(effective_number(values), effective_number(1 - values))
    size = values.size / (effect + (1 - effect) * math.exp(-known / 2))
    # Wilson's interval at the effective size; rounding must not push the mean outside of it.
    center = (mean * size + z * z / 2) / (size + z * z)
    half = z * math.sqrt(spread * size + z * z / 4) / (size + z * z)
    return Interval(
        estimate=mean,
        low=max(0.0, min(mean, center - half)),
        high=min(1.0, max(mean, center + half)),
    )


def effective_number(values: Values) -> float:
    """Return (sum |x|)² / sum x² of float64[n]: the number of equal values of the same weight.

    It is 0 if all values are 0 (Kish 1965).
    """
    square = float((values**2).sum())
    return float(np.abs(values).sum()) ** 2 / square if square > 0 else 0.0


@functools.lru_cache(maxsize=1)
def problem_weights(problems: int, samples: int, seed: int) -> Values:
    """Draw float64[samples, problems] weights of the Bayesian bootstrap (Rubin 1981).

    The weights are not divided by their sum. The last draw is cached for the next arm.

    Raises:
        UserError: fewer than one sample.
    """
    if samples < 1:
        raise UserError(f"bootstrap samples={samples} must be at least 1")
    weights = np.random.default_rng([seed, 0]).standard_exponential((samples, problems))
    # The array is cached and shared: an accidental write would change every later interval.
    weights.flags.writeable = False
    return weights


def check_values(values: Values) -> None:
    """Check that values have an interval.

    Raises:
        UserError: they are not one finite value for each of at least one problem.
    """
    if values.ndim != 1 or values.size == 0:
        raise UserError(
            "an interval needs one value for each of at least one problem, "
            f"not an array of shape {values.shape}"
        )
    if not np.isfinite(values).all():
        raise UserError("an interval needs finite values: leave out problems without a score first")
