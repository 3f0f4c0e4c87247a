"""The program in an answer, cut out as text and never parsed, by one of three named rules; reads and writes nothing.

`last-block` and `first-block` read Markdown, a little more forgivingly than Markdown does, because models write it. A
fence is a line that begins with three or more backticks or tildes, at any indentation. A block ends at a bare fence of the
same character, at least as long and indented less than four columns deeper than the opening one; so a fence within an
indented docstring is part of the program. A fence that names a language at the depth of an open block starts over: the
model forgot to close the former. `lcb` is LiveCodeBench's rule to the letter (28fef95, lcb_runner/utils/extraction_utils.py).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

Rule = Literal["last-block", "lcb", "first-block"]

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_END_OF_REASONING = re.compile(r"</think>[ \t\r]*$", re.MULTILINE)
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


def extract_code(text: str, rule: Rule = "last-block", *, thinking: bool = False) -> str | None:
    r"""The code in an answer, whatever language its fence names, without a final newline; `None` is "no code".

    `last-block`: the last fenced block. No code: there is none, it is blank, or it has content and is never closed; such an
    answer was cut off, and neither half a program nor an earlier draft is what it says. A stray fence after the last block,
    with nothing behind it, is ignored. `first-block`: the first fenced block, no code where that one is blank or never
    closed. For both, lines end in `\n` or `\r\n` and the code has `\n`; reasoning is not looked at (`after_reasoning`).

    `lcb`: the lines between the last two lines that contain three backticks, wherever in the line and whatever else the line
    says; no code where there are fewer than two. Between two neighbouring lines the code is the empty text. Reasoning is
    text like any other, as officially, so `thinking` changes nothing.
    """
    if rule == "lcb":
        return _between_last_fences(text)
    answer = after_reasoning(text, thinking=thinking)
    blocks = [] if answer is None else _blocks(answer)
    if rule == "last-block" and blocks and not blocks[-1].closed and blocks[-1].blank:
        blocks.pop()
    if not blocks:
        return None
    block = blocks[-1] if rule == "last-block" else blocks[0]
    return "\n".join(block.lines) if block.closed and not block.blank else None


def _between_last_fences(text: str) -> str | None:
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    return "\n".join(lines[fences[-2] + 1 : fences[-1]]) if len(fences) >= 2 else None


def after_reasoning(text: str, *, thinking: bool) -> str | None:
    """What the answer says once its reasoning is over; None where that never happens.

    An answer that begins with `<think>` reasons, and so does any where `thinking` says that the prompt already did: up to the
    first `</think>`. Where neither is known, only a line that ends in `</think>` ends a reasoning; within a line it may be part
    of a program.
    """
    if thinking or text.lstrip().startswith("<think>"):
        _, closed, rest = text.partition("</think>")
        return rest if closed else None
    ending = _END_OF_REASONING.search(text)
    return text[ending.end() :] if ending else text


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
