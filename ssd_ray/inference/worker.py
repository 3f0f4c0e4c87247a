"""Run an engine in a Ray actor: a work unit comes in, one shard of completions goes to disk.

- Units of several jobs are in progress at a time. Each has the decoding and output of its job.
- Each finished answer is journaled, and another engine takes over an unfinished unit from there.
- Positions in flight at crashes are tried apart from all others (docs/sampling.md).

Reads Prompt shards; writes Completion shards and their records.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts import ledger
from ssd_ray.artifacts.ledger import Ledger, Record, Span
from ssd_ray.artifacts.slices import log_to_file
from ssd_ray.cluster import niceness, short_paths
from ssd_ray.errors import OutsideError, UserError, one_line
from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock
from ssd_ray.inference.crashes import cluster_state, heartbeat, reaper
from ssd_ray.inference.crashes.attribution import FAULTY_CRASHES, SUSPECT_CRASHES, CrashHistory
from ssd_ray.inference.crashes.ending import CRASH_EXIT_CODE, record_reasons
from ssd_ray.inference.drawing import Drawing, EngineProtocol
from ssd_ray.inference.work import jobs, journal, queue
from ssd_ray.inference.work.jobs import JobSpan, JobSpec
from ssd_ray.inference.work.shards import write_completions
from ssd_ray.inference.work.unit import WorkUnit, groups, read_prompts

if TYPE_CHECKING:
    import pyarrow as pa

_NOTICE_PERIOD_S = 5.0
_LAST_WORDS_S = 1.0
_HOLD_S = 2.0
"""Longer than a returned unit takes to reach another engine."""
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything needed by an engine of a pool, except for its jobs."""

    make_engine: Callable[[], EngineProtocol]
    control: Path
    """Directory of heartbeats, of the attempt, and of jobs."""
    logs: Path
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)


class ClosedJobError(Exception):
    """A unit of a job that the driver has closed; nothing is written for it."""


