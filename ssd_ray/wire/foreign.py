"""Values of further types, taken apart by the writer; `restored` makes them again.

| value | as it arrives |
|---|---|
| text, bytes or set equal by `==` to a built-in one | the built-in one |
| mapping | a read-only mapping |
| Fraction, Decimal, range, deque, array, date, view of a dict | itself |
| numpy scalar or array | a value with the same dtype |
| iterator | its items, if the wire can hold them; equal to no other value |
| any other object equal to its `int()` or `float()` | the number |

- Classes are known by module and name, so nothing is imported in the program's process.
- A program's own class under such a name can only choose the parts. The reader checks each.

Both ends import this module. It imports the standard library only.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING or __name__ != "foreign":
    from ssd_ray.wire import restored
else:  # in a sandbox, where there are modules and no packages
    import restored

MAX_NUMPY_LIST = 100_000
"""Longest list of numpy numbers to keep its dtype; in a longer list they become plain numbers."""
_PLAIN_MODULES = {"builtins", "solution", "check", "__main__", "tmp_sol"}

Parts = tuple[str, Any]
"""A tag and its body. With an empty tag, the body is a value to send instead."""


class UnsupportedValueError(Exception):
    """A value that cannot cross: of an unsupported type, too deep or too large."""


def type_name(value: object) -> str:
    """Return the name of a value's type, such as `numpy.bool` or `collections.deque`.

    Builtins and classes of the program itself are named without their module.
    """
    kind = type(value)
    try:
        module, name = str(kind.__module__), str(kind.__qualname__)
    # A class of the program may raise anything as its attributes are read.
    except Exception:
        return type.__name__
    return name if module in _PLAIN_MODULES else f"{module}.{name}"


def parts(value: Any, room: int) -> Parts:
    """Take a value apart, into at most about `room` values.

    Raises:
        UnsupportedValueError: The type has no form, or the value is too large.
        Exception: Any error raised by the value's own methods.
    """
    for kind in type(value).__mro__:
        form = _FORMS.get((kind.__module__, kind.__qualname__))
        if form is not None:
            return form(value, room)
    number = _claimed_number(value)
    if number is not None:
        return "", number
    # In the dictionaries of the classes, because hasattr() would find a metaclass's method too.
    if any("__iter__" in vars(kind) for kind in type(value).__mro__):
        return "iterator", [type_name(value), _read(value, room)]
    raise UnsupportedValueError(f"a value of type {type_name(value)}"[:100])


def _claimed_number(value: Any) -> int | float | None:
    """Return the int or float of an object that compares equal to it; None without one."""
    for kind in (int, float):
        try:
            number: int | float = kind(value)
            # The object itself decides, as with `==` in a check. Only the number is sent.
            if number == value:
                return number
        # Conversion and comparison are the object's own code.
        except Exception:
            continue
    return None


def _read(values: Iterable[object], room: int) -> list[object]:
    """Return the items of an iterable.

    Raises:
        UnsupportedValueError: There are more than `room`.
    """
    items = list(itertools.islice(values, room + 1))
    if len(items) > room:
        raise UnsupportedValueError(
            f"a value of type {type_name(values)} with more than {room:,} items"[:100]
        )
    return items


def numpy_list(items: list[Any]) -> Parts | None:
    """Return the parts of a list of numbers of one numpy type; None for any other list."""
    # One tag for the list: with a tag for each item, the line would be several times as long.
    kind = type(items[0])
    if not is_numpy(items[0]) or len(items) > MAX_NUMPY_LIST or set(map(type, items)) != {kind}:
        return None
    name = _dtype(items[0])
    return ("numpys", [name, [item.item() for item in items]]) if name in restored.NUMBERS else None


def is_numpy(value: object) -> bool:
    """Return True if a value's class or a base of it is named `numpy.generic`."""
    return any(
        (kind.__module__, kind.__qualname__) == ("numpy", "generic") for kind in type(value).__mro__
    )


