"""Training prompts that give a benchmark away: shared runs of 13 words between a prompt's statement and a benchmark problem's.

Words are runs of letters and digits, case folded. A run of 13 words (Brown et al. 2020, appendix C) that a prompt and a
problem share marks the prompt; where one of the two is shorter, the whole of it counts, if it has at least 8 words. A run in
more than three problems of one benchmark is a phrase of its format and marks nothing. So a prompt is judged by itself and
the benchmarks alone, whatever the other prompts are. Reads Prompt and Problem shards, writes `overlaps.jsonl`.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ssd_ray import artifacts
from ssd_ray.config import Contamination
from ssd_ray.errors import UserError
from ssd_ray.schema import Problem

WORDS = 13
FEWEST_WORDS = 8
PHRASE_PROBLEMS = 3
NUM_EXAMPLES = 10
_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """The benchmark problem that a statement overlaps most: `share` of the problem's runs, and one run that both have."""

    benchmark: str
    problem_id: str
    share: float
    words: str


def words(statement: str) -> list[str]:
    """A statement's words, normalised."""
    return _WORD.findall(statement.casefold())


def runs(found: list[str], length: int) -> list[str]:
    """All different runs of `length` words, in their order."""
    return list(dict.fromkeys(" ".join(found[start : start + length]) for start in range(len(found) - length + 1)))


class Benchmarks:
    """The runs of words of benchmark problems, to look statements up in; under a kilobyte a word of them."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Index `problems` by their `source` and statement."""
        self._problems: list[tuple[str, str]] = []
        self._sizes: list[int] = []
        self._words: list[list[str]] = []
        for problem in problems:
            found = words(problem.statement)
            self._problems.append((problem.source, problem.problem_id))
            self._words.append(found)
            self._sizes.append(max(1, len(found) - WORDS + 1))
        self._short = {len(found) for found in self._words if FEWEST_WORDS <= len(found) < WORDS}
        self._indices: dict[int, dict[str, tuple[int, ...]]] = {}

    def __len__(self) -> int:
        return len(self._problems)

    def find(self, statement: str) -> Overlap | None:
        """What a statement shares with the benchmarks; None where that is nothing but phrases."""
        found = words(statement)
        shared: dict[int, list[str]] = defaultdict(list)
        for length in sorted({min(WORDS, len(found)), *self._short}, reverse=True):
            if not FEWEST_WORDS <= length <= len(found):
                continue
            index = self._index(length, whole=length < min(WORDS, len(found)))
            for run in runs(found, length):
                for place in index.get(run, ()):
                    shared[place].append(run)
        if not shared:
            return None
        place = max(shared, key=lambda place: (len(shared[place]) / self._sizes[place], -place))
        benchmark, problem_id = self._problems[place]
        share = min(1.0, len(shared[place]) / self._sizes[place])
        return Overlap(benchmark=benchmark, problem_id=problem_id, share=round(share, 4), words=shared[place][0])

    def _index(self, length: int, *, whole: bool) -> dict[str, tuple[int, ...]]:
        """Places of the problems by run of so many words; `whole` leaves problems that have more words out."""
        key = -length if whole else length
        if key not in self._indices:
            index: dict[str, tuple[int, ...]] = {}
            for place, found in enumerate(self._words):
                if not whole or len(found) == length:
                    own = (place,)
                    for run in runs(found, length):
                        index[run] = index[run] + own if run in index else own
            for run in [run for run, places in index.items() if self._is_phrase(places)]:
                del index[run]
            self._indices[key] = index
        return self._indices[key]

    def _is_phrase(self, places: tuple[int, ...]) -> bool:
        return (
            len(places) > PHRASE_PROBLEMS
            and max(Counter(self._problems[place][0] for place in places).values()) > PHRASE_PROBLEMS
        )


def without_overlaps(problems: Iterable[Problem], benchmarks: Benchmarks, dropped: Counter[str]) -> Iterator[Problem]:
    """The problems that share nothing with the benchmarks; the others are counted by the benchmark that they overlap."""
    for problem in problems:
        overlap = benchmarks.find(problem.statement)
        if overlap is None:
            yield problem
        else:
            dropped[f"overlaps {overlap.benchmark}"] += 1


def check(prompts: Path, benchmark: Path, policy: Contamination, *, out: Path) -> dict[str, Any]:
    """Hold every prompt against the benchmark problems, and write the pairs that overlap to `out`.

    Facts: rows, contaminated (prompts), policy, words, benchmarks (problems and contaminated prompts of each), examples (the
    largest overlaps).

    Raises:
        UserError: a prompt overlaps and the policy is `refuse`.
    """
    problems = Benchmarks(artifacts.read_rows(benchmark, Problem))
    counts = Counter(source for (source,) in artifacts.read_columns(benchmark, "source"))
    found: list[tuple[str, Overlap]] = []
    num_prompts = 0
    for prompt_id, statement in artifacts.read_columns(prompts, "prompt_id", "statement"):
        num_prompts += 1
        overlap = problems.find(statement)
        if overlap is not None:
            found.append((prompt_id, overlap))
    found.sort(key=lambda pair: (-pair[1].share, pair[0]))
    if found and policy == "refuse":
        raise UserError(_refusal(found, num_prompts))
    lines = [{"prompt_id": prompt_id, **asdict(overlap)} for prompt_id, overlap in found]
    artifacts.write_atomic(out / "overlaps.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    hits = Counter(overlap.benchmark for _, overlap in found)
    return {
        "rows": num_prompts,
        "contaminated": len(found),
        "policy": policy,
        "words": WORDS,
        "benchmarks": {name: {"problems": count, "contaminated": hits[name]} for name, count in sorted(counts.items())},
        "examples": lines[:NUM_EXAMPLES],
    }


def _refusal(found: list[tuple[str, Overlap]], num_prompts: int) -> str:
    hits = Counter(overlap.benchmark for _, overlap in found)
    told = ", ".join(f"{count} with {name}" for name, count in sorted(hits.items()))
    shown = "; ".join(
        f"{prompt_id} with {overlap.problem_id} ({overlap.share:.0%}: {overlap.words!r})" for prompt_id, overlap in found[:3]
    )
    return (
        f"{len(found)} of {num_prompts} training prompts share a run of {WORDS} words with a problem of the evaluation "
        f"({told}), such as {shown}: set prompts.contamination=drop to leave them out (in another --out), or =allow to train on "
        "them and have it said in the report"
    )
