"""Run an engine in a Ray actor: a work unit comes in, one shard of completions goes to disk.

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
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ssd_ray.artifacts import ledger
from ssd_ray.artifacts.ledger import Record, Span
from ssd_ray.artifacts.slices import log_to_file
from ssd_ray.cluster import niceness, short_paths
from ssd_ray.errors import UserError, one_line
from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock
from ssd_ray.inference.crashes import cluster_state, heartbeat, reaper
from ssd_ray.inference.crashes.attribution import FAULTY_CRASHES, SUSPECT_CRASHES, CrashHistory
from ssd_ray.inference.crashes.ending import CRASH_EXIT_CODE, record_reasons
from ssd_ray.inference.vllm.engine import Answer, RefusedRequestError, Request, sample_seed
from ssd_ray.inference.work import journal, queue
from ssd_ray.inference.work.shards import write_completions
from ssd_ray.inference.work.unit import WorkUnit, groups, read_prompts

if TYPE_CHECKING:
    import pyarrow as pa

_TRIES = 3
_NOTICE_PERIOD_S = 5.0
_LAST_WORDS_S = 1.0
_LONGEST_PAUSE_S = 30.0


class EngineProtocol(Protocol):
    """An engine as a worker uses it."""

    tokens_drawn: int
    """Tokens of all requests, those in flight included."""

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future has its answer, or the reason of its failure."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """Everything needed by an engine of a stage: how to make it, its input and output."""

    make_engine: Callable[[], EngineProtocol]
    prompts: Path
    samples: int
    seed: int
    out: Path
    logs: Path
    max_tokens: int | None = None
    """Longest answer, for the estimate of time left."""
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)


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
            spec.out,
            self._actor,
            node=self._node,
            attempt=spec.attempt,
            is_alive=cluster_state.has_node,
            niceness=niceness.settle(),
        )
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
            mistake = isinstance(error, UserError) and not self._others_started()
            self._report.become("failed", one_line(error), mistake=mistake)
            os._exit(CRASH_EXIT_CODE)
        self._report.become("ready")
        self._report.follow(lambda: self._engine.tokens_drawn)
        record_reasons(lambda reason: self._report.become("failed", reason))
        threading.Thread(target=self._watch_notice, name="notice", daemon=True).start()

    def _others_started(self) -> bool:
        """Return True if another engine of this attempt has started: this machine is at fault."""
        engines = heartbeat.read(self._spec.out)
        attempt = [status for status in engines if status.attempt == self._spec.attempt]
        return any(status.ready and status.actor != self._actor for status in attempt)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw one unit and return the number of rows written by this engine."""
        import pyarrow as pa

        if self._misplaced:
            raise UserError(self._misplaced)
        if self._leaving.is_set():
            threading.Event().wait()  # Ray repeats the call in the next process
        unit = queue.span_of(batch)
        with self._calls.one() as admitted:
            try:
                rows = self._draw_unit(unit) if admitted else self._give_back(unit)
                return pa.table({"rows": [rows]})
            except UserError as error:
                self._report.become("failed", str(error), mistake=True)
                raise

    def _draw_unit(self, unit: Span) -> int:
        spec = self._spec
        if (record := _on_record(spec.out, unit)) is not None:
            # The engine before crashed after its last line, or outlived its driver. The queue may
            # not know of the record.
            ledger.append(spec.out, self._report.engine, record)
            return 0
        prompts = read_prompts(spec.prompts, unit, spec.samples)
        history = self._history()
        quarantined = history.quarantined()
        prompt_ids = {prompt.prompt_id for prompt in prompts.values()} - quarantined
        if self._is_for_others(history, unit, prompt_ids):
            return self._give_back(unit)
        drawing = WorkUnit(unit, prompts, spec.samples, journal.recover(spec.out, unit))
        unit_journal = journal.Journal(spec.out, unit, self._report.engine)
        drawing.quarantine(quarantined)
        begun = [span for span in drawing.missing() if history.was_begun(span)]
        self._report.retried(sum(span.rows for span in begun))
        suspects = [
            span for span in drawing.missing() if history.suspicion(span) >= SUSPECT_CRASHES
        ]
        if suspects:
            # Alone in the engine, so that a crash says which group it was.
            for group in groups(suspects, max(history.suspicion(span) for span in suspects)):
                alone = prompts[group[0].start].prompt_id if len(group) == 1 else ""
                with self._engine_lock.exclusive():
                    self._answer(drawing, group, unit_journal, alone, testing=True)
        with self._engine_lock.shared():
            self._answer(drawing, list(drawing.missing()), unit_journal)
        failures = drawing.failures()
        write_completions(
            spec.out,
            self._report.engine,
            unit,
            drawing.drawn(spec.seed),
            failures,
            before=self._end_if_replaced,
        )
        unit_journal.remove()
        self._report.recorded(len(failures))
        if not drawing.answers:
            self._report.refused(failures[-1].reason)
        return unit.rows

    def _is_for_others(
        self, history: CrashHistory, unit: Span, prompt_ids: Collection[str]
    ) -> bool:
        """Return True if other engines should draw a unit.

        While there are others, a faulty engine tries one unit at a time, of those it did not crash
        with.
        """
        if history.is_for_others(self._actor, unit, prompt_ids):
            return True
        if self._actor not in history.faulty:
            return False
        if queue.all_out(self._spec.out).exists() or not self._trial.acquire(blocking=False):
            return True
        # This unit may crash the engine as well. Units given back have to arrive before that.
        time.sleep(_LAST_WORDS_S)
        return False

    def _history(self) -> CrashHistory:
        return CrashHistory(heartbeat.read(self._spec.out), cluster_state.actors)

    def _give_back(self, unit: Span) -> int:
        """Give a unit to another engine: at once those at hand, later ones more and more slowly.

        An engine without work is handed the next unit, so it would get this one again.
        """
        self._prompt_returns -= 1
        self._leaving.wait(min(max(0.0, -self._prompt_returns), _LONGEST_PAUSE_S))
        queue.give_back(self._spec.out, self._report.engine, unit)
        return 0

    def _end_if_replaced(self) -> None:
        """End the process if another attempt is at work.

        A disconnected node or a paused machine may come back then.
        """
        if not heartbeat.is_current(self._spec.out, self._spec.attempt):
            reason = "engine: another attempt is at work, or the stage is complete"
            print(reason, file=sys.stderr, flush=True)
            os._exit(0)

    def _answer(
        self,
        drawing: WorkUnit,
        spans: list[Span],
        unit_journal: journal.Journal,
        alone: str = "",
        *,
        testing: bool = False,
    ) -> None:
        """Draw these positions; a request refused `_TRIES` times without a crash has failed."""
        if not spans:
            return
        in_flight = Span(drawing.span.source, spans[0].start, spans[-1].stop)
        with self._report.drawing(in_flight, alone, testing=testing):
            waiting = [position for span in spans for position in range(span.start, span.stop)]
            for attempt in range(1, _TRIES + 1):
                futures = {
                    position: self._submit(drawing, position, unit_journal) for position in waiting
                }
                waiting = []
                for position, future in futures.items():
                    error = future.exception()
                    if error is None:
                        drawing.answers[position] = future.result()
                    # A refusal is final; other errors may pass.
                    elif isinstance(error, RefusedRequestError):
                        drawing.reasons[position] = str(error)
                    elif isinstance(error, UserError):
                        raise error
                    elif attempt == _TRIES:
                        drawing.reasons[position] = f"refused {_TRIES} times: {one_line(error)}"
                    else:
                        waiting.append(position)
                self._report.retried(len(waiting))

    def _submit(
        self, drawing: WorkUnit, position: int, unit_journal: journal.Journal
    ) -> Future[Answer]:
        prompt = drawing.prompts[position]
        seed = sample_seed(self._spec.seed, prompt.prompt_id, position % self._spec.samples)
        future = self._engine.submit(Request(prompt_token_ids=prompt.token_ids, seed=seed))

        def finished(done: Future[Answer]) -> None:
            if done.exception() is None:
                unit_journal.append(position, done.result())
                self._report.answered(len(done.result().output_token_ids))

        future.add_done_callback(finished)
        return future

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
    missing = next(
        (path for path in (spec.prompts, spec.out / ".engines") if not path.is_dir()), None
    )
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
