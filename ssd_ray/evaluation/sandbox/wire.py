"""Python values as one line of tagged JSON, the only form in which values cross a sandbox's border; never pickle.

Both ends import it, the child's as a bare stdlib-only file. What has no JSON becomes an object with one tag: tuple, set,
frozenset, dict (pairs, any keys), big (integers beyond 53 bits, in hexadecimal), float (nan, inf, -inf), complex (two
floats), bytes (hexadecimal). Decoding trusts nothing: size is the pipe's business; depth, keys and hash collisions are
checked here.
"""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

MAX_DEPTH = 100
"""Containers within containers."""
MAX_NODES = 2_000_000
"""Values in one document: an aliased list can be small in memory and endless on the wire. HumanEval+ expects 1,000,006."""
MAX_CONTAINERS = 500_000
"""Lists and objects in a document that is read, counted in its text before it is parsed."""
MAX_EQUAL_HASHES = 100
"""Members of one set or dict with the same hash: colliding keys would take the reader quadratic time."""
_PLAIN_INT = 1 << 53


class UnsupportedValueError(Exception):
    """A value that this form does not carry: its type, or that it is too deep or too large."""


class MalformedError(ValueError):
    """A line that `dumps` cannot have written."""


def dumps(value: object) -> str:
    """One line of ASCII JSON; subclasses of the built-in types become those types.

    Raises:
        UnsupportedValueError: a type without a form, more than MAX_DEPTH levels or MAX_NODES values.
    """
    return json.dumps(_Encoder().encode(value, 0), separators=(",", ":"))


def loads(line: str | bytes) -> object:
    """The value of a line; text from an untrusted writer is safe to give.

    Raises:
        MalformedError: the line is not what `dumps` writes.
    """
    try:
        text = line if isinstance(line, str) else line.decode()
        if text.count("[") + text.count("{") > MAX_CONTAINERS or text.count(",") > 2 * MAX_NODES:
            raise MalformedError("more values than a document may hold")  # each costs the reader fifty times its text
        return decode(json.loads(text, parse_int=_plain_int))
    except (ValueError, RecursionError, TypeError) as error:
        raise MalformedError(str(error)[:200]) from None


def _plain_int(digits: str) -> int:
    if len(digits) > 17:
        raise MalformedError("an integer beyond 53 bits without its tag")
    return int(digits)


class _Encoder:
    """Counts what it encodes."""

    def __init__(self) -> None:
        self._num_nodes = 0

    def encode(self, value: object, depth: int) -> object:
        self._num_nodes += 1
        if depth > MAX_DEPTH or self._num_nodes > MAX_NODES:
            raise UnsupportedValueError("a value that is nested too deeply" if depth > MAX_DEPTH else "a value that is too large")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, int):
            plain = int.__int__(value)
            return plain if -_PLAIN_INT < plain < _PLAIN_INT else {"big": hex(plain)}
        if isinstance(value, float):
            number = float.__float__(value)
            return number if number - number == 0 else {"float": float.__repr__(number)}
        if isinstance(value, complex):
            whole = complex.__complex__(value)
            return {"complex": [self.encode(whole.real, depth), self.encode(whole.imag, depth)]}
        return self._container(value, depth + 1)

    def _container(self, value: object, depth: int) -> object:
        if isinstance(value, list):
            return self._items(list.__iter__(value), depth)
        if isinstance(value, tuple):
            return {"tuple": self._items(tuple.__iter__(value), depth)}
        if isinstance(value, dict):
            return {"dict": [[self.encode(key, depth), self.encode(item, depth)] for key, item in dict.items(value)]}
        if isinstance(value, set):
            return {"set": self._items(set.__iter__(value), depth)}
        if isinstance(value, frozenset):
            return {"frozenset": self._items(frozenset.__iter__(value), depth)}
        if isinstance(value, bytes):
            return {"bytes": bytes.hex(value)}
        raise UnsupportedValueError(f"a value of type {type(value).__name__}"[:100])

    def _items(self, items: Iterable[object], depth: int) -> list[object]:
        return [self.encode(item, depth) for item in items]


def decode(document: object, depth: int = 0) -> object:
    """The value of a parsed document; MalformedError, or TypeError for a member that cannot be hashed."""
    if depth > MAX_DEPTH:
        raise MalformedError("nested too deeply")
    if isinstance(document, list):
        return [decode(item, depth + 1) for item in document]
    if not isinstance(document, dict):
        if isinstance(document, float) and document - document != 0:
            raise MalformedError("a float without its tag")
        return document
    if len(document) != 1:
        raise MalformedError("an object without its one tag")
    ((tag, body),) = document.items()
    if tag in _LEAVES and isinstance(body, str):
        return _LEAVES[tag](body)
    if tag in _CONTAINERS and isinstance(body, list):
        return _CONTAINERS[tag]([decode(item, depth + 1) for item in body])
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
    """The same items, once their hashes are known to differ well enough."""
    counts: dict[int, int] = {}
    for item in items:
        key = hash(item)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] > MAX_EQUAL_HASHES:
            raise MalformedError("too many members with the same hash")
    return items


def _dict(pairs: list[object]) -> dict[object, object]:
    keys, values = [], []
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2:
            raise MalformedError("a dict's item that is no pair")
        keys.append(pair[0])
        values.append(pair[1])
    return dict(zip(members(keys), values, strict=True))


_LEAVES: dict[str, Callable[[str], object]] = {"big": lambda text: int(text, 16), "float": _float, "bytes": bytes.fromhex}
_CONTAINERS: dict[str, Callable[[list[object]], object]] = {
    "tuple": tuple,
    "set": lambda items: set(members(items)),
    "frozenset": lambda items: frozenset(members(items)),
    "dict": _dict,
    "complex": _complex,
}
