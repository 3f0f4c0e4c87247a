"""Draw answers to prompts with vLLM engines, into shards of completions.

Sampling draws from the frozen model at T_train; generation draws from the model of an arm at its
decoding. Reads Prompt shards, also while they grow; writes Completion shards. docs/sampling.md
explains why no answer is lost or drawn twice.
"""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import files, ledger, shards
from ssd_ray.artifacts.audit import Audit, audit
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.config import Decoding, Recipe
from ssd_ray.errors import InfrastructureError, UserError, first_line
from ssd_ray.inference import pool
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.monitor import Monitor, Watch
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.arguments import engine_environment
from ssd_ray.inference.vllm.engine import Engine
from ssd_ray.inference.vllm.placement import engine_resources
from ssd_ray.inference.work import journal
from ssd_ray.inference.work.queue import SamplingPlan
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import Progress, Task

_POLL_S = 0.1
_PATIENCE_S = 60.0
_CLEAR_S = 10.0
_PROBE_BYTES = 1 << 16


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """Answers to draw: prompts, model, decoding, and how many."""

    recipe: Recipe
    stage: str
    """Name of the artifact, for the screen."""
    prompts: Path
    model_directory: Path
    decoding: Decoding
    samples: int
    """Answers to each prompt."""
    max_tokens: int
    out: Path
    logs: Path

    def order(self) -> EngineSpec:
        """Return the specification of every engine."""
        recipe = self.recipe
        make_engine = functools.partial(
            Engine,
            self.model_directory.resolve(),
            model=recipe.model,
            engine=recipe.engine,
            decoding=self.decoding,
            max_tokens=self.max_tokens,
            device=recipe.cluster.device,
        )
        return EngineSpec(
            make_engine=make_engine,
            prompts=self.prompts.resolve(),
            samples=self.samples,
            seed=recipe.seed,
            out=self.out.resolve(),
            logs=self.logs.resolve(),
            max_tokens=min(self.max_tokens, recipe.model.max_model_len),
        )

    def engines(self) -> Pool:
        """Return the size of the pool and the resources of each engine."""
        engine, cluster = self.recipe.engine, self.recipe.cluster
        return Pool(
            min_engines=cluster.min_engines,
            max_engines=cluster.max_engines,
            concurrent_units=pool.concurrent_units(
                engine.max_num_seqs, self.recipe.sample.shard_rows
            ),
            resources=engine_resources(engine, cluster.device),
            environment=engine_environment(engine, cluster.device),
        )


