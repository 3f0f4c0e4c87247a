"""Kinds of tokens in an answer with Python code: keyword, name, number, operator and others.

- A token has the kind of its first character other than white space.
- Code is the text of fenced blocks, or a complete answer that parses as Python.
- Text outside of code is prose, and so are string literals, their quotes included.

Pure functions on texts.
"""

from __future__ import annotations

import ast
import keyword
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args

Kind = Literal["keyword", "name", "number", "operator", "whitespace", "comment", "prose"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_FENCED = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n]*\n(?P<code>.*?)(?:^[ \t]*(?P=fence)[^\n]*$|\Z)",
    re.MULTILINE | re.DOTALL,
)
_CODE = re.compile(
    r"(?P<comment>\#[^\n]*)"
    r"|(?P<prose>[rbfuRBFU]{0,2}(?:'''.*?(?:'''|\Z)|\"\"\".*?(?:\"\"\"|\Z)"
    r"|'(?:\\.|[^'\\\n])*'?|\"(?:\\.|[^\"\\\n])*\"?))"
    r"|(?P<number>(?:0[xXbBoO][\da-fA-F_]+|\d[\d_]*\.?[\d_]*(?:[eE][+-]?\d+)?|\.\d[\d_]*)[jJ]?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<whitespace>\s+)"
    r"|(?P<operator>.)",
    re.DOTALL,
)


class Pieces:
    """Texts of single tokens; together they are about the text of an answer."""

    def __init__(self, tokenizer: Any) -> None:
        """Take a tokenizer of transformers."""
        self._decode: Callable[[list[int]], str] = tokenizer.decode
        self._anchor: list[int] = tokenizer.encode("a", add_special_tokens=False)
        self._prefix = self._decode(self._anchor)
        self._known: dict[int, str] = {}

    def of(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token."""
        return [self._text(token) for token in token_ids]

    def _text(self, token: int) -> str:
        if token not in self._known:
            # After another token: some tokenizers drop the white space at the start of a text.
            text = self._decode([*self._anchor, token])
            self._known[token] = text.removeprefix(self._prefix)
        return self._known[token]


def kinds(pieces: Sequence[str]) -> list[Kind]:
    """Return the kind of each token of an answer, from the texts of its tokens."""
    text = "".join(pieces)
    labels: list[Kind] = ["prose"] * len(text)
    # Later parts never overlap earlier ones, so each character is labeled once.
    for start, code in _code_parts(text):
        for begin, end, kind in _lexemes(code):
            labels[start + begin : start + end] = [kind] * (end - begin)
    result: list[Kind] = []
    place = 0
    for piece in pieces:
        visible = len(piece) - len(piece.lstrip())
        if visible == len(piece):
            result.append("whitespace")
        else:
            result.append(labels[place + visible])
        place += len(piece)
    return result


def _code_parts(text: str) -> Iterator[tuple[int, str]]:
    """Yield the parts of an answer that are code, with their places."""
    blocks = [(match.start("code"), match.group("code")) for match in _FENCED.finditer(text)]
    if blocks:
        yield from blocks
    elif _parses(text):
        yield 0, text


def _parses(text: str) -> bool:
    try:
        with warnings.catch_warnings():
            # A model's program may hold an invalid escape, which is none of the user's business.
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    # One word of prose is an expression of Python too.
    return any(not isinstance(node, ast.Expr) for node in tree.body)


def _lexemes(code: str) -> Iterator[tuple[int, int, Kind]]:
    """Yield the lexemes of code, complete or cut off, with their places."""
    for match in _CODE.finditer(code):
        group = match.lastgroup
        kind = next(kind for kind in KINDS if kind == group)
        if kind == "name" and keyword.iskeyword(match.group()):
            kind = "keyword"
        yield match.start(), match.end(), kind
