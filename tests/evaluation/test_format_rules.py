"""Rules on the form of an answer: each is kept exactly by answers of that form."""

from __future__ import annotations

import json
import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.evaluation.judging import format_rules
from ssd_ray.evaluation.judging.format_rules import (
    broken,
    is_json,
    num_bullets,
    num_sentences,
    num_words,
    problem_of,
)

LETTERS = st.characters(whitelist_categories=("Lu", "Ll"), max_codepoint=0x24F)
WORD = st.text(LETTERS, min_size=1, max_size=8)
WORDS = st.lists(WORD, min_size=1, max_size=12)
TEXT = st.text(max_size=60).filter(lambda text: bool(text.strip()))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
DOCUMENT = st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=5), VALUES, max_size=3)


@given(st.lists(st.tuples(WORDS, st.sampled_from([".", "!", "?", "...", '."', "?!"])), min_size=1))
def test_sentences_are_counted_by_their_ends(parts: list[tuple[list[str], str]]) -> None:
    text = " ".join(" ".join(words) + end for words, end in parts)
    assert num_sentences(text) == len(parts)
    assert num_words(text) == sum(len(words) for words, _ in parts)
    # A last sentence without its mark is one as well, and a number has no end within it.
    assert num_sentences(text + " It is 3.5 or more") == len(parts) + 1


@given(st.lists(WORD, max_size=8), st.sampled_from("-*+\u2022"), st.sampled_from(["", "  "]))
def test_bullets_are_lines_with_a_mark(items: list[str], mark: str, indent: str) -> None:
    lines = [f"{indent}{mark} {item}" for item in items]
    assert num_bullets("\n".join(["Here they are:", *lines, f"in-line {mark} no item"])) == len(
        items
    )
    assert num_bullets("**bold**\n---\n-5 degrees") == 0


@given(DOCUMENT, st.sampled_from(["{}", " {}\n", "```json\n{}\n```", "```\n{}\n```"]))
def test_a_document_is_json_and_no_text_around_it(document: object, form: str) -> None:
    text = form.replace("{}", json.dumps(document))
    assert is_json(text)
    assert not is_json(f"Here it is: {text}")
    assert not is_json(f"{text}\nI hope it helps.")
    assert not is_json(text + text)


@pytest.mark.parametrize(
    "text", ["", "5", '"a"', "null", "[NaN]", "{'a': 1}", "[1,]", "```json", "``````", "[" * 10**5]
)
def test_other_texts_are_no_json(text: str) -> None:
    assert not is_json(text)


@given(WORDS)
def test_lowercase_has_letters_and_no_capital(words: list[str]) -> None:
    text = " ".join(words)
    kept = broken({"lowercase": True}, text) == []
    assert kept == (not any(letter.isupper() for letter in text))
    assert broken({"lowercase": True}, "1 + 1") == ["lowercase"]


@given(TEXT)
def test_absent_marks_are_absent(text: str) -> None:
    assert (broken({"no_commas": True}, text) == []) == ("," not in text)
    assert broken({"no_commas": True}, f"{text},") == ["no_commas"]
    fenced = f"a\n```python\n{text}\n```"
    assert broken({"no_code_block": True}, fenced) == ["no_code_block"]


@given(WORDS, st.text(string.ascii_letters, min_size=1, max_size=8))
def test_keywords_are_words_in_any_case(words: list[str], key: str) -> None:
    rule = {"keywords": [key]}
    for written in (key, key.upper(), key.swapcase()):
        assert broken(rule, f"{' '.join(words)} {written}.") == []
    assert broken(rule, f"x{key}y") == ["keywords"]
    assert broken({"keywords": [key, "qqqqqqqqq"]}, f"({key})") == ["keywords"]


@given(st.integers(0, 30), st.integers(0, 10), st.integers(1, 30))
def test_ranges_hold_both_ends(low: int, more: int, count: int) -> None:
    rule = {"words": [low, low + more]}
    assert (broken(rule, "word " * count) == []) == (low <= count <= low + more)


def test_an_empty_answer_keeps_no_rule() -> None:
    every = {
        name: [0, 5] if name in format_rules._RANGES else True for name in format_rules._CHECKS
    }
    assert broken({**every, "keywords": ["a"]}, " \n") == list(every)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "at least one rule"),
        ({}, "at least one rule"),
        ({"comas": True}, "'comas' is unknown: use json"),
        ({"words": [3]}, "words=[3] must be [low, high]"),
        ({"words": [3, 2]}, "must be [low, high]"),
        ({"words": [True, 2]}, "must be [low, high]"),
        ({"bullets": [-1, 2]}, "must be [low, high]"),
        ({"keywords": "a"}, "must be a list of texts"),
        ({"keywords": [" "]}, "must be a list of texts"),
        ({"json": False}, "json=False must be true"),
    ],
)
def test_a_mistake_in_rules_is_named(rules: object, message: str) -> None:
    assert message in problem_of(rules)


@pytest.mark.parametrize("unit", [".", "?!", ". ", "- ", " ", "a,", "```", '."'])
def test_hostile_answers_take_little_time(unit: str) -> None:
    rules = {
        "json": True,
        "sentences": [1, 2],
        "bullets": [1, 2],
        "words": [1, 2],
        "lowercase": True,
        "keywords": ["a"],
    }
    assert problem_of(rules) == ""
    begin = time.process_time()
    broken(rules, "b" + unit * 200_000 + "x")
    assert time.process_time() - begin < 2
