"""Regressions of a capability: said only where the paired interval says so.

- `regressed`: the interval leaves out zero below, and does not show that the loss is tolerable.
- `no regression larger than` the tolerance: the interval lies above it.
- `cannot tell`: neither. More problems narrow the interval.

Both follow from one interval: a loss of exactly the tolerance is called tolerable in at most
(1 - confidence) / 2 of runs, and no loss is called a regression as rarely. Pure functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssd_ray.statistics.differences import Difference
from ssd_ray.statistics.metrics import Interval

RegressionVerdict = Literal["regressed", "no regression", "cannot tell"]


@dataclass(frozen=True, kw_only=True)
class Regression:
    """A verdict on one capability."""

    verdict: RegressionVerdict
    tolerance: float
    largest_loss: float
    """Largest loss that the interval allows: no regression is larger than it."""


def regression(difference: Difference, tolerance: float) -> Regression:
    """Judge a paired difference of shares, trained minus base, by its interval."""
    verdict: RegressionVerdict = "cannot tell"
    if difference.reading == "too few problems":
        verdict = "cannot tell"
    # Checked before the sign: a small loss that is certain and tolerable is no regression.
    elif difference.low >= -tolerance:
        verdict = "no regression"
    elif difference.reading == "lower":
        verdict = "regressed"
    return Regression(verdict=verdict, tolerance=tolerance, largest_loss=max(0.0, -difference.low))


def divergence_regression(divergence: Interval, tolerance: float) -> Regression:
    """Judge a divergence from the base, in nats a token, by its interval.

    A divergence is never below zero, so it is compared with the tolerance on both sides.
    """
    verdict: RegressionVerdict = "cannot tell"
    # Training always moves the model, so zero is no hypothesis to test.
    if divergence.high <= tolerance:
        verdict = "no regression"
    elif divergence.low > tolerance:
        verdict = "regressed"
    return Regression(verdict=verdict, tolerance=tolerance, largest_loss=divergence.high)
