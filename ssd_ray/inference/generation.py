"""Prompts through vLLM engines into shards of completions: the one act behind `sample` and `generate`.

Sampling draws from the frozen model at T_train; generation draws from an arm's model at its own decoding. Reads Prompt
shards, writes Completion shards.
"""

from __future__ import annotations

from collections import Counter
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import artifacts, streaming
from ssd_ray.config import ClusterConfig, Decoding, EngineConfig, ModelConfig
from ssd_ray.inference.arguments import engine_environment
from ssd_ray.inference.engine import Engine, Request, sample_seed
from ssd_ray.inference.placement import engine_resources
from ssd_ray.progress import Progress
from ssd_ray.schema import Completion

if TYPE_CHECKING:
    import pyarrow as pa


def generate(
    prompts: Path,
    directory: Path,
    decoding: Decoding,
    *,
    samples: int,
    max_tokens: int,
    shard_rows: int,
    seed: int,
    model: ModelConfig,
    engine: EngineConfig,
    cluster: ClusterConfig,
    stage: str,
    out: Path,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Draw `samples` answers to every prompt and return counts of rows, tokens and finish reasons.

    Raises:
        UserError: arguments that vLLM refuses.
        InfrastructureError: engines crashed more often than `cluster.max_failures`.
    """
    total = samples * sum(1 for _ in artifacts.read_columns(prompts, "prompt_id"))
    arguments = {
        "directory": directory,
        "model": model,
        "engine": engine,
        "decoding": decoding,
        "max_tokens": max_tokens,
        "seed": seed,
        "device": cluster.device,
        "out": out.resolve(),
        "logs": logs.resolve(),
    }
    resources = engine_resources(engine, cluster.device)
    pool = streaming.Pool(
        worker=EngineWorker,
        arguments=arguments,
        min_size=cluster.min_engines,
        max_size=cluster.max_engines,
        concurrent_batches=1 + ceil(engine.max_num_seqs / shard_rows),
        remote_args={**resources.remote_args, "runtime_env": {"env_vars": engine_environment(engine, cluster.device)}},
        max_failures=cluster.max_failures,
    )
    try:
        streaming.stream_shards(
            prompts,
            pool,
            samples=samples,
            shard_rows=shard_rows,
            total=total,
            out=out,
            stage=stage,
            unit="answers",
            progress=progress,
        )
    finally:
        if resources.groups:
            resources.groups.release()
    return count(out)


class EngineWorker:
    """An engine in a Ray actor: a slice of prompts comes in, one shard of completions goes to disk, its size goes on."""

    def __init__(
        self,
        *,
        directory: Path,
        model: ModelConfig,
        engine: EngineConfig,
        decoding: Decoding,
        max_tokens: int,
        seed: int,
        device: str,
        out: Path,
        logs: Path,
    ) -> None:
        streaming.log_to_file(logs, "engine")
        self._engine = Engine(directory, model=model, engine=engine, decoding=decoding, max_tokens=max_tokens, device=device)
        self._seed, self._out = seed, out
        self._heartbeat = streaming.Heartbeat(out)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw the answers of one shard and write it."""
        import pyarrow as pa

        rows = streaming.read_slice(batch.to_pylist()[0]).to_pylist()
        seeds = [sample_seed(self._seed, row["prompt_id"], row["sample_index"]) for row in rows]
        futures = []
        for row, seed in zip(rows, seeds, strict=True):
            future = self._engine.submit(Request(prompt_token_ids=tuple(row["token_ids"]), seed=seed))
            future.add_done_callback(lambda done: self._heartbeat.add(1, len(done.result().output_token_ids)))
            futures.append(future)
        completions = [
            Completion(
                prompt_id=row["prompt_id"],
                sample_index=row["sample_index"],
                seed=seed,
                source=row["source"],
                difficulty=row["difficulty"],
                prompt_token_ids=tuple(row["token_ids"]),
                output_token_ids=answer.output_token_ids,
                text=answer.text,
                finish_reason=answer.finish_reason,
            )
            for row, seed, answer in zip(rows, seeds, (future.result() for future in futures), strict=True)
        ]
        name = streaming.shard_name([(row.prompt_id, row.sample_index) for row in completions])
        artifacts.write_shard(self._out, name, completions, Completion)
        self._heartbeat.flush()
        return pa.table({"rows": pa.array([len(completions)], pa.int64())})


def count(out: Path) -> dict[str, Any]:
    """Rows, prompt and output tokens, and finish reasons of an artifact of completions; one shard in memory at a time."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    facts = {"rows": 0, "prompt_tokens": 0, "output_tokens": 0}
    reasons: Counter[str] = Counter()
    for path in artifacts.shard_paths(out):
        table = pq.read_table(path, columns=["prompt_token_ids", "output_token_ids", "finish_reason"])
        facts["rows"] += table.num_rows
        facts["prompt_tokens"] += pc.sum(pc.list_value_length(table["prompt_token_ids"])).as_py() or 0
        facts["output_tokens"] += pc.sum(pc.list_value_length(table["output_token_ids"])).as_py() or 0
        reasons.update(table["finish_reason"].to_pylist())
    return {**facts, "finish_reasons": dict(sorted(reasons.items()))}
