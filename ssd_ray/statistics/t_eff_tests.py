"""Tests of the claim that values depend on T_eff = T_train T_eval alone.

- Lack of fit: the quadratic against the scatter of cells with equal T_eff.
- Agreement: equal values in cells of equal T_eff, problem by problem.
- The quadratic in both temperatures, next to that in T_eff.

Pure functions, without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_ray.statistics.metrics import Values, problem_weights

_RESAMPLES = 2000
_TIE = 1e-9
_ROUNDING = 1e-5
"""Of float32 logits, as a share of a value."""
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, kw_only=True)
class Test:
    """A test of a hypothesis."""

    statistic: float
    p_value: float
    groups: int
    """T_eff with more than one cell."""


@dataclass(frozen=True, kw_only=True)
class Surface:
    """The quadratic in both temperatures: 1, T_train, T_eval, their squares and their product."""

    r2: float | None
    r2_adjusted: float | None
    t_train: float | None
    """T_train of the maximum; None if it has none within the cells."""
    t_eval: float | None


def powers(effective: Values) -> Values:
    """Return 1, T_eff and T_eff² of each cell, float64[cells, 3]."""
    return np.stack([np.ones_like(effective), effective, effective**2], axis=1)


def known(value: float) -> float | None:
    """Return a finite value, else None."""
    return value if math.isfinite(value) else None


def _groups(effective: Values) -> list[Places]:
    """Return the places of the cells at each T_eff that more than one cell has."""
    places = [np.flatnonzero(effective == level) for level in np.unique(effective)]
    return [group for group in places if len(group) > 1]


def lack_of_fit(effective: Values, means: Values) -> Test | None:
    """Test the quadratic against the scatter of cells with equal T_eff (Fisher 1922).

    It takes the cells as independent, all with the same error.
    """
    from scipy.special import fdtrc

    groups = _groups(effective)
    # The scatter within groups needs no fit: it is the error that a perfect fit would leave.
    pure = sum(float(((means[group] - means[group].mean()) ** 2).sum()) for group in groups)
    pure_freedom = sum(len(group) - 1 for group in groups)
    design = powers(effective)
    rest = means - design @ (np.linalg.pinv(design) @ means)
    freedom = len(np.unique(effective)) - design.shape[1]
    if not pure_freedom or freedom < 1 or pure <= 0:
        return None
    # Rounding may leave less than the scatter itself.
    lack = max(0.0, float(rest @ rest) - pure)
    ratio = (lack / freedom) / (pure / pure_freedom)
    return Test(
        statistic=ratio,
        p_value=float(fdtrc(freedom, pure_freedom, ratio)),
        groups=len(groups),
    )


def agreement(effective: Values, values: Values, *, seed: int) -> Test | None:
    """Test equal means in cells of equal T_eff, from float64[problems, cells].

    The statistic is the sum of squares of the means around those of their groups, over its mean in
    the bootstrap of the problems (Rubin 1981) without any difference.
    """
    groups = _groups(effective)
    if not groups:
        return None
    # Problems stay together: the cells of one problem depend on one another.
    apart = np.concatenate(
        [values[:, group] - values[:, group].mean(1, keepdims=True) for group in groups], axis=1
    )
    means = apart.mean(0)
    # Differences within rounding are none.
    if np.abs(means).max() <= _ROUNDING * max(1.0, np.abs(values).max()):
        return Test(statistic=0.0, p_value=1.0, groups=len(groups))
    statistic = float(means @ means)
    weights = problem_weights(len(values), _RESAMPLES, seed)
    shares = weights / weights.sum(1, keepdims=True)
    # Without a difference, the means of all problems are zero.
    drawn = (((shares @ (apart - means)) ** 2).sum(1)) * len(values) / (len(values) - 1)
    # Divided by its own scale, the statistic is near 1 without a difference.
    expected = float(drawn.mean())
    return Test(
        statistic=statistic / expected if expected > _TIE**2 else 0.0,
        p_value=float((1 + (drawn >= statistic - _TIE**2).sum()) / (1 + _RESAMPLES)),
        groups=len(groups),
    )


def surface(t_train: Values, t_eval: Values, means: Values) -> Surface | None:
    """Fit the quadratic in both temperatures."""
    one = np.ones_like(t_train)
    design = np.stack([one, t_train, t_eval, t_train**2, t_eval**2, t_train * t_eval], axis=1)
    cells, coefficients = design.shape
    if cells <= coefficients or np.linalg.matrix_rank(design) < coefficients:
        return None
    solution = np.linalg.pinv(design) @ means
    rest = float(((means - design @ solution) ** 2).sum())
    total = float(((means - means.mean()) ** 2).sum())
    r2 = 1 - rest / total if total > 0 else math.nan
    _, b1, b2, c1, c2, product = (float(each) for each in solution)
    top: tuple[float | None, float | None] = (None, None)
    # A maximum needs a negative definite matrix of second derivatives.
    determinant = 4 * c1 * c2 - product**2
    if c1 < 0 and determinant > 0:
        train = (product * b2 - 2 * c2 * b1) / determinant
        evaluated = (product * b1 - 2 * c1 * b2) / determinant
        # Outside of the cells it is an extrapolation.
        if t_train.min() < train < t_train.max() and t_eval.min() < evaluated < t_eval.max():
            top = (train, evaluated)
    return Surface(
        r2=known(r2),
        r2_adjusted=known(1 - (1 - r2) * (cells - 1) / (cells - coefficients)),
        t_train=top[0],
        t_eval=top[1],
    )
