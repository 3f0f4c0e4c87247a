"""Draw answers to prompts with vLLM engines, into shards of completions.

Sampling draws from the frozen model at T_train; generation draws from the model of an arm at its
decoding. Steps of one model share its engines (`engines.py`). Reads Prompt shards, also while more
are added; writes Completion shards. docs/sampling.md explains why no answer is lost or drawn twice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import ledger, shards
from ssd_ray.artifacts.audit import Audit, audit
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.config import Decoding, Recipe
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.engine_pool import EnginePool, JobHandle
from ssd_ray.inference.engine_use import EngineUse
from ssd_ray.inference.engines import EnginePools, EngineSettings
from ssd_ray.inference.monitor import Monitor, Watched
from ssd_ray.inference.work import jobs, journal
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.progress import Progress, Task

_POLL_S = 0.1
_PATIENCE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class SamplingJob:
    """Answers to draw: prompts, model, decoding, and how many."""

    recipe: Recipe
    stage: str
    """Name of the artifact, for the screen."""
    prompts: Path
    model: str
    """Name of the model in the run; steps of one model share engines."""
    model_directory: Path
    decoding: Decoding
    samples: int
    """Answers to each prompt."""
    max_tokens: int
    out: Path

    def spec(self) -> JobSpec:
        """Return the job as engines get it."""
        recipe = self.recipe
        return JobSpec(
            stage=self.stage,
            key=jobs.key_of(self.stage, self.out),
            prompts=self.prompts.resolve(),
            out=self.out.resolve(),
            samples=self.samples,
            seed=recipe.seed,
            decoding=self.decoding,
            max_tokens=min(self.max_tokens, recipe.model.max_model_len),
            shard_rows=recipe.sample.shard_rows,
        )

    def settings(self) -> EngineSettings:
        """Return everything that makes its engines."""
        return EngineSettings(
            directory=self.model_directory.resolve(),
            model=self.recipe.model,
            engine=self.recipe.engine,
            device=self.recipe.cluster.device,
            local_weights=self.recipe.cluster.local_weights,
        )


def generate(
    job: SamplingJob, ended: Callable[[], bool], engines: EnginePools, progress: Progress
) -> AnswerFacts:
    """Draw the answers of a job; return facts: rows, tokens, finish reasons, failures, losses.

    `ended` returns False while prompts may still be added, and raises if the run has stopped.

    Raises:
        UserError: arguments refused by vLLM, not one answer, or a full disk.
        InfrastructureError: an engine crashed more than `cluster.max_failures` times in a row,
            without any answer between, or answers are missing after as many attempts.
    """
    recipe = job.recipe
    pool = engines.pool(job.model, job.settings(), recipe.cluster, recipe.sample.shard_rows)
    run = SamplingRun(
        job=job.spec(), engines=pool, ended=ended, progress=progress, patience_s=_PATIENCE_S
    )
    return run.draw()


@dataclass(frozen=True, kw_only=True)
class SamplingRun:
    """One attempt at a job, in any pool of engines."""

    job: JobSpec
    engines: EnginePool
    ended: Callable[[], bool]
    """Return True once all prompts exist."""
    progress: Progress
    patience_s: float = 0.0
    """Engines start once all prompts exist, or once this time has passed and two shards exist."""

    def draw(self) -> AnswerFacts:
        """Draw missing answers and return the facts; raises as `generate` does."""
        job = self.job
        # Temporary files of killed engines.
        for partial in job.out.glob(".*.partial"):
            partial.unlink(missing_ok=True)
        # Engines of an earlier version of this package end themselves once these are removed.
        for name in (".engines", ".returned"):
            heartbeat.clear(job.out / name)
        audit = self._audit()
        with self.progress.task(job.stage, total=0, unit="answers", done=audit.positions) as task:
            monitor = self._monitor(task, audit)
            try:
                task.wait("waiting for prompts")
                self._wait_for_prompts()
                audit = self._draw_missing(audit, monitor)
            finally:
                monitor.close()
        return _close(job, audit, monitor.engine_losses, self.progress)

    def _monitor(self, task: Task, audit: Audit) -> Monitor:
        watched = Watched(
            job=self.job,
            attempt=self.engines.spec.attempt,
            before=audit.positions + _journaled(self.job.out, audit),
            failed=len(audit.failed),
        )
        return Monitor(
            watched,
            task,
            read=lambda fresh: self.engines.watch.history(fresh),
            is_next=lambda: self.engines.is_next(self.job.key),
            take_wait=self.engines.take_wait,
            use=EngineUse(self.job.out, self.job.key, self.engines.gpus, cluster_state.actors),
        )

    def _wait_for_prompts(self) -> None:
        """Wait a while, to report mistakes in early prompts before an engine starts."""
        until = time.monotonic() + self.patience_s
        while not self.ended() and (
            time.monotonic() < until or len(shards.shard_paths(self.job.prompts)) < 2
        ):
            time.sleep(_POLL_S)

    def _draw_missing(self, audit: Audit, monitor: Monitor) -> Audit:
        """Draw until every position is on record, and all digests match."""
        if self.ended() and audit.positions == monitor.total:
            audit = self._audit(digests=True)
            if audit.positions == monitor.total:
                self.engines.forgo(self.job.stage)
                monitor.poll(audit.positions)
                return audit
        with self.engines.open(self.job, audit, self._audit) as handle:
            audit = self._until_complete(handle, monitor)
            # The last prompt left out may have crashed its engine after the last poll.
            self.engines.watch.name_left_out(self.engines.watch.history(fresh=True))
            monitor.poll(audit.positions)
            monitor.pace()
            complete_at = time.monotonic()
        # The block of the last job ends once the engines are gone.
        monitor.released(time.monotonic() - complete_at)
        return audit

    def _until_complete(self, handle: JobHandle, monitor: Monitor) -> Audit:
        """Wait until every position is on record, and draw again those with damaged shards."""
        fruitless = 0
        while True:
            self._wait(handle, monitor)
            audit = self._audit(digests=True)
            missing = monitor.total - audit.positions
            if not missing:
                return audit
            fruitless += 1
            if fruitless > self.engines.max_failures:
                raise InfrastructureError(
                    f"{self.job.stage}: {missing} answers are missing after {fruitless} attempts"
                )
            handle.draw_again(audit)

    def _wait(self, handle: JobHandle, monitor: Monitor) -> None:
        """Show progress until every position is on record and all prompts exist."""
        looked_at = 0.0
        while True:
            is_drained = handle.wait(_POLL_S)
            if is_drained and self.ended():
                return
            if is_drained:
                time.sleep(_POLL_S)
            if time.monotonic() - looked_at >= heartbeat.PERIOD_S:
                looked_at = time.monotonic()
                # Raises if the run is stopping.
                self.ended()
                monitor.poll()

    def _audit(self, *, digests: bool = False) -> Audit:
        """Audit the output directory and report each shard moved to set-aside/."""
        audited = audit(self.job.out, digests=digests)
        for complaint in audited.moved:
            self.progress.say(
                f"{self.job.stage}: {complaint}; moved to set-aside/, its rows are drawn again"
            )
        return audited


def _journaled(out: Path, audit: Audit) -> int:
    """Count the journaled answers of units not on record."""
    coverage = audit.coverage
    return sum(
        len(journal.recover(out, piece))
        for span in journal.spans(out)
        for piece in ledger.uncovered(span, coverage.get(span.source, ()), span.rows)
    )


def _close(job: JobSpec, audit: Audit, losses: int, progress: Progress) -> AnswerFacts:
    """Return the facts, and remove the journal of the job."""
    facts = AnswerFacts.of(audit, engine_losses=losses)
    if facts.failed and not facts.rows:
        reason = facts.failed[0].reason
        raise UserError(
            f"{job.stage}: not one prompt was answered ({reason}): correct the recipe and delete "
            f"{job.out}"
        )
    if losses:
        progress.say(
            f"{job.stage}: {losses} engine{'s' if losses > 1 else ''} crashed; their "
            "units were drawn again"
        )
    if facts.failed:
        names = sorted({failure.prompt_id for failure in facts.failed})
        progress.say(
            f"{job.stage}: {len(facts.failed)} answers failed ({', '.join(names[:5])}); "
            "reasons are in manifest.json"
        )
    heartbeat.clear(job.out / ".journal")
    return facts
