"""LiveCodeBench's stand-in for standard input: a text with some of a file's methods, which differ from a file's.

Each stand-in notes the first way in which the program got from it what no file would have given, by a name of `NOTES`. A
program that fails then may be right: the verdict says so. Described from LiveCodeBench 28fef95, testing_util.py; the
stand-in came with 16de2a1 of 23 May 2025, before which sys.stdin was a StringIO. Standard library only.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

NOTES = {
    "whole": "read() gives the whole text again after part of it was read",
    "size": "read() gives the whole text where some characters were asked for",
    "lines": "readlines() gives lines without their ends, and an empty last one",
    "iteration": "it cannot be iterated over",
    "buffer": "its buffer starts over at each call and knows no more than read() and readline()",
    "imported": "where it was imported before the run, its lines have no ends",
}
"""What a file would not have done, by the name under which it is noted."""


class Notes:
    """The first name that was noted, empty where the program got what a file would have given."""

    def __init__(self) -> None:
        self.first = ""

    def add(self, name: str) -> None:
        """Note a difference, if it is the first."""
        self.first = self.first or name


class Stdin:
    """Officially sys.stdin: lines come once, the whole text always comes whole, and there is nothing to iterate over."""

    def __init__(self, text: str, notes: Notes) -> None:
        self._text, self._lines, self._notes = text, io.StringIO(text), notes
        self.buffer = Buffer(text, notes)
        self._read = False
        # Asked for by name, these are officially those of a StringIO; what Python itself looks for is not there.
        vars(self).update(__iter__=self._lines.__iter__, __next__=self._lines.__next__)

    def read(self, *size: object) -> str:
        """Return the whole text."""
        self._note_read(*size)
        return self._text

    def readline(self, *size: int) -> str:
        """Return the next line."""
        if self._read:
            self._notes.add("whole")
        return self._lines.readline(*size)

    def readlines(self, *size: object) -> list[str]:
        """Return all lines, without their ends."""
        self._note_read(*size)
        if "\n" in self._text:
            self._notes.add("lines")
        return self._text.split("\n")

    def _note_read(self, *size: object) -> None:
        if self._read or self._lines.tell():
            self._notes.add("whole")
        if size and size[0] not in (None, -1):
            self._notes.add("size")
        self._read = True

    def _not_iterable(self) -> NoReturn:
        self._notes.add("iteration")
        raise TypeError("the stand-in for sys.stdin is not iterable")

    __iter__ = __next__ = _not_iterable

    def __getattr__(self, name: str) -> object:
        return getattr(self._lines, name)


class Buffer:
    """Officially sys.stdin.buffer: every line is the first one, and there are no other methods."""

    def __init__(self, text: str, notes: Notes) -> None:
        self._bytes, self._notes = text.encode(), notes
        self._used = False

    def read(self, *size: object) -> bytes:
        """Return the whole text."""
        self._note_use(*size)
        return self._bytes

    def readline(self, *size: object) -> bytes:
        """Return the first line."""
        self._note_use(*size)
        return self._bytes.split(b"\n")[0] + b"\n"

    def _note_use(self, *size: object) -> None:
        if self._used or (size and size[0] not in (None, -1)):
            self._notes.add("buffer")
        self._used = True

    def __getattr__(self, name: str) -> object:
        if not name.startswith("_"):
            self._notes.add("buffer")
        raise AttributeError(f"the stand-in for sys.stdin.buffer has no attribute {name!r}")

    def _not_iterable(self) -> NoReturn:
        self._notes.add("buffer")
        raise TypeError("the stand-in for sys.stdin.buffer is not iterable")

    __iter__ = __next__ = _not_iterable


class Opened(io.StringIO):
    """What the builtins module's `open` gives for any name and mode: the input, with every method one may ask for."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def methods_of_the_true_stdin(text: str, notes: Notes) -> dict[str, Callable[..., object]]:
    """Return what replaces methods of the sys.stdin that a program took hold of while it was loaded."""
    lines = iter(text.split("\n"))
    started: list[str] = []

    def start(name: str) -> None:
        if started:
            notes.add("whole")
        started.append(name)

    def read(*size: object) -> str:
        start("read")
        return text

    def readline(*_: object) -> str:
        if "\n" in text:
            notes.add("imported")
        started.append("readline")
        return next(lines)

    def readlines(*_: object) -> list[str]:
        start("readlines")
        if "\n" in text:
            notes.add("imported")
        return text.split("\n")

    return {"read": read, "readline": readline, "readlines": readlines}
