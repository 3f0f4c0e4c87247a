"""One pool of graders for all steps of a run that grade.

A step hands in slices of completions as they appear, and waits for their number of graded rows. The
pool gives every free grader to the step that has the fewest at work.

- Bound: graders of all steps together never exceed what the cluster's cores hold.
- Fairness: steps that wait advance alike, however many slices each has.
- Reuse: a grader serves any step; its sandbox and its tests stay with it.
- Release: graders that are idle for a while end, so that engines get the cores.
- Deaths: a slice of a lost grader is graded again, which changes nothing. They count by slice, so
  that the loss of a node, which takes many graders at once, does not end a run.

Knows neither Ray nor rows: `crew.py` has the graders. Reads and writes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.crew import LostGraderError
from ssd_ray.evaluation.grader import GradingSpec

_POLL_S = 0.2
_PATIENCE_S = 3.0
_END_TIMEOUT_S = 10.0


@dataclass(kw_only=True)
class Piece:
    """A slice of completions, and how many graders were lost with it."""

    record: Mapping[str, Any]
    """As `streaming.slices_of` cuts them."""
    deaths: int = 0


class Crew(Protocol):
    """What the pool needs of graders; `crew.RayCrew` has them as actors."""

    def size(self) -> int:
        """Count the graders that there may be now."""

    def start(self) -> tuple[Any, Any]:
        """Start a grader; return it and a reference that is ready when it is up."""

    def grade(self, actor: Any, order: GradingSpec, piece: Mapping[str, Any]) -> Any:
        """Give a grader a slice; return a reference to the number of its rows."""

    def finished(self, references: list[Any], timeout_s: float) -> list[Any]:
        """Wait for the first of these calls; return those that have ended."""

    def result(self, reference: Any) -> int:
        """Return the rows of a call that has ended, or raise what it raised."""

    def end(self, actor: Any) -> None:
        """End a grader."""


class Work:
    """The slices of one step; a context manager, which withdraws what is left of them."""

    def __init__(self, order: GradingSpec, stage: str, changed: threading.Condition) -> None:
        self.order = order
        self.stage = stage
        self.waiting: deque[Piece] = deque()
        self.at_work = 0
        """Graders that have a slice of this step."""
        self.turn = 0
        """Number of the last slice that was given out; of equal steps the one with the lowest is next."""
        self.ended = False
        self._rows = 0
        self._error: Exception | None = None
        self._changed = changed

    def __enter__(self) -> Work:
        """Nothing is graded before the first slice."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self.waiting.clear()
            self.ended = True

    @property
    def left(self) -> int:
        """Slices that are not graded yet."""
        return len(self.waiting) + self.at_work

    def put(self, pieces: Iterable[Mapping[str, Any]]) -> None:
        """Hand in more slices; after a failure they are not wanted any more."""
        with self._changed:
            if self._error is None:
                self.waiting.extend(Piece(record=piece) for piece in pieces)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> int:
        """Wait until no slice is left, for `timeout_s` at most; return the rows graded so far.

        Raises:
            UserError: a grader found a mistake.
            InfrastructureError: graders of this step were lost too often, or the pool is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self.left, timeout_s)
            if self._error is not None:
                raise self._error
            return self._rows

    def graded(self, rows: int) -> None:
        """Count the rows of a slice."""
        self._rows += rows

    def fail(self, error: Exception) -> None:
        """End the step's grading; the first error counts."""
        self.waiting.clear()
        self._error = self._error or error


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a grader that has not ended; without work it is the grader's start."""

    actor: Any
    began: float
    work: Work | None = None
    piece: Piece | None = None


