"""Is it the right answer? Printed text, returned values by the rule of each benchmark, final numbers; reads and writes nothing.

All comparisons run in the grader, on plain values that an untrusted program chose, so none calls anything the data brings.
EvalPlus's rules are in `evalplus_comparison`.
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
"""Relative and absolute tolerance where a float is expected; EvalPlus and NeMo Gym use the same figure."""


def first_difference(actual: str, expected: str, *, finite: bool = True) -> str:
    r"""What is wrong with the first line where two outputs disagree, for a reader; empty where they agree.

    LiveCodeBench's rule: both texts are stripped and split at `\n`, every line is stripped, and there must be as many lines.
    Two lines agree when they are the same string, or when every whitespace-separated token of both is a decimal number and
    the numbers are equal one by one, exactly: `6.0` is `6`, `1e3` is `1000`, but 0.30000000000000004 is not 0.3 and NaN is
    nothing. `finite` numbers only; officially `Infinity` is `inf`.
    """
    pairs = zip_longest(actual.strip().split("\n"), expected.strip().split("\n"))
    for number, (got, want) in enumerate(pairs, start=1):
        if got is None or want is None:
            return f"line {number} is {'missing' if got is None else 'one too many'}"
        if not _same_line(got.strip(), want.strip(), finite=finite):
            return f"line {number} is {shown(got.strip())} and should be {shown(want.strip())}"
    return ""


def _same_line(actual: str, expected: str, *, finite: bool) -> bool:
    if actual == expected:
        return True
    try:
        got, wanted = ([Decimal(token) for token in line.split()] for line in (actual, expected))
        return got == wanted and not (finite and any(number.is_infinite() for number in wanted))
    except InvalidOperation:
        # Not a number; or a signalling NaN, which cannot be compared (officially -4 for the whole sample).
        return False


def shown(value: object) -> str:
    """A value for a reader, short and on one line."""
    try:
        return printable(reprlib.repr(value))[:100]
    except ValueError:
        return "a value with an integer of thousands of digits"


def same_value(actual: object, expected: object) -> bool:
    """Whether a returned value is the expected JSON value.

    A tuple counts as a list, at every depth. Integers are compared exactly; `6.0` is 6. Where a float is expected, a
    number within 1e-6, relative or absolute, is right. A bool is only ever equal to a bool, NaN to nothing. Objects have the
    same keys and equal values; a set, bytes, and a key that is no string have no JSON and are never right. Numbers are those
    of numpy, Fraction and Decimal too. Of numpy's arrays only those of one value equal anything, as in numpy.
    """
    if isinstance(actual, restored.Numpy) and isinstance(actual.data, list):
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
    """What a value of numpy, a UserList or a read-only mapping holds; the real part of a complex number without another."""
    if isinstance(value, restored.Numpy | UserList):
        value = value.data
    elif isinstance(value, MappingProxyType):
        value = dict(value)
    return value.real if isinstance(value, complex) and not value.imag else value


def _same_number(actual: float | Fraction | Decimal, expected: float) -> bool:
    if isinstance(expected, int):
        return actual == expected
    try:
        return math.isclose(actual, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:
        return False


def same(
    comparison: str, actual: object, expected: object, atol: float, arguments: Sequence[object]
) -> bool:
    """Whether a returned value is right by a problem's comparison.

    `value`: `same_value`. `lcb`: as LiveCodeBench's grader, a tuple becomes a list (the outermost only), then Python's `==`.
    Names that begin with `evalplus`: see `evalplus_comparison.same`, which alone uses `atol` and `arguments`. `actual` may be
    the sandbox's `Unsupported`, a value that could not leave it: it is equal to nothing, but it is not None either.

    Raises:
        AmbiguousError: an array of several values, by `value` or `lcb`.
        ValueError: no such comparison.
    """
    if comparison == "value":
        return same_value(actual, expected)
    if comparison == "lcb":
        return bool((list(actual) if isinstance(actual, tuple) else actual) == expected)
    return evalplus_comparison.same(comparison, actual, expected, atol, arguments)


def numeric_answer(text: str) -> Decimal | Fraction | None:
    """Return the number that an answer ends in, None where there is no number; `final_number` has the rules."""
    return final_number(text)


def same_answer(text: str, gold: str) -> bool:
    """Return True if an answer's number is the gold one, exactly: 18.0 is 18, 3/4 is 0.75, and 0.333 is not 1/3."""
    return numeric_answer(text) == Decimal(gold)
