"""The program in an answer: the code of its last fenced block, cut out as text and never parsed; reads and writes nothing.

The rules are Markdown's, a little more forgiving, because models write Markdown. A fence is a line that begins with three
or more backticks or tildes, at any indentation. A block ends at a bare fence of the same character, at least as long and
indented less than four columns deeper than the opening one; so a fence within an indented docstring is part of the
program. A fence that names a language at the depth of an open block starts over: the model forgot to close the former.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_DEEPER = 4
"""Columns by which a fence must be indented beyond the opening one to be content (CommonMark 0.31, section 4.5)."""


@dataclass
class _Block:
    indent: int
    fence: str
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def blank(self) -> bool:
        return not any(line.strip() for line in self.lines)

    def closes(self, indent: int, fence: str, info: str) -> bool:
        fits = fence[0] == self.fence[0] and len(fence) >= len(self.fence)
        return fits and not info and indent < self.indent + _DEEPER

    def restarts(self, indent: int, fence: str, info: str) -> bool:
        return bool(info) and fence[0] == self.fence[0] and len(fence) <= len(self.fence) and indent < self.indent + _DEEPER

    def add(self, line: str) -> None:
        margin = min(self.indent, len(line) - len(line.lstrip(" \t")))
        self.lines.append(line[margin:])


def extract_code(text: str) -> str | None:
    r"""The code of the last fenced block of an answer, whatever language the fence names, without a final newline.

    What precedes the first `</think>` is reasoning and not looked at. `None`, "no code", is returned for an answer without
    a fenced block, for one that is still reasoning when it ends, for a blank last block, and for a last block with content
    that is never closed: such an answer was cut off, and neither half a program nor an earlier draft is what it says.
    A stray fence after the last block, with nothing behind it, is ignored. Lines end in `\n` or `\r\n`; the code has `\n`.
    """
    _, cut, rest = text.partition("</think>")
    if not cut and text.lstrip().startswith("<think>"):
        return None
    blocks = _blocks(rest if cut else text)
    if blocks and not blocks[-1].closed and blocks[-1].blank:
        blocks.pop()
    if not blocks or not blocks[-1].closed or blocks[-1].blank:
        return None
    return "\n".join(blocks[-1].lines)


def _blocks(text: str) -> list[_Block]:
    """The fenced blocks in order; only the last can be open."""
    done: list[_Block] = []
    block: _Block | None = None
    for raw in text.split("\n"):
        line = raw.removesuffix("\r")
        match = _opening(line)
        if block is None:
            block = _Block(*match[:2]) if match else None
        elif match and block.closes(*match):
            block.closed = True
            done.append(block)
            block = None
        elif match and block.restarts(*match):
            block = _Block(*match[:2])
        else:
            block.add(line)
    return done if block is None else [*done, block]


def _opening(line: str) -> tuple[int, str, str] | None:
    """Indentation, fence and what follows it, where the line is a fence; inline code on one line is not."""
    match = _FENCE.fullmatch(line)
    if match is None or match["fence"][0] in match["info"]:
        return None
    return len(match["indent"].expandtabs(4)), match["fence"], match["info"].strip()
