"""Graders as processes of this machine, for a pool without Ray.

Each process has a pipe of its own to the pool. It ends with its parent, and a crash shows as the
end of its pipe.

The graders of the processes read slices of completions and write shards of verdicts.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import InfrastructureError, UserError, one_line
from ssd_ray.evaluation.grader import Graders, GradingSpec
from ssd_ray.evaluation.pool import GraderPool, LostGraderError
from ssd_ray.evaluation.sandbox.inside import walls

_MAX_FAILURES = 3
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True, kw_only=True, eq=False)
class _Worker:
    """A process and the pool's end of its pipe."""

    process: BaseProcess
    pipe: Connection


@dataclass(frozen=True, kw_only=True)
class _Call:
    """A request to a worker whose reply is still to come; a worker has one at a time."""

    worker: _Worker
    number: int


@contextmanager
def local_pool(workers: int) -> Iterator[GraderPool]:
    """Open a pool of at most `workers` processes, and end them with the block."""
    with GraderPool(ProcessBackend(workers), _MAX_FAILURES) as pool:
        yield pool


class ProcessBackend:
    """Graders as processes of this machine; references are calls with a reply to come."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._context = multiprocessing.get_context("spawn")
        self._numbers = itertools.count()

    def size(self) -> int:
        """Return the number of processes."""
        return self._workers

    def start(self) -> tuple[_Worker, _Call]:
        """Start a process; return it and a reference to its readiness."""
        # Workers load this module too, and need none of the packages below.
        from ssd_ray.cluster import import_path

        import_path.keep_children_safe()
        pipe, other = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(other, os.getpid()), daemon=True)
        process.start()
        # With the other end open here, the end of the process would not end the pipe.
        other.close()
        worker = _Worker(process=process, pipe=pipe)
        return worker, self._call(worker)

    def grade(self, actor: _Worker, spec: GradingSpec, piece: Slice) -> _Call:
        """Send a slice to a process; return a reference to its number of rows."""
        # If the process ended while it was idle, `result` finds the end of its pipe.
        with contextlib.suppress(OSError):
            actor.pipe.send((spec, piece))
        return self._call(actor)

    def _call(self, worker: _Worker) -> _Call:
        return _Call(worker=worker, number=next(self._numbers))

    def finished(self, references: Sequence[_Call], timeout_s: float) -> list[_Call]:
        """Wait at most `timeout_s` for a reply or the end of a process; return these calls."""
        by_pipe: dict[object, _Call] = {call.worker.pipe: call for call in references}
        pipes = [call.worker.pipe for call in references]
        return [by_pipe[pipe] for pipe in connection.wait(pipes, timeout_s)]

    def result(self, reference: _Call) -> int:
        """Return the number of rows of an ended call.

        Raises:
            LostGraderError: the process crashed.
            UserError: the grader found a mistake in its input.
            InfrastructureError: the grader raised any other exception.
        """
        worker = reference.worker
        try:
            reply: int | Exception = worker.pipe.recv()
        except (EOFError, OSError) as error:
            worker.process.join(_END_TIMEOUT_S)
            raise LostGraderError(
                f"a process ended with status {worker.process.exitcode}"
            ) from error
        if isinstance(reply, Exception):
            raise reply
        return reply

    def end(self, actor: _Worker) -> None:
        """Kill a process, whose sandboxes end with it; do nothing if it has ended."""
        actor.process.kill()
        actor.process.join(_END_TIMEOUT_S)
        actor.pipe.close()


def _serve(pipe: Connection, parent: int) -> None:
    """Grade slices from the pipe until it ends; runs in a worker process."""
    walls.die_with_parent()
    # The parent may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
    graders = Graders()
    # Ctrl-C reaches the processes of a terminal together; the parent alone reports it.
    with contextlib.suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        pipe.send(0)
        while True:
            spec, piece = pipe.recv()
            pipe.send(_graded(graders, spec, piece))


def _graded(graders: Graders, spec: GradingSpec, piece: Slice) -> int | Exception:
    """Return the number of rows of a slice, or the exception for the pool to raise."""
    try:
        return graders.grade(spec, piece)
    except (UserError, InfrastructureError) as error:
        return error
    # A bug: its traceback stays on this machine's screen, and the step gets one line.
    except Exception as error:
        traceback.print_exc()
        return InfrastructureError(f"a grader failed: {one_line(error)}")
