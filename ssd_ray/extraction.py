"""The program in an answer, cut out as text and never parsed, by one of three named rules.

Reasoning is not looked at (`reasoning`), except by `lcb`. Reads and writes nothing.

`last-block` and `first-block` read Markdown, a little more forgivingly than Markdown does, because models write it. A
fence is a line that begins with three or more backticks or tildes, at any indentation. A block ends at a bare fence of the
same character, at least as long and indented less than four columns deeper than the opening one; so a fence within an
indented docstring is part of the program. A fence that names a language at the depth of an open block starts over: the
model forgot to close the former. `lcb` is LiveCodeBench's rule to the letter (28fef95, lcb_runner/utils/extraction_utils.py).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Literal

from ssd_ray.reasoning import ANY, Content, content_of_text

Rule = Literal["last-block", "lcb", "first-block"]

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_MARK = re.compile(
    r"(?:[ \t]*<(?:/[^<>]{1,40}|[|\uff5c][^<>]{1,60}[|\uff5c]|eos|end_of_turn)>){1,9}[ \t]*"
)
"""End tokens and closing tags right behind a fence, which stays bare: `</answer>`, `<|im_end|>`."""
_PYTHON = re.compile(
    r"(?:language-|lang-)?(?:i|c)?(?:python|pypy|py)[\d.]*(?:[^a-z](?!repl|console).*)?|.*\.py"
)
_NO_LANGUAGE = {
    "",
    "code",
    "solution",
    "answer",
    "program",
    "starter",
    "main",
    "final",
    "tool_code",
}
_DEEPER = 4
"""Columns by which a fence must be indented beyond the opening one to be content (CommonMark 0.31, section 4.5)."""


@dataclass
class _Block:
    indent: int
    fence: str
    info: str
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def blank(self) -> bool:
        return not any(line.strip() for line in self.lines)

    def closes(self, indent: int, fence: str, info: str) -> bool:
        fits = fence[0] == self.fence[0] and len(fence) >= len(self.fence)
        return fits and not info and indent < self.indent + _DEEPER

    def restarts(self, indent: int, fence: str, info: str) -> bool:
        return (
            bool(info)
            and fence[0] == self.fence[0]
            and len(fence) <= len(self.fence)
            and indent < self.indent + _DEEPER
        )

    def add(self, line: str) -> None:
        margin = min(self.indent, len(line) - len(line.lstrip(" \t")))
        self.lines.append(line[margin:])


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The program of an answer, and what shows whether the right block was taken.

    `code` is None for "no code". `language` is the first word behind the program's fence, in lower
    case; `others` are the answer's other blocks.
    """

    code: str | None
    language: str = ""
    others: tuple[str, ...] = ()


def extract_code(text: str, rule: Rule = "last-block", *, thinking: bool = False) -> str | None:
    """Return the code in a text; `thinking` says that the text begins within a reasoning part."""
    return extract(text, content_of_text(text, ANY if thinking else ""), rule).code


def extract(text: str, content: Content, rule: Rule = "last-block") -> Extraction:
    r"""Cut the program out of an answer, given its text and what it says outside of its reasoning.

    The code has no final newline, whatever language its fence names.

    `last-block`: the last fenced block. No code: there is none, it is blank, or it has content and is never closed; such an
    answer was cut off, and neither half a program nor an earlier draft is what it says. A stray fence after the last block,
    with nothing behind it, is ignored. `first-block`: the first fenced block, no code where that one is blank or never
    closed. For both, lines end in `\n` or `\r\n` and the code has `\n`; where the reasoning is unfinished there is no code.

    `lcb`: the lines between the last two lines that contain three backticks, wherever in the line and whatever else the line
    says; no code where there are fewer than two. Between two neighbouring lines the code is the empty text. Reasoning is
    text like any other, as officially.
    """
    if rule == "lcb":
        return _between_last_fences(text)
    blocks = [] if content.text is None else _blocks(content.text)
    if rule == "last-block" and blocks and not blocks[-1].closed and blocks[-1].blank:
        blocks.pop()
    if not blocks:
        return Extraction(code=None)
    block = blocks.pop(-1 if rule == "last-block" else 0)
    if not block.closed or block.blank:
        return Extraction(code=None)
    others = tuple("\n".join(other.lines) for other in blocks if not other.blank)
    return Extraction(code="\n".join(block.lines), language=_language(block.info), others=others)


def _between_last_fences(text: str) -> Extraction:
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return Extraction(code=None)
    begin, end = fences[-2:]
    pairs = zip(fences[:-2:2], fences[1:-2:2], strict=False)
    others = tuple("\n".join(lines[first + 1 : last]) for first, last in pairs)
    language = _language(lines[begin].rpartition("```")[2])
    return Extraction(code="\n".join(lines[begin + 1 : end]), language=language, others=others)


def _language(info: str) -> str:
    """Return the first word of what follows a fence, in lower case and without attributes."""
    words = info.strip(" \t\r{}.").lower().split()
    return words[0].strip("{}.,:") if words else ""


def names_other_language(language: str) -> bool:
    """Return True if the word behind a fence names something else than Python."""
    return language not in _NO_LANGUAGE and _PYTHON.fullmatch(language) is None


def _blocks(text: str) -> list[_Block]:
    """The fenced blocks in order; only the last can be open."""
    done: list[_Block] = []
    block: _Block | None = None
    for raw in text.split("\n"):
        line = raw.removesuffix("\r")
        match = _opening(line)
        if block is None:
            block = _Block(*match) if match else None
        elif match and block.closes(*match):
            block.closed = True
            done.append(block)
            block = None
        elif match and block.restarts(*match):
            block = _Block(*match)
        else:
            block.add(line)
    return done if block is None else [*done, block]


def _opening(line: str) -> tuple[int, str, str] | None:
    """Indentation, fence and what follows it, where the line is a fence; inline code on one line is not."""
    match = _FENCE.fullmatch(line)
    if match is None or match["fence"][0] in match["info"]:
        return None
    info = "" if _MARK.fullmatch(match["info"]) else match["info"].strip()
    return len(match["indent"].expandtabs(4)), match["fence"], info


def is_python(source: str) -> bool:
    """Return True if a text compiles, as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # a benchmark's deprecated escapes are not the user's concern
        try:
            compile(source, "source", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
