"""Scores and their intervals: unbiased pass@k for each problem, and bootstraps over problems; pure functions on arrays.

Problems are the unit that is resampled, because the question is how the score would differ on other problems like these;
samples of one problem are not independent of one another. Reads and writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_ray.errors import UserError

_INDICES_AT_A_TIME = 1 << 20
"""Resampled indices in memory at a time: 8 MiB of int64, and as much of float64."""


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


def pass_at_k_matrix(
    num_samples: npt.NDArray[np.int64], num_correct: npt.NDArray[np.int64], ks: Sequence[int]
) -> npt.NDArray[np.float64]:
    """pass@k of every problem, float64[num_problems, len(ks)], from int[num_problems] counts of graded and right answers.

    Raises:
        UserError: the counts differ in length, or a problem has fewer graded answers than a k.
    """
    if num_samples.ndim != 1 or num_samples.shape != num_correct.shape:
        raise UserError(f"num_samples {num_samples.shape} and num_correct {num_correct.shape} must be one count a problem each")
    counts = zip(num_samples.tolist(), num_correct.tolist(), strict=True)
    rows = [[pass_at_k(n, c, k) for k in ks] for n, c in counts]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(ks))


def bootstrap(values: npt.NDArray[np.float64], *, samples: int, confidence: float, seed: int) -> Interval:
    """The mean of float64[num_problems] with its percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    `samples` resamples of the problems with replacement; the interval holds the middle `confidence` of their means.

    Raises:
        UserError: no problems, a value that is not finite, fewer than one resample, or a confidence not in (0, 1).
    """
    if values.ndim != 1 or values.size == 0:
        raise UserError(f"a bootstrap needs one value for each of at least one problem, not an array of shape {values.shape}")
    if not np.isfinite(values).all():
        raise UserError("a bootstrap needs finite values: leave out problems without a score first")
    if samples < 1 or not 0 < confidence < 1:
        raise UserError(f"bootstrap samples={samples} must be at least 1 and confidence={confidence} between 0 and 1")
    means = _resampled_means(np.asarray(values, dtype=np.float64), samples, np.random.default_rng(seed))
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(estimate=float(values.mean()), low=float(low), high=float(high))


def paired_bootstrap(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], *, samples: int, confidence: float, seed: int
) -> Interval:
    """The mean of a - b over the same problems, both float64[num_problems], with its percentile bootstrap interval.

    A resample takes both arms' values of a problem together, so what makes a problem hard for both cancels.

    Raises:
        UserError: the arms differ in their number of problems, or as for `bootstrap`.
    """
    if a.shape != b.shape:
        raise UserError(f"arms to be compared need the same problems, not {a.shape} and {b.shape} of them")
    return bootstrap(a - b, samples=samples, confidence=confidence, seed=seed)


def _resampled_means(values: npt.NDArray[np.float64], samples: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64[samples]: means of resamples with replacement, a bounded number of indices at a time."""
    means = np.empty(samples)
    step = max(1, _INDICES_AT_A_TIME // values.size)
    for start in range(0, samples, step):
        stop = min(start + step, samples)
        means[start:stop] = values[rng.integers(values.size, size=(stop - start, values.size))].mean(axis=1)
    return means
