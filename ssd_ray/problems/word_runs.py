"""Statements as words, letters and runs of them.

- A word is a run of letters and digits, case folded.
- In a script without spaces each letter is a unit, as in BERT's tokenizer and SacreBLEU's for
  Chinese. It counts as a part of a word (`LETTERS_PER_WORD`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

LETTERS_PER_WORD = {
    # Han with its radicals and iteration marks, kana, bopomofo, Hangul syllables and jamo, Yi
    "\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u318f\u31a0-\u31bf"
    "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7ff"
    "\uf900-\ufaff\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U000323af": 2,
    # Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Javanese
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua980-\ua9df"
    "\uaa60-\uaa7f": 3,
}
"""Number of letters equivalent to a word, by ranges of scripts without spaces.

- Two for Chinese, Japanese and Korean, so 13 words are 26 characters. Search engines index such
  text by pairs of characters (Lucene's CJKBigramFilter), and most Chinese and Japanese words in
  running text have two.
- Three for Thai and its relatives. Thai words have three to four letters, not counting vowel signs
  above and below.
- Korean has spaces, but not everywhere. A run of 26 syllables is eight to ten of its words.
"""
PARTS_PER_WORD = 6
"""Parts of a word: the least common multiple of the values of `LETTERS_PER_WORD`."""
_SPACELESS = "".join(LETTERS_PER_WORD)
_LETTER = re.compile(f"[{_SPACELESS}]")
_WORD = re.compile(r"[^\W_]+")
_UNIT = re.compile(rf"(?![{_SPACELESS}\W_]).(?:(?![{_SPACELESS}])[^\W_])*|(?!\W)[{_SPACELESS}]")
_MARKDOWN = str.maketrans("", "", "`$")
_LINE_MARK = re.compile(r"^\s*(?:[-*+>]|#+)\s+", re.MULTILINE)
_OPERATOR = re.compile(
    r"(?<=[\w)\]}])( ?)[-+*/%&|<>=^~!]+\1(?=[-\w(\[{])|(?<![\w)\]}])[-~!]+(?=\w)"
)
"""A sign between two operands, spaced on both sides or on neither, or a sign before an operand."""
_HYPHEN = re.compile(r"[^\W\d_]-[^\W\d_]")
_SYMBOLS = frozenset({"Sm", "Sc", "So"})
_INNER_SPACE = re.compile(f"(?<=[{_SPACELESS}]) (?=[{_SPACELESS}])")
_WEIGHTS = [
    (re.compile(f"[{letters}]"), PARTS_PER_WORD // number)
    for letters, number in LETTERS_PER_WORD.items()
]


@dataclass(frozen=True, kw_only=True)
class Units:
    """Words and single letters of a statement, in order."""

    texts: Sequence[str]
    parts: Sequence[int] | None
    """Weight of each unit in parts of a word; None if all are words."""

    @property
    def total(self) -> int:
        """Length of the statement in parts of a word."""
        return PARTS_PER_WORD * len(self.texts) if self.parts is None else sum(self.parts)

    def runs(self, length: int) -> list[str]:
        """Return the shortest runs of at least `length` parts, one from each start, in order."""
        texts = self.texts
        if self.parts is None:
            size = -(-length // PARTS_PER_WORD)
            return [" ".join(texts[start : start + size]) for start in range(len(texts) - size + 1)]
        # A window whose two ends only move forward: `weight` is that of texts[start:end].
        runs = []
        end = 0
        weight = 0
        for start, first in enumerate(self.parts):
            while weight < length and end < len(texts):
                weight += self.parts[end]
                end += 1
            if weight < length:
                break
            runs.append(" ".join(texts[start:end]))
            weight -= first
        return runs


def units(statement: str) -> Units:
    """Split a statement into words, or into letters where its script has no spaces.

    Statements with such letters are normalized by NFKC first.
    """
    if _LETTER.search(statement) is None:
        return Units(texts=_WORD.findall(statement.casefold()), parts=None)
    texts = _UNIT.findall(unicodedata.normalize("NFKC", statement).casefold())
    return Units(texts=texts, parts=[_weight(text) for text in texts])


def _weight(text: str) -> int:
    return next((parts for letter, parts in _WEIGHTS if letter.match(text)), PARTS_PER_WORD)


def joined(run: str) -> str:
    """Return a run for a reader, without spaces between letters of a script without spaces."""
    return _INNER_SPACE.sub("", run)


def length_of(run: str) -> str:
    """Return the length of a run in words, letters or both: `13 words`, `26 characters`."""
    texts = run.split(" ")
    letters = sum(_LETTER.match(text) is not None for text in texts)
    counts = ((len(texts) - letters, "word"), (letters, "character"))
    return " and ".join(
        f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count
    )


def equality_key(words: Units, statement: str) -> str:
    """Return a key shared by equal statements: their words, and signs that change the question.

    `a + b` is not `a - b`. Punctuation does not count: `Sum.` is `sum`.
    """
    if not words.texts:
        return " ".join(statement.split())
    return " ".join([*words.texts, _signs(statement)]).strip()


def _signs(statement: str) -> str:
    """Return the operators and symbols of a statement, without punctuation and Markdown."""
    plain = _LINE_MARK.sub(" ", unicodedata.normalize("NFC", statement)).translate(_MARKDOWN)
    text = " ".join(plain.split())
    # A hyphen within a word is not a minus.
    operators = [
        match
        for match in _OPERATOR.finditer(text)
        if not _HYPHEN.match(text, max(0, match.start() - 1))
    ]
    symbols = [
        sign for sign in text if not sign.isascii() and unicodedata.category(sign) in _SYMBOLS
    ]
    return "".join([*(match[0].strip() for match in operators), *symbols])
