"""Kinds of mutable containers that cross the border, by name.

Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import array
import functools
import re
from collections import Counter, OrderedDict, defaultdict, deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

KINDS: dict[str, Any] = {
    "list": list,
    "dict": dict,
    "set": set,
    "deque": deque,
    "bytearray": bytearray,
    "array": array.array,
}
"""The kinds by name. numpy's `ndarray` is one more, known by its name to avoid the import."""
_FACTORIES = (bool, bytes, dict, float, int, list, set, str, tuple)
MAPPINGS: dict[str, Any] = {
    "Counter": Counter,
    "OrderedDict": OrderedDict,
    "defaultdict None": defaultdict,
    **{
        f"defaultdict {factory.__name__}": functools.partial(defaultdict, factory)
        for factory in _FACTORIES
    },
    "dict": dict,
}
"""Constructors of mappings by kind; a mapping of another class counts as a dict."""
BOUNDED = re.compile("deque ([0-9]{1,18})")
"""The kind of a deque with a `maxlen`."""
PLAIN = frozenset({"", *KINDS})
"""Kinds that `wire` itself keeps."""
BUFFERS = frozenset({"bytearray", "array", "ndarray"})
"""Kinds without slots: their items are the value itself, as the wire carries it."""
LEAVES = frozenset({type(None), bool, int, float, complex, str, bytes})
_KIND_OF_TYPE: dict[type, str] = {
    **dict.fromkeys((*LEAVES, tuple, frozenset), ""),
    **{base: kind for kind, base in KINDS.items() if base is not deque},
}


def kind_of(value: object) -> str:
    """Return the kind of a mutable container, empty for any other value."""
    # The fast path: exact types are most values by far.
    known = _KIND_OF_TYPE.get(type(value))
    if known is not None:
        return known
    for kind, base in KINDS.items():
        if issubclass(type(value), base):
            if kind == "dict":
                return _kind_of_mapping(value)
            return _kind_of_deque(value) if kind == "deque" else kind
    is_array = (type(value).__module__, type(value).__qualname__) == ("numpy", "ndarray")
    return "ndarray" if is_array and bool(getattr(value, "shape", None)) else ""


def _kind_of_mapping(value: Any) -> str:
    for base in type(value).__mro__:
        if base is defaultdict:
            factory = value.default_factory
            kind = f"defaultdict {getattr(factory, '__name__', None)}"
            return kind if factory is None or factory in _FACTORIES else "dict"
        if base is Counter or base is OrderedDict:
            return base.__name__
    return "dict"


def _kind_of_deque(value: Any) -> str:
    maxlen = value.maxlen
    return "deque" if maxlen is None else f"deque {maxlen}"


def empty(kind: str) -> Any:
    """Return an empty container of a kind."""
    bounded = BOUNDED.fullmatch(kind)
    if bounded:
        return deque(maxlen=int(bounded[1]))
    return (MAPPINGS.get(kind) or KINDS[kind])()


def methods_of(kind: str) -> Any:
    """Return the built-in class whose methods read and change a container of a kind.

    A subclass's methods could run a program's code.
    """
    # An OrderedDict keeps its order apart from the dict in it. A Counter's `update` would add.
    if kind in MAPPINGS:
        return OrderedDict if kind == "OrderedDict" else dict
    return KINDS[kind.partition(" ")[0]]
