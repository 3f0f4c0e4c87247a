"""Prompts through vLLM engines into shards of completions: the one act behind `sample` and `generate`.

Sampling draws from the frozen model at T_train; generation draws from an arm's model at its own decoding. Reads Prompt
shards, also while they are being written; writes Completion shards. docs/sampling.md says how nothing is lost or doubled.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, ledger, manifests, shards
from ssd_ray.artifacts.ledger import Audit
from ssd_ray.config import ClusterConfig, Decoding, EngineConfig, ModelConfig
from ssd_ray.errors import InfrastructureError, UserError, first_line
from ssd_ray.inference import pool
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.monitor import Monitor
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.arguments import engine_environment
from ssd_ray.inference.vllm.engine import Engine
from ssd_ray.inference.vllm.placement import engine_resources
from ssd_ray.inference.work import journal
from ssd_ray.inference.work.queue import Plan
from ssd_ray.inference.worker import Order
from ssd_ray.progress import Progress

_POLL_S = 0.1
_PATIENCE_S = 60.0
_CLEAR_S = 10.0
_PROBE_BYTES = 1 << 16


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
    ended: Callable[[], bool],
    stage: str,
    out: Path,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Draw `samples` answers to every prompt and return counts of rows, tokens, finish reasons, failures and losses.

    Prompts may still be coming until `ended()`, which raises where they will not.

    Raises:
        UserError: arguments that vLLM refuses, or not one answer; a full disk.
        InfrastructureError: an engine died more than `cluster.max_failures` times in a row, without any answer between.
    """
    make_engine = functools.partial(
        Engine, directory, model=model, engine=engine, decoding=decoding, max_tokens=max_tokens, device=cluster.device
    )
    order = Order(
        make_engine=make_engine,
        prompts=prompts.resolve(),
        samples=samples,
        seed=seed,
        out=out.resolve(),
        logs=logs.resolve(),
        max_tokens=min(max_tokens, model.max_model_len),
    )
    engines = Pool(
        min_engines=cluster.min_engines,
        max_engines=cluster.max_engines,
        concurrent_units=pool.concurrent_units(engine.max_num_seqs, shard_rows),
        resources=engine_resources(engine, cluster.device),
        environment=engine_environment(engine, cluster.device),
    )
    return draw(
        order,
        engines,
        shard_rows=shard_rows,
        max_failures=cluster.max_failures,
        ended=ended,
        stage=stage,
        progress=progress,
        patience_s=_PATIENCE_S,
    )


def draw(
    order: Order,
    engines: Pool,
    *,
    shard_rows: int,
    max_failures: int,
    ended: Callable[[], bool],
    stage: str,
    progress: Progress,
    patience_s: float = 0.0,
) -> dict[str, Any]:
    """As `generate`, with any engine and any pool; engines start once all prompts are there, or two shards of them and
    `patience_s` have gone by.
    """
    out = order.out
    plan = Plan(prompts=order.prompts, out=out, samples=order.samples, shard_rows=shard_rows, window=engines.window)
    for partial in out.glob(".*.partial"):
        partial.unlink(missing_ok=True)
    heartbeat.begin(out, order.attempt)
    found = _looked_at(out, progress, stage)
    with progress.task(stage, total=0, unit="answers", done=found.positions) as task:
        monitor = Monitor(
            plan,
            task,
            progress,
            stage=stage,
            attempt=order.attempt,
            before=found.positions + _journalled(out, found),
            failed=len(found.facts()["failed"]),
            max_failures=max_failures,
            ended=ended,
            logs=order.logs,
            max_tokens=order.max_tokens,
        )
        try:
            task.wait("waiting for prompts")
            _first_prompts(plan, ended, patience_s)
            found = _until_whole(plan, order, engines, found, monitor, max_failures, ended, stage, progress)
            monitor.look(found.positions)
        finally:
            monitor.close()
    monitor.pace()
    return _close(out, found, stage, progress)


