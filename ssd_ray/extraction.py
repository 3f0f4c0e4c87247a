"""Extraction of the program from an answer, by one of three named rules.

The program is cut out as text and never parsed. `last-block` and `first-block` look only outside
of the reasoning (`reasoning`). Does no I/O.

These two rules read Markdown, more forgiving than its standard, because models write it:

- A fence is a line of three or more backticks or tildes at any indentation, then any text.
- A block ends at a bare fence of the same character, at least as long as the opening one.
- A fence four columns deeper than the opening one is content. So a fence in an indented
  docstring is part of the program.
- A fence with a language, at the depth of an open block, starts over: the model forgot to close
  the former block.

`lcb` is LiveCodeBench's rule to the letter (28fef95, lcb_runner/utils/extraction_utils.py).
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from typing import Literal

from ssd_ray.reasoning import ANY, Content, content_of_text

Rule = Literal["last-block", "lcb", "first-block", "release"]

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<fence>`{3,}|~{3,})(?P<info>.*)", re.DOTALL)
_MARK = re.compile(
    r"(?:[ \t]*<(?:/[^<>]{1,40}|[|\uff5c][^<>]{1,60}[|\uff5c]|eos|end_of_turn)>){1,9}[ \t]*"
)
"""End tokens and closing tags after a bare fence: `</answer>`, `<|im_end|>`."""
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
_RELEASED = re.compile(r"```([a-zA-Z]*)\n(.*?)```", re.DOTALL)
"""Blocks of the rule `release`. Each search ends at the next three backticks, so time is linear."""
_DEEPER = 4
"""Columns of additional indentation that make a fence content (CommonMark 0.31, 4.5)."""


@dataclass
class _Block:
    """A fenced block: its opening fence and its lines."""

    indent: int
    fence: str
    info: str
    lines: list[str] = field(default_factory=list)
    closed: bool = False

    @property
    def blank(self) -> bool:
        """True if the block holds white space only."""
        return not any(line.strip() for line in self.lines)

    def closes(self, indent: int, fence: str, info: str) -> bool:
        """Return True if a fence ends this block."""
        fits = fence[0] == self.fence[0] and len(fence) >= len(self.fence)
        return fits and not info and indent < self.indent + _DEEPER

    def restarts(self, indent: int, fence: str, info: str) -> bool:
        """Return True if a fence opens another block because this one was left open."""
        return (
            bool(info)
            and fence[0] == self.fence[0]
            and len(fence) <= len(self.fence)
            and indent < self.indent + _DEEPER
        )

    def add(self, line: str) -> None:
        """Add a line without the indentation of the fence."""
        margin = min(self.indent, len(line) - len(line.lstrip(" \t")))
        self.lines.append(line[margin:])


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """The program of an answer, with signs of whether the right block was taken."""

    code: str | None
    """The program, None for "no code"."""
    language: str = ""
    """First word after the program's fence, in lower case."""
    others: tuple[str, ...] = ()
    """The answer's other blocks."""


def extract_code(text: str, rule: Rule = "last-block", *, thinking: bool = False) -> str | None:
    """Return the code in a text, None for "no code".

    `thinking` is True if the text begins within a reasoning part.
    """
    return extract(text, content_of_text(text, ANY if thinking else ""), rule).code


def extract(text: str, content: Content, rule: Rule = "last-block") -> Extraction:
    r"""Cut the program out of an answer, given its text and its content outside of the reasoning.

    The code has no final newline. The language of its fence does not matter.

    - `last-block`: the last fenced block. No code if there is none, if it is blank, or if it has
      content and is never closed. Such an answer was cut off, and an earlier draft is not its
      program. A stray fence at the end, with nothing after it, is ignored.
    - `first-block`: the first fenced block. No code if it is blank or never closed.
    - Both: lines end in `\n` or `\r\n`; the code has `\n`. An unfinished reasoning means no code.
    - `lcb`: the lines between the last two lines that contain three backticks, wherever in the
      line. No code if there are fewer than two such lines; an empty text if they are neighbors.
      Reasoning is text like any other, as officially.
    - `release`: the last closed block of three backticks anywhere, also within a line, as in the
      authors' released evaluation. Reasoning is text like any other, and an unclosed block at the
      end leaves an earlier draft as the program. No code if there is none, or if it is blank.
    """
    if rule == "lcb":
        return _between_last_fences(text)
    if rule == "release":
        return _last_closed_anywhere(text)
    blocks = [] if content.text is None else _blocks(content.text)
    # A stray fence after the last block opens a block without content.
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
    """Apply the rule `lcb`."""
    lines = text.split("\n")
    fences = [number for number, line in enumerate(lines) if "```" in line]
    if len(fences) < 2:
        return Extraction(code=None)
    begin, end = fences[-2:]
    # The fences before are taken in pairs, to look for a block that would have been the program.
    pairs = zip(fences[:-2:2], fences[1:-2:2], strict=False)
    others = tuple("\n".join(lines[first + 1 : last]) for first, last in pairs)
    language = _language(lines[begin].rpartition("```")[2])
    return Extraction(code="\n".join(lines[begin + 1 : end]), language=language, others=others)


def _last_closed_anywhere(text: str) -> Extraction:
    """Apply the rule `release`."""
    blocks = _RELEASED.findall(text)
    if not blocks or not blocks[-1][1].strip():
        return Extraction(code=None)
    language, code = blocks[-1]
    others = tuple(other.removesuffix("\n") for _, other in blocks[:-1] if other.strip())
    return Extraction(code=code.removesuffix("\n"), language=language.lower(), others=others)


def _language(info: str) -> str:
    """Return the first word after a fence, in lower case and without attributes."""
    words = info.strip(" \t\r{}.").lower().split()
    return words[0].strip("{}.,:") if words else ""


def names_other_language(language: str) -> bool:
    """Return True if the word after a fence names another language than Python."""
    return language not in _NO_LANGUAGE and _PYTHON.fullmatch(language) is None


def _blocks(text: str) -> list[_Block]:
    """Return the fenced blocks in order; only the last can be open."""
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
    """Return indentation, fence and the rest of a line that is a fence, None for any other line.

    Inline code on one line is not a fence.
    """
    match = _FENCE.fullmatch(line)
    # Inline code on one line has the character again after the first ones.
    if match is None or match["fence"][0] in match["info"]:
        return None
    info = "" if _MARK.fullmatch(match["info"]) else match["info"].strip()
    return len(match["indent"].expandtabs(4)), match["fence"], info


def is_python(source: str) -> bool:
    """Return True if a text compiles, as it is."""
    with warnings.catch_warnings():
        # Deprecated escapes in a benchmark's code are not the user's concern.
        warnings.simplefilter("ignore")
        try:
            compile(source, "source", "exec", dont_inherit=True)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return False
    return True
