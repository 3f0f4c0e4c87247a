"""An engine in a Ray actor: a unit of prompts comes in, one shard of completions goes to disk.

Each finished answer is journalled; a unit that another engine left unfinished is taken over from there. Positions that were
being drawn when engines died are tried apart from all others (docs/sampling.md). Reads Prompt shards, writes Completion
shards and their records.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ssd_ray import ledger
from ssd_ray.errors import UserError
from ssd_ray.inference import guardian, journal, source, status
from ssd_ray.inference.engine import CRASH_EXIT_CODE, Answer, RefusedRequestError, Request, sample_seed
from ssd_ray.inference.shards import Drawn, write_completions
from ssd_ray.ledger import Failure, Record, Span
from ssd_ray.schema import Prompt
from ssd_ray.streaming import log_to_file

if TYPE_CHECKING:
    import pyarrow as pa

_TRIES = 3
_NOTICE_PERIOD_S = 5.0
_PATIENT_STARTS = 4


class Draws(Protocol):
    """What a worker needs of an engine."""

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future holds its answer, or why there is none."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What every engine of a stage is told: how to make the engine, what to draw, where to write."""

    make_engine: Callable[[], Draws]
    prompts: Path
    samples: int
    seed: int
    out: Path
    logs: Path
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)


class EngineWorker:
    """One engine, several units at a time."""

    def __init__(self, order: Order) -> None:
        import ray

        guardian.guard()
        log_to_file(order.logs, "engine")
        self._order = order
        context = ray.get_runtime_context()
        self._node = context.get_node_id()
        self._report = status.Reporter(
            order.out, context.get_actor_id(), node=self._node, attempt=order.attempt, is_alive=_is_alive
        )
        self._gate, self._draining = _Gate(), threading.Event()
        self._calls = _Calls()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, lambda *_: self._draining.set())
        # A machine that is no good beside others that are: try ever more rarely.
        self._draining.wait(_pause_s(self._report.failed_starts))
        try:
            self._engine = order.make_engine()
        except Exception as error:
            traceback.print_exc()
            sys.stderr.flush()
            # An exception here would end the actor for good; an exit has Ray start it anew, and the driver counts.
            self._report.become("failed", " ".join(str(error).split())[:400], mistake=isinstance(error, UserError))
            os._exit(CRASH_EXIT_CODE)
        self._report.become("ready")
        threading.Thread(target=self._watch_notice, name="notice", daemon=True).start()

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Draw one unit; returns how many rows this engine put on disk."""
        import pyarrow as pa

        unit = source.span_of(batch)
        with self._calls.one():
            if self._draining.is_set():
                source.give_back(self._order.out, self._report.engine, unit)
                return pa.table({"rows": [0]})
            try:
                return pa.table({"rows": [self._draw_unit(unit)]})
            except UserError as error:
                self._report.become("failed", str(error), mistake=True)
                raise

    def _draw_unit(self, unit: Span) -> int:
        order = self._order
        if (there := _on_record(order.out, unit)) is not None:
            # Whoever had this unit before died after its last line, or outlived its driver; the source may not have heard of it.
            ledger.append(order.out, self._report.engine, there)
            return 0
        prompts = read_prompts(order.prompts, unit, order.samples)
        drawing = _Unit(unit, prompts, order.samples, journal.recover(order.out, unit))
        own = journal.Journal(order.out, unit, self._report.engine)
        dead = [one for one in status.read(order.out) if one.dead]
        drawing.leave_out(status.left_out(dead))
        suspects = [span for span in drawing.missing() if status.suspicion(dead, span) >= status.SUSPECT_DEATHS]
        if suspects:
            for group in _groups(suspects, max(status.suspicion(dead, span) for span in suspects)):
                alone = prompts[group[0].start].prompt_id if len(group) == 1 else ""
                with self._gate.alone():
                    self._answer(drawing, group, own, alone)
        with self._gate.shared():
            self._answer(drawing, list(drawing.missing()), own, "")
        write_completions(order.out, self._report.engine, unit, drawing.drawn(order.seed), drawing.failures())
        own.remove()
        self._report.recorded()
        if not drawing.answers:
            self._report.refused(drawing.failures()[-1].reason)
        return unit.rows

    def _answer(self, drawing: _Unit, spans: list[Span], own: journal.Journal, alone: str) -> None:
        """Have these positions answered; three refusals of one request without a death are its failure."""
        if not spans:
            return
        whole = Span(drawing.unit.source, spans[0].start, spans[-1].stop)
        with self._report.drawing(whole, alone):
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
                        drawing.reasons[position] = f"refused {_TRIES} times: {type(error).__name__}: {error}"[:400]
                    else:
                        waiting.append(position)

    def _submit(self, drawing: _Unit, position: int, own: journal.Journal) -> Future[Answer]:
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
        import ray

        while not self._draining.wait(_NOTICE_PERIOD_S):
            if self._node in ray._private.state.state.get_draining_nodes():
                self._draining.set()
        self._report.become("draining")
        self._calls.wait_for_none()
        self._report.become("ended")
        os._exit(0)  # Ray starts this actor anew where there is room


class _Unit:
    """The answers of one unit while it is drawn, by position."""

    def __init__(self, unit: Span, prompts: Mapping[int, Prompt], samples: int, answers: dict[int, Answer]) -> None:
        self.unit, self.prompts, self.answers, self.reasons = unit, prompts, answers, dict[int, str]()
        self._samples = samples

    def missing(self) -> Iterator[Span]:
        """What is left, one span for each prompt that has positions without an answer."""
        position = self.unit.start
        while position < self.unit.stop:
            end = min(self.unit.stop, position - position % self._samples + self._samples)
            there = [at for at in range(position, end) if at not in self.answers and at not in self.reasons]
            for start, stop in _runs(there):
                yield Span(self.unit.source, start, stop)
            position = end

    def leave_out(self, prompt_ids: frozenset[str]) -> None:
        """Give up on prompts that end engines."""
        for position, prompt in self.prompts.items():
            if prompt.prompt_id in prompt_ids and position not in self.answers:
                self.reasons[position] = f"the engine died {status.ALONE_DEATHS} times with this prompt alone in it"

    def drawn(self, seed: int) -> list[Drawn]:
        """Every answer with its key, in order."""
        return [
            Drawn(
                prompt=self.prompts[position],
                sample_index=position % self._samples,
                seed=sample_seed(seed, self.prompts[position].prompt_id, position % self._samples),
                answer=self.answers[position],
            )
            for position in sorted(self.answers)
        ]

    def failures(self) -> tuple[Failure, ...]:
        """Every answer that could not be drawn."""
        return tuple(
            Failure(
                prompt_id=self.prompts[position].prompt_id, sample_index=position % self._samples, reason=self.reasons[position]
            )
            for position in sorted(self.reasons)
        )


class _Calls:
    """How many calls are inside."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count a call."""
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    def wait_for_none(self) -> None:
        """Return when no call is inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)


class _Gate:
    """Units share an engine, or one has it alone; who wants it alone is not kept waiting by those who come after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._waiting, self._taken = 0, 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._taken and not self._inside)
            self._waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()


