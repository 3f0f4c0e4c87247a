"""Python values as one line of tagged JSON: the only form that crosses a sandbox's border.

Never pickle: a reader must be able to load a line of an untrusted writer.

- None, bools, strings, lists, finite floats and integers below 2**53 are plain JSON.
- Any other value is an object with one tag:

  | tag | body |
  |---|---|
  | `tuple`, `set`, `frozenset` | items |
  | `dict` | pairs, with any keys |
  | `big` | an integer of 2**53 or more, in hexadecimal |
  | `float` | `nan`, `inf` or `-inf` |
  | `complex` | two floats |
  | `bytes` | hexadecimal digits |
  | a tag of `restored` | parts of a value of a further type |

- `loads` checks depth, number of values, tags and hash collisions. The pipe bounds the size.

Both ends import this package: the grader as `ssd_ray.wire`, a sandbox as bare modules. It imports
the standard library only.
"""

from __future__ import annotations

import json
import math
import re
import types
from collections import OrderedDict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection
    from typing import Any, NoReturn
if TYPE_CHECKING or __name__ != "wire":
    from ssd_ray.wire import foreign, restored
else:  # in a sandbox, where there are modules and no packages
    import foreign
    import restored

MAX_DEPTH = 100
"""Containers within containers."""
MAX_NODES = 2_000_000
"""Values in one document. An aliased list can be small in memory and endless on the wire.

The largest expected output of HumanEval+ has 1,000,006.
"""
MAX_CONTAINERS = 500_000
"""Lists and objects in a document, counted in its text before it is parsed."""
MAX_EQUAL_HASHES = 100
"""Members of one set or dict with the same hash. Colliding keys cost quadratic time to insert."""
_PLAIN_INT = 1 << 53
"""Integers below this are exact in a double, so every JSON reader takes them as they are."""


UnsupportedValueError = foreign.UnsupportedValueError


class MalformedError(ValueError):
    """A line not written by `dumps`."""


def dumps(value: object) -> str:
    """Return a value as one line of ASCII JSON.

    A value of a subclass of a built-in type is written as the built-in type.

    Raises:
        UnsupportedValueError: The value has a type without a form, is nested deeper than
            `MAX_DEPTH` or holds more than `MAX_NODES` values.
        Exception: Any error raised by the methods of a value of another type.
    """
    return _TO_TEXT(_Encoder().encode(value, 0))


_TO_TEXT = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode


def loads(line: str | bytes) -> object:
    """Return the value of a line, which may come from an untrusted writer.

    Raises:
        MalformedError: The line is not one of `dumps`, or it exceeds a limit of this module.
    """
    try:
        text = line if isinstance(line, str) else line.decode()
        # Counted before parsing: a parsed value takes fifty times the memory of its text.
        if _has_too_many_containers(text) or text.count(",") > 2 * MAX_NODES:
            raise MalformedError("more values than a document may hold")
        if "{" in text or _LONG_INTEGER.search(text):
            return decode(_FROM_TEXT(text))
        value = _FROM_PLAIN_TEXT(text)
        if text.count("[") > MAX_DEPTH and _too_deep(value):
            raise MalformedError("nested too deeply")
        return value
    except (ValueError, RecursionError, TypeError, ArithmeticError, LookupError) as error:
        raise MalformedError(str(error)[:200]) from None


def _has_too_many_containers(text: str) -> bool:
    """Return True if a text has more than MAX_CONTAINERS containers.

    A tag's own brackets are not counted on top of those of its value.
    """
    count = text.count("[") + text.count("{")
    return (
        count > MAX_CONTAINERS
        and count - text.count('{"tuple":[') - 2 * text.count('{"numpys":["') > MAX_CONTAINERS
    )


def _plain_int(digits: str) -> int:
    if len(digits) > 17:
        raise MalformedError("an integer beyond 53 bits without its tag")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise MalformedError("a float without its tag")
    return number


def _no_constant(name: str) -> NoReturn:
    raise MalformedError(f"{name} without a tag")


_LONG_INTEGER = re.compile("[0-9]{18}")
_FROM_TEXT = json.JSONDecoder(
    parse_int=_plain_int, parse_float=_finite, parse_constant=_no_constant
).decode
_FROM_PLAIN_TEXT = json.JSONDecoder(parse_float=_finite, parse_constant=_no_constant).decode
"""The C decoder alone, for a text without tags: the parsed document is the value."""


def _too_deep(value: object) -> bool:
    lists = [value] if isinstance(value, list) else []
    for _ in range(MAX_DEPTH):
        lists = [item for items in lists for item in items if type(item) is list]
    return any(lists)


