"""Scores and their intervals: unbiased pass@k for each problem, and intervals over problems; pure functions on arrays.

Problems are the unit, because the question is how the score would differ on other problems like these; samples of one
problem are not independent of one another. Both intervals keep a width where every problem came out the same, and both
were chosen for their coverage by simulation (docs/statistics.md, tests/test_statistics.py). Reads and writes nothing.
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

PSEUDO_PROBLEMS = 1 / 3
"""Weight of each of the two imagined problems that a paired interval reckons with: one better, one worse."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """An estimate with the ends of its confidence interval, in the unit of the estimate."""

    estimate: float
    low: float
    high: float


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that one of k answers, drawn without replacement from n of which c are right, is right.

    1 - C(n-c, k) / C(n, k), the unbiased estimator of Chen et al. 2021 (arXiv:2107.03374, equation 1), from exact integers.

    Raises:
        UserError: k is not in 1..n, or c not in 0..n.
    """
    if not 1 <= k <= n:
        raise UserError(f"pass@{k} needs 1 <= k <= n, but there are n={n} answers: draw more samples, or ask for a smaller k")
    if not 0 <= c <= n:
        raise UserError(f"c={c} right answers are impossible among n={n}: counts must be between 0 and n")
    draws = math.comb(n, k)
    return (draws - math.comb(n - c, k)) / draws


def pass_at_k_matrix(num_samples: npt.NDArray[np.int64], num_correct: npt.NDArray[np.int64], ks: Sequence[int]) -> Values:
    """pass@k of every problem, float64[num_problems, len(ks)], from int[num_problems] counts of graded and right answers.

    Raises:
        UserError: the counts differ in length, or a problem has fewer graded answers than a k.
    """
    if num_samples.ndim != 1 or num_samples.shape != num_correct.shape:
        raise UserError(f"num_samples {num_samples.shape} and num_correct {num_correct.shape} must be one count a problem each")
    counts = zip(num_samples.tolist(), num_correct.tolist(), strict=True)
    rows = [[pass_at_k(n, c, k) for k in ks] for n, c in counts]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(ks))


def score_interval(values: Values, *, confidence: float) -> Interval:
    """The mean of float64[num_problems] shares in 0..1, with Wilson's score interval at the effective number of answers.

    Wilson 1927 for n/D Bernoulli draws, where the design effect D is the variance of the values over that of whole passes
    and failures with the same mean (Kish 1965; Korn and Graubard 1998 for intervals): 1 for one answer a problem, towards
    1/m for m answers that agree no more within a problem than between problems. D is drawn towards 1 by exp(-K/2), K the
    effective number of problems that are not all failed (or not all passed, whichever is fewer), because a handful of
    problems says little about their own variance; so 0 of n has the width of n single answers.

    Raises:
        UserError: no problems, a value outside of 0..1, or a confidence not in (0, 1).
    """
    _check(values, confidence)
    if values.min() < 0 or values.max() > 1:
        raise UserError("a score interval needs shares between 0 and 1")
    z, mean = NormalDist().inv_cdf((1 + confidence) / 2), float(values.mean())
    spread = mean * (1 - mean)
    effect = float(values.var()) / spread if spread > 0 else 1.0
    known = min(effective_number(values), effective_number(1 - values))
    size = values.size / (effect + (1 - effect) * math.exp(-known / 2))
    centre = (mean * size + z * z / 2) / (size + z * z)
    half = z * math.sqrt(spread * size + z * z / 4) / (size + z * z)
    return Interval(estimate=mean, low=max(0.0, min(mean, centre - half)), high=min(1.0, max(mean, centre + half)))


def effective_number(values: Values) -> float:
    """(sum |x|)^2 / sum x^2 of float64[n]: how many equal values would weigh as much; 0 where all are 0 (Kish 1965)."""
    square = float((values**2).sum())
    return float(np.abs(values).sum()) ** 2 / square if square > 0 else 0.0


