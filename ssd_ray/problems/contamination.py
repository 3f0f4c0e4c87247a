"""Training prompts that give a benchmark away: runs of words that a prompt's statement shares with a benchmark problem's.

- Words are runs of letters and digits, case folded. A script without spaces has no such runs, so each of its letters is a unit,
  as in BERT's tokenizer and SacreBLEU's for Chinese, and counts as a part of a word (`LETTERS_PER_WORD`).
- A shared run of 13 words (Brown et al. 2020, appendix C) marks the prompt. Where one of the two statements is shorter, all of it
  counts from 8 words on; shorter statements mark the prompt where they are equal.
- A run in more than three problems of one benchmark is a phrase of its format and marks nothing.

So a prompt is judged by itself and the benchmarks alone, whatever the other prompts are. Reads Prompt and Problem shards,
writes `overlaps.jsonl`.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, manifests, shards
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
    "\u1100-\u11ff\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u318f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\ua000-\ua4cf\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\uff66-\uffdc\U0001aff0-\U0001b16f\U00020000-\U000323af": 2,
    # Thai, Lao, Myanmar, Khmer, Tai Le, New Tai Lue, Tai Tham, Javanese
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\ua980-\ua9df\uaa60-\uaa7f": 3,
}
"""Letters of scripts without spaces that stand for a word, by their ranges: 13 words are 26 Chinese characters.

