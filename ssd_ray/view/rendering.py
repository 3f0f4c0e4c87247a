"""Hostile text as safe HTML: Markdown, highlighted code, visible marks, differences.

- Every function returns escaped markup; nothing of an answer becomes a tag, a link or a picture.
- Control, bidirectional and invisible characters are shown as marks, never obeyed.
- Texts above a bound keep their beginning and their end. Markdown is parsed up to another bound.

Pure functions.
"""

from __future__ import annotations

import difflib
import functools
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from markupsafe import Markup, escape

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

MAX_TEXT = 100_000
"""Characters of a text on a page."""
_MAX_PARSED = 40_000
"""Characters of Markdown and of highlighted code: both parsers are slow on hostile text."""
_MAX_LINE = 4_000
"""Characters of a line that a parser gets."""
_MAX_DIFF_LINES = 400
_SPECIAL = re.compile(
    r"<[|\uff5c][^<>|\uff5c\n]{1,80}[|\uff5c]>|</?(?:s|think|bos|eos|pad|unk)>|"
    r"<(?:start|end)_of_turn>|<\uff5c[^<>\n]{1,80}\uff5c>|\[/?INST\]|<</?SYS>>"
)
_INVISIBLE = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
_KEPT = {"\n", "\t"}


def printable(text: str) -> str:
    """Return a text with every invisible character as its code in brackets."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if _is_visible(sign) else _name(sign) for sign in text)


def _is_visible(sign: str) -> bool:
    return sign in _KEPT or (
        unicodedata.category(sign) not in _INVISIBLE and not _is_filler(ord(sign))
    )


def _is_filler(code: int) -> bool:
    """Return True for characters without a picture outside of the category of formats."""
    return code in (0x115F, 0x1160, 0x3164, 0xFFA0) or 0xFE00 <= code <= 0xFE0F


def _name(sign: str) -> str:
    return "" if sign == "\r" else f"⟨{ord(sign):02X}⟩"


def bounded(text: str, most: int = MAX_TEXT) -> str:
    """Return a text of at most about `most` characters, its middle replaced by a count."""
    if len(text) <= most:
        return text
    half = most // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def plain(text: str) -> Markup:
    """Return a text with special tokens and invisible characters marked."""
    return Markup("").join(_marked(printable(bounded(text))))


def _marked(text: str) -> Iterator[Markup]:
    at = 0
    for match in _SPECIAL.finditer(text):
        yield escape(text[at : match.start()])
        yield Markup('<span class="special">{}</span>').format(match[0])
        at = match.end()
    yield escape(text[at:])


def markdown(text: str) -> Markup:
    """Return Markdown as HTML: raw HTML stays text, links and pictures stay as written."""
    if not _can_parse(text):
        return Markup('<pre class="text">{}</pre>').format(plain(text))
    return Markup(_markdown().render(printable(text)))


def _can_parse(text: str) -> bool:
    return len(text) <= _MAX_PARSED and max(map(len, text.split("\n"))) <= _MAX_LINE


@functools.cache
def _markdown() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False, "highlight": _highlighted}).enable("table")
    # A link to elsewhere is one click away from a request, and a picture is a request.
    parser.disable(["link", "image", "autolink", "reference", "html_inline", "html_block"])
    # Headings of an answer are no headings of the page.
    parser.disable(["heading", "lheading"])
    return parser


def _highlighted(source: str, language: str, _attributes: str) -> str:
    # Markdown-it keeps a result that begins with <pre.
    return f'<pre class="code">{code(source, language or "python")}</pre>'


def code(source: str, language: str = "python") -> Markup:
    """Return highlighted source, with classes of `pygments.css`."""
    from pygments import highlight
    from pygments.formatters.html import HtmlFormatter
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    text = printable(bounded(source))
    if not _can_parse(text):
        return escape(text)
    try:
        lexer = get_lexer_by_name(re.sub(r"[^\w+#.-]", "", language)[:30] or "text", stripnl=False)
    except ClassNotFound:
        return escape(text)
    return Markup(highlight(text, lexer, HtmlFormatter(nowrap=True)))


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of a difference: its sign (" ", "-", "+", "?"), and its text."""

    sign: str
    text: str


def difference(first: str, second: str) -> list[Line]:
    """Return the lines of two texts with their differences, bounded."""
    before = printable(bounded(first, 20_000)).splitlines()
    after = printable(bounded(second, 20_000)).splitlines()
    lines = [
        Line(sign=line[0], text=line[2:])
        for line in _compared(before[:_MAX_DIFF_LINES], after[:_MAX_DIFF_LINES])
    ]
    if len(before) > _MAX_DIFF_LINES or len(after) > _MAX_DIFF_LINES:
        lines.append(Line(sign="?", text=f"… further lines after the first {_MAX_DIFF_LINES}"))
    return lines


def _compared(before: Sequence[str], after: Sequence[str]) -> Iterator[str]:
    # `ndiff` compares characters of similar lines, at a cost that hostile text drives up.
    # Junk rules would hide differences in long programs.
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, low, high, start, stop in matcher.get_opcodes():
        if kind == "equal":
            yield from (f"  {line}" for line in before[low:high])
        else:
            yield from (f"- {line}" for line in before[low:high])
            yield from (f"+ {line}" for line in after[start:stop])
