"""Output of `ssd-ray grade`: a Parquet file of verdicts, a JSON file of scores.

Reads shards of verdicts. Writes `verdicts.parquet` and `scores.json` next to them.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.facts import RowFacts
from ssd_ray.artifacts.files import Json
from ssd_ray.artifacts.problem_facts import (
    BadRow,
    CompletionFileFacts,
    ProblemFileFacts,
    ProblemLeftOut,
)
from ssd_ray.artifacts.shards import read_table
from ssd_ray.schema import Verdict
from ssd_ray.statistics.metrics import Interval, pass_at_k_matrix, score_interval

CONFIDENCE = 0.95
"""Level of the intervals."""
_KS = (1, 5, 10)
_COLUMNS = {
    "prompt_id": "problem_id",
    "sample_index": "index",
    "outcome": "outcome",
    "outcome_base": "outcome_base",
    "failed_test": "failed_test",
    "time_s": "seconds",
    "peak_bytes": "peak_bytes",
    "sandbox_level": "sandbox_level",
    "reasoning": "reasoning",
    "num_tests": "num_tests",
    "source": "benchmark",
    "difficulty": "difficulty",
    "detail": "detail",
}
"""Columns of verdicts.parquet, by their fields of Verdict."""


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """Scores on the problems of a benchmark, or of one difficulty in it."""

    problems: int
    infrastructure_error_rate: float
    """Share of the completions without a grade, because of the machine."""
    refused: str | None = None
    """Reason for the absence of scores."""
    metrics: Mapping[str, Interval] = dataclasses.field(default_factory=dict)
    """By metric: `pass@1`, and `base pass@1` on EvalPlus's base tests alone."""

    def document(self) -> Json:
        """Return the scores as plain JSON, each metric under its name."""
        refused = {} if self.refused is None else {"refused": self.refused}
        metrics = {name: dataclasses.asdict(interval) for name, interval in self.metrics.items()}
        return {
            "problems": self.problems,
            "infrastructure_error_rate": self.infrastructure_error_rate,
            **refused,
            **metrics,
        }


@dataclass(frozen=True, kw_only=True)
class BenchmarkScores:
    """Scores and outcomes on a benchmark."""

    outcomes: Mapping[str, int]
    all: GroupScores
    difficulties: Mapping[str, GroupScores]
    """Empty if all problems have one difficulty."""
    without_completion: int
    """Problems without a completion, which are in no score."""

    def document(self) -> Json:
        """Return the scores as plain JSON."""
        return {
            "outcomes": dict(self.outcomes),
            "all": self.all.document(),
            "difficulties": {name: group.document() for name, group in self.difficulties.items()},
            "without_completion": self.without_completion,
        }


@dataclass(frozen=True, kw_only=True)
class FileScores:
    """The contents of scores.json."""

    rows: int
    """Completions with a verdict."""
    outcomes: Mapping[str, int]
    reasoning: Mapping[str, int]
    """Completions with reasoning, by its state."""
    profile: str
    sandbox_level: str
    """The weakest of all graders."""
    official_grader: Mapping[str, str] | None
    """Repository, commit and date of the grader behind `lcb-compat`; None without that profile."""
    rules: Json
    """Rules of grading as in the fingerprint."""
    confidence: float
    """Level of the intervals."""
    bad_rows: tuple[BadRow, ...]
    public_only: int
    """Problems with public tests only: their scores are too high."""
    tests_left_out: tuple[str, ...]
    problems_left_out: tuple[ProblemLeftOut, ...]
    """Problems on which no program can be graded."""
    completions_left_out: int
    """Completions of those problems."""
    benchmarks: Mapping[str, BenchmarkScores]

    def document(self) -> Json:
        """Return the scores as plain JSON; the key `official_grader` is left out if it is None."""
        document = dataclasses.asdict(self)
        document["benchmarks"] = {
            name: benchmark.document() for name, benchmark in self.benchmarks.items()
        }
        if self.official_grader is None:
            del document["official_grader"]
        return document


@dataclass(frozen=True, kw_only=True)
class GradedFacts(RowFacts):
    """Facts of the verdicts that the scores hold."""

    outcomes: Mapping[str, int]
    reasoning: Mapping[str, int]
    profile: str
    sandbox_level: str
    official_grader: Mapping[str, str] | None = None


@dataclass(frozen=True, kw_only=True)
class Counted:
    """Facts of the three artifacts behind the scores."""

    problems: ProblemFileFacts
    completions: CompletionFileFacts
    verdicts: GradedFacts


