"""One pool of graders for all grading steps of a run.

A step hands in slices of completions as they appear, and waits for their number of graded rows.
The pool gives every idle grader to the step with the fewest busy graders.

- Bound: graders of all steps together never exceed the cores of the cluster.
- Fairness: waiting steps get equal numbers of graders, however many slices each has.
- Reuse: a grader serves any step and keeps its sandbox and tests.
- Release: idle graders end after a while, and engines get the cores.
- Crashes: the slice of a lost grader is graded again, with the same verdicts. Crashes count by
  slice: a lost node takes many graders at once, and must not end a run.

The pool itself neither calls Ray nor sees rows: its graders do. They are actors of Ray
(`grader_actors.py`) or processes of this machine (`standalone/workers.py`). Accesses no files.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.grader import GradingSpec

_POLL_S = 0.2
_PATIENCE_S = 3.0
_END_TIMEOUT_S = 10.0


class LostGraderError(Exception):
    """A crashed or unreachable grader; the message is the reason in one line."""


@dataclass(kw_only=True)
class Piece:
    """A slice of completions and the number of graders lost on it."""

    slice: Slice
    crashes: int = 0


class GraderBackend(Protocol):
    """The graders of a pool, such as `grader_actors.RayBackend` for actors of Ray."""

    def size(self) -> int:
        """Return the number of graders allowed to run now."""

    def start(self) -> tuple[Any, Any]:
        """Start a grader; return it and a reference to its readiness."""

    def grade(self, actor: Any, spec: GradingSpec, piece: Slice) -> Any:
        """Send a slice to a grader; return a reference to its number of rows."""

    def finished(self, references: list[Any], timeout_s: float) -> list[Any]:
        """Wait at most `timeout_s` for a call to end; return the ended calls."""

    def result(self, reference: Any) -> int:
        """Return the number of rows of an ended call, or raise its exception."""

    def end(self, actor: Any) -> None:
        """Kill a grader."""


class Work:
    """Slices of one step; a context manager, with the remaining slices withdrawn at its end."""

    def __init__(self, spec: GradingSpec, stage: str, changed: threading.Condition) -> None:
        self.spec = spec
        self.stage = stage
        self.waiting: deque[Piece] = deque()
        # Graders that hold a slice of this step.
        self.at_work = 0
        # Number of the last slice handed out. Of equal steps, the one with the lowest is next.
        self.turn = 0
        self.ended = False
        self._rows = 0
        self._error: Exception | None = None
        self._changed = changed

    def __enter__(self) -> Work:
        """Return the work; grading begins with the first slice."""
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
    def remaining(self) -> int:
        """Slices without a result."""
        return len(self.waiting) + self.at_work

    def put(self, pieces: Iterable[Slice]) -> None:
        """Hand in more slices; after a failure they are dropped."""
        with self._changed:
            if self._error is None:
                self.waiting.extend(Piece(slice=piece) for piece in pieces)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> int:
        """Wait at most `timeout_s` until no slice is left; return the rows graded so far.

        Raises:
            UserError: a grader found a mistake in its input.
            InfrastructureError: graders of this step crashed too often, or the pool is closed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or not self.remaining, timeout_s)
            if self._error is not None:
                raise self._error
            return self._rows

    def graded(self, rows: int) -> None:
        """Add the rows of a slice."""
        self._rows += rows

    def fail(self, error: Exception) -> None:
        """Drop the waiting slices and keep the first error for `wait` to raise."""
        self.waiting.clear()
        self._error = self._error or error


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A call of a grader in progress; without `work` it is the grader's start."""

    actor: Any
    began: float
    work: Work | None = None
    piece: Piece | None = None


