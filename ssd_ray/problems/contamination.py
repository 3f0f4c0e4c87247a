"""Contamination of training prompts: runs of words shared with problems of a benchmark.

- `word_runs.py` defines words and runs.
- A shared run of 13 words marks the prompt (Brown et al. 2020, appendix C).
- If one of the statements is shorter than that, a match of all its words marks the prompt, from 8
  words on.
- Statements of fewer than 8 words mark the prompt if they are equal.
- A run in more than three problems of one benchmark is a phrase of its format. It marks nothing.

The result for a prompt depends on that prompt and the benchmarks alone. Reads Prompt and Problem
shards, writes `overlaps.jsonl`.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ssd_ray.artifacts import files, manifests, shards
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.artifacts.problem_facts import BenchmarkOverlaps, ContaminationFacts, OverlapExample
from ssd_ray.config import Contamination
from ssd_ray.errors import UserError
from ssd_ray.problems.word_runs import (
    PARTS_PER_WORD,
    Units,
    equality_key,
    joined,
    length_of,
    units,
)
from ssd_ray.progress import Progress, counted
from ssd_ray.schema import Problem

WORDS = 13
FEWEST_WORDS = 8
PHRASE_PROBLEMS = 3
NUM_EXAMPLES = 10


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


class Benchmarks:
    """Index of the runs of words of benchmark problems, to look statements up in.

    It takes less than a kilobyte of memory for each word of the problems.
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
            self._sizes.append(max(1, len(words.runs(WORDS * PARTS_PER_WORD))))
            if words.total < FEWEST_WORDS * PARTS_PER_WORD:
                equal[equality_key(words, problem.statement)] += (number,)
        self._equal = {
            key: numbers for key, numbers in equal.items() if key and not self._is_phrase(numbers)
        }
        # Lengths of problems between 8 and 13 words: each needs an index by runs of its length.
        self._short_lengths = {
            words.total
            for words in self._units
            if FEWEST_WORDS * PARTS_PER_WORD <= words.total < WORDS * PARTS_PER_WORD
        }
        self._indices: dict[int, dict[str, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def find(self, statement: str) -> Overlap | None:
        """Return the overlap with the problem of the largest share of shared runs.

        Return None if the statement shares nothing, or nothing but phrases.
        """
        words = units(statement)
        if words.total < FEWEST_WORDS * PARTS_PER_WORD:
            return self._find_equal(words, statement)
        shared: dict[int, list[str]] = defaultdict(list)
        longest = min(WORDS * PARTS_PER_WORD, words.total)
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
        key = equality_key(words, statement)
        numbers = self._equal.get(key)
        return self._overlap(numbers[0], key, 1.0) if numbers else None

    def _overlap(self, number: int, run: str, share: float) -> Overlap:
        benchmark, problem_id = self._problems[number]
        return Overlap(
            benchmark=benchmark,
            problem_id=problem_id,
            share=round(share, 4),
            words=joined(run),
            length=length_of(run),
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
