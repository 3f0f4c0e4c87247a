"""The quadratic fit of a score over the effective temperature, with the error of its peak.

Least squares of the value on (1, T_eff, T_eff²), as in 2604.01193, section 3.4. A peak is a finding
only where cells lie on both sides of it, so a fit also counts them. Pure functions, without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ssd_ray.statistics.metrics import Values

_COEFFICIENTS = 3


@dataclass(frozen=True, kw_only=True)
class Quadratic:
    """The fit value = a + b T_eff + c T_eff²."""

    cells: int
    """Number of cells."""
    a: float
    b: float
    c: float
    r2: float
    """R², the explained share of the variance; NaN if all values are equal."""
    r2_adjusted: float
    """R² less what three coefficients explain by chance; NaN for three cells."""
    peak: float
    """-b / 2c, the T_eff with the best value; NaN if the fit has no maximum."""
    peak_error: float
    """Standard error of the peak by the delta method; NaN without a peak, or for three cells."""
    value_at_peak: float
    """Value of the fit at the peak."""
    low: float
    """Smallest T_eff of a cell."""
    high: float
    """Largest T_eff of a cell."""
    cells_below: int
    """Number of cells with a T_eff below the peak."""
    cells_above: int
    """Number of cells beyond the peak. The fall of the fit rests on these."""

    @property
    def peak_inside(self) -> bool:
        """True if the grid encloses the peak."""
        return self.low < self.peak < self.high


def quadratic(effective: Values, values: Values) -> Quadratic:
    """Fit values over effective temperatures, float64[cells] each.

    Raises:
        ValueError: arrays of different sizes, or fewer than three different temperatures.
    """
    if effective.shape != values.shape or effective.ndim != 1:
        raise ValueError(f"the shapes {effective.shape} and {values.shape} are not equal and flat")
    if len(np.unique(effective)) < _COEFFICIENTS:
        raise ValueError("a quadratic needs three different effective temperatures")
    design = np.stack([np.ones_like(effective), effective, effective**2], axis=1)
    coefficients, _, _, _ = np.linalg.lstsq(design, values, rcond=None)
    a, b, c = (float(each) for each in coefficients)
    residual = float(((values - design @ coefficients) ** 2).sum())
    total = float(((values - values.mean()) ** 2).sum())
    cells = len(values)
    freedom = cells - _COEFFICIENTS
    r2 = 1 - residual / total if total > 0 else math.nan
    peak, error = math.nan, math.nan
    # Opened upwards, the parabola has a lowest point and no peak.
    if c < 0:
        peak = -b / (2 * c)
        if freedom > 0:
            # Delta method: the gradient of -b / 2c by (a, b, c), on both sides of their covariance.
            covariance = residual / freedom * np.linalg.inv(design.T @ design)
            slope = np.array([0.0, -1 / (2 * c), b / (2 * c**2)])
            error = math.sqrt(float(slope @ covariance @ slope))
    return Quadratic(
        cells=cells,
        a=a,
        b=b,
        c=c,
        r2=r2,
        r2_adjusted=1 - (1 - r2) * (cells - 1) / freedom if freedom > 0 else math.nan,
        peak=peak,
        peak_error=error,
        value_at_peak=a + b * peak + c * peak**2,
        low=float(effective.min()),
        high=float(effective.max()),
        cells_below=int((effective < peak).sum()),
        cells_above=int((effective > peak).sum()),
    )
