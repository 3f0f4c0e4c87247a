"""An engine in a Ray actor: a unit of prompts comes in, one shard of completions goes to disk.

Each finished answer is journalled; a unit that another engine left unfinished is taken over from there. Positions that were
being drawn when engines died are tried apart from all others (docs/sampling.md). Reads Prompt shards, writes Completion
shards and their records.
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
from ssd_ray.inference.crashes.attribution import DOUBTED_DEATHS, SUSPECT_DEATHS, Deaths
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
    """What a worker needs of an engine."""

    tokens_drawn: int
    """Tokens of all requests so far, those in flight included."""

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future holds its answer, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class EngineSpec:
    """What every engine of a stage is told: how to make the engine, what to draw, where to write."""

    make_engine: Callable[[], EngineProtocol]
    prompts: Path
    samples: int
    seed: int
    out: Path
    logs: Path
    max_tokens: int | None = None
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)


class EngineWorker:
    """One engine, several units at a time."""

    def __init__(self, order: EngineSpec, concurrent_units: int) -> None:
        import ray

        reaper.guard()
        os.environ.update(short_paths.vllm_environment())
        self._order = order
        self._misplaced = _misplaced(order)
        if self._misplaced:
            return  # nothing could be said from here; the first call raises it
        self._end_if_replaced()
        log_to_file(order.logs, "engine")
        context = ray.get_runtime_context()
        self._node, self._actor = context.get_node_id(), context.get_actor_id()
        self._report = heartbeat.Reporter(
            order.out,
            self._actor,
            node=self._node,
            attempt=order.attempt,
            is_alive=cluster_state.has_node,
            niceness=niceness.settle(),
        )
        self._gate, self._calls = SharedExclusiveLock(), ConcurrencyLimiter(concurrent_units)
        self._to_give_back, self._trial = 2 * concurrent_units, threading.Lock()
        self._draining, self._leaving = threading.Event(), threading.Event()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._draining.set())
        # A machine that is no good beside others that are: try ever more rarely.
        self._draining.wait(_pause_s(self._deaths().fruitless_starts(self._actor)))
        try:
            self._engine = order.make_engine()
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            # An exception here would end the actor for good; an exit has Ray start it anew, and the driver counts.
            mistake = isinstance(error, UserError) and not self._others_started()
            self._report.become("failed", one_line(error), mistake=mistake)
            os._exit(CRASH_EXIT_CODE)
        self._report.become("ready")
        self._report.follow(lambda: self._engine.tokens_drawn)
        record_reasons(lambda reason: self._report.become("failed", reason))
        threading.Thread(target=self._watch_notice, name="notice", daemon=True).start()

    def _others_started(self) -> bool:
        """Return True if another engine of this attempt came up: the mistake is this machine's."""
        engines = heartbeat.read(self._order.out)
        attempt = [one for one in engines if one.attempt == self._order.attempt]
        return any(one.ready and one.actor != self._actor for one in attempt)

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw one unit; returns how many rows this engine put on disk."""
        import pyarrow as pa

        if self._misplaced:
            raise UserError(self._misplaced)
        if self._leaving.is_set():
            threading.Event().wait()  # Ray asks the next process again
        unit = queue.span_of(batch)
        with self._calls.one() as came:
            try:
                return pa.table(
                    {"rows": [self._draw_unit(unit) if came else self._give_back(unit)]}
                )
            except UserError as error:
                self._report.become("failed", str(error), mistake=True)
                raise

    def _draw_unit(self, unit: Span) -> int:
        order = self._order
        if (there := _on_record(order.out, unit)) is not None:
            # Whoever had this unit before died after its last line, or outlived its driver; the source may not have heard of it.
            ledger.append(order.out, self._report.engine, there)
            return 0
        prompts, deaths = read_prompts(order.prompts, unit, order.samples), self._deaths()
        left_out = deaths.left_out()
        if self._is_for_others(
            deaths, unit, {prompt.prompt_id for prompt in prompts.values()} - left_out
        ):
            return self._give_back(unit)
        drawing = WorkUnit(unit, prompts, order.samples, journal.recover(order.out, unit))
        own = journal.Journal(order.out, unit, self._report.engine)
        drawing.leave_out(left_out)
        self._report.retried(sum(span.rows for span in drawing.missing() if deaths.was_begun(span)))
        suspects = [span for span in drawing.missing() if deaths.suspicion(span) >= SUSPECT_DEATHS]
        if suspects:
            for group in groups(suspects, max(deaths.suspicion(span) for span in suspects)):
                alone = prompts[group[0].start].prompt_id if len(group) == 1 else ""
                with self._gate.alone():
                    self._answer(drawing, group, own, alone, testing=True)
        with self._gate.shared():
            self._answer(drawing, list(drawing.missing()), own)
        failures = drawing.failures()
        write_completions(
            order.out,
            self._report.engine,
            unit,
            drawing.drawn(order.seed),
            failures,
            before=self._end_if_replaced,
        )
        own.remove()
        self._report.recorded(len(failures))
        if not drawing.answers:
            self._report.refused(failures[-1].reason)
        return unit.rows

    def _is_for_others(self, deaths: Deaths, unit: Span, prompt_ids: Collection[str]) -> bool:
        """A doubted engine tries itself with one unit that it did not die with, as long as there are others."""
        if deaths.is_for_others(self._actor, unit, prompt_ids):
            return True
        if self._actor not in deaths.doubted:
            return False
        if queue.all_out(self._order.out).exists() or not self._trial.acquire(blocking=False):
            return True
        time.sleep(_LAST_WORDS_S)  # it may be its last as well: what is given back goes first
        return False

    def _deaths(self) -> Deaths:
        return Deaths(heartbeat.read(self._order.out), cluster_state.actors)

    def _give_back(self, unit: Span) -> int:
        """Let another engine draw a unit: at once those in hand, then ever later, as who has none is given the next."""
        self._to_give_back -= 1
        self._leaving.wait(min(max(0.0, -self._to_give_back), _LONGEST_PAUSE_S))
        queue.give_back(self._order.out, self._report.engine, unit)
        return 0

    def _end_if_replaced(self) -> None:
        """A node that was cut off, or a machine that was paused, may come back when another attempt is at work."""
        if not heartbeat.is_current(self._order.out, self._order.attempt):
            print(
                "engine: another attempt is at work, or the stage is whole",
                file=sys.stderr,
                flush=True,
            )
            os._exit(0)

    def _answer(
        self,
        drawing: WorkUnit,
        spans: list[Span],
        own: journal.Journal,
        alone: str = "",
        *,
        testing: bool = False,
    ) -> None:
        """Have these positions answered; three refusals of one request without a death are its failure."""
        if not spans:
            return
        whole = Span(drawing.span.source, spans[0].start, spans[-1].stop)
        with self._report.drawing(whole, alone, testing=testing):
            waiting = [position for span in spans for position in range(span.start, span.stop)]
            for last in (False,) * (_TRIES - 1) + (True,):
                futures = {position: self._submit(drawing, position, own) for position in waiting}
                waiting = []
                for position, future in futures.items():
                    error = future.exception()
                    if error is None:
                        drawing.answers[position] = future.result()
                    elif isinstance(error, RefusedRequestError):
                        drawing.reasons[position] = str(error)
                    elif isinstance(error, UserError):
                        raise error
                    elif last:
                        drawing.reasons[position] = f"refused {_TRIES} times: {one_line(error)}"
                    else:
                        waiting.append(position)
                self._report.retried(len(waiting))

    def _submit(self, drawing: WorkUnit, position: int, own: journal.Journal) -> Future[Answer]:
        prompt = drawing.prompts[position]
        seed = sample_seed(self._order.seed, prompt.prompt_id, position % self._order.samples)
        future = self._engine.submit(Request(prompt_token_ids=prompt.token_ids, seed=seed))

        def finished(done: Future[Answer]) -> None:
            if done.exception() is None:
                own.append(position, done.result())
                self._report.answered(len(done.result().output_token_ids))

        future.add_done_callback(finished)
        return future

    def _watch_notice(self) -> None:
        """On notice (SIGTERM, or the node draining) take nothing in any more, finish what has begun, and end."""
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
        time.sleep(_LAST_WORDS_S)  # what the last calls returned is on its way
        os._exit(0)  # Ray starts this actor anew where there is room


def _misplaced(order: EngineSpec) -> str:
    """What is wrong with this node's storage; empty where nothing is."""
    missing = next(
        (path for path in (order.prompts, order.out / ".engines") if not path.is_dir()), None
    )
    if missing is None:
        return ""
    return f"{missing} is not there on node {socket.gethostname()}: --out must lie on storage that every node sees"


def _pause_s(starts: int) -> float:
    """How long to wait after so many starts in a row that came to nothing: the first few do not wait."""
    return 0.0 if starts < DOUBTED_DEATHS else min(10.0 * 2 ** (starts - DOUBTED_DEATHS), 300.0)


def _on_record(out: Path, unit: Span) -> Record | None:
    if not (out / f"{unit.name}.parquet").exists():
        return None
    return next((record for record in ledger.tail(out).new() if record.span == unit), None)
