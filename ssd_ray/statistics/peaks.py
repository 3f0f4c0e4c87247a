"""The value of a sweep over T_eff, from values of the same problems in every cell.

- The fit is the quadratic of the means. The error of its coefficients is that over problems: each
  problem has coefficients of its own, and those of the means are their mean. So problems that are
  harder, or best at another temperature, are accounted for.
- The interval of the peak -b / 2c is Fieller's (1954): all peaks that a t-test of b + 2c peak = 0
  does not reject. Unlike a standard error it has no end where c may be zero, and then there is no
  peak.
- Cells of equal T_eff test the claim behind the fit (`t_eff_tests`).

Another training of the same students is not accounted for. Pure functions, without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssd_ray.errors import UserError
from ssd_ray.statistics.metrics import Interval, Values
from ssd_ray.statistics.quadratic import Quadratic, quadratic
from ssd_ray.statistics.t_eff_tests import (
    Surface,
    Test,
    agreement,
    known,
    lack_of_fit,
    powers,
    surface,
)

LEAST_TEMPERATURES = 4
"""Fewest different T_eff of a fit."""
FEW = 0.25
"""Share of cells on which a peak is said to rest if it is gone without them: a convention."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The fit a + b T_eff + c T_eff²."""

    a: float
    b: float
    c: float
    r2: float | None
    """Explained share of the variance of the cells; None if all values are equal."""
    r2_adjusted: float | None
    low: float
    """Smallest T_eff of a cell."""
    high: float
    """Largest T_eff of a cell."""
    cells: int
    temperatures: int
    """Different T_eff."""
    peak: float | None
    """-b / 2c; None if the fit has no maximum."""


@dataclass(frozen=True, kw_only=True)
class Peak:
    """The peak of a fit with its interval, and its support by the cells."""

    interval: Interval | None
    """None if the fit has no maximum, or if a fit without one is not rejected."""
    inside: bool
    """The estimate lies between the smallest and the largest T_eff of a cell."""
    interval_inside: bool
    """So does all of the interval."""
    rests_on: int | None
    """Fewest cells of the largest or of the smallest T_eff without which no peak is inside; None if
    fewer than four T_eff would be left, or without a peak inside."""
    rests_above: bool
    """Those cells have the largest T_eff."""


@dataclass(frozen=True, kw_only=True)
class Fit:
    """Everything about the values of one group of cells over T_eff."""

    curve: Curve
    peak: Peak
    lack_of_fit: Test | None
    """F-test of the quadratic against the scatter of cells with equal T_eff; None without such."""
    agreement: Test | None
    """Bootstrap test of equal values in cells of equal T_eff; None without such."""
    surface: Surface | None
    """None with fewer than three values of a temperature, or fewer than seven cells."""


def fit(t_train: Values, t_eval: Values, values: Values, *, confidence: float, seed: int) -> Fit:
    """Fit the means of float64[problems, cells] over T_eff.

    Args:
        t_train: float64[cells].
        t_eval: float64[cells].
        values: a value of every problem in every cell.
        confidence: level of the interval.
        seed: seed of the bootstrap.

    Raises:
        UserError: fewer than four different T_eff, or fewer than two problems.
    """
    # Products that differ by rounding alone are one T_eff.
    effective = np.round(t_train * t_eval, 9)
    number = len(np.unique(effective))
    if number < LEAST_TEMPERATURES:
        raise UserError(
            f"a fit over T_eff needs {LEAST_TEMPERATURES} different T_eff = T_train T_eval, not "
            f"{number}: add values to evaluate.temperature"
        )
    if len(values) < 2:
        raise UserError(
            f"the error of a peak needs 2 problems with a value in every cell, not {len(values)}: "
            "raise evaluate.limit"
        )
    means = values.mean(0)
    outcome = quadratic(effective, means)
    return Fit(
        curve=_curve(outcome, number),
        peak=peak(effective, outcome, over_problems(effective, values), confidence=confidence),
        lack_of_fit=lack_of_fit(effective, means),
        agreement=agreement(effective, values, seed=seed),
        surface=surface(t_train, t_eval, means),
    )