def _numpy(value: Any, room: int) -> Parts:
    if value.size > room:
        raise UnsupportedValueError(
            f"a value of type {type_name(value)} with {value.size:,} items"[:100]
        )
    name = _dtype(value)
    if name in restored.KINDS:
        data = value.tolist()
        # Masked items are None, so a masked array is of objects.
        dtype = name if restored.holds(data, restored.KINDS[name]) else "object"
        return "numpy", [dtype, data]
    if name == "longdouble" and not value.shape:
        number = float(value)
        # A NaN differs from itself and has no ratio.
        if number == value or number != number:
            return "numpy", ["float64", number]
        # The exact value: rounding to a double could make it equal to the expected one.
        return "", Fraction(*value.as_integer_ratio())
    raise UnsupportedValueError(f"a value of type {type_name(value)} of {name}"[:100])


def _dtype(value: Any) -> str:
    """Return the name of a value's dtype, without the length of texts."""
    kind, size = value.dtype.kind, value.dtype.itemsize
    if kind in "SUO":
        return {"S": "bytes", "U": "str", "O": "object"}[kind]
    return "longdouble" if kind == "f" and size > 8 else str(value.dtype.name)


def _fraction(value: Any, room: int) -> Parts:
    terms = value.numerator, value.denominator
    if terms[1] != 1 and max(term.bit_length() for term in terms) > restored.MAX_FRACTION_BITS:
        reason = (
            f"a value of type {type_name(value)} with more than {restored.MAX_FRACTION_BITS:,} bits"
        )
        raise UnsupportedValueError(reason[:100])
    return "fraction", list(terms)


def _decimal(value: Any, room: int) -> Parts:
    text = str(value)
    if not restored.DECIMAL.fullmatch(text):
        reason = (
            f"a value of type {type_name(value)} that is a signaling NaN or has too many digits"
        )
        raise UnsupportedValueError(reason[:100])
    return "decimal", text


def _date(value: Any, room: int) -> Parts:
    name = next(kind.__qualname__ for kind in type(value).__mro__ if kind.__module__ == "datetime")
    if name in ("datetime", "time") and value.tzinfo is not None:
        raise UnsupportedValueError(f"a value of type {type_name(value)} with a time zone"[:100])
    return "date", [name, *(getattr(value, field) for field in restored.DATES[name])]


def _items_of(tag: str) -> Callable[[Any, int], Parts]:
    return lambda value, room: (tag, _read(value, room))


def _mapping(value: Any, room: int) -> Parts:
    return "mapping", _read(value.items(), room)


def _plain(kind: Callable[[Any], object]) -> Callable[[Any, int], Parts]:
    return lambda value, room: ("", kind(value))


_FORMS: dict[tuple[str, str], Callable[[Any, int], Parts]] = {
    ("numpy", "generic"): _numpy,
    ("numpy", "ndarray"): _numpy,
    ("fractions", "Fraction"): _fraction,
    ("decimal", "Decimal"): _decimal,
    ("builtins", "range"): lambda value, room: ("range", [value.start, value.stop, value.step]),
    ("builtins", "bytearray"): lambda value, room: ("bytearray", bytes(value).hex()),
    ("builtins", "memoryview"): _plain(bytes),
    ("builtins", "mappingproxy"): _mapping,
    ("builtins", "dict_keys"): _items_of("keys"),
    ("builtins", "dict_values"): _items_of("values"),
    ("builtins", "dict_items"): _items_of("items"),
    ("collections", "deque"): _items_of("deque"),
    ("collections", "UserList"): _items_of("user-list"),
    ("collections", "UserDict"): _mapping,
    ("collections", "ChainMap"): _mapping,
    ("collections", "UserString"): _plain(str),
    ("collections.abc", "KeysView"): _items_of("keys"),
    ("collections.abc", "ValuesView"): _items_of("values"),
    ("collections.abc", "ItemsView"): _items_of("items"),
    ("array", "array"): lambda value, room: ("array", [value.typecode, _read(value, room)]),
    ("sortedcontainers.sortedlist", "SortedList"): _items_of("sorted"),
    ("sortedcontainers.sortedset", "SortedSet"): _plain(frozenset),
    **{("datetime", name): _date for name in restored.DATES},
}
