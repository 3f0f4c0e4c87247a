"""Contents of containers by kind: read, compared, replaced and counted.

No method of a subclass is called: it could run a program's code. Runs in a bare interpreter.
Imports the standard library only.
"""

from __future__ import annotations

import array
import operator
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any
if TYPE_CHECKING or __name__ != "contents":
    from ssd_ray import wire
    from ssd_ray.evaluation.sandbox.inside.kinds import (
        BUFFERS,
        LEAVES,
        MAPPINGS,
        kind_of,
        methods_of,
    )
else:  # in a sandbox, where there are modules and no packages
    import wire
    from kinds import BUFFERS, LEAVES, MAPPINGS, kind_of, methods_of


def layout(value: Any) -> tuple[object, ...]:
    """Return the item type and the shape of an array; three times None for any other value."""
    return (
        getattr(value, "typecode", None),
        getattr(value, "dtype", None),
        getattr(value, "shape", None),
    )


def members(value: Any) -> list[object]:
    """Return the members of an object, to be compared one by one."""
    if type(value) is list:
        return value[:]
    if isinstance(value, tuple):
        return list(tuple.__iter__(value))
    kind = kind_of(value)
    if kind in MAPPINGS:
        return [*methods_of(kind).keys(value), *methods_of(kind).values(value)]
    if kind not in BUFFERS:
        return list(methods_of(kind).__iter__(value))
    return [bytes(value) if kind == "bytearray" else value.tobytes()]


def differ(before: list[object], now: list[object]) -> bool:
    """Return True unless both hold the very same members.

    Equality would miss a 1 replaced by True.
    """
    # The bytes of a buffer are made for each comparison, so they are never identical.
    if len(before) == len(now) == 1 and type(before[0]) is type(now[0]) is bytes:
        return before != now
    return len(before) != len(now) or not all(map(operator.is_, before, now))


def fill(value: Any, kind: str, content: Any) -> None:
    """Replace the content of an object, by the methods of its kind and not of a subclass."""
    if kind == "ndarray":
        value[...] = content
        return
    base = methods_of(kind)
    if base in (list, bytearray, array.array):
        base.__setitem__(value, slice(None), content)
        return
    base.clear(value)
    (deque.extend if base is deque else base.update)(value, content)


def _parts(value: Any) -> Iterator[object]:
    """Yield the containers directly within one."""
    values = members(value)
    flat = LEAVES.issuperset(map(type, values))
    return iter(
        ()
        if flat
        else [member for member in values if isinstance(member, tuple | list | dict | set | deque)]
    )


def require_bounded(values: list[object]) -> None:
    """Refuse values that are large once shared objects are counted at every place.

    A few lists that hold each other twice amount to more values than a comparison can visit. An
    object within itself adds nothing: Python's own comparisons end at such a place.

    Raises:
        wire.MalformedError: An object has more than MAX_NODES values.
    """
    # Sizes are added up depth first, without recursion.
    sizes: dict[int, int] = {}
    path: list[list[Any]] = [[values, _parts(values), 0]]
    on_path = {id(values)}
    while path:
        value, parts, size = path[-1]
        part = next(parts, None)
        if part is None:
            if size > wire.MAX_NODES and len(path) > 1:
                raise wire.MalformedError("an object of too many values")
            path.pop()
            on_path.discard(id(value))
            sizes[id(value)] = size
            if path:
                path[-1][2] += size
        elif id(part) in sizes:
            path[-1][2] += sizes[id(part)]
        elif id(part) not in on_path:
            path.append([part, _parts(part), len(part)])
            on_path.add(id(part))