def write(
    out: Path, counted: Counted, rules: Json, *, max_infrastructure_errors: float
) -> FileScores:
    """Write both files into `out` from `out/verdicts`; return the scores.

    - Scores have intervals of level CONFIDENCE.
    - A group has no score if more than `max_infrastructure_errors` of its completions are
      ungraded.
    - EvalPlus's metrics come twice: on all tests, and as `base ...` on the base tests alone.
    """
    _write_table(out)
    problems = counted.problems
    completions = counted.completions
    verdicts = counted.verdicts
    scores = FileScores(
        rows=verdicts.rows,
        outcomes=verdicts.outcomes,
        reasoning=verdicts.reasoning,
        profile=verdicts.profile,
        sandbox_level=verdicts.sandbox_level,
        official_grader=verdicts.official_grader,
        rules=rules,
        confidence=CONFIDENCE,
        bad_rows=(*problems.bad_rows, *completions.bad_rows),
        public_only=problems.public_only,
        tests_left_out=problems.tests_left_out,
        problems_left_out=problems.problems_left_out,
        completions_left_out=completions.left_out,
        benchmarks=_benchmarks(out, max_infrastructure_errors),
    )
    text = json.dumps(scores.document(), indent=1, sort_keys=True)
    files.write_atomic(out / "scores.json", text + "\n")
    return scores


def _write_table(out: Path) -> None:
    """Write verdicts.parquet, sorted by problem and index."""
    import pyarrow as pa

    tables = [read_table(path, list(_COLUMNS)) for path in shards.shard_paths(out / "verdicts")]
    table = pa.concat_tables(tables).select(list(_COLUMNS)).rename_columns(list(_COLUMNS.values()))
    shards.write_table(
        out, "verdicts", table.sort_by([("problem_id", "ascending"), ("index", "ascending")])
    )


Counts = dict[str, list[int]]
"""By problem: completions graded, accepted, accepted on the base tests, not graded."""


def _benchmarks(out: Path, max_infrastructure_errors: float) -> dict[str, BenchmarkScores]:
    """Return scores and outcomes by benchmark, in all and by difficulty."""
    groups: dict[str, dict[str, Counts]] = defaultdict(lambda: defaultdict(dict))
    outcomes: dict[str, Counter[str]] = defaultdict(Counter)
    evalplus = set()
    for verdict in shards.read_rows(out / "verdicts", Verdict):
        outcomes[verdict.source][verdict.outcome] += 1
        # The group "" is the benchmark itself.
        for group in {"", verdict.difficulty or "unknown"}:
            counts = groups[verdict.source][group].setdefault(verdict.prompt_id, [0, 0, 0, 0])
            failed = verdict.outcome == "infrastructure_error"
            counts[0] += not failed
            counts[1] += verdict.outcome == "accepted"
            counts[2] += verdict.outcome_base == "accepted"
            counts[3] += failed
        evalplus |= {verdict.source} if verdict.outcome_base else set()
    num_problems = Counter(source for (source,) in shards.read_columns(out / "benchmark", "source"))
    benchmarks: dict[str, BenchmarkScores] = {}
    for source, by_group in sorted(groups.items()):
        scored = {
            group: _scores(
                list(counts.values()), max_infrastructure_errors, base=source in evalplus
            )
            for group, counts in sorted(by_group.items())
        }
        total = scored.pop("")
        benchmarks[source] = BenchmarkScores(
            outcomes=dict(sorted(outcomes[source].items())),
            all=total,
            difficulties=scored if len(scored) > 1 else {},
            without_completion=num_problems[source] - total.problems,
        )
    return benchmarks


def _scores(
    counts: list[list[int]], max_infrastructure_errors: float, *, base: bool
) -> GroupScores:
    """Return pass@1, and pass@5 and pass@10 if every problem has so many graded completions."""
    # Columns as in `Counts`.
    table = np.array(counts, dtype=np.int64)
    ungraded = float(table[:, 3].sum() / table[:, [0, 3]].sum())
    if ungraded > max_infrastructure_errors:
        return GroupScores(
            problems=len(counts),
            infrastructure_error_rate=ungraded,
            refused=(
                f"{ungraded:.1%} of the completions could not be graded, "
                f"more than {max_infrastructure_errors:.1%}"
            ),
        )
    # A problem without graded completions has no estimate. It is in `problems` all the same.
    table = table[table[:, 0] > 0]
    metrics = _metrics(table[:, 0], table[:, 1])
    if base:
        on_base = _metrics(table[:, 0], table[:, 2])
        metrics |= {f"base {name}": interval for name, interval in on_base.items()}
    return GroupScores(problems=len(counts), infrastructure_error_rate=ungraded, metrics=metrics)


def _metrics(graded: npt.NDArray[np.int64], accepted: npt.NDArray[np.int64]) -> dict[str, Interval]:
    """Return the intervals of pass@k, for every k that each problem has enough completions for."""
    return {
        f"pass@{k}": score_interval(
            pass_at_k_matrix(graded, accepted, [k])[:, 0], confidence=CONFIDENCE
        )
        for k in _KS
        if k <= graded.min()
    }
