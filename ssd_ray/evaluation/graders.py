"""Completions through a pool of graders on Ray into shards of verdicts, while they are still being generated: the verb `grade`.

The driver watches the generations' directory and hands every whole shard's missing keys, slice by slice, to actors; a
dead actor is replaced and its slice graded again, which changes nothing. No row reaches the driver. Reads Completion and
Problem shards, writes Verdict shards.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_ray import artifacts, ledger, niceness, streaming
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError, first_line, one_line
from ssd_ray.evaluation.grader import Grader, Order
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys
from ssd_ray.progress import Progress, Task

_POLL_S = 0.2
_PATIENCE_S = 3.0


def grade(
    generations: Path,
    order: Order,
    cluster: ClusterConfig,
    *,
    total: int,
    ended: Callable[[], bool],
    stage: str,
    logs: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Grade the `total` completions that are, or until `ended()` come to be, in `generations`; return counts.

    Raises:
        UserError: a grader found a mistake in its input, or a sandbox below the floor.
        InfrastructureError: graders crashed more often than `cluster.max_failures`, or completions are missing.
    """
    done = graded_keys(order.out)
    with progress.task(stage, total=total, unit="verdicts", done=len(done)) as task:
        if len(done) < total:
            pool = _Pool(order, cluster, logs, _size(cluster, total - len(done)))
            try:
                _drive(pool, _Source(generations, done, ended), task, len(done))
            finally:
                pool.close()
        task.update(len(streaming.keys_on_disk(order.out)))
    found = facts(order)
    if missing := total - found["rows"] - _never_drawn(generations):
        raise InfrastructureError(f"{stage}: {missing} of {total} completions came to no verdict; run again to resume")
    return found


def _never_drawn(generations: Path) -> int:
    """Answers that could not be drawn: they are on record, and there is nothing to grade."""
    whole = (generations / "manifest.json").exists()
    return len(artifacts.load(generations).facts.get("failed", ())) if whole else 0


def _size(cluster: ClusterConfig, rows: int) -> int:
    """Graders to start: as many as the cluster's cores hold, none for less than a slice."""
    import ray

    cores = float(ray.cluster_resources().get("CPU", 1))
    fit = int(cores // cluster.grader_cpus) if cluster.grader_cpus else int(cores)
    return max(1, min(cluster.max_graders or fit, -(-rows // SLICE_ROWS)))


class _Source:
    """Slices of the shards that are there, and of those that come."""

    def __init__(self, generations: Path, done: set[streaming.Key], ended: Callable[[], bool]) -> None:
        self._arrivals, self._done, self._ended = ledger.Arrivals(generations), done, ended
        self.closed = False

    def new(self) -> list[dict[str, Any]]:
        """The slices of shards that appeared since the last call; the last ones when the generation has ended."""
        self.closed = self._ended()
        return [piece for path in self._arrivals.new() for piece in streaming.slices_of(path, self._done, SLICE_ROWS)]


class _Actor:
    """A grader in a Ray actor; its first call finds out whether it stands."""

    def __init__(self, order: Order, logs: Path) -> None:
        streaming.log_to_file(logs, "grader")
        niceness.settle()  # the time limits of programs are the same beside engines
        self._order = order
        self._grader: Grader | None = None

    def grade(self, piece: dict[str, Any]) -> int:
        """As `Grader.grade`."""
        if self._grader is None:
            self._grader = Grader(self._order)
        return self._grader.grade(piece)


class _Pool:
    """Actors, idle or at work on a slice each; none while there is nothing to grade, so that engines get the cores."""

    def __init__(self, order: Order, cluster: ClusterConfig, logs: Path, size: int) -> None:
        import ray

        self._actor = ray.remote(_Actor).options(num_cpus=cluster.grader_cpus, max_restarts=0, max_task_retries=0)
        self._arguments = (order, logs)
        self._failures_left, self._size = cluster.max_failures, size
        self._idle: list[Any] = []
        self._idle_since = time.monotonic()
        self.at_work: dict[Any, tuple[Any, dict[str, Any]]] = {}

    def start(self, piece: dict[str, Any]) -> None:
        """Give a slice to an idle actor, or to a new one."""
        actor = self._idle.pop() if self._idle else self._actor.remote(*self._arguments)
        self.at_work[actor.grade.remote(piece)] = (actor, piece)
        self._idle_since = time.monotonic()

    @property
    def has_room(self) -> bool:
        """Whether an actor is idle, or may be started."""
        return len(self.at_work) < self._size

    def release(self) -> None:
        """End idle actors that had nothing to do for a while: an engine may be waiting for their cores."""
        import ray

        if self._idle and time.monotonic() - self._idle_since > _PATIENCE_S:
            for actor in self._idle:
                ray.kill(actor)
            self._idle.clear()

    def finished(self) -> tuple[int, list[dict[str, Any]]]:
        """Rows that were graded since the last call, and slices whose actor died; waits a moment for the first.

        Raises:
            UserError: as the grader said.
            InfrastructureError: one death too many.
        """
        import ray

        rows, lost = 0, []
        for reference in ray.wait(list(self.at_work), num_returns=1, timeout=_POLL_S)[0]:
            actor, piece = self.at_work.pop(reference)
            try:
                rows += ray.get(reference)
                self._idle.append(actor)
            except ray.exceptions.RayActorError as error:
                self._failures_left -= 1
                if self._failures_left < 0:
                    raise InfrastructureError(f"graders kept dying ({first_line(error)}); see the run's logs") from error
                lost.append(piece)
            except ray.exceptions.RayTaskError as error:
                raise _cause(error) from error
        return rows, lost

    def close(self) -> None:
        """End every actor, and with it its sandbox."""
        import ray

        for actor in [*self._idle, *(actor for actor, _ in self.at_work.values())]:
            ray.kill(actor)


def _cause(error: Any) -> Exception:
    cause = error.cause
    return (
        cause
        if isinstance(cause, UserError | InfrastructureError)
        else InfrastructureError(f"a grader failed: {one_line(cause)}")
    )


def _drive(pool: _Pool, source: _Source, task: Task, before: int) -> None:
    """Keep every actor at work until the source has ended and nothing is left."""
    waiting: deque[dict[str, Any]] = deque()
    graded = before
    while True:
        if not source.closed:
            waiting.extend(source.new())
        while waiting and pool.has_room:
            pool.start(waiting.popleft())
        if pool.at_work:
            rows, lost = pool.finished()
            graded += rows
            waiting.extendleft(lost)
            task.update(graded)
        elif source.closed and not waiting:
            return
        else:
            pool.release()
            time.sleep(_POLL_S)