class GraderPool:
    """Graders for the works of several threads, dispatched by a thread of its own.

    `max_failures` bounds the crashes of a slice, and the failed starts in a row.
    """

    def __init__(self, backend: GraderBackend, max_failures: int) -> None:
        self._backend = backend
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
        """End all graders; waiting works fail with "the run was stopped"."""
        with self._changed:
            self._open = False
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(_END_TIMEOUT_S)
            self._thread = None

    def work(self, spec: GradingSpec, stage: str) -> Work:
        """Begin the work of a step.

        Raises:
            InfrastructureError: the pool is closed, or its graders do not start.
        """
        work = Work(spec, stage, self._changed)
        with self._changed:
            if not self._open:
                raise self._reason
            self._works.append(work)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="graders", daemon=True)
                self._thread.start()
        return work

    def _run(self) -> None:
        """Dispatch slices and take in results until the pool closes."""
        try:
            while self._open:
                with self._changed:
                    self._dispatch()
                    self._release()
                    references = list(self._calls)
                    if not references:
                        self._changed.wait(_POLL_S)
                        continue
                ended = self._backend.finished(references, _POLL_S)
                with self._changed:
                    for reference in ended:
                        self._settle(self._calls.pop(reference), reference)
                    self._changed.notify_all()
        except Exception as error:
            # Raised in the threads of the steps: this thread has no caller.
            self._reason = error
        finally:
            self._end_all()

    def _dispatch(self) -> None:
        """Hand a slice to every idle grader, and start graders for the slices beyond."""
        while self._idle and (work := self._next()) is not None:
            # The grader idle for the shortest time. The others stay idle, and `_release` ends them.
            actor, _ = self._idle.pop()
            piece = work.waiting.popleft()
            work.at_work += 1
            self._turns += 1
            work.turn = self._turns
            call = _Call(actor=actor, began=time.monotonic(), work=work, piece=piece)
            self._calls[self._backend.grade(actor, work.spec, piece.slice)] = call
        lacking = sum(len(work.waiting) for work in self._works) - len(self._starting)
        room = self._backend.size() - len(self._calls) - len(self._idle) if lacking > 0 else 0
        for _ in range(min(lacking, room)):
            actor, reference = self._backend.start()
            self._calls[reference] = _Call(actor=actor, began=time.monotonic())

    def _next(self) -> Work | None:
        """Return the waiting step with the fewest graders, round-robin among equals."""
        waiting = [work for work in self._works if work.waiting]
        return min(waiting, key=lambda work: (work.at_work, work.turn), default=None)

    @property
    def _starting(self) -> list[Any]:
        return [reference for reference, call in self._calls.items() if call.work is None]

    def _settle(self, call: _Call, reference: Any) -> None:
        """Record the result of an ended call."""
        try:
            rows = self._backend.result(reference)
        except LostGraderError as lost:
            self._backend.end(call.actor)
            self._count_crash(call, lost)
            return
        # Any error of grading belongs to the step with this slice, whose thread raises it.
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

    def _count_crash(self, call: _Call, lost: LostGraderError) -> None:
        """Requeue the slice of a lost grader at the front, at most `max_failures` times."""
        message = f"graders kept crashing ({lost}); see the run's logs, and run again to resume"
        if call.work is None or call.piece is None:
            # Starts that were lost together are one failure.
            if call.began >= self._failed_at:
                self._failed_starts += 1
                self._failed_at = time.monotonic()
            if self._failed_starts > self._max_failures:
                raise InfrastructureError(message) from lost
            return
        call.work.at_work -= 1
        call.piece.crashes += 1
        if call.piece.crashes > self._max_failures:
            call.work.fail(InfrastructureError(f"{call.work.stage}: {message}"))
        elif not call.work.ended:
            call.work.waiting.appendleft(call.piece)

    def _release(self) -> None:
        """End graders idle for `_PATIENCE_S`, and starts without a waiting slice."""
        now = time.monotonic()
        if any(work.waiting for work in self._works):
            self._waited_at = now
        # A start may be left over if another grader took its slice.
        if now - self._waited_at > _PATIENCE_S:
            for reference in self._starting:
                self._backend.end(self._calls.pop(reference).actor)
        while self._idle and now - self._idle[0][1] > _PATIENCE_S:
            self._backend.end(self._idle.popleft()[0])
        self._works = [work for work in self._works if work.remaining or not work.ended]

    def _end_all(self) -> None:
        """End every grader and fail every work."""
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
            self._backend.end(actor)


def _stopped() -> InfrastructureError:
    return InfrastructureError("the run was stopped")
