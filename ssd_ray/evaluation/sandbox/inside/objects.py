"""Arguments on the wire as objects, with shared parts and with changes by a call.

A value becomes a slot:

- A mutable container of one of the `kinds` is an object with a number; its slot is `[number]`.
- A tuple is a tuple of slots. Anything else is itself, for `wire` to carry or refuse.

Entries are three lists of the same length: numbers of objects, their kinds, their items. Values
that share nothing cross without slots and entries, because both sides number their objects in the
same order. Both sides of a call hold the same objects under the same numbers:

- The check's side writes its arguments. The program's side makes objects of them.
- The program's side writes its result, with entries of objects that changed or are new.
- The check's side changes its own objects accordingly, as if there were no border.

Reading trusts nothing. An entry changes only an object of the call, and only one of its kind.
Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import operator

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    Entries = list[list[Any]]
if TYPE_CHECKING or __name__ != "objects":
    from ssd_ray import wire
    from ssd_ray.evaluation.sandbox.inside.contents import (
        differ,
        fill,
        layout,
        members,
        require_bounded,
    )
    from ssd_ray.evaluation.sandbox.inside.kinds import (
        BOUNDED,
        BUFFERS,
        LEAVES,
        MAPPINGS,
        PLAIN,
        empty,
        kind_of,
        methods_of,
    )
else:  # in a sandbox, where there are modules and no packages
    import wire
    from contents import differ, fill, layout, members, require_bounded
    from kinds import BOUNDED, BUFFERS, LEAVES, MAPPINGS, PLAIN, empty, kind_of, methods_of

LOST = -1
"""Number of a value without a form on the wire."""


class Lost:
    """A value lost at the border of the program's process; equal to itself alone."""

    def __repr__(self) -> str:
        """Return the same text in every run."""
        return "<a value that could not leave the program's process>"


class Objects:
    """The mutable containers of one call, by number."""

    def __init__(self) -> None:
        self._objects: list[Any] = []
        self._before: list[list[object]] = []

    def adopt(self, values: Sequence[object]) -> bool:
        """Number the objects in values, outer ones first; return False if values need slots.

        They do if an object is met twice, or if another type might arrive on the other side.
        """
        numbers = {id(value) for value in self._objects}
        met = list(values)
        # The list grows in the loop. Both sides visit in this order, so their numbers agree.
        for value in met:
            if type(value) in LEAVES:
                continue
            kind = kind_of(value)
            if (
                id(value) in numbers
                or kind not in PLAIN
                or not (kind or isinstance(value, tuple | frozenset))
            ):
                return False
            if kind:
                numbers.add(id(value))
                self._objects.append(value)
            if kind not in BUFFERS and not isinstance(value, set | frozenset):
                met += members(value)
        return True

    def shows_nothing(self, values: Sequence[object]) -> bool:
        """Return True if no object has changed since `mark`, and values share nothing."""
        known = len(self._before)
        # The fast path of most calls: no entries, and the value as the wire carries it.
        if any(
            differ(before, members(value))
            for before, value in zip(self._before, self._objects, strict=False)
        ):
            return False
        plain = self.adopt(values)
        del self._objects[known:]
        return plain

    def write(
        self, values: Iterable[object], *, lost: bool = False
    ) -> tuple[list[object], Entries]:
        """Return slots of `values`, and entries of objects new or changed since `mark`.

        With `lost`, the contents of changed objects are dropped, because they cannot cross.
        """
        del self._objects[len(self._before) :]
        writer = _Writer(self._objects)
        changed = [
            number
            for number, before in enumerate(self._before)
            if differ(before, members(self._objects[number]))
        ]
        for number in changed if lost else ():
            writer.add_entry(number, _lost_items(self._objects[number]))
        writer.met += [] if lost else changed
        slots = [writer.slot(value) for value in values]
        # The list grows as items are written, which numbers the objects among them.
        for number in writer.met:
            writer.add_entry(number, writer.items(self._objects[number]))
        return slots, writer.entries

    def read(self, slots: Sequence[object], entries: Sequence[object]) -> list[object]:
        """Put the contents of entries into their objects, and return the values of slots.

        Raises:
            wire.MalformedError: `write` makes no such slots or entries. Nothing is changed.
        """
        checked = _checked(entries)
        for number, kind, items in checked:
            if number == len(self._objects):
                self._objects.append(items if kind in BUFFERS else empty(kind))
            if not 0 <= number < len(self._objects) or kind_of(self._objects[number]) != kind:
                raise wire.MalformedError(f"no {kind} has the number {number}")
        try:
            contents = [
                self._contents(self._objects[number], kind, items)
                for number, kind, items in checked
            ]
        except TypeError as error:
            raise wire.MalformedError(str(error)[:200]) from None
        values = self._values(slots)
        # Only now, so that a malformed line changes no object of the check.
        for (number, kind, _), content in zip(checked, contents, strict=True):
            fill(self._objects[number], kind, content)
        return values

    def mark(self) -> None:
        """Remember the members of every object, for `write` to find changes."""
        self._before = [members(value) for value in self._objects]

    def require_bounded(self, values: Iterable[object]) -> None:
        """Refuse values and objects that are large once shared ones are counted at every place.

        Raises:
            wire.MalformedError: An object has more than MAX_NODES values.
        """
        require_bounded([*values, *self._objects])

    def _contents(self, value: Any, kind: str, items: Any) -> Any:
        """Return the new content of an object."""
        if kind == "list":
            return self._values(items)
        if kind in MAPPINGS:
            return dict(
                zip(wire.members(self._values(items[0])), self._values(items[1]), strict=True)
            )
        if kind in BUFFERS:
            # An array keeps its type and an ndarray its shape, so neither can take other items.
            if kind != "bytearray" and layout(items) != layout(value):
                raise wire.MalformedError(f"the items of an {kind} of another type or shape")
            return items
        values = self._values(items)
        return set(wire.members(values)) if kind == "set" else values

    def _values(self, slots: Sequence[object]) -> list[object]:
        return (
            list(slots)
            if LEAVES.issuperset(map(type, slots))
            else [self._value(slot) for slot in slots]
        )

    def _value(self, slot: object) -> object:
        if isinstance(slot, tuple):
            return tuple(self._values(slot))
        if type(slot) is not list:
            return slot
        if len(slot) != 1 or type(slot[0]) is not int or not LOST <= slot[0] < len(self._objects):
            raise wire.MalformedError("a slot that names no object")
        return Lost() if slot[0] == LOST else self._objects[slot[0]]