class _Encoder:
    """Encoder of one document, with a count of its values."""

    def __init__(self) -> None:
        self._num_nodes = 0

    def encode(self, value: object, depth: int) -> object:
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise UnsupportedValueError(
                "a value that is nested too deeply"
                if depth > MAX_DEPTH
                else "a value that is too large"
            )
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            plain = int.__int__(value)
            return plain if -_PLAIN_INT < plain < _PLAIN_INT else {"big": hex(plain)}
        if isinstance(value, float) and (type(value) is float or not foreign.is_numpy(value)):
            number = float.__float__(value)
            # False for nan and the infinities.
            return number if number - number == 0 else {"float": float.__repr__(number)}
        if isinstance(value, complex) and (type(value) is complex or not foreign.is_numpy(value)):
            pair = complex.__complex__(value)
            return {"complex": [self.encode(pair.real, depth), self.encode(pair.imag, depth)]}
        return self._container(value, depth + 1)

    def _container(self, value: object, depth: int) -> object:
        # The built-in type's own methods, because a subclass may override them with any code.
        if isinstance(value, list):
            return self._list(value if type(value) is list else list(list.__iter__(value)), depth)
        if isinstance(value, tuple):
            return {"tuple": self._items(list(tuple.__iter__(value)), depth)}
        if isinstance(value, dict):
            items = (OrderedDict if isinstance(value, OrderedDict) else dict).items(value)
            return {
                "dict": [[self.encode(key, depth), self.encode(item, depth)] for key, item in items]
            }
        if isinstance(value, set):
            return {"set": self._items(list(set.__iter__(value)), depth)}
        if isinstance(value, frozenset):
            return {"frozenset": self._items(list(frozenset.__iter__(value)), depth)}
        if isinstance(value, bytes):
            return {"bytes": bytes.hex(value)}
        return self._foreign(
            restored.parts(value) or foreign.parts(value, MAX_NODES - self._num_nodes), depth
        )

    def _list(self, items: list[Any], depth: int) -> object:
        numbers = (
            foreign.numpy_list(items) if items and type(items[0]).__module__ == "numpy" else None
        )
        return self._foreign(numbers, depth) if numbers else self._items(items, depth)

    def _foreign(self, parts: foreign.Parts, depth: int) -> object:
        """Encode a value by its parts: a leaf's text, a container's items or a substitute."""
        tag, body = parts
        if not tag:
            return self.encode(body, depth)
        return {tag: body if isinstance(body, str) else self._items(body, depth)}

    def _items(self, items: list[object], depth: int) -> list[object]:
        if len(items) > 8 and depth <= MAX_DEPTH and _needs_no_tag(items):
            self._num_nodes += len(items)
            if self._num_nodes > MAX_NODES:
                raise UnsupportedValueError("a value that is too large")
            return items
        return [self.encode(item, depth) for item in items]


def _needs_no_tag(items: Collection[Any]) -> bool:
    """Return True if all items have one plain type and a plain JSON form.

    Long lists spend their time here, so every pass is a loop in C.
    """
    kinds = set(map(type, items))
    if kinds == {int}:
        return bool(min(items) > -_PLAIN_INT and max(items) < _PLAIN_INT)
    return (
        kinds == {str} or kinds == {bool} or (kinds == {float} and all(map(math.isfinite, items)))
    )


def decode(document: object, depth: int = 0) -> object:
    """Return the value of a parsed document.

    Raises:
        MalformedError: The document is nested too deeply, or a tag or its body is unknown.
        TypeError: A key or a member of a set cannot be hashed.
    """
    if depth > MAX_DEPTH:
        raise MalformedError("nested too deeply")
    if isinstance(document, list):
        return [decode(item, depth + 1) for item in document]
    if not isinstance(document, dict):
        return document
    if len(document) != 1:
        raise MalformedError("an object without its one tag")
    ((tag, body),) = document.items()
    if tag in _LEAVES and isinstance(body, str):
        return _LEAVES[tag](body)
    make = _CONTAINERS.get(tag) or restored.CONTAINERS.get(tag)
    if make is not None and isinstance(body, list):
        return make([decode(item, depth + 1) for item in body])
    raise MalformedError("an unknown tag")


def _float(text: str) -> float:
    if text not in {"nan", "inf", "-inf"}:
        raise MalformedError("a finite float with a tag")
    return float(text)


def _complex(parts: list[object]) -> complex:
    match parts:
        case [float(real), float(imag)]:
            return complex(real, imag)
    raise MalformedError("a complex number that is not two floats")


def members(items: list[object]) -> list[object]:
    """Return the items unchanged if at most MAX_EQUAL_HASHES of them share a hash.

    Raises:
        MalformedError: More of them share one.
    """
    # Python would insert these one by one, each past all earlier ones of its hash.
    counts: dict[int, int] = {}
    for item in items:
        key = hash(item)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > MAX_EQUAL_HASHES:
            raise MalformedError("too many members with the same hash")
    return items


def _dict(pairs: list[object]) -> dict[object, object]:
    keys: list[object] = []
    values: list[object] = []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MalformedError("an item of a dict is not a pair")
        keys.append(pair[0])
        values.append(pair[1])
    return dict(zip(members(keys), values, strict=True))


def _pairs(pairs: list[object]) -> dict[object, object]:
    return _dict([list(pair) if isinstance(pair, tuple) else pair for pair in pairs])


_LEAVES: dict[str, Callable[[str], object]] = {
    "big": lambda text: int(text, 16),
    "float": _float,
    "bytes": bytes.fromhex,
}
_LEAVES |= restored.LEAVES
_CONTAINERS: dict[str, Callable[[list[object]], object]] = {
    "tuple": tuple,
    "set": lambda items: set(members(items)),
    "frozenset": lambda items: frozenset(members(items)),
    "dict": _dict,
    "complex": _complex,
    "keys": lambda items: dict.fromkeys(members(items)).keys(),
    "items": lambda pairs: _pairs(pairs).items(),
    "mapping": lambda pairs: types.MappingProxyType(_pairs(pairs)),
}
