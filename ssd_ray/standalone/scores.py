"""Output of `ssd-ray grade`: a Parquet file of verdicts, a JSON file of scores.

Reads shards of verdicts. Writes `verdicts.parquet` and `scores.json` next to them.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.facts import CompletionFileFacts, ProblemFileFacts, VerdictFacts
from ssd_ray.artifacts.shards import read_table
from ssd_ray.schema import Verdict
from ssd_ray.statistics.metrics import pass_at_k_matrix, score_interval

CONFIDENCE = 0.95
"""Level of the intervals."""
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
class Counted:
    """Facts of the three artifacts behind the scores."""

    problems: ProblemFileFacts
    completions: CompletionFileFacts
    verdicts: VerdictFacts


def write(
    out: Path,
    counted: Counted,
    rules: Mapping[str, Any],
    *,
    max_infrastructure_errors: float,
) -> dict[str, Any]:
    """Write both files into `out` from `out/verdicts`; return the scores.

    - Scores have intervals of level CONFIDENCE.
    - A group has no score if more than `max_infrastructure_errors` of its completions are
      ungraded.
    - EvalPlus's scores come twice; `base` is for the base tests alone.
    - Counts follow: problems without a completion, and problems on which no program can be graded,
      with their completions.
    """
    _write_table(out)
    graded = counted.verdicts
    problems = counted.problems
    bad_rows = (*problems.bad_rows, *counted.completions.bad_rows)
    scores: dict[str, Any] = {
        "rows": graded.rows,
        "outcomes": graded.outcomes,
        "reasoning": graded.reasoning,
        "profile": graded.profile,
        "sandbox_level": graded.sandbox_level,
        "rules": dict(rules),
        "confidence": CONFIDENCE,
        "bad_rows": [asdict(bad) for bad in bad_rows],
        "public_only": problems.public_only,
        "tests_left_out": list(problems.tests_left_out),
        "problems_left_out": [asdict(problem) for problem in problems.problems_left_out],
        "completions_left_out": counted.completions.left_out,
    }
    if graded.official_grader is not None:
        scores["official_grader"] = graded.official_grader
    scores["benchmarks"] = _benchmarks(out, max_infrastructure_errors)
    files.write_atomic(out / "scores.json", json.dumps(scores, indent=1, sort_keys=True) + "\n")
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


def _benchmarks(out: Path, max_infrastructure_errors: float) -> dict[str, Any]:
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
    benchmarks: dict[str, Any] = {}
    for source, by_group in sorted(groups.items()):
        scored = {
            group: _scores(
                list(counts.values()), max_infrastructure_errors, base=source in evalplus
            )
            for group, counts in sorted(by_group.items())
        }
        total = scored.pop("")
        benchmarks[source] = {
            "outcomes": dict(sorted(outcomes[source].items())),
            "all": total,
            "difficulties": scored if len(scored) > 1 else {},
            "without_completion": num_problems[source] - total["problems"],
        }
    return benchmarks


def _scores(
    counts: list[list[int]], max_infrastructure_errors: float, *, base: bool
) -> dict[str, Any]:
    """Return pass@1, and pass@5 and pass@10 if every problem has so many graded completions.

    Each has its interval.
    """
    # Columns as in `Counts`.
    table = np.array(counts, dtype=np.int64)
    ungraded = float(table[:, 3].sum() / table[:, [0, 3]].sum())
    facts: dict[str, Any] = {"problems": len(counts), "infrastructure_error_rate": ungraded}
    if ungraded > max_infrastructure_errors:
        return {
            **facts,
            "refused": (
                f"{ungraded:.1%} of the completions could not be graded, "
                f"more than {max_infrastructure_errors:.1%}"
            ),
        }
    # A problem without graded completions has no estimate. It is in `problems` all the same.
    table = table[table[:, 0] > 0]
    for name, column in (("", 1), ("base ", 2)):
        if name and not base:
            continue
        for k in (1, 5, 10):
            if k <= table[:, 0].min():
                interval = score_interval(
                    pass_at_k_matrix(table[:, 0], table[:, column], [k])[:, 0],
                    confidence=CONFIDENCE,
                )
                facts[f"{name}pass@{k}"] = {
                    "estimate": interval.estimate,
                    "low": interval.low,
                    "high": interval.high,
                }
    return facts
