"""EvalPlus's comparison in numpy, as a reference for ours."""

import contextlib
import warnings

import numpy as np


def evalplus_by_numpy(actual, expected, atol):
    """Return the decision of evalplus 0.3.1 on one output."""
    if actual == expected:
        return True
    floats = (
        [expected]
        if isinstance(expected, float)
        else expected
        if isinstance(expected, list | tuple)
        else []
    )
    if atol == 0 and floats and all(isinstance(item, float) for item in floats):
        atol = 1e-6
    if atol == 0 or type(actual) is not type(expected):
        return False
    if isinstance(expected, list | tuple) and len(actual) != len(expected):
        return False
    with (
        contextlib.suppress(TypeError, ValueError, OverflowError),
        warnings.catch_warnings(),
        np.errstate(all="ignore"),
    ):
        warnings.simplefilter("ignore")
        return bool(np.allclose(actual, expected, rtol=1e-7, atol=atol))
    return False
