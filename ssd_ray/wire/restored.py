"""Values of foreign types, made by the reader of a line from parts of an untrusted writer.

- Fraction, Decimal, range, deque, dates and views are the standard library's own.
- `Numpy`, `SortedItems` and `Iterated` take the place of other packages' types in the grader. They
  compare like numpy 2, sortedcontainers and iterators.
- A sandboxed process calls `use_numpy_itself` and gets numpy's values and real iterators.

A value that cannot be made means a malformed line. `foreign` is the other direction. Both ends
import this module. It imports the standard library only.
"""

from __future__ import annotations

import array
import datetime
import re
import reprlib
import struct
from collections import UserList, deque
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

MAX_FRACTION_BITS = 16_384
"""Limit for the terms of a fraction, because reducing one takes quadratic time."""
MAX_DECIMAL_DIGITS = 20_000
DATES = {
    "date": ("year", "month", "day"),
    "datetime": ("year", "month", "day", "hour", "minute", "second", "microsecond"),
    "time": ("hour", "minute", "second", "microsecond"),
    "timedelta": ("days", "seconds", "microseconds"),
}
"""The fields of each date type, in the order of its arguments."""
DECIMAL = re.compile(
    rf"-?(?:[0-9]{{1,{MAX_DECIMAL_DIGITS}}}(?:\.[0-9]{{1,{MAX_DECIMAL_DIGITS}}})?"
    r"(?:E[+-]?[0-9]{1,18})?|Infinity|NaN)"
)
"""Texts of decimals in bounds: without signaling NaN, with at most MAX_DECIMAL_DIGITS a part."""
NUMBERS: dict[str, type] = {
    "bool": bool,
    **{f"{sign}int{bits}": int for sign in ("", "u") for bits in (8, 16, 32, 64)},
    **{f"float{bits}": float for bits in (16, 32, 64)},
    "complex64": complex,
    "complex128": complex,
}
KINDS: dict[str, type] = {**NUMBERS, "str": str, "bytes": bytes, "object": object}
_FLOAT_CODES = {"float16": "e", "float32": "f", "float64": "d"}


class AmbiguousError(ValueError):
    """A comparison of arrays with several results or none, whose truth numpy refuses to give."""


class Numpy:
    """A numpy value in the grader: its dtype, and a plain value or nested lists of plain values.

    `==` follows numpy 2:

    - A Python number is first rounded to the dtype.
    - A list of one value equals the value.
    - Comparing several values raises AmbiguousError.

    It is not a subclass of a plain type, for comparison rules that ask for the type.
    """

    __slots__ = ("data", "dtype")

    def __init__(self, dtype: str, data: object) -> None:
        self.dtype = dtype
        self.data = data

    def __eq__(self, other: object) -> bool:
        mine = _only(self)
        theirs = _only(other)
        if mine is None or theirs is None:
            raise AmbiguousError("the truth of several comparisons, or of none, is ambiguous")
        return _same_number(self.dtype, mine[0], theirs[0])

    def __hash__(self) -> int:
        return hash(self.data)

    def __iter__(self) -> Iterator[Numpy]:
        if not isinstance(self.data, list):
            raise TypeError("a single value of numpy has no items")
        return (Numpy(self.dtype, item) for item in self.data)

    def __repr__(self) -> str:
        name = "array" if isinstance(self.data, list) else self.dtype
        return f"numpy.{name}({reprlib.repr(self.data)})"