def _pause_s(failed_starts: int) -> float:
    """How long to wait after so many failed starts in a row: the first few do not wait."""
    return 0.0 if failed_starts < _PATIENT_STARTS else min(10.0 * 2 ** (failed_starts - _PATIENT_STARTS), 300.0)


def _is_alive(node: str) -> bool:
    import ray

    return any(there["NodeID"] == node and there["Alive"] for there in ray.nodes())


def read_prompts(directory: Path, unit: Span, samples: int) -> dict[int, Prompt]:
    """The prompts of a unit, by position."""
    import pyarrow.parquet as pq

    first, last = unit.start // samples, (unit.stop - 1) // samples
    table = pq.read_table(directory / f"{unit.source}.parquet", memory_map=True).slice(first, last - first + 1)
    rows = [Prompt(**{**row, "token_ids": tuple(row["token_ids"])}) for row in table.to_pylist()]
    return {position: rows[position // samples - first] for position in range(unit.start, unit.stop)}


def _groups(suspects: list[Span], deaths: int) -> Iterator[list[Span]]:
    """Suspects in groups of about the root of their number, one by one once that has not told."""
    size = isqrt(len(suspects)) if deaths == status.SUSPECT_DEATHS else 1
    for start in range(0, len(suspects), size):
        yield suspects[start : start + size]


def _runs(positions: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbouring positions as (first, last + 1)."""
    start = stop = -1
    for position in positions:
        if position != stop:
            if stop > start:
                yield start, stop
            start = position
        stop = position + 1
    if stop > start:
        yield start, stop


def _on_record(out: Path, unit: Span) -> Record | None:
    if not (out / f"{unit.name}.parquet").exists():
        return None
    return next((record for record in ledger.tail(out).new() if record.span == unit), None)