def paired_bootstrap(a: Values, b: Values, *, samples: int, confidence: float, seed: int) -> Interval:
    """The mean of a - b over the same problems, both float64[num_problems] in 0..1, with its bootstrap interval.

    The Bayesian bootstrap over problems (Rubin 1981: `samples` draws of Dirichlet weights; both arms' values of a problem
    move together, so what makes it hard for both cancels), with two imagined problems beside the real ones, see
    `imagined_difference`, and with Student's t for the normal quantile, see `widened`.

    Raises:
        UserError: the arms differ in their number of problems, no problems, a value that is not finite, fewer than one draw,
            or a confidence not in (0, 1).
    """
    if a.shape != b.shape:
        raise UserError(f"arms to be compared need the same problems, not {a.shape} and {b.shape} of them")
    values = a - b
    _check(values, confidence)
    weights = problem_weights(values.size, samples, seed)
    return widened(weights @ values, values, weights.sum(axis=1), confidence=confidence, seed=seed)


def widened(sums: Values, values: Values, totals: Values, *, confidence: float, seed: int) -> Interval:
    """The interval of a mean difference from float64[samples] resampled sums and the weights' totals.

    `values`, float64[num_problems], are the difference of each problem: they set the imagined problems and the degrees of
    freedom. Quantiles of the draws lie z standard errors out; they are moved out to where Student's t puts them, with
    1 + K pi/2 degrees of freedom for K effectively differing problems (n of them for n normal differences), because the
    variance of a few large differences among many zeros is itself uncertain.
    """
    from scipy.special import stdtrit

    size, imagined = values.size, imagined_difference(values)
    rng = np.random.default_rng([seed, 1])
    plus, minus = rng.standard_gamma(PSEUDO_PROBLEMS, (2, sums.size))
    draws = (sums + imagined * (plus - minus)) / (totals + plus + minus)
    estimate, shares = float(values.mean()), ((1 - confidence) / 2, (1 + confidence) / 2)
    centre = estimate * size / (size + 2 * PSEUDO_PROBLEMS)
    student = float(stdtrit(1 + math.pi / 2 * effective_number(values), shares[1]))
    factor = student / NormalDist().inv_cdf(shares[1]) * math.sqrt((size + 1) / max(size - 1, 1))
    low, high = (float(centre + factor * (end - centre)) for end in np.quantile(draws, shares))
    return Interval(estimate=estimate, low=max(-1.0, min(estimate, low)), high=min(1.0, max(estimate, high)))


def imagined_difference(values: Values) -> float:
    """How far apart the arms are on an imagined problem: the root mean square of the differences that are not zero.

    Where few problems differ it is drawn towards 1, the most there can be, by exp(-K/2). One imagined problem is better by
    this and one worse, each with a third of a problem's weight: as Jeffreys' half success and half failure do for a
    proportion, they keep a width where no problem differed, which is no proof that none ever would.
    """
    differing = int(np.count_nonzero(values))
    square = float((values**2).sum()) / differing if differing else 1.0
    return math.sqrt(square + (1 - square) * math.exp(-effective_number(values) / 2))


@functools.lru_cache(maxsize=1)
def problem_weights(problems: int, samples: int, seed: int) -> Values:
    """float64[samples, problems]: weights of the Bayesian bootstrap before they are divided by their sum; kept for the next arm.

    Raises:
        UserError: fewer than one sample.
    """
    if samples < 1:
        raise UserError(f"bootstrap samples={samples} must be at least 1")
    weights = np.random.default_rng([seed, 0]).standard_exponential((samples, problems))
    weights.flags.writeable = False
    return weights


def _check(values: Values, confidence: float) -> None:
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"an interval needs one value for each of at least one problem, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise UserError("an interval needs finite values: leave out problems without a score first")
    if not 0 < confidence < 1:
        raise UserError(f"confidence={confidence} must be between 0 and 1")
