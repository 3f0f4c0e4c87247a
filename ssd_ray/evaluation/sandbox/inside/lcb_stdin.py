"""LiveCodeBench's stand-in for standard input: a text with some of a file's methods.

The methods differ from a file's. A stand-in notes the first difference met by the program, by a
name of `NOTES`. A program that fails then may be right, so the verdict's detail shows the note.

Source: LiveCodeBench 28fef95, testing_util.py. The stand-in came with 16de2a1 of 23 May 2025.
Before, sys.stdin was a StringIO. Runs in a bare interpreter. Imports the standard library only.
"""

from __future__ import annotations

import io

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

NOTES = {
    "whole": "read() gives the complete text again after part of it was read",
    "size": "read() gives the complete text where some characters were asked for",
    "lines": "readlines() gives lines without their ends, and an empty last one",
    "iteration": "it cannot be iterated over",
    "buffer": "its buffer starts over at each call and knows no more than read() and readline()",
    "imported": "where it was imported before the run, its lines have no ends",
}
"""Differences from a file, by name."""


class Notes:
    """The first difference met, as a name of `NOTES`; empty without one."""

    def __init__(self) -> None:
        self.first = ""

    def add(self, name: str) -> None:
        """Note a difference, if it is the first."""
        self.first = self.first or name


class Stdin:
    """The stand-in for sys.stdin: lines come once, `read` always gives the text from its start."""

    def __init__(self, text: str, notes: Notes) -> None:
        self._text = text
        self._lines = io.StringIO(text)
        self._notes = notes
        self.buffer = Buffer(text, notes)
        self._read = False
        # As in LiveCodeBench, `stdin.__iter__` is a StringIO's. But `for line in stdin` looks for
        # the method in the class, which has none there and raises here.
        vars(self).update(__iter__=self._lines.__iter__, __next__=self._lines.__next__)

    def read(self, *size: object) -> str:
        """Return the complete text."""
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
    """The stand-in for sys.stdin.buffer: every line is the first one; no other methods."""

    def __init__(self, text: str, notes: Notes) -> None:
        self._bytes = text.encode()
        self._notes = notes
        self._used = False

    def read(self, *size: object) -> bytes:
        """Return the complete text."""
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
    """The result of `builtins.open` for any name and mode: the input, with any method."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


def methods_of_the_true_stdin(text: str, notes: Notes) -> dict[str, Callable[..., object]]:
    """Return stand-ins for methods of the true sys.stdin, for programs that imported it."""
    lines = iter(text.split("\n"))
    # In LiveCodeBench, `read` and `readlines` start over, and `readline` goes on.
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
