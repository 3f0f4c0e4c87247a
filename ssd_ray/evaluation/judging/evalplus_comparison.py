"""EvalPlus's rules for returned values, on plain values and without numpy.

- Equal values agree.
- With a tolerance, values agree as in numpy's `allclose` with rtol 1e-7.
- Some tasks have comparisons of their own.

Written to behave as evalplus 0.3.1, `evalplus/eval/__init__.py`. Does no I/O.
"""

from __future__ import annotations

import itertools
import math
from array import array
from collections import UserList, deque
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from fractions import Fraction

from ssd_ray import wire
from ssd_ray.wire import restored

RTOL = 1e-7
FLOAT_ATOL = 1e-6
"""Absolute tolerance of a task without one, once a float is expected of it."""

Number = int | float | complex


def tolerance(atol: float, expected: object) -> float:
    """Return the absolute tolerance for a test.

    It is `atol`, or 1e-6 if that is 0 and a float, or a list or tuple of floats, is expected.
    EvalPlus keeps a raised tolerance for later tests of a group. So `atol` is the tolerance of the
    test before; for the first test of a group, that of the problem.
    """
    return FLOAT_ATOL if atol == 0 and _is_floats(expected) else atol


def same(
    comparison: str, actual: object, expected: object, atol: float, arguments: Sequence[object]
) -> bool:
    """Return True if a returned value is right.

    - `evalplus`: equal, or of the same type and within the `tolerance`.
    - `evalplus-set`: the same set of members.
    - `evalplus-not-none`: any value if `expected` is True, None if it is False.
    - `evalplus-root`: a root of the polynomial with coefficients `arguments[0]`, within `atol`.
    - `evalplus-any`: any value.
    - `evalplus-zero`: also 0.
    - `evalplus-digits`, `evalplus-pyramid`: also the result of another reading of the task.

    Raises:
        ValueError: an unknown comparison.
    """
    if comparison not in _EXACT:
        raise ValueError(f"no comparison {comparison!r}")
    try:
        if comparison == "evalplus-root":
            return _is_root(actual, arguments, atol)
        if _EXACT[comparison](actual, expected, atol, arguments):
            return True
    except (TypeError, ValueError, OverflowError):
        # As in EvalPlus, an answer to which the rule does not apply is wrong.
        return False
    atol = tolerance(atol, expected)
    return atol != 0 and type(actual) is type(expected) and _all_close(actual, expected, atol)


def _is_floats(value: object) -> bool:
    """Return True for a float, or a list or tuple of floats that is not empty."""
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(map(_is_float, value))
    return _is_float(value)


def _is_float(value: object) -> bool:
    """Return True for a float of Python or numpy."""
    return isinstance(value, float) or (
        isinstance(value, restored.Numpy) and value.dtype == "float64"
    )


Rule = Callable[[object, object, float, Sequence[object]], bool]