class _Writer:
    """Numbers for objects as they are met; `met` are the objects in need of an entry."""

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects
        self._numbers = {id(value): number for number, value in enumerate(objects)}
        self.met: list[int] = []
        self.entries: Entries = [[], [], []]

    def slot(self, value: Any) -> object:
        if kind_of(value):
            number = self._numbers.setdefault(id(value), len(self._objects))
            if number == len(self._objects):
                self._objects.append(value)
                self.met.append(number)
            return [number]
        if issubclass(type(value), tuple):
            return tuple(self._slots(list(tuple.__iter__(value))))
        return value

    def add_entry(self, number: int, items: object) -> None:
        numbers, kinds, contents = self.entries
        numbers.append(number)
        kinds.append(kind_of(self._objects[number]))
        contents.append(items)

    def items(self, value: Any) -> object:
        kind = kind_of(value)
        if kind == "list":
            return self._slots(list(list.__iter__(value)))
        if kind in MAPPINGS:
            return [
                list(methods_of(kind).keys(value)),
                self._slots(list(methods_of(kind).values(value))),
            ]
        if kind in BUFFERS:
            return value
        items = list(methods_of(kind).__iter__(value))
        return items if kind == "set" else self._slots(items)

    def _slots(self, values: list[object]) -> list[object]:
        return (
            values
            if LEAVES.issuperset(map(type, values))
            else [self.slot(value) for value in values]
        )


def _lost_items(value: object) -> object:
    kind = kind_of(value)
    lost = [LOST]
    if kind in BUFFERS:
        return value
    return [[lost], [lost]] if kind in MAPPINGS else [lost]


def _checked(entries: Sequence[object]) -> list[tuple[int, str, Any]]:
    """Return entries in the order of their numbers, once each has the form of its kind."""
    match entries:
        case [list(numbers), list(kinds), list(contents)] if (
            len(numbers) == len(kinds) == len(contents)
        ):
            if not numbers:
                return []
            if (
                set(map(type, numbers)) == {int}
                and len(set(numbers)) == len(numbers)
                and all(map(_fits, kinds, contents))
            ):
                return sorted(
                    zip(numbers, kinds, contents, strict=True), key=operator.itemgetter(0)
                )
    raise wire.MalformedError("entries of no known form")


def _fits(kind: object, items: object) -> bool:
    if kind == "list" or kind == "set" or kind == "deque":
        return type(items) is list
    if isinstance(kind, str) and BOUNDED.fullmatch(kind):
        return type(items) is list
    if isinstance(kind, str) and kind in MAPPINGS:
        match items:
            case [list(keys), list(values)]:
                return len(keys) == len(values)
        return False
    return isinstance(kind, str) and kind in BUFFERS and kind_of(items) == kind
