"""Completions through grader workers into shards of verdicts: the verb `grade`.

Each worker holds the benchmark's problems once and runs programs in processes of their own. Reads Completion and Problem
shards, writes Verdict shards.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import artifacts, streaming
from ssd_ray.config import ClusterConfig, EvaluateConfig
from ssd_ray.evaluation.execution import Limits, isolation
from ssd_ray.evaluation.grading import grade_completion
from ssd_ray.progress import Progress
from ssd_ray.schema import Completion, Problem, Verdict, from_record

if TYPE_CHECKING:
    import pyarrow as pa


def grade(
    generations: Path,
    benchmark: Path,
    choices: EvaluateConfig,
    cluster: ClusterConfig,
    *,
    shard_rows: int,
    stage: str,
    out: Path,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Grade every completion and return counts of rows and outcomes, and what the programs were kept from.

    Raises:
        UserError: a completion of an unknown problem, or a problem without tests.
        InfrastructureError: grader workers crashed more often than `cluster.max_failures`.
    """
    import ray

    total = sum(1 for _ in artifacts.read_columns(generations, "prompt_id"))
    limits = Limits(time_s=choices.time_limit_s, memory_mib=choices.memory_limit_mib, output_kib=choices.output_limit_kib)
    most = max(1, int(ray.cluster_resources().get("CPU", 1) // cluster.grader_cpus))
    pool = streaming.Pool(
        worker=GraderWorker,
        arguments={"benchmark": benchmark.resolve(), "limits": limits, "out": out.resolve(), "logs": logs.resolve()},
        min_size=min(most, 1 + total // shard_rows),
        max_size=min(most, 1 + total // shard_rows),
        concurrent_batches=1,
        remote_args={"num_cpus": cluster.grader_cpus},
        max_failures=cluster.max_failures,
    )
    streaming.stream_shards(
        generations,
        pool,
        samples=None,
        shard_rows=shard_rows,
        total=total,
        out=out,
        stage=stage,
        unit="verdicts",
        progress=progress,
    )
    outcomes = Counter(outcome for (outcome,) in artifacts.read_columns(out, "outcome"))
    return {
        "rows": total,
        "outcomes": dict(sorted(outcomes.items())),
        "infrastructure_errors": outcomes["infrastructure_error"],
        "isolation": _weakest(out),
    }


def _weakest(out: Path) -> dict[str, Any]:
    """What the programs were kept from on every node that graded, in words; limits hold at every level."""
    found = [artifacts.read_json(path) for path in (out / "isolation").glob("*.json")]
    walls = {name: all(each[name] for each in found) for name in ("network", "processes", "files")}
    kept_from = ", ".join(name for name, present in walls.items() if present)
    level = "a process of its own with limits" + (f", kept from {kept_from}" if kept_from else "")
    return {"level": level, **walls}


class GraderWorker:
    """A grader in a Ray actor: a slice of completions comes in, one shard of verdicts goes to disk."""

    def __init__(self, *, benchmark: Path, limits: Limits, out: Path, logs: Path) -> None:
        streaming.log_to_file(logs, "grader")
        self._problems = {problem.problem_id: problem for problem in artifacts.read_rows(benchmark, Problem)}
        self._limits, self._out = limits, out
        walls = dataclasses.asdict(isolation())
        artifacts.write_atomic(out / "isolation" / f"{'-'.join(map(str, walls.values()))}.json", json.dumps(walls))
        self._heartbeat = streaming.Heartbeat(out)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Grade one shard and write it."""
        import pyarrow as pa

        verdicts = []
        for record in streaming.read_slice(batch.to_pylist()[0]).to_pylist():
            completion = from_record(record, Completion)
            verdicts.append(grade_completion(self._problems[completion.prompt_id], completion, self._limits))
            self._heartbeat.add(1, 0)
        name = streaming.shard_name([(row.prompt_id, row.sample_index) for row in verdicts])
        artifacts.write_shard(self._out, name, verdicts, Verdict)
        self._heartbeat.flush()
        return pa.table({"rows": pa.array([len(verdicts)], pa.int64())})