class GraderPool:
    """Graders for the works of several threads, given out by a thread of its own."""

    def __init__(self, crew: Crew, max_failures: int) -> None:
        self._crew = crew
        self._max_failures = max_failures
        self._changed = threading.Condition()
        self._works: list[Work] = []
        self._calls: dict[Any, _Call] = {}
        self._idle: deque[tuple[Any, float]] = deque()
        self._turns = 0
        self._waited_at = 0.0
        self._failed_starts = 0
        self._failed_at = 0.0
        self._open = False
        self._reason: Exception = _stopped()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> GraderPool:
        """Open the pool; graders start with the first slices."""
        self._failed_starts = 0
        self._reason = _stopped()
        self._open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all graders; works that wait fail as those of a run that was stopped."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)
            self._thread = None

    def work(self, order: GradingSpec, stage: str) -> Work:
        """Begin the work of a step.

        Raises:
            InfrastructureError: the pool is closed, or its graders do not start.
        """
        work = Work(order, stage, self._changed)
        with self._changed:
            if not self._open:
                raise self._reason
            self._works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="graders", daemon=True)
                self._thread.start()
        return work

    def _run(self) -> None:
        """Give out slices and take in results until the pool closes."""
        try:
            while self._open:
                with self._changed:
                    self._give_out()
                    self._release()
                    references = list(self._calls)
                    if not references:
                        self._changed.wait(_POLL_S)
                        continue
                ended = self._crew.finished(references, _POLL_S)
                with self._changed:
                    for reference in ended:
                        self._settle(self._calls.pop(reference), reference)
                    self._changed.notify_all()
        except Exception as error:  # raised in the threads of the steps
            self._reason = error
        finally:
            self._end_all()

    def _give_out(self) -> None:
        """Give every idle grader a slice, and start graders for the slices beyond these."""
        while self._idle and (work := self._next()) is not None:
            actor, _ = self._idle.pop()
            piece = work.waiting.popleft()
            work.at_work += 1
            self._turns += 1
            work.turn = self._turns
            call = _Call(actor=actor, began=time.monotonic(), work=work, piece=piece)
            self._calls[self._crew.grade(actor, work.order, piece.record)] = call
        lacking = sum(len(work.waiting) for work in self._works) - len(self._starting)
        room = self._crew.size() - len(self._calls) - len(self._idle) if lacking > 0 else 0
        for _ in range(min(lacking, room)):
            actor, reference = self._crew.start()
            self._calls[reference] = _Call(actor=actor, began=time.monotonic())

    def _next(self) -> Work | None:
        """Choose the step with the fewest graders among those that wait, in turns among equals."""
        waiting = [work for work in self._works if work.waiting]
        return min(waiting, key=lambda work: (work.at_work, work.turn), default=None)

    @property
    def _starting(self) -> list[Any]:
        return [reference for reference, call in self._calls.items() if call.work is None]

    def _settle(self, call: _Call, reference: Any) -> None:
        """Take in a call that has ended."""
        try:
            rows = self._crew.result(reference)
        except LostGraderError as lost:
            self._crew.end(call.actor)
            self._count_death(call, lost)
            return
        except Exception as error:
            if call.work is None:
                raise
            call.work.fail(error)
            rows = 0
        self._idle.append((call.actor, time.monotonic()))
        if call.work is None:
            self._failed_starts = 0
        else:
            call.work.at_work -= 1
            call.work.graded(rows)

    def _count_death(self, call: _Call, lost: LostGraderError) -> None:
        """Put the slice of a lost grader first again, as often as `max_failures` allows."""
        message = f"graders kept dying ({lost}); see the run's logs, and run again to resume"
        if call.work is None or call.piece is None:
            if call.began >= self._failed_at:  # starts that were lost together are one failure
                self._failed_starts += 1
                self._failed_at = time.monotonic()
            if self._failed_starts > self._max_failures:
                raise InfrastructureError(message) from lost
            return
        call.work.at_work -= 1
        call.piece.deaths += 1
        if call.piece.deaths > self._max_failures:
            call.work.fail(InfrastructureError(f"{call.work.stage}: {message}"))
        elif not call.work.ended:
            call.work.waiting.appendleft(call.piece)

    def _release(self) -> None:
        """End graders that had nothing to do for a while, and starts that nothing waits for."""
        now = time.monotonic()
        if any(work.waiting for work in self._works):
            self._waited_at = now
        if now - self._waited_at > _PATIENCE_S:
            for reference in self._starting:
                self._crew.end(self._calls.pop(reference).actor)
        while self._idle and now - self._idle[0][1] > _PATIENCE_S:
            self._crew.end(self._idle.popleft()[0])
        self._works = [work for work in self._works if work.left or not work.ended]

    def _end_all(self) -> None:
        """End every grader and fail every work, as nothing is graded any more."""
        with self._changed:
            self._open = False
            actors = [call.actor for call in self._calls.values()] + [
                actor for actor, _ in self._idle
            ]
            self._calls.clear()
            self._idle.clear()
            for work in self._works:
                work.fail(self._reason)
            self._works.clear()
            self._changed.notify_all()
        for actor in actors:
            self._crew.end(actor)


def _stopped() -> InfrastructureError:
    return InfrastructureError("the run was stopped")
