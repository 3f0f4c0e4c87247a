"""Is it the right answer? Printed text against expected text, and returned values against JSON; pure, reads and writes nothing.

Both comparisons run in the grader, on data that an untrusted program chose, so neither calls anything the data brings.
"""

from __future__ import annotations

import math
from decimal import Decimal, InvalidOperation
from itertools import zip_longest

TOLERANCE = 1e-6
"""Relative and absolute tolerance where a float is expected; EvalPlus and NeMo Gym use the same figure."""


def same_output(actual: str, expected: str) -> bool:
    r"""Whether a program's whole output is right, by LiveCodeBench's rule.

    Both texts are stripped and split at `\n`, every line is stripped, and there must be as many lines. Two lines agree
    when they are the same string, or when every whitespace-separated token of both is a finite decimal number and the
    numbers are equal one by one, exactly: `6.0` is `6`, `1e3` is `1000`, but 0.30000000000000004 is not 0.3.
    """
    return first_difference(actual, expected) is None


def first_difference(actual: str, expected: str) -> tuple[int, str | None, str | None] | None:
    """The first line where two outputs disagree, as (number from 1, actual, expected); None for a missing line."""
    pairs = zip_longest(actual.strip().split("\n"), expected.strip().split("\n"))
    for number, (got, want) in enumerate(pairs, start=1):
        if got is None or want is None or not _same_line(got.strip(), want.strip()):
            return number, got, want
    return None


def _same_line(actual: str, expected: str) -> bool:
    if actual == expected:
        return True
    wanted = _numbers(expected)
    return wanted is not None and wanted == _numbers(actual)


def _numbers(line: str) -> list[Decimal] | None:
    """The tokens of a line as numbers, where all of them are finite ones."""
    numbers = []
    for token in line.split():
        try:
            number = Decimal(token)
        except InvalidOperation:
            return None
        if not number.is_finite():
            return None
        numbers.append(number)
    return numbers


def same_value(actual: object, expected: object) -> bool:
    """Whether a returned value is the expected JSON value.

    A tuple counts as a list, at every depth. Integers are compared exactly; `6.0` is 6. Where a float is expected, a
    number within 1e-6, relative or absolute, is right. A bool is only ever equal to a bool, NaN to nothing. Objects have the
    same keys and equal values; a set, bytes, and a key that is no string have no JSON and are never right.
    """
    if isinstance(expected, bool) or isinstance(actual, bool) or expected is None or actual is None:
        return type(actual) is type(expected) and actual == expected
    if isinstance(expected, int | float):
        return isinstance(actual, int | float) and _same_number(actual, expected)
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


def _same_number(actual: float, expected: float) -> bool:
    if isinstance(expected, int):
        return actual == expected
    try:
        return math.isclose(actual, expected, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    except OverflowError:
        return False