class EngineWorker:
    """One engine, several units at a time."""

    def __init__(self, spec: EngineSpec, concurrent_units: int) -> None:
        import ray

        reaper.guard()
        os.environ.update(short_paths.vllm_environment())
        self._spec = spec
        self._misplaced = _misplaced(spec)
        if self._misplaced:
            return  # an error here would only restart the actor; the first call raises it
        self._end_if_replaced()
        log_to_file(spec.logs, "engine")
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        self._actor = context.get_actor_id()
        self._report = heartbeat.Reporter(
            spec.control,
            self._actor,
            node=self._node,
            attempt=spec.attempt,
            is_alive=cluster_state.has_node,
            niceness=niceness.settle(),
        )
        self._jobs: dict[str, JobSpec] = {}
        self._ledgers: dict[str, Ledger] = {}
        self._engine_lock = SharedExclusiveLock()
        self._calls = ConcurrencyLimiter(concurrent_units)
        self._prompt_returns = 2 * concurrent_units
        self._trial = threading.Lock()
        self._draining = threading.Event()
        self._leaving = threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._draining.set())
        # A faulty machine next to good ones: retry less and less often.
        self._draining.wait(_pause_s(self._history().fruitless_starts(self._actor)))
        try:
            self._engine = spec.make_engine()
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            # An exception here would end the actor for good. After an exit Ray restarts it, and the
            # driver counts crashes.
            mistake = error if isinstance(error, UserError) else None
            if mistake is not None and self._others_started():
                mistake = None
            self._report.become("failed", one_line(error), mistake=mistake)
            os._exit(CRASH_EXIT_CODE)
        self._report.become("ready")
        self._report.follow(lambda: self._engine.tokens_drawn)
        record_reasons(lambda reason: self._report.become("failed", reason))
        threading.Thread(target=self._watch_notice, name="notice", daemon=True).start()

    def _others_started(self) -> bool:
        """Return True if another engine of this attempt has started: this machine is at fault."""
        engines = heartbeat.read(self._spec.control)
        attempt = [status for status in engines if status.attempt == self._spec.attempt]
        return any(status.ready and status.actor != self._actor for status in attempt)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw one unit and return the number of rows written by this engine."""
        import pyarrow as pa

        if self._misplaced:
            raise OutsideError(self._misplaced)
        if self._leaving.is_set():
            threading.Event().wait()  # Ray repeats the call in the next process
        unit = queue.span_of(batch)
        with self._calls.inside(), self._report.holding(unit):
            try:
                return pa.table({"rows": [self._draw_and_write(unit)]})
            except ClosedJobError:
                return pa.table({"rows": [0]})
            except UserError as error:
                self._report.become("failed", str(error), mistake=error)
                raise

    def _draw_and_write(self, unit: JobSpan) -> int:
        """Draw a unit, put it on record, and return the number of rows written.

        Only drawing takes a place among the concurrent units. A unit is read before it has one, and
        gives it to the next one before it is written. So slow storage leaves no place empty.
        """
        drawing = self._prepare(unit)
        if drawing is None:
            return 0
        try:
            with self._calls.one() as admitted:
                if not admitted:
                    self._give_back(unit)
                    return 0
                if not self._draw(drawing):
                    return 0
            return self._write(drawing)
        finally:
            # After any failure, another engine takes the journal over.
            drawing.journal.close()

    def _prepare(self, unit: JobSpan) -> Drawing | None:
        """Read the prompts of a unit, and its journaled answers; return None if it is on record."""
        job = self._job(unit.job)
        if (record := _on_record(job.out, unit.span)) is not None:
            # The engine that wrote it crashed after that, or belonged to an earlier driver. The
            # queue may have missed its record.
            self._ledger(job).append(record)
            return None
        prompts = read_prompts(job.prompts, unit.span, job.samples)
        return Drawing(
            engine=self._engine,
            report=self._report,
            job=job,
            unit=WorkUnit(unit.span, prompts, job.samples, journal.recover(job.out, unit.span)),
        )

    def _draw(self, drawing: Drawing) -> bool:
        """Draw the missing answers of a unit; return False if it was given back instead."""
        unit, history = drawing.span(drawing.unit.span), self._history()
        quarantined = history.quarantined_in(unit.job)
        prompt_ids = {prompt.prompt_id for prompt in drawing.unit.prompts.values()} - quarantined
        if self._is_for_others(history, unit, prompt_ids):
            self._give_back(unit)
            return False
        drawing.unit.quarantine(quarantined)
        self._draw_missing(drawing, history)
        return True

    def _ledger(self, job: JobSpec) -> Ledger:
        """Return this process's file in the ledger of a job."""
        return self._ledgers.setdefault(job.key, Ledger(job.out, self._report.engine))

    def _job(self, key: str) -> JobSpec:
        """Return an open job.

        Raises:
            ClosedJobError: the driver has closed it.
        """
        if not jobs.is_open(self._spec.control, key):
            raise ClosedJobError(key)
        if key not in self._jobs:
            self._jobs.update({spec.key: spec for spec in jobs.specs(self._spec.control)})
        return self._jobs[key]

    def _draw_missing(self, drawing: Drawing, history: CrashHistory) -> None:
        """Draw the missing answers of a unit, suspects first and apart from all others."""
        unit = drawing.unit
        begun = [span for span in unit.missing() if history.was_begun(drawing.span(span))]
        self._report.retried(drawing.job.key, sum(span.rows for span in begun))
        suspicion = {span: history.suspicion(drawing.span(span)) for span in unit.missing()}
        suspects = [span for span, crashes in suspicion.items() if crashes >= SUSPECT_CRASHES]
        if suspects:
            # Alone in the engine, so that a crash points to this group.
            for group in groups(suspects, max(suspicion[span] for span in suspects)):
                alone = unit.prompts[group[0].start].prompt_id if len(group) == 1 else ""
                with self._engine_lock.exclusive():
                    drawing.answer(group, alone, testing=True)
        with self._engine_lock.shared():
            drawing.answer(list(unit.missing()))

    def _write(self, drawing: Drawing) -> int:
        """Write the shard of a unit, put it on record, and return its number of rows."""
        job, failures = drawing.job, drawing.unit.failures()
        write_completions(
            self._ledger(job),
            drawing.unit.span,
            drawing.unit.drawn(job.seed),
            failures,
            before=lambda: self._check_open(job.key),
        )
        self._report.recorded(job.key, len(failures))
        if not drawing.unit.answers:
            self._report.refused(job.key, failures[-1].reason)
        drawing.journal.remove()
        return drawing.unit.span.rows

    def _is_for_others(
        self, history: CrashHistory, unit: JobSpan, prompt_ids: Collection[str]
    ) -> bool:
        """Return True if other engines should draw a unit.

        A faulty engine keeps one unit at a time, one with which it has not crashed. It gives all
        other units back.
        """
        if history.is_for_others(self._actor, unit, prompt_ids):
            return True
        if self._actor not in history.faulty:
            return False
        if queue.all_out(self._spec.control).exists() or not self._trial.acquire(blocking=False):
            return True
        # This unit may crash the engine as well. Units given back have to arrive before that.
        time.sleep(_LAST_WORDS_S)
        return False

    def _history(self) -> CrashHistory:
        statuses = heartbeat.read_after_crashes(self._spec.control)
        return CrashHistory(statuses, cluster_state.actors)

    def _give_back(self, unit: JobSpan) -> None:
        """Give a unit to another engine, and stay busy for a while, longer with each one.

        Ray Data hands a unit to an engine with the fewest calls; of several, to the one that ended
        a call last. If this engine were idle at once, it would get the unit again.
        """
        self._prompt_returns -= 1
        queue.give_back(self._spec.control, self._report.engine, unit)
        self._leaving.wait(min(max(_HOLD_S, -self._prompt_returns), _LONGEST_PAUSE_S))

    def _end_if_replaced(self) -> None:
        """End the process if another attempt is running, or the pool has ended.

        An engine may see this after its node was cut off or its machine was paused.
        """
        if not heartbeat.is_current(self._spec.control, self._spec.attempt):
            reason = "engine: another attempt is running, or the pool has ended"
            print(reason, file=sys.stderr, flush=True)
            os._exit(0)

    def _check_open(self, key: str) -> None:
        """Check that this engine may write for a job; see also `_end_if_replaced`.

        Raises:
            ClosedJobError: the job is complete, or its step has failed.
        """
        self._end_if_replaced()
        if not jobs.is_open(self._spec.control, key):
            raise ClosedJobError(key)

    def _watch_notice(self) -> None:
        """On notice (SIGTERM, or a draining node), take no new work, finish, and end."""
        while not self._draining.wait(_NOTICE_PERIOD_S):
            self._end_if_replaced()
            if cluster_state.is_draining(self._node):
                self._draining.set()
        self._report.become("draining")
        self._calls.close()
        self._calls.wait_for_work()
        self._leaving.set()
        self._calls.wait_for_all()
        self._report.become("ended")
        time.sleep(_LAST_WORDS_S)  # results of the last calls are on their way
        os._exit(0)  # Ray restarts this actor where there is room


def _misplaced(spec: EngineSpec) -> str:
    """Return the fault of this node's storage; empty if there is none."""
    needed = (spec.control, *(job.prompts for job in jobs.specs(spec.control)))
    missing = next((path for path in needed if not path.is_dir()), None)
    if missing is None:
        return ""
    node = socket.gethostname()
    return f"{missing} is not there on node {node}: --out must lie on storage that every node sees"


def _pause_s(starts: int) -> float:
    """Return the pause in seconds after failed starts in a row; none after the first few."""
    return 0.0 if starts < FAULTY_CRASHES else min(10.0 * 2 ** (starts - FAULTY_CRASHES), 300.0)


def _on_record(out: Path, unit: Span) -> Record | None:
    if not (out / f"{unit.name}.parquet").exists():
        return None
    return next((record for record in ledger.tail(out).new() if record.span == unit), None)
