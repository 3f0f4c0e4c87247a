"""Tokens of an answer have the kinds that a reader of Python expects."""

from __future__ import annotations

import re

import pytest

from ssd_ray.analysis.token_kinds import Pieces, kinds
from tests.support.tiny import tiny_tokenizer

ANSWER = (
    "The sum is:\n```python\ndef f(x):  # for 2\n    return x + 1.5 if 'a for' else None\n```\n"
    "I use for here."
)


def _by_word(text: str) -> list[tuple[str, str]]:
    pieces = re.findall(r" ?\w+|\s|[^\w\s]", text)
    return [
        (piece.strip(), kind)
        for piece, kind in zip(pieces, kinds(pieces), strict=True)
        if piece.strip()
    ]


def test_lexemes_of_code_and_prose_around_it() -> None:
    words = _by_word(ANSWER)
    assert ("def", "keyword") in words
    assert ("f", "name") in words
    assert ("+", "operator") in words
    assert ("1", "number") in words
    assert [kind for word, kind in words if word == "for"] == ["comment", "prose", "prose"]
    assert [kind for word, kind in words if word in {"The", "python", "I", "here"}] == 4 * ["prose"]


def test_a_bare_program_is_code_and_a_sentence_is_not() -> None:
    assert ("x", "name") in _by_word("x = 1\nprint(x)")
    assert _by_word("hello") == [("hello", "prose")]
    assert _by_word("x = is broken") == [(word, "prose") for word in ("x", "=", "is", "broken")]


@pytest.mark.parametrize("cut", range(len(ANSWER)))
def test_a_cut_answer_has_a_kind_for_each_token(cut: int) -> None:
    pieces = list(ANSWER[:cut])
    assert len(kinds(pieces)) == cut
    spaces = [kind == "whitespace" for kind in kinds(pieces)]
    assert spaces == [piece.isspace() for piece in pieces]


def test_pieces_of_a_tokenizer_join_to_the_text() -> None:
    tokenizer = tiny_tokenizer()
    ids = tokenizer.encode(ANSWER, add_special_tokens=False)
    assert "".join(Pieces(tokenizer).of(ids)) == ANSWER
