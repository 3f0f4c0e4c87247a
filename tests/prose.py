"""Measure the language of code and pages: `python tests/prose.py PLACE...`, a row each.

- Functions: lines of the median, the 90th percentile and the longest.
- Docstrings: relative words (`RELATIVE`) per 1,000 words; share of interrogative openings.
- Banned words: dialect foreign to a new reader, per 1,000 words of docstrings.
- Markdown: the same counts over the text, without code; and lines of prose above 100 columns.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

RELATIVE = ("that", "which", "what")
BANNED = (
    "absolve",
    "anew",
    "aside",
    "aught",
    "beside",
    "bury",
    "door",
    "doubted",
    "excused",
    "leash",
    "mend",
    "mended",
    "nobody",
    "somebody",
    "stands",
    "stood",
    "told",
    "whole",
    "wholly",
)
COLUMNS = 100
"""Longest line of prose."""
FIRST_LINE = 90
"""Longest first line of a docstring."""
_OPENING = re.compile(r"(What|Whether|How)\b")
_WORD = re.compile(r"[A-Za-z']+")


@dataclass(frozen=True, kw_only=True)
class Prose:
    """Counts over the Python files of a folder."""

    function_lines: tuple[int, ...]
    returns_typed: int
    comment_lines: int
    lines: int
    docstrings: tuple[str, ...]

    def per_thousand(self, words: Iterable[str]) -> float:
        """Occurrences of any of the words per 1,000 words of docstrings."""
        return per_thousand(" ".join(self.docstrings), words)

    @property
    def question_openings(self) -> float:
        """Share of docstrings with an interrogative opening."""
        return sum(bool(_OPENING.match(text)) for text in self.docstrings) / max(
            1, len(self.docstrings)
        )

    @property
    def comment_share(self) -> float:
        """Share of lines with nothing but a comment."""
        return self.comment_lines / max(1, self.lines)


def banned_words(source: str) -> list[str]:
    """List the banned words in the docstrings and comments of a Python source, sorted."""
    texts = [*_docstrings_of(source), *comments(source)]
    # Words in backticks are names.
    words = _WORD.findall(" ".join(re.sub(r"`[^`]*`|\bset-aside\b", " ", text) for text in texts))
    return sorted(word.lower() for word in words if word.lower() in BANNED)


def long_first_lines(source: str) -> list[str]:
    """List first lines of docstrings above `FIRST_LINE` characters."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in nodes(source) if isinstance(node, kinds))
    first_lines = (text.splitlines()[0] for text in docstrings if text)
    return [line for line in first_lines if len(line) > FIRST_LINE]


@dataclass(frozen=True, kw_only=True)
class Page:
    """The language of a Markdown file, code left out."""

    text: str
    long_lines: tuple[int, ...]
    """Numbers of the lines of prose above `COLUMNS`; tables and code are none."""

    @property
    def words(self) -> int:
        """Words of the text, tables included."""
        return len(_WORD.findall(self.text))

    def per_thousand(self, words: Iterable[str]) -> float:
        """Occurrences of any of the words per 1,000 words of text."""
        return per_thousand(self.text, words)


def per_thousand(text: str, words: Iterable[str]) -> float:
    """Return the occurrences of any of `words` per 1,000 words of `text`."""
    wanted = set(words)
    every = _WORD.findall(text)
    return 1000 * sum(word.lower() in wanted for word in every) / max(1, len(every))


def measure_page(path: Path) -> Page:
    """Measure a Markdown file."""
    text: list[str] = []
    long_lines: list[int] = []
    in_fence = False
    in_list = False
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if line.lstrip().startswith("```"):
            in_fence = not in_fence
            continue
        # Four spaces begin code, but below a list item they go on with its text.
        if in_fence or (line.startswith("    ") and not in_list):
            continue
        if line.strip():
            in_list = bool(re.match(r"\s*([-*]|\d+\.) ", line)) or (
                in_list and line.startswith(" ")
            )
        if len(line) > COLUMNS and not line.lstrip().startswith("|"):
            long_lines.append(number)
        # Words in backticks are names, and targets of links are paths.
        text.append(re.sub(r"`[^`]*`|\]\([^)]*\)", " ", line))
    return Page(text=" ".join(text), long_lines=tuple(long_lines))