def generate(job: SamplingJob, ended: Callable[[], bool], progress: Progress) -> AnswerFacts:
    """Draw the answers of a job; return facts: rows, tokens, finish reasons, failures, losses.

    Prompts may still be coming until `ended()`. It raises once they cannot.

    Raises:
        UserError: arguments refused by vLLM, not one answer, or a full disk.
        InfrastructureError: an engine crashed more than `cluster.max_failures` times in a row,
            without any answer between.
    """
    run = SamplingRun(
        order=job.order(),
        engines=job.engines(),
        shard_rows=job.recipe.sample.shard_rows,
        max_failures=job.recipe.cluster.max_failures,
        ended=ended,
        stage=job.stage,
        progress=progress,
        patience_s=_PATIENCE_S,
    )
    return run.draw()


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """One attempt at a job, with any engine and any pool."""

    order: EngineSpec
    engines: Pool
    shard_rows: int
    max_failures: int
    """Attempts in a row without any new answer."""
    ended: Callable[[], bool]
    """Return True once all prompts exist."""
    stage: str
    progress: Progress
    patience_s: float = 0.0
    """Engines start once all prompts exist, or two shards of them and this time has passed."""

    def draw(self) -> AnswerFacts:
        """Draw missing answers and return the facts; raises as `generate` does."""
        out = self.order.out
        # Temporary files of killed engines.
        for partial in out.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        heartbeat.begin(out, self.order.attempt)
        audit = self._audit()
        with self.progress.task(self.stage, total=0, unit="answers", done=audit.positions) as task:
            monitor = self._monitor(task, audit)
            try:
                task.wait("waiting for prompts")
                self._wait_for_prompts()
                audit = self._until_complete(audit, monitor)
                monitor.look(audit.positions)
            finally:
                monitor.close()
        monitor.pace()
        return _close(out, audit, self.stage, self.progress)

    @functools.cached_property
    def _plan(self) -> SamplingPlan:
        return SamplingPlan(
            prompts=self.order.prompts,
            out=self.order.out,
            samples=self.order.samples,
            shard_rows=self.shard_rows,
            window=self.engines.window,
        )

    def _monitor(self, task: Task, audit: Audit) -> Monitor:
        watch = Watch(
            plan=self._plan,
            stage=self.stage,
            attempt=self.order.attempt,
            before=audit.positions + _journaled(self.order.out, audit),
            failed=len(audit.failed),
            max_failures=self.max_failures,
            logs=self.order.logs,
            max_tokens=self.order.max_tokens,
        )
        return Monitor(watch, self.ended, task, self.progress)

    def _wait_for_prompts(self) -> None:
        """Wait a while, to report mistakes in early prompts before an engine starts."""
        until = time.monotonic() + self.patience_s
        while not self.ended() and (
            time.monotonic() < until or len(shards.shard_paths(self.order.prompts)) < 2
        ):
            time.sleep(_POLL_S)

    def _until_complete(self, audit: Audit, monitor: Monitor) -> Audit:
        """Run the pool until every position is on record.

        A pool ending early is started again, `max_failures` times in a row without new answers.
        """
        fruitless = 0
        while True:
            if self.ended() and audit.positions == monitor.total:
                # All positions are on record. Digests prove it before the artifact is sealed.
                audit = self._audit(digests=True)
                if audit.positions == monitor.total:
                    return audit
            before = audit.positions
            problem = self._run_pool(audit, monitor)
            audit = self._audit()
            fruitless = 0 if audit.positions > before else fruitless + 1
            if fruitless > self.max_failures:
                missing = monitor.total - audit.positions
                raise InfrastructureError(
                    f"{self.stage}: {missing} answers are missing after {fruitless} attempts "
                    f"({problem})"
                )

    def _run_pool(self, audit: Audit, monitor: Monitor) -> str:
        """Run the pool once and return why it stopped early."""
        pool.check_room(self.engines, self.progress)
        try:
            pool.run(self._plan, audit.coverage, self.order, self.engines, monitor)
        # The watch raises its own errors.
        except (UserError, InfrastructureError) as error:
            raise _plain(error) from error
        # Ray Data wraps errors of engines, in types without a common base.
        except Exception as error:
            self.ended()  # raises if the run is stopping
            monitor.look()  # an engine may have left the reason
            _check_disk(self.order.out)
            problem = first_line(error)
            self.progress.say(f"{self.stage}: the pool of engines stopped ({problem})")
            return problem
        return "no reason given"

    def _audit(self, *, digests: bool = False) -> Audit:
        """Audit the output directory and report each shard moved to set-aside/."""
        audited = audit(self.order.out, digests=digests)
        for complaint in audited.moved:
            self.progress.say(
                f"{self.stage}: {complaint}; moved to set-aside/, its rows are drawn again"
            )
        return audited


def _clear(directory: Path) -> None:
    """Remove a directory; engines about to end may write into it once more."""
    until = time.monotonic() + _CLEAR_S
    while directory.exists() and time.monotonic() < until:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.01)


def _plain(error: Exception) -> Exception:
    """Return an error as it was raised, without the lines of Ray and Ray Data."""
    cause = getattr(error, "cause", None)
    return error if cause is None else type(cause)(str(cause).splitlines()[0])


def _check_disk(out: Path) -> None:
    """Write a probe, because an engine with a full disk cannot record its reason.

    Raises:
        UserError: the disk is full or the directory is not writable.
    """
    probe = out / ".probe"
    files.write_atomic(probe, bytes(_PROBE_BYTES))
    probe.unlink()


def _journaled(out: Path, audit: Audit) -> int:
    """Count the journaled answers of units not on record."""
    coverage = audit.coverage
    return sum(
        len(journal.recover(out, piece))
        for span in journal.spans(out)
        for piece in ledger.uncovered(span, coverage.get(span.source, ()), span.rows)
    )


def _close(out: Path, audit: Audit, stage: str, progress: Progress) -> AnswerFacts:
    """Return the facts, and remove files of a run in progress."""
    losses = sum(status.crashed for status in heartbeat.read(out))
    facts = AnswerFacts.of(audit, engine_losses=losses)
    if facts.failed and not facts.rows:
        reason = facts.failed[0].reason
        raise UserError(
            f"{stage}: not one prompt was answered ({reason}): correct the recipe and delete {out}"
        )
    if losses:
        progress.say(
            f"{stage}: {losses} engine{'s' if losses > 1 else ''} crashed; their "
            "units were drawn again"
        )
    if facts.failed:
        names = sorted({failure.prompt_id for failure in facts.failed})
        progress.say(
            f"{stage}: {len(facts.failed)} answers failed ({', '.join(names[:5])}); "
            "reasons are in manifest.json"
        )
    for name in (".engines", ".journal", ".returned"):
        _clear(out / name)
    return facts