Two, because search engines index such text by its pairs of characters (Lucene's CJKBigramFilter) and most Chinese and Japanese
words in running text have two. Thai words have three to four letters, vowel signs above and below not counted. Korean has
spaces, but not everywhere; a run of 26 syllables is eight to ten of its words.
"""

_PARTS = 6
"""Parts of a word: the least number that the letters' shares of one divide."""
_SPACELESS = "".join(LETTERS_PER_WORD)
_LETTER = re.compile(f"[{_SPACELESS}]")
_WORD = re.compile(r"[^\W_]+")
_UNIT = re.compile(rf"(?![{_SPACELESS}\W_]).(?:(?![{_SPACELESS}])[^\W_])*|(?!\W)[{_SPACELESS}]")
_MARKDOWN = str.maketrans("", "", "`$")
_LINE_MARK = re.compile(r"^\s*(?:[-*+>]|#+)\s+", re.MULTILINE)
_OPERATOR = re.compile(
    r"(?<=[\w)\]}])( ?)[-+*/%&|<>=^~!]+\1(?=[-\w(\[{])|(?<![\w)\]}])[-~!]+(?=\w)"
)
"""A sign between two operands, spaces on both sides or on neither, or one before an operand."""
_HYPHEN = re.compile(r"[^\W\d_]-[^\W\d_]")
_SYMBOLS = frozenset({"Sm", "Sc", "So"})
_INNER_SPACE = re.compile(f"(?<=[{_SPACELESS}]) (?=[{_SPACELESS}])")
_WEIGHTS = [
    (re.compile(f"[{letters}]"), _PARTS // number) for letters, number in LETTERS_PER_WORD.items()
]


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The benchmark problem that a statement overlaps most.

    `share` is that of the problem's runs, `words` one run that both have, and `length` its length, such as `13 words`.
    """

    benchmark: str
    problem_id: str
    share: float
    words: str
    length: str


@dataclass(frozen=True, kw_only=True)
class Units:
    """A statement's words and single letters in their order; `parts` are their weights, None where all are words."""

    texts: Sequence[str]
    parts: Sequence[int] | None

    @property
    def total(self) -> int:
        """The length in parts of a word."""
        return _PARTS * len(self.texts) if self.parts is None else sum(self.parts)

    def runs(self, length: int) -> list[str]:
        """All runs that reach `length` parts, one a start, in their order."""
        texts = self.texts
        if self.parts is None:
            size = -(-length // _PARTS)
            return [" ".join(texts[start : start + size]) for start in range(len(texts) - size + 1)]
        found, end, held = [], 0, 0
        for start, own in enumerate(self.parts):
            while held < length and end < len(texts):
                held += self.parts[end]
                end += 1
            if held < length:
                break
            found.append(" ".join(texts[start:end]))
            held -= own
        return found


def units(statement: str) -> Units:
    """Cut a statement into words, and where its script has no spaces into letters, compatibility forms normalised."""
    if _LETTER.search(statement) is None:
        return Units(texts=_WORD.findall(statement.casefold()), parts=None)
    texts = _UNIT.findall(unicodedata.normalize("NFKC", statement).casefold())
    return Units(texts=texts, parts=[_weight(text) for text in texts])


def _weight(text: str) -> int:
    return next((parts for letter, parts in _WEIGHTS if letter.match(text)), _PARTS)


def _length(run: str) -> str:
    """The length of a run in words, in letters, or in both: `13 words`, `26 characters`."""
    texts = run.split(" ")
    letters = sum(_LETTER.match(text) is not None for text in texts)
    counts = ((len(texts) - letters, "word"), (letters, "character"))
    return " and ".join(
        f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count
    )


class Benchmarks:
    """The runs of words of benchmark problems, to look statements up in; under a kilobyte a word of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Index `problems` by their `source` and statement."""
        self._problems: list[tuple[str, str]] = []
        self._sizes: list[int] = []
        self._units: list[Units] = []
        equal: dict[str, tuple[int, ...]] = defaultdict(tuple)
        for place, problem in enumerate(problems):
            found = units(problem.statement)
            self._problems.append((problem.source, problem.problem_id))
            self._units.append(found)
            self._sizes.append(max(1, len(found.runs(WORDS * _PARTS))))
            if found.total < FEWEST_WORDS * _PARTS:
                equal[_equality_key(found, problem.statement)] += (place,)
        self._equal = {
            key: places for key, places in equal.items() if key and not self._is_phrase(places)
        }
        self._short = {
            found.total
            for found in self._units
            if FEWEST_WORDS * _PARTS <= found.total < WORDS * _PARTS
        }
        self._indices: dict[int, dict[str, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def find(self, statement: str) -> Overlap | None:
        """Find the problem that a statement shares most with; None where that is nothing but phrases."""
        found = units(statement)
        if found.total < FEWEST_WORDS * _PARTS:
            return self._find_equal(found, statement)
        shared: dict[int, list[str]] = defaultdict(list)
        longest = min(WORDS * _PARTS, found.total)
        for length in sorted({longest, *self._short}, reverse=True):
            if length > found.total:
                continue
            index = self._index(length, exact=length < longest)
            for run in dict.fromkeys(found.runs(length)):
                for place in index.get(run, ()):
                    shared[place].append(run)
        if not shared:
            return None
        place = max(shared, key=lambda place: (len(shared[place]) / self._sizes[place], -place))
        return self._overlap(
            place, shared[place][0], min(1.0, len(shared[place]) / self._sizes[place])
        )

    def _find_equal(self, found: Units, statement: str) -> Overlap | None:
        """Find the first problem whose statement of under 8 words is the same."""
        key = _equality_key(found, statement)
        places = self._equal.get(key)
        return self._overlap(places[0], key, 1.0) if places else None

    def _overlap(self, place: int, run: str, share: float) -> Overlap:
        benchmark, problem_id = self._problems[place]
        shown = _INNER_SPACE.sub("", run)
        return Overlap(
            benchmark=benchmark,
            problem_id=problem_id,
            share=round(share, 4),
            words=shown,
            length=_length(run),
        )

    def _index(self, length: int, *, exact: bool) -> dict[str, tuple[int, ...]]:
        """Index the problems by run of that many parts; `exact` leaves longer problems out."""
        key = -length if exact else length
        if key not in self._indices:
            index: dict[str, tuple[int, ...]] = {}
            for place, found in enumerate(self._units):
                if not exact or found.total == length:
                    own = (place,)
                    for run in dict.fromkeys(found.runs(length)):
                        index[run] = index[run] + own if run in index else own
            for run in [run for run, places in index.items() if self._is_phrase(places)]:
                del index[run]
            self._indices[key] = index
        return self._indices[key]

    def _is_phrase(self, places: tuple[int, ...]) -> bool:
        return (
            len(places) > PHRASE_PROBLEMS
            and max(Counter(self._problems[place][0] for place in places).values())
            > PHRASE_PROBLEMS
        )


def _equality_key(found: Units, statement: str) -> str:
    """Return what equal statements share: their words, and the signs that change what is asked.

    Punctuation ends sentences and hides nothing: `a + b` is not `a - b`, and `Sum.` is `sum`.
    """
    return (
        " ".join([*found.texts, _signs(statement)]).strip()
        if found.texts
        else " ".join(statement.split())
    )


def _signs(statement: str) -> str:
    """Return the operators and symbols of a statement, without its punctuation and Markdown."""
    plain = _LINE_MARK.sub(" ", unicodedata.normalize("NFC", statement)).translate(_MARKDOWN)
    text = " ".join(plain.split())
    found = [
        match
        for match in _OPERATOR.finditer(text)
        if not _HYPHEN.match(text, max(0, match.start() - 1))
    ]
    symbols = [
        sign for sign in text if not sign.isascii() and unicodedata.category(sign) in _SYMBOLS
    ]
    return "".join([*(match[0].strip() for match in found), *symbols])


def without_overlaps(
    problems: Iterable[Problem], benchmarks: Benchmarks, dropped: Counter[str]
) -> Iterator[Problem]:
    """The problems that share nothing with the benchmarks; the others are counted by the benchmark that they overlap."""
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
) -> dict[str, Any]:
    """Hold every prompt against the benchmark problems, and write the pairs that overlap to `out`.

    Facts: rows, contaminated (prompts), policy, words, benchmarks (problems and contaminated prompts of each), examples (the
    largest overlaps).

    Raises:
        UserError: a prompt overlaps and the policy is `refuse`.
    """
    problems = Benchmarks(shards.read_rows(benchmark, Problem))
    counts = Counter(source for (source,) in shards.read_columns(benchmark, "source"))
    found: list[tuple[str, Overlap]] = []
    num_prompts = 0
    total = int(manifests.load(prompts).facts["rows"]) if progress else 0
    rows = shards.read_columns(prompts, "prompt_id", "statement")
    for prompt_id, statement in counted(rows, progress, "contamination", "prompts", total):
        num_prompts += 1
        overlap = problems.find(statement)
        if overlap is not None:
            found.append((prompt_id, overlap))
    found.sort(key=lambda pair: (-pair[1].share, pair[0]))
    if found and policy == "refuse":
        raise UserError(_refusal(found, num_prompts))
    lines = [{"prompt_id": prompt_id, **asdict(overlap)} for prompt_id, overlap in found]
    files.write_atomic(
        out / "overlaps.jsonl",
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines),
    )
    hits = Counter(overlap.benchmark for _, overlap in found)
    return {
        "rows": num_prompts,
        "contaminated": len(found),
        "policy": policy,
        "words": WORDS,
        "benchmarks": {
            name: {"problems": count, "contaminated": hits[name]}
            for name, count in sorted(counts.items())
        },
        "examples": lines[:NUM_EXAMPLES],
    }


def _refusal(found: list[tuple[str, Overlap]], num_prompts: int) -> str:
    hits = Counter(overlap.benchmark for _, overlap in found)
    told = ", ".join(f"{count} with {name}" for name, count in sorted(hits.items()))
    shown = "; ".join(
        f"{prompt_id} with {overlap.problem_id} ({overlap.share:.0%}, {overlap.length}: {overlap.words!r})"
        for prompt_id, overlap in found[:3]
    )
    return (
        f"{len(found)} of {num_prompts} training prompts share a run of words with a problem of the evaluation "
        f"({told}), such as {shown}: set prompts.contamination=drop to leave them out (in another --out), or =allow to train on "
        "them and have it said in the report"
    )