def measure(paths: Iterable[Path]) -> Prose:
    """Measure Python files together."""
    functions: list[int] = []
    docstrings: list[str] = []
    typed = comments = lines = 0
    for path in paths:
        source = path.read_text()
        lines += sum(bool(line.strip()) for line in source.splitlines())
        comments += sum(1 for _ in comment_lines(source))
        docstrings += _docstrings_of(source)
        for node in nodes(source):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                functions.append((node.end_lineno or node.lineno) - node.lineno + 1)
                typed += node.returns is not None
    return Prose(
        function_lines=tuple(sorted(functions)),
        returns_typed=typed,
        comment_lines=comments,
        lines=lines,
        docstrings=tuple(docstrings),
    )


@functools.cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Return all nodes of a Python source, breadth first."""
    return tuple(ast.walk(ast.parse(source)))


def _docstrings_of(source: str) -> Iterator[str]:
    """Yield docstrings, and strings under a field or a constant."""
    for node in nodes(source):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for index, statement in enumerate(node.body):
            is_text = (
                isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            )
            follows_field = index > 0 and isinstance(
                node.body[index - 1], ast.Assign | ast.AnnAssign
            )
            if is_text and (index == 0 or follows_field):
                yield statement.value.value.strip()  # type: ignore[attr-defined]


def comments(source: str) -> Iterator[str]:
    """Yield all comments, directives to tools left out."""
    for token in _comment_tokens(source):
        yield token.string


def comment_lines(source: str) -> Iterator[str]:
    """Yield comments on a line of their own, directives to tools left out."""
    for token in _comment_tokens(source):
        if token.line.strip() == token.string:
            yield token.string


@functools.cache
def _comment_tokens(source: str) -> tuple[tokenize.TokenInfo, ...]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return tuple(
        token
        for token in tokens
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|ruff:)", token.string)
    )


def row(name: str, prose: Prose) -> str:
    """Format one row of the table."""
    lines = prose.function_lines
    spread = f"{lines[len(lines) // 2]} / {lines[len(lines) * 9 // 10]} / {lines[-1]}"
    cells = (
        name,
        spread,
        f"{prose.returns_typed / len(lines):.0%}",
        f"{prose.comment_share:.1%}",
        f"{prose.per_thousand(RELATIVE):.1f}",
        f"{prose.question_openings:.1%}",
        f"{prose.per_thousand(BANNED):.1f}",
    )
    return f"| {' | '.join(cells)} |"


def page_row(name: str, page: Page) -> str:
    """Format one row of the table of pages."""
    cells = (
        name,
        f"{page.words:,}",
        f"{page.per_thousand(RELATIVE):.1f}",
        f"{page.per_thousand(BANNED):.1f}",
        str(len(page.long_lines)),
    )
    return f"| {' | '.join(cells)} |"


def main(places: list[str]) -> None:
    """Print a table of the pages and one of the folders."""
    pages = [Path(place) for place in places if place.endswith(".md")]
    folders = [place for place in places if not place.endswith(".md")]
    if pages:
        print(f"| | words | that+which+what | banned words | lines above {COLUMNS} columns |")
        print("|---|---|---|---|---|")
        for path in pages:
            print(page_row(path.name, measure_page(path)))
    if not folders:
        return
    print(
        "| | functions | returns typed | comment lines | that+which+what | What/Whether/How "
        "openings | banned words |"
    )
    print("|---|---|---|---|---|---|---|")
    for folder in folders:
        print(row(Path(folder).name, measure(sorted(Path(folder).rglob("*.py")))))


if __name__ == "__main__":
    main(sys.argv[1:] or [str(Path(__file__).parent.parent / "ssd_ray")])