def _curve(outcome: Quadratic, temperatures: int) -> Curve:
    return Curve(
        a=outcome.a,
        b=outcome.b,
        c=outcome.c,
        r2=known(outcome.r2),
        r2_adjusted=known(outcome.r2_adjusted),
        low=outcome.low,
        high=outcome.high,
        cells=outcome.cells,
        temperatures=temperatures,
        peak=known(outcome.peak),
    )


@dataclass(frozen=True, kw_only=True)
class Uncertain:
    """The covariance of the coefficients (a, b, c), with its degrees of freedom."""

    covariance: Values
    freedom: int
    means: Values
    """Values behind the fit, float64[cells]."""


def over_problems(effective: Values, values: Values) -> Uncertain:
    """Return the covariance of the mean coefficients, from float64[problems, cells]."""
    design = powers(effective)
    coefficients = values @ np.linalg.pinv(design).T
    number = len(values)
    covariance = np.cov(coefficients, rowvar=False, ddof=1) / number
    return Uncertain(covariance=covariance, freedom=number - 1, means=values.mean(0))


def of_residuals(effective: Values, means: Values) -> Uncertain:
    """Return the covariance by the residuals of float64[cells], for a table without problems.

    It takes the cells as independent, all with the same error.
    """
    design = powers(effective)
    freedom = len(means) - design.shape[1]
    if freedom < 1:
        raise UserError(
            f"the error of a peak needs more than {design.shape[1]} cells, not {len(means)}"
        )
    rest = means - design @ (np.linalg.pinv(design) @ means)
    covariance = float(rest @ rest) / freedom * np.linalg.inv(design.T @ design)
    return Uncertain(covariance=covariance, freedom=freedom, means=means)


def peak(effective: Values, outcome: Quadratic, uncertain: Uncertain, *, confidence: float) -> Peak:
    """Return the peak of a fit with Fieller's interval."""
    interval = _fieller(outcome, uncertain, confidence)
    # Without an end of the interval there is no peak to rest on anything.
    has_interval = interval is not None
    count, above = _rests_on(effective, uncertain.means) if has_interval else (None, False)
    return Peak(
        interval=interval,
        inside=has_interval and outcome.peak_inside,
        interval_inside=interval is not None
        and outcome.low <= interval.low
        and interval.high <= outcome.high,
        rests_on=count,
        rests_above=above,
    )


def _fieller(outcome: Quadratic, uncertain: Uncertain, confidence: float) -> Interval | None:
    from scipy.special import stdtrit

    if not math.isfinite(outcome.peak):
        return None
    b, c = outcome.b, outcome.c
    t2 = float(stdtrit(uncertain.freedom, (1 + confidence) / 2)) ** 2
    v = uncertain.covariance
    # (b + 2c x)² <= t² Var(b + 2c x), a quadratic inequality in x.
    square = 4 * (c**2 - t2 * v[2, 2])
    linear = 4 * (b * c - t2 * v[1, 2])
    constant = b**2 - t2 * v[1, 1]
    if square <= 0:
        # A fit without curvature is not rejected: the set of peaks has no end.
        return None
    root = math.sqrt(max(0.0, linear**2 - 4 * square * constant))
    return Interval(
        estimate=outcome.peak,
        low=float(-linear - root) / float(2 * square),
        high=float(-linear + root) / float(2 * square),
    )


def _rests_on(effective: Values, means: Values) -> tuple[int | None, bool]:
    """Return the fewest cells of one end without which no peak is inside, and if it is the top."""
    levels = np.unique(effective)
    # Cells are taken away from one end, one T_eff after another, until the peak is gone.
    best: tuple[int | None, bool] = (None, False)
    for above in (True, False):
        for removed in range(1, len(levels) - LEAST_TEMPERATURES + 1):
            kept = effective < levels[-removed] if above else effective > levels[removed - 1]
            count = int((~kept).sum())
            if best[0] is not None and count >= best[0]:
                break
            if not quadratic(effective[kept], means[kept]).peak_inside:
                best = (count, above)
                break
    return best
