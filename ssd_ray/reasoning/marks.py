"""Marks of reasoning in public models, and their places in a text or among ids.

Marks are pairs such as `<think>` and `</think>`, or the seven of the harmony format. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The marks around a reasoning part."""

    opening: str
    closing: str
    plain: bool = False
    """True if the marks may be ordinary XML: a closing mark alone is then no sign of reasoning."""


THINK = Pair(opening="<think>", closing="</think>")
PAIRS = (
    THINK,
    Pair(opening="[THINK]", closing="[/THINK]"),
    Pair(opening="<seed:think>", closing="</seed:think>"),
    Pair(opening="<mm:think>", closing="</mm:think>"),
    Pair(opening="<longcat_think>", closing="</longcat_think>"),
    Pair(opening="<ifm|think>", closing="</ifm|think>"),
    Pair(opening="<|begin_of_thought|>", closing="<|end_of_thought|>"),
    Pair(opening="<|START_THINKING|>", closing="<|END_THINKING|>"),
    Pair(opening="<|inner_prefix|>", closing="<|inner_suffix|>"),
    Pair(opening="<|channel>", closing="<channel|>"),
    Pair(opening="◁think▷", closing="◁/think▷"),
    Pair(opening="<thinking>", closing="</thinking>", plain=True),
    Pair(opening="<thought>", closing="</thought>", plain=True),
    Pair(opening="<reasoning>", closing="</reasoning>", plain=True),
)
"""Of Qwen3 and DeepSeek-R1, Magistral, Seed-OSS, MiniMax, LongCat, K2, OpenThinker, Command A,
Apertus, Gemma 4, Kimi-VL, and of models that answer in XML.
"""
OPENINGS: Mapping[str, Pair] = {pair.opening: pair for pair in PAIRS}
CLOSINGS: Mapping[str, Pair] = {pair.closing: pair for pair in PAIRS}

START, CHANNEL, MESSAGE = "<|start|>", "<|channel|>", "<|message|>"
ENDS = ("<|end|>", "<|return|>", "<|call|>")
HARMONY = (START, CHANNEL, MESSAGE, *ENDS, "<|constrain|>")
"""The marks of the harmony format (GPT-OSS)."""
REQUIRED = frozenset({START, CHANNEL, MESSAGE, ENDS[0]})
"""Special tokens without which a model has no harmony format."""
_HARMONY_MARK = re.compile("|".join(map(re.escape, HARMONY)))


def opened_by(prompt: str, statement: str = "") -> str:
    """Return the mark still open at the end of a prompt's text, empty if there is none.

    Text up to the end of the problem's `statement` is the problem's, and marks nothing.
    """
    # A statement may quote marks, as a problem about parsing would.
    inner = statement.strip()
    if inner and inner in prompt:
        prompt = prompt[prompt.rindex(inner) + len(inner) :]
    place, mark = max((prompt.rfind(opening), opening) for opening in OPENINGS)
    return mark if place > prompt.rfind(OPENINGS[mark].closing) else ""


def special_marks(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens among the reasoning marks of a Hugging Face tokenizer, by id.

    - Both marks of a pair count if either is special.
    - Harmony's marks count if the required ones are special.
    """
    vocabulary = tokenizer.get_vocab()

    # A token is special if decoding without special tokens drops it, whatever its flags are.
    def special(name: str) -> bool:
        token = vocabulary.get(name)
        return token is not None and not tokenizer.decode([token], skip_special_tokens=True)

    names = set(HARMONY) if all(map(special, REQUIRED)) else set()
    for pair in PAIRS:
        if special(pair.opening) or special(pair.closing):
            names |= {pair.opening, pair.closing}
    return {vocabulary[name]: name for name in sorted(names) if name in vocabulary}


class Piece(NamedTuple):
    """A mark and its place; an empty `mark` is the place between marks."""

    mark: str
    start: int
    end: int


def text_pieces(text: str, start: int = 0) -> Iterator[Piece]:
    """Split a text at the names of harmony's marks."""
    for match in _HARMONY_MARK.finditer(text, start):
        if match.start() > start:
            yield Piece("", start, match.start())
        yield Piece(match[0], match.start(), match.end())
        start = match.end()
    if start < len(text):
        yield Piece("", start, len(text))


def id_pieces(ids: Sequence[int], special: Mapping[int, str]) -> Iterator[Piece]:
    """Split ids at those of special marks."""
    start = 0
    for place in [place for place, token in enumerate(ids) if token in special]:
        if place > start:
            yield Piece("", start, place)
        yield Piece(special[ids[place]], place, place + 1)
        start = place + 1
    if start < len(ids):
        yield Piece("", start, len(ids))


Decode = Callable[[Sequence[int]], str]
"""Function from ids to their text, without special tokens."""


def spelled(ids: Sequence[int], special: Mapping[int, str], decode: Decode) -> str:
    """Return the text of ids, with the names of special marks in their places."""
    pieces = id_pieces(ids, special)
    return "".join(piece.mark or decode(ids[piece.start : piece.end]) for piece in pieces)