def _equal(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    return bool(actual == expected)


def _same_members(
    actual: object, expected: object, atol: float, arguments: Sequence[object]
) -> bool:
    if not isinstance(actual, Iterable) or not isinstance(expected, Iterable):
        return False
    wanted = set(expected)
    # The program chose the members. Colliding hashes would take the grader hours. A range may be
    # too long to read, and one member too many is enough to reject it.
    most = len(wanted) + 1 if isinstance(actual, range) else None
    return set(wire.members(list(itertools.islice(actual, most)))) == wanted


def _not_none(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    return bool((actual if isinstance(actual, bool) else actual is not None) == expected)


def _anything(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    return True


def _or_zero(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    return bool(actual == expected or actual == 0)


def _or_digits(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    """Mbpp/558: the distance of two numbers digit by digit, the shorter one padded with zeros."""
    if actual == expected:
        return True
    first, second = (str(number) for number in arguments)
    width = max(len(first), len(second))
    pairs = zip(first.zfill(width), second.zfill(width), strict=True)
    return bool(actual == sum(abs(int(a) - int(b)) for a, b in pairs))


def _or_pyramid(actual: object, expected: object, atol: float, arguments: Sequence[object]) -> bool:
    """Mbpp/581: the surface of a square pyramid with its vertical height, rounded."""
    if actual == expected:
        return True
    edge, height = (_number(argument) for argument in arguments)
    slant = math.sqrt((edge / 2) ** 2 + height**2)
    return abs(_number(actual) - round(edge**2 + 4 * (edge * slant) / 2)) <= atol


def _is_root(actual: object, arguments: Sequence[object], atol: float) -> bool:
    """HumanEval/32: the polynomial is near 0 at the value; coefficients begin with the constant."""
    (coefficients,) = arguments
    if not isinstance(coefficients, list):
        raise TypeError("coefficients must be a list")
    x = _number(actual)
    terms = (_number(factor) * math.pow(x, power) for power, factor in enumerate(coefficients))
    return abs(sum(terms)) <= atol


def _number(value: object) -> float:
    """Return a value as a real number; raise TypeError for any other."""
    if isinstance(value, restored.Numpy):
        value = value.data
    if isinstance(value, Fraction | Decimal):
        return float(value)
    if not isinstance(value, int | float):
        raise TypeError(f"expected a real number, got {type(value).__name__}")
    return value


_EXACT: dict[str, Rule] = {
    "evalplus": _equal,
    "evalplus-set": _same_members,
    "evalplus-not-none": _not_none,
    "evalplus-root": _equal,
    "evalplus-any": _anything,
    "evalplus-zero": _or_zero,
    "evalplus-digits": _or_digits,
    "evalplus-pyramid": _or_pyramid,
}


# numpy.allclose(actual, expected, rtol=RTOL, atol=atol) on nested lists and tuples.

Array = tuple[tuple[int, ...], list[Number]]
"""Shape and numbers, row by row."""


def _all_close(actual: object, expected: object, atol: float) -> bool:
    """Return True as numpy's `allclose` would."""
    if (
        isinstance(actual, list | tuple)
        and isinstance(expected, list | tuple)
        and len(actual) != len(expected)
    ):
        return False
    left, right = _array(actual), _array(expected)
    if left is None or right is None:
        return False
    if left[0] == right[0]:
        return all(map(_close, left[1], right[1], itertools.repeat(atol)))
    shape = _broadcast(left[0], right[0])
    if shape is None:
        return False
    places = itertools.product(*map(range, shape))
    return all(_close(_at(left, place), _at(right, place), atol) for place in places)


def _array(value: object) -> Array | None:
    """Return shape and numbers of a value as numpy's numeric array, None for any other value."""
    if isinstance(value, restored.Numpy):
        value = value.data
    elif isinstance(value, UserList | deque | array) or (
        isinstance(value, range) and value.stop - value.start < wire.MAX_NODES
    ):
        value = list(value)
    # Beyond 64 bits numpy makes an array of objects, which `allclose` refuses.
    if isinstance(value, int) and not -(1 << 63) <= value < 1 << 64:
        return None
    if isinstance(value, int | float | complex):
        return (), [value]
    if not isinstance(value, list | tuple):
        return None
    if not value:
        return (0,), []
    parts = [_array(item) for item in value]
    first = parts[0]
    if first is None:
        return None
    numbers: list[Number] = []
    for part in parts:
        if part is None or part[0] != first[0]:
            return None
        numbers += part[1]
    return (len(parts), *first[0]), numbers


def _broadcast(left: tuple[int, ...], right: tuple[int, ...]) -> tuple[int, ...] | None:
    """Return the shape of two arrays broadcast together, None if numpy refuses."""
    shape = []
    for a, b in itertools.zip_longest(reversed(left), reversed(right), fillvalue=1):
        if a != b and 1 not in (a, b):
            return None
        shape.append(b if a == 1 else a)
    return tuple(reversed(shape))


def _at(array: Array, place: tuple[int, ...]) -> Number:
    """Return the number at a place of the broadcast shape."""
    shape, numbers = array
    index = 0
    for size, position in zip(shape, place[len(place) - len(shape) :], strict=True):
        index = index * size + (position if size != 1 else 0)
    return numbers[index]


def _close(actual: Number, expected: Number, atol: float) -> bool:
    """Return True as numpy's `isclose` would."""
    left, right = (
        number if isinstance(number, complex) else float(number) for number in (actual, expected)
    )
    if left == right:
        return True
    try:
        return math.isfinite(abs(right)) and abs(left - right) <= atol + RTOL * abs(right)
    except OverflowError:
        return False