class SortedItems(UserList[object]):
    """A `sortedcontainers.SortedList`: equal to a list or tuple of the same items."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list | tuple | UserList) and self.data == list(other)

    __hash__ = None


def _only(value: object) -> tuple[object] | None:
    """Return the only plain value in a numpy value or nested lists and tuples, as a 1-tuple.

    None if it holds several values, or none.
    """
    while isinstance(value, Numpy | list | tuple):
        if isinstance(value, Numpy):
            value = value.data
        elif len(value) != 1:
            return None
        else:
            value = value[0]
    return (value,)


def _same_number(dtype: str, actual: Any, expected: Any) -> bool:
    if isinstance(expected, bool) or not isinstance(expected, int | float):
        return bool(actual == expected)
    # NEP 50: a Python number takes the dtype of the array, so 0.1 equals float32(0.1).
    try:
        if dtype in _FLOAT_CODES:
            code = _FLOAT_CODES[dtype]
            (expected,) = struct.unpack(code, struct.pack(code, expected))
        elif isinstance(expected, float) and isinstance(actual, int):
            actual = float(actual)
    except (OverflowError, struct.error):
        return False
    return bool(actual == expected)


class Iterated:
    """Items and type name of an iterator; like an iterator, equal to itself alone."""

    __slots__ = ("items", "name")

    def __init__(self, name: str, items: list[object]) -> None:
        self.name = name
        self.items = items

    def __iter__(self) -> Iterator[object]:
        return iter(self.items)

    def __repr__(self) -> str:
        return f"{self.name} of {reprlib.repr(self.items)}"


def parts(value: object) -> tuple[str, Any] | None:
    """Return the parts of a value of this module's own types; None for any other value."""
    if isinstance(value, SortedItems):
        return "sorted", value.data
    if isinstance(value, Numpy):
        return "numpy", [value.dtype, value.data]
    return ("iterator", [value.name, value.items]) if isinstance(value, Iterated) else None


def _checked(body: list[Any]) -> tuple[str, Any]:
    name, data = body
    if name not in KINDS or not holds(data, KINDS[name]):
        raise ValueError("a numpy value with items of another dtype")
    return name, data


def holds(data: object, kind: type) -> bool:
    """Return True if every plain value in nested lists has the type `kind`."""
    if not isinstance(data, list):
        return kind is object or type(data) is kind
    # A flat list of the type is decided by one pass in C.
    return set(map(type, data)) <= {kind} or all(holds(item, kind) for item in data)


def _make_numpy(body: list[Any]) -> object:
    return Numpy(*_checked(body))


def _make_numpys(body: list[Any]) -> object:
    name, data = _checked(body)
    return [Numpy(name, item) for item in data]


def _make_iterator(body: list[Any]) -> object:
    name, items = body
    if not isinstance(name, str) or not isinstance(items, list):
        raise ValueError("an iterator without a name and items")
    return Iterated(name[:100], items)


def _make_fraction(body: list[Any]) -> Fraction:
    numerator, denominator = _integers(body)
    if (
        denominator != 1
        and max(numerator.bit_length(), denominator.bit_length()) > MAX_FRACTION_BITS
    ):
        raise ValueError("a fraction with too many bits")
    return Fraction(numerator, denominator)


def _make_date(body: list[Any]) -> object:
    name, *fields = body
    if name not in DATES or len(fields) != len(DATES[name]):
        raise ValueError("no such date")
    return getattr(datetime, name)(*_integers(fields))


def _make_decimal(text: str) -> Decimal:
    # A signaling NaN would raise in every comparison.
    if not DECIMAL.fullmatch(text):
        raise ValueError("a decimal that cannot be compared")
    return Decimal(text)


def _integers(body: list[Any]) -> list[int]:
    if any(type(item) is not int for item in body):
        raise ValueError("integers expected")
    return body


LEAVES: dict[str, Callable[[str], object]] = {
    "decimal": _make_decimal,
    "bytearray": bytearray.fromhex,
}
CONTAINERS: dict[str, Callable[[list[Any]], object]] = {
    "fraction": _make_fraction,
    "range": lambda body: range(*_integers(body)),
    "deque": deque,
    "user-list": UserList,
    "sorted": SortedItems,
    "values": lambda body: dict(enumerate(body)).values(),
    "array": lambda body: array.array(body[0], body[1]),
    "date": _make_date,
    "numpy": _make_numpy,
    "numpys": _make_numpys,
    "iterator": _make_iterator,
}


def use_numpy_itself() -> None:
    """Make numpy's own values and real iterators in this process from now on."""
    CONTAINERS.update(
        numpy=_real_numpy, numpys=lambda body: list(_real_numpy(body)), iterator=_real_iterator
    )


def _real_numpy(body: list[Any]) -> Any:
    import numpy

    name, data = _checked(body)
    return numpy.array(data, dtype=name)[()]


def _real_iterator(body: list[Any]) -> Iterator[object]:
    return (item for item in body[1])
