"""Values of types beyond the wire's own, taken apart in a program's process for the reader to make again (restored.py).

- Texts, bytes and sets that Python's `==` finds equal to a built-in one become that one; mappings a read-only one.
- Any other known type keeps its meaning: a Fraction, Decimal, range, deque, array, date or view of a dict arrives as itself.
- numpy's values keep their dtype.
- An iterator is read to its end, within the room that the wire has, and is equal to nothing.
- Any other object is asked for its number, if it says that it equals it. Nothing else of what it says is believed.

Classes are known by module and name, so that nothing is imported where a program runs. A class that borrows such a name
only chooses the parts that are sent, and the reader checks those. Standard library only; both ends import it.
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
"""Numbers of numpy in a list that stay numpy's; in a longer list they become plain ones, which are equal."""
_PLAIN_MODULES = {"builtins", "solution", "check", "__main__", "tmp_sol"}

Parts = tuple[str, Any]
"""A tag and the body below it; without a tag, the body is the value that is sent instead."""


class UnsupportedValueError(Exception):
    """A value that cannot cross: its type, or that it is too deep or too large."""


def type_name(value: object) -> str:
    """The type of a value for a reader: `numpy.bool` or `collections.deque`, without the module of a program's own classes."""
    kind = type(value)
    try:
        module, name = str(kind.__module__), str(kind.__qualname__)
    except Exception:
        return type.__name__
    return name if module in _PLAIN_MODULES else f"{module}.{name}"


def parts(value: Any, room: int) -> Parts:
    """Take a value apart, into at most about `room` values.

    Raises:
        UnsupportedValueError: its type has no form, or it is too large.
        Exception: whatever the value's own methods raise.
    """
    for kind in type(value).__mro__:
        form = _FORMS.get((kind.__module__, kind.__qualname__))
        if form is not None:
            return form(value, room)
    number = _claimed_number(value)
    if number is not None:
        return "", number
    if any(
        "__iter__" in vars(kind) for kind in type(value).__mro__
    ):  # a metaclass's would be no member's
        return "iterator", [type_name(value), _read(value, room)]
    raise UnsupportedValueError(f"a value of type {type_name(value)}"[:100])


def _claimed_number(value: Any) -> int | float | None:
    """The int or float that an object of a class of its own turns into and says that it equals."""
    for kind in (int, float):
        try:
            number: int | float = kind(value)
            if number == value:
                return number
        except Exception:
            continue
    return None


def _read(values: Iterable[object], room: int) -> list[object]:
    """The items, no more than there is room for."""
    items = list(itertools.islice(values, room + 1))
    if len(items) > room:
        raise UnsupportedValueError(
            f"a value of type {type_name(values)} with more than {room:,} items"[:100]
        )
    return items


def numpy_list(items: list[Any]) -> Parts | None:
    """The parts of a list of numbers of one numpy type; None for any other list."""
    kind = type(items[0])
    if not is_numpy(items[0]) or len(items) > MAX_NUMPY_LIST or set(map(type, items)) != {kind}:
        return None
    name = _dtype(items[0])
    return ("numpys", [name, [item.item() for item in items]]) if name in restored.NUMBERS else None


def is_numpy(value: object) -> bool:
    """Return True if a value's class, or one that it extends, goes by the name of numpy's scalars."""
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
        return "numpy", [
            name if restored.holds(data, restored.KINDS[name]) else "object",
            data,
        ]  # what is masked is None
    if name == "longdouble" and not value.shape:
        number = float(value)
        if number == value or number != number:
            return "numpy", ["float64", number]
        return "", Fraction(
            *value.as_integer_ratio()
        )  # exactly what it is, so that no rounding makes it equal
    raise UnsupportedValueError(f"a value of type {type_name(value)} of {name}"[:100])


def _dtype(value: Any) -> str:
    """The name of a dtype, without the length of texts."""
    kind, size = value.dtype.kind, value.dtype.itemsize
    if kind in "SUO":
        return {"S": "bytes", "U": "str", "O": "object"}[kind]
    return "longdouble" if kind == "f" and size > 8 else str(value.dtype.name)


def _fraction(value: Any, room: int) -> Parts:
    terms = value.numerator, value.denominator
    if terms[1] != 1 and max(term.bit_length() for term in terms) > restored.MAX_FRACTION_BITS:
        raise UnsupportedValueError(
            f"a value of type {type_name(value)} with more than {restored.MAX_FRACTION_BITS:,} bits"[
                :100
            ]
        )
    return "fraction", list(terms)


def _decimal(value: Any, room: int) -> Parts:
    text = str(value)
    if not restored.DECIMAL.fullmatch(text):
        raise UnsupportedValueError(
            f"a value of type {type_name(value)} that is a signaling NaN or has too many digits"[
                :100
            ]
        )
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
