"""Comparison of outputs: printed text, returned values by benchmark, final numbers.

The untrusted program chose the values, so no method of theirs is called. EvalPlus's rules are in
`evalplus_comparison`. Does no I/O.
"""

from __future__ import annotations

import math
import reprlib
from collections import UserList
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from itertools import zip_longest
from types import MappingProxyType

from ssd_ray.evaluation.judging import evalplus_comparison
from ssd_ray.evaluation.judging.final_number import final_number
from ssd_ray.evaluation.sandbox import printable
from ssd_ray.wire import restored

TOLERANCE = 1e-6
"""Relative and absolute tolerance for an expected float, as in EvalPlus and NeMo Gym."""


def first_difference(actual: str, expected: str, *, finite: bool = True) -> str:
    r"""Describe the first line in which two outputs differ; return an empty text if they agree.

    LiveCodeBench's rule:

    - Both texts are stripped and split at `\n`. Their numbers of lines must agree. Lines are
      stripped.
    - Two lines agree as equal strings, or token by token as equal decimal numbers. Numbers are
      exact: `6.0` is `6` and `1e3` is `1000`, but 0.30000000000000004 is not 0.3.
    - NaN equals nothing. With `finite`, neither does infinity. The official grader accepts
      `Infinity` for `inf`.
    """
    pairs = zip_longest(actual.strip().split("\n"), expected.strip().split("\n"))
    for number, (got, want) in enumerate(pairs, start=1):
        if got is None or want is None:
            return f"line {number} is {'missing' if got is None else 'one too many'}"
        if not _same_line(got.strip(), want.strip(), finite=finite):
            return f"line {number} is {shown(got.strip())} and should be {shown(want.strip())}"
    return ""


def _same_line(actual: str, expected: str, *, finite: bool) -> bool:
    """Return True if two stripped lines agree as texts or as lists of decimal numbers."""
    if actual == expected:
        return True
    try:
        got, wanted = ([Decimal(token) for token in line.split()] for line in (actual, expected))
        return got == wanted and not (finite and any(number.is_infinite() for number in wanted))
    except InvalidOperation:
        # Not a number; or a signaling NaN, which no comparison accepts. Officially a signaling NaN
        # gives code -4 (`runtime_error`) for all tests.
        return False


def shown(value: object) -> str:
    """Return a value as text for a reader, short and on one line."""
    try:
        return printable(reprlib.repr(value))[:100]
    except ValueError:
        return "a value with an integer of thousands of digits"


def same_value(actual: object, expected: object) -> bool:
    """Return True if a returned value is the expected JSON value.

    - A tuple counts as a list, at every depth.
    - Integers are compared exactly; `6.0` is 6. Numbers of numpy, Fractions and Decimals count too.
    - For an expected float, a number within 1e-6, relative or absolute, is right.
    - A bool equals only a bool. NaN equals nothing.
    - Objects have the same keys and equal values.
    - A set, bytes, and a key other than a string have no JSON and are never right.
    - An array of numpy equals a value only if it holds one value, as in numpy.
    """
    if isinstance(actual, restored.Numpy) and isinstance(actual.data, list):
        # An array of several values raises, as numpy does.
        return actual == expected
    actual = _unwrapped(actual)
    if isinstance(expected, bool) or isinstance(actual, bool) or expected is None or actual is None:
        return type(actual) is type(expected) and actual == expected
    if isinstance(expected, int | float):
        return isinstance(actual, int | float | Fraction | Decimal) and _same_number(
            actual, expected
        )
    if isinstance(expected, str):
        return isinstance(actual, str) and actual == expected
    if isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return False
        return all(same_value(got, want) for got, want in zip(actual, expected, strict=True))
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or actual.keys() != expected.keys():
            return False
        return all(same_value(actual[key], want) for key, want in expected.items())
    return False


def _unwrapped(value: object) -> object:
    """Return the plain value within a value of numpy, a UserList or a read-only mapping.

    A complex number without an imaginary part counts as its real part.
    """
    if isinstance(value, restored.Numpy | UserList):
        value = value.data
    elif isinstance(value, MappingProxyType):
        value = dict(value)
    return value.real if isinstance(value, complex) and not value.imag else value


def _same_number(actual: float | Fraction | Decimal, expected: float) -> bool:
    """Return True if a number is the expected one: an integer exactly, a float within TOLERANCE."""
    if isinstance(expected, int):
        return actual == expected
    try:
        return math.isclose(actual, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:
        return False


def same(
    comparison: str, actual: object, expected: object, atol: float, arguments: Sequence[object]
) -> bool:
    """Return True if a returned value is right by a problem's comparison.

    - `value`: see `same_value`.
    - `lcb`: Python's `==`, with the outermost tuple as a list, as in LiveCodeBench's grader.
    - `evalplus…`: see `evalplus_comparison.same`, the only one to use `atol` and `arguments`.

    `actual` may be the sandbox's `Unsupported`, a value that could not leave it. It equals nothing,
    but it is not None either.

    Raises:
        AmbiguousError: an array of several values, by `value` or `lcb`.
        ValueError: an unknown comparison.
    """
    if comparison == "value":
        return same_value(actual, expected)
    if comparison == "lcb":
        return bool((list(actual) if isinstance(actual, tuple) else actual) == expected)
    return evalplus_comparison.same(comparison, actual, expected, atol, arguments)


def numeric_answer(text: str) -> Decimal | Fraction | None:
    """Return the number at the end of an answer, None if there is none; see `final_number`."""
    return final_number(text)


def same_answer(text: str, gold: str) -> bool:
    """Return True if an answer's number is exactly the gold one.

    18.0 is 18 and 3/4 is 0.75, but 0.333 is not 1/3.
    """
    return numeric_answer(text) == Decimal(gold)
