r"""Rules on the form of an answer that a program can check.

They are in the manner of IFEval's verifiable instructions (arXiv 2311.07911), with texts and checks
of our own.

| rule | value | kept if |
|---|---|---|
| `json` | true | the answer is one JSON object or array, at most within one code fence |
| `sentences` | [low, high] | it has so many sentences |
| `bullets` | [low, high] | so many lines begin with `-`, `*`, `+` or a bullet sign |
| `words` | [low, high] | it has so many words |
| `lowercase` | true | it has letters, and none is a capital |
| `no_commas` | true | it has no comma |
| `no_code_block` | true | it has no code fence |
| `keywords` | texts | each occurs as a word, in any case |

- An empty answer keeps no rule.
- A sentence ends with `.`, `!` or `?` before a space or the end, so an abbreviation may end one.

Does no I/O. Time is proportional to the text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

RuleValue = Any
"""true, [low, high] or a list of texts: see the table above."""

_FENCE = "```"
# Each run of marks is tried once, from its start: time stays linear in rows of dots.
_SENTENCE_END = re.compile(r"(?<![.!?])[.!?]++[\"')\]*_]*+(?=\s|$)")
_BULLET = re.compile(r"^[ \t]*[-*+\u2022][ \t]+\S", re.MULTILINE)


def broken(rules: Mapping[str, RuleValue], text: str) -> list[str]:
    """Return the names of the rules that an answer does not keep, in their order."""
    return [
        name for name, value in rules.items() if not text.strip() or not _CHECKS[name](value, text)
    ]


def problem_of(rules: object) -> str:
    """Return the mistake in a row's rules, "" if there is none."""
    if not isinstance(rules, dict) or not rules:
        return "rules must be an object with at least one rule"
    for name, value in rules.items():
        if name not in _CHECKS:
            return f"the rule {name!r} is unknown: use {', '.join(_CHECKS)}"
        if name in _RANGES:
            if not _is_range(value):
                return f"the rule {name}={value!r} must be [low, high] of integers from 0"
        elif name == "keywords":
            if not (isinstance(value, list) and value and all(_is_text(each) for each in value)):
                return f"the rule keywords={value!r} must be a list of texts"
        elif value is not True:
            return f"the rule {name}={value!r} must be true: leave it out otherwise"
    return ""


def num_sentences(text: str) -> int:
    """Count the pieces between ends of sentences that have a letter or digit."""
    return sum(any(map(str.isalnum, piece)) for piece in _SENTENCE_END.split(text))


def num_words(text: str) -> int:
    """Count the parts between spaces that have a letter or digit."""
    return sum(any(map(str.isalnum, part)) for part in text.split())


def num_bullets(text: str) -> int:
    """Count the lines that begin as an item of a list."""
    return len(_BULLET.findall(text))


def is_json(text: str) -> bool:
    """Return True for one JSON object or array, alone or as the only code block."""
    inner = text.strip()
    if inner.startswith(_FENCE) and inner.endswith(_FENCE) and "\n" in inner:
        inner = inner.partition("\n")[2].removesuffix(_FENCE)
    try:
        document = json.loads(inner, parse_constant=_refuse_constant)
    # A model's text may be nested deeper than the parser's stack, or hold digits without end.
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict | list)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _has_words(words: list[str], text: str) -> bool:
    return all(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


def _is_lowercase(text: str) -> bool:
    return any(map(str.isalpha, text)) and not any(map(str.isupper, text))


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_range(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 2):
        return False
    return all(type(end) is int for end in value) and 0 <= value[0] <= value[1]


def _within(count: Callable[[str], int]) -> Callable[[RuleValue, str], bool]:
    return lambda value, text: value[0] <= count(text) <= value[1]


_RANGES = ("sentences", "bullets", "words")
_CHECKS: dict[str, Callable[[RuleValue, str], bool]] = {
    "json": lambda _, text: is_json(text),
    "sentences": _within(num_sentences),
    "bullets": _within(num_bullets),
    "words": _within(num_words),
    "lowercase": lambda _, text: _is_lowercase(text),
    "no_commas": lambda _, text: "," not in text,
    "no_code_block": lambda _, text: _FENCE not in text,
    "keywords": _has_words,
}
