"""Messages of the harmony format: `<|start|>ROLE<|channel|>NAME<|message|>CONTENT<|end|>`.

Source: openai/harmony's parser (`src/encoding.rs`). This one tolerates answers that break off:

- Inside a message only an end mark counts: no message begins within another.
- A message is for the user on channel `final` or without a channel, unless it goes to a tool.
- An answer ends where another role begins to speak.
- Text before any mark is the answer if no message follows.

Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ssd_ray.reasoning.marks import CHANNEL, ENDS, MESSAGE, START, Piece

_TO_TOOL = re.compile(r"(?:^|\s)to=")


Read = Callable[[slice], str]
"""Return the text of a span of the answer."""


class Messages:
    """The messages of one answer; `reasoned` is True if any was not for the user."""

    def __init__(self, read: Read, *, offset: int = 0, reasoned: bool = False) -> None:
        """Take a reader of spans; everything before `offset` belongs to the prompt."""
        self._read = read
        self._offset = offset
        self.reasoned = reasoned
        self._header: list[tuple[str, bool]] | None = None
        self._begin: int | None = None
        self._final = False
        self._ends_in_final = False
        self._contents: list[str] = []
        self._unmarked: list[str] = []
        self._marked = False

    def parse(self, pieces: Iterable[Piece], length: int) -> Messages:
        """Parse an answer whose last piece ends at `length`."""
        for piece in pieces:
            if self._begin is not None:
                if piece.mark in ENDS:
                    self._close(piece.start)
            elif self._header is None:
                self._between(piece)
            elif not self._extend(piece):
                break
        if self._begin is not None:
            self._close(length)
        return self

    @property
    def contents(self) -> list[str] | None:
        """Contents for the user in order; None if the last message is not for the user."""
        if self._contents and self._ends_in_final:
            return self._contents
        if self.reasoned or self._header is not None:
            return None
        return self._unmarked

    def _between(self, piece: Piece) -> None:
        """Take a piece between messages."""
        if piece.mark == START:
            self._header = []
        elif piece.mark in (CHANNEL, MESSAGE):
            # A message without a start mark comes from the assistant.
            self._header = [("assistant", False)]
            self._extend(piece)
        elif not piece.mark and not self._marked:
            self._unmarked.append(self._read(slice(piece.start, piece.end)))
        self._marked |= bool(piece.mark)

    def _extend(self, piece: Piece) -> bool:
        """Add a piece to the open header; return False if another role begins to speak."""
        assert self._header is not None
        if piece.mark == START:
            self._header = []
        elif piece.mark in ENDS:
            # A header without a content is not a message.
            self._header = None
        elif piece.mark != MESSAGE:
            text = piece.mark or self._read(slice(piece.start, piece.end))
            self._header.append((text, bool(piece.mark)))
        else:
            role, self._final = _addressed(self._header)
            self._header = None
            if piece.start >= self._offset and role not in ("", "assistant"):
                return False
            self._begin = piece.end
        return True

    def _close(self, end: int) -> None:
        """End the open content; it counts if it reaches beyond the prompt."""
        assert self._begin is not None
        if end >= self._offset:
            self._ends_in_final = self._final
            self.reasoned |= not self._final
            if self._final:
                self._contents.append(self._read(slice(max(self._begin, self._offset), end)))
        self._begin = None


def _addressed(header: list[tuple[str, bool]]) -> tuple[str, bool]:
    """Return the role of a header of (text, is a mark), and True if its message is for the user."""
    places = [place for place, piece in enumerate(header) if piece == (CHANNEL, True)]
    first = places[0] if places else len(header)
    role = "".join(text for text, _ in header[:first]).split()
    # With two channels, or an empty one, the message is not for the user.
    name = header[first + 1] if len(places) == 1 and first + 1 < len(header) else ("", True)
    to_user = not places or (name[0].split()[:1] == ["final"] and not name[1])
    to_tool = any(_TO_TOOL.search(text) for text, mark in header if not mark)
    return role[0] if role else "", to_user and not to_tool
