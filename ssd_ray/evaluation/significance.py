"""Could it be chance, and could it have been seen: permutation p-values and the smallest detectable effect of paired differences.

One idea: if two arms do the same on every problem, then on each problem either could have been called either, so flipping
the signs of the differences problem by problem shows what chance alone does. Pure functions on arrays; reads and writes
nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from ssd_ray.evaluation.metrics import PSEUDO_PROBLEMS, Values, imagined_difference

EXACT_UP_TO = 16
"""Differing problems up to which all 2^n flips are counted."""
ALPHA, POWER = 0.05, 0.8
DETECTABLE = NormalDist().inv_cdf(1 - ALPHA / 2) + NormalDist().inv_cdf(POWER)
"""1.96 + 0.84: a true difference of so many standard errors is found in 8 of 10 runs by a two-sided test at 5 %."""

_FLIPS_AT_A_TIME = 1 << 20
_TIE = 1e-9
"""Two sums that differ by no more are the same sum in another order."""


@dataclass(frozen=True, kw_only=True)
class PValue:
    """A two-sided p-value, and whether all flips were counted or some were drawn."""

    value: float
    exact: bool


def sign_flip_p_value(differences: Values, *, permutations: int, seed: int) -> PValue:
    """The share of sign flips of float64[num_problems] differences whose sum is at least as far from zero (Fisher 1935).

    All flips where at most 16 problems differ; else `permutations` random ones, and (1 + count) / (1 + permutations), which
    is a valid p-value and never 0 (Phipson and Smyth 2010).
    """
    differing: Values = differences[differences != 0]
    if differing.size <= EXACT_UP_TO:
        codes = np.arange(1 << differing.size, dtype=np.int64)[:, None]
        signs = 1.0 - 2.0 * ((codes >> np.arange(differing.size)) & 1)
        return PValue(value=float((np.abs(signs @ differing) >= abs(differing.sum()) - _TIE).mean()), exact=True)
    return drawn_p_value(lambda signs: np.asarray(signs @ differing), differing.size, permutations=permutations, seed=seed)


def drawn_p_value(statistic: Callable[[Values], Values], problems: int, *, permutations: int, seed: int) -> PValue:
    """The p-value of `statistic` by random flips: it takes float64[flips, problems] signs and gives float64[flips]."""
    rng = np.random.default_rng([seed, 2])
    observed = abs(float(statistic(np.ones((1, problems)))[0]))
    count, step = 0, max(1, _FLIPS_AT_A_TIME // max(problems, 1))
    for start in range(0, permutations, step):
        signs = 2 * rng.integers(2, size=(min(step, permutations - start), problems), dtype=np.int8).astype(np.float64) - 1
        count += int((np.abs(statistic(signs)) >= observed - _TIE).sum())
    return PValue(value=(1 + count) / (1 + permutations), exact=False)


def standard_error(differences: Values) -> float:
    """The standard error of the mean of float64[num_problems] paired differences, never 0.

    The two imagined problems of the interval count in it, so problems that all came out the same still leave a doubt.
    """
    size, pseudo = differences.size + 2 * PSEUDO_PROBLEMS, 2 * PSEUDO_PROBLEMS * imagined_difference(differences) ** 2
    mean = float(differences.sum()) / size
    return math.sqrt(((float((differences**2).sum()) + pseudo) / size - mean**2) / max(size - 1, 1))


def smallest_detectable_effect(error: float) -> float:
    """The true difference that a two-sided test at 5 % finds in 8 of 10 such runs: 2.8 standard errors (Cohen 1988)."""
    return DETECTABLE * error
