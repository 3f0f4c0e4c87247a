"""Contamination of training prompts: runs of words shared with problems of a benchmark.

- A word is a run of letters and digits, case folded.
- In a script without spaces each letter is a unit, as in BERT's tokenizer and SacreBLEU's for
  Chinese. It counts as a part of a word (`LETTERS_PER_WORD`).
- A shared run of 13 words marks the prompt (Brown et al. 2020, appendix C).
- If one of the statements is shorter than that, a match of all its words marks the prompt, from 8
  words on.
- Statements of fewer than 8 words mark the prompt if they are equal.
- A run in more than three problems of one benchmark is a phrase of its format. It marks nothing.

The verdict on a prompt depends on that prompt and the benchmarks alone. Reads Prompt and Problem
shards, writes `overlaps.jsonl`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_ray.artifacts import files, manifests, shards
from ssd_ray.artifacts.facts import (
    BenchmarkOverlaps,
    ContaminationFacts,
    OverlapExample,
    RowFacts,
)
from ssd_ray.config import Contamination
from ssd_ray.errors import UserError
from ssd_ray.progress import Progress, counted
from ssd_ray.schema import Problem

WORDS = 13
FEWEST_WORDS = 8
PHRASE_PROBLEMS = 3
NUM_EXAMPLES = 10

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

_PARTS = 6
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
    (re.compile(f"[{letters}]"), _PARTS // number) for letters, number in LETTERS_PER_WORD.items()
]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The benchmark problem with the largest overlap with a statement."""

    benchmark: str
    problem_id: str
    share: float
    """Share of the problem's runs that the statement has, 0 to 1."""
    words: str
    """One shared run."""
    length: str
    """Length of that run, such as `13 words`."""