def _first_prompts(plan: Plan, ended: Callable[[], bool], patience_s: float) -> None:
    """Wait a while, so that mistakes in prompts that are rendered by then are told before an engine starts."""
    until = time.monotonic() + patience_s
    while not ended() and (time.monotonic() < until or len(shards.shard_paths(plan.prompts)) < 2):
        time.sleep(_POLL_S)


def _until_whole(
    plan: Plan,
    order: Order,
    engines: Pool,
    found: Audit,
    monitor: Monitor,
    max_failures: int,
    ended: Callable[[], bool],
    stage: str,
    progress: Progress,
) -> Audit:
    """Run the pool until every position is on record; one that ends early is begun again, `max_failures` times in a row."""
    fruitless = 0
    while True:
        if ended() and found.positions == monitor.total:
            found = _looked_at(plan.out, progress, stage, digests=True)
            if found.positions == monitor.total:
                return found
        pool.check_room(engines, progress)
        before, problem = found.positions, "no reason given"
        try:
            pool.run(plan, found.coverage, order, engines, monitor)
        except (UserError, InfrastructureError) as error:
            raise _plain(error) from error
        except Exception as error:
            ended()  # a run that stops raises here
            monitor.look()  # an engine may have said what it is
            _check_disk(plan.out)
            problem = first_line(error)
            progress.say(f"{stage}: the pool of engines stopped ({problem})")
        found = _looked_at(plan.out, progress, stage)
        fruitless = 0 if found.positions > before else fruitless + 1
        if fruitless > max_failures:
            missing = monitor.total - found.positions
            raise InfrastructureError(f"{stage}: {missing} answers are missing after {fruitless} attempts ({problem})")


def _clear(directory: Path) -> None:
    """Remove a directory into which engines that are about to end may write once more."""
    until = time.monotonic() + _CLEAR_S
    while directory.exists() and time.monotonic() < until:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.01)


def _plain(error: Exception) -> Exception:
    """An error as it was raised; to one of an engine, Ray and Ray Data add lines of their own."""
    cause = getattr(error, "cause", None)
    return error if cause is None else type(cause)(str(cause).splitlines()[0])


def _check_disk(out: Path) -> None:
    """An engine that finds the disk full cannot write down that it did: try it from here, and say so."""
    probe = out / ".probe"
    files.write_atomic(probe, bytes(_PROBE_BYTES))
    probe.unlink()


def _looked_at(out: Path, progress: Progress, stage: str, *, digests: bool = False) -> Audit:
    """The audit of a directory, with what was set aside said aloud."""
    found = ledger.audit(out, digests=digests)
    for complaint in found.set_aside:
        progress.say(f"{stage}: {complaint}; moved to set-aside/, its rows are drawn again")
    return found


def _journalled(out: Path, found: Audit) -> int:
    """Answers that an earlier attempt finished in units that it did not."""
    coverage = found.coverage
    return sum(
        len(journal.recover(out, piece))
        for span in journal.spans(out)
        for piece in ledger.left(span, coverage.get(span.source, ()), span.rows)
    )


def _close(out: Path, found: Audit, stage: str, progress: Progress) -> dict[str, Any]:
    """The facts, and no trace of what was needed on the way."""
    losses = sum(one.dead for one in heartbeat.read(out))
    facts = found.facts()
    if facts["failed"] and not facts["rows"]:
        reason = facts["failed"][0]["reason"]
        raise UserError(f"{stage}: not one prompt was answered ({reason}): mend the recipe and delete {out}")
    if losses:
        progress.say(f"{stage}: {losses} engine{'s were' if losses > 1 else ' was'} lost on the way; their units were done again")
    if facts["failed"]:
        names = sorted({failure["prompt_id"] for failure in facts["failed"]})
        progress.say(f"{stage}: {len(facts['failed'])} answers could not be drawn ({', '.join(names[:5])}); see manifest.json")
    for name in (".engines", ".journal", ".returned"):
        _clear(out / name)
    return {**facts, "engine_losses": losses, manifests.SHARDS: found.shards}