@dataclass(frozen=True, kw_only=True)
class Units:
    """Words and single letters of a statement, in order."""

    texts: Sequence[str]
    parts: Sequence[int] | None
    """Weight of each unit in parts of a word; None if all are words."""

    @property
    def total(self) -> int:
        """Length of the statement in parts of a word."""
        return _PARTS * len(self.texts) if self.parts is None else sum(self.parts)

    def runs(self, length: int) -> list[str]:
        """Return the shortest runs of at least `length` parts, one from each start, in order."""
        texts = self.texts
        if self.parts is None:
            size = -(-length // _PARTS)
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
    return next((parts for letter, parts in _WEIGHTS if letter.match(text)), _PARTS)


def _length(run: str) -> str:
    """Return the length of a run in words, letters or both: `13 words`, `26 characters`."""
    texts = run.split(" ")
    letters = sum(_LETTER.match(text) is not None for text in texts)
    counts = ((len(texts) - letters, "word"), (letters, "character"))
    return " and ".join(
        f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count
    )


class Benchmarks:
    """Index of the runs of words of benchmark problems, to look statements up in.

    It takes less than a kilobyte for each word of the problems.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Index `problems` by their `source` and statement."""
        self._problems: list[tuple[str, str]] = []
        self._sizes: list[int] = []
        self._units: list[Units] = []
        equal: dict[str, tuple[int, ...]] = defaultdict(tuple)
        for number, problem in enumerate(problems):
            words = units(problem.statement)
            self._problems.append((problem.source, problem.problem_id))
            self._units.append(words)
            self._sizes.append(max(1, len(words.runs(WORDS * _PARTS))))
            if words.total < FEWEST_WORDS * _PARTS:
                equal[_equality_key(words, problem.statement)] += (number,)
        self._equal = {
            key: numbers for key, numbers in equal.items() if key and not self._is_phrase(numbers)
        }
        # Lengths of problems between 8 and 13 words: each needs an index by runs of its length.
        self._short_lengths = {
            words.total
            for words in self._units
            if FEWEST_WORDS * _PARTS <= words.total < WORDS * _PARTS
        }
        self._indices: dict[int, dict[str, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def find(self, statement: str) -> Overlap | None:
        """Return the overlap with the problem of the largest share of shared runs.

        Return None if the statement shares nothing, or nothing but phrases.
        """
        words = units(statement)
        if words.total < FEWEST_WORDS * _PARTS:
            return self._find_equal(words, statement)
        shared: dict[int, list[str]] = defaultdict(list)
        longest = min(WORDS * _PARTS, words.total)
        for length in sorted({longest, *self._short_lengths}, reverse=True):
            if length > words.total:
                continue
            # Below the longest length only problems of exactly that length count, as a full match.
            index = self._index(length, exact=length < longest)
            for run in dict.fromkeys(words.runs(length)):
                for number in index.get(run, ()):
                    shared[number].append(run)
        if not shared:
            return None
        shares = {number: len(runs) / self._sizes[number] for number, runs in shared.items()}
        # The first problem wins a tie, so that the report does not depend on the order of runs.
        best = max(shared, key=lambda number: (shares[number], -number))
        return self._overlap(best, shared[best][0], min(1.0, shares[best]))

    def _find_equal(self, words: Units, statement: str) -> Overlap | None:
        """Return the overlap with the first problem of the same statement, of under 8 words."""
        key = _equality_key(words, statement)
        numbers = self._equal.get(key)
        return self._overlap(numbers[0], key, 1.0) if numbers else None

    def _overlap(self, number: int, run: str, share: float) -> Overlap:
        benchmark, problem_id = self._problems[number]
        return Overlap(
            benchmark=benchmark,
            problem_id=problem_id,
            share=round(share, 4),
            words=_INNER_SPACE.sub("", run),
            length=_length(run),
        )

    def _index(self, length: int, *, exact: bool) -> dict[str, tuple[int, ...]]:
        """Return the numbers of problems by run of `length` parts, made on first use.

        With `exact`, longer problems are left out.
        """
        key = -length if exact else length
        if key not in self._indices:
            index: dict[str, tuple[int, ...]] = {}
            for number, words in enumerate(self._units):
                if not exact or words.total == length:
                    # One tuple for all runs that only this problem has: most have one owner.
                    owner = (number,)
                    for run in dict.fromkeys(words.runs(length)):
                        index[run] = index[run] + owner if run in index else owner
            for run in [run for run, numbers in index.items() if self._is_phrase(numbers)]:
                del index[run]
            self._indices[key] = index
        return self._indices[key]

    def _is_phrase(self, numbers: tuple[int, ...]) -> bool:
        if len(numbers) <= PHRASE_PROBLEMS:
            return False
        counts = Counter(self._problems[number][0] for number in numbers)
        return max(counts.values()) > PHRASE_PROBLEMS


def _equality_key(words: Units, statement: str) -> str:
    """Return the common part of equal statements: words, and signs that change the question.

    `a + b` is not `a - b`. Punctuation does not count: `Sum.` is `sum`.
    """
    if not words.texts:
        return " ".join(statement.split())
    return " ".join([*words.texts, _signs(statement)]).strip()


def _signs(statement: str) -> str:
    """Return the operators and symbols of a statement, without punctuation and Markdown."""
    plain = _LINE_MARK.sub(" ", unicodedata.normalize("NFC", statement)).translate(_MARKDOWN)
    text = " ".join(plain.split())
    # A hyphen within a word is no minus.
    operators = [
        match
        for match in _OPERATOR.finditer(text)
        if not _HYPHEN.match(text, max(0, match.start() - 1))
    ]
    symbols = [
        sign for sign in text if not sign.isascii() and unicodedata.category(sign) in _SYMBOLS
    ]
    return "".join([*(match[0].strip() for match in operators), *symbols])


def without_overlaps(
    problems: Iterable[Problem], benchmarks: Benchmarks, dropped: Counter[str]
) -> Iterator[Problem]:
    """Yield the problems without an overlap. Count the others in `dropped`, by benchmark."""
    for problem in problems:
        overlap = benchmarks.find(problem.statement)
        if overlap is None:
            yield problem
        else:
            dropped[f"overlaps {overlap.benchmark}"] += 1


def check(
    prompts: Path,
    benchmark: Path,
    policy: Contamination,
    *,
    out: Path,
    progress: Progress | None = None,
) -> ContaminationFacts:
    """Look every prompt up in the benchmark problems, and write the overlaps to `out`.

    Raises:
        UserError: A prompt overlaps and the policy is `refuse`.
    """
    problems = Benchmarks(shards.read_rows(benchmark, Problem))
    counts = Counter(source for (source,) in shards.read_columns(benchmark, "source"))
    overlaps: list[tuple[str, Overlap]] = []
    num_prompts = 0
    total = manifests.load_facts(prompts, RowFacts).rows if progress else 0
    rows = shards.read_columns(prompts, "prompt_id", "statement")
    for prompt_id, statement in counted(rows, progress, "contamination", "prompts", total):
        num_prompts += 1
        overlap = problems.find(statement)
        if overlap is not None:
            overlaps.append((prompt_id, overlap))
    # The largest overlaps first: they are the examples in the refusal and in the report.
    overlaps.sort(key=lambda pair: (-pair[1].share, pair[0]))
    if overlaps and policy == "refuse":
        raise UserError(_refusal(overlaps, num_prompts))
    examples = [OverlapExample(prompt_id=name, **vars(overlap)) for name, overlap in overlaps]
    lines = (json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples)
    files.write_atomic(out / "overlaps.jsonl", "".join(lines))
    hits = Counter(overlap.benchmark for _, overlap in overlaps)
    return ContaminationFacts(
        rows=num_prompts,
        contaminated=len(overlaps),
        policy=policy,
        words=WORDS,
        benchmarks={
            name: BenchmarkOverlaps(problems=count, contaminated=hits[name])
            for name, count in sorted(counts.items())
        },
        examples=tuple(examples[:NUM_EXAMPLES]),
    )


def _refusal(overlaps: list[tuple[str, Overlap]], num_prompts: int) -> str:
    hits = Counter(overlap.benchmark for _, overlap in overlaps)
    counts = ", ".join(f"{count} with {name}" for name, count in sorted(hits.items()))
    examples = "; ".join(
        f"{prompt_id} with {overlap.problem_id} "
        f"({overlap.share:.0%}, {overlap.length}: {overlap.words!r})"
        for prompt_id, overlap in overlaps[:3]
    )
    return (
        f"{len(overlaps)} of {num_prompts} training prompts share a run of words with a problem of "
        f"the evaluation ({counts}), such as {examples}: set prompts.contamination=drop to leave "
        "them out (in another --out), or =allow to train on them, which the report then states"
    )
