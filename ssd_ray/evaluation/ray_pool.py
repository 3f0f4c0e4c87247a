"""Completions into shards of verdicts while they are still being generated: the verb `grade`.

The driver watches the generations' directory and hands the missing keys of every complete shard,
slice by slice, to the pool of graders that all steps of a run share (`pool.py`). No row reaches the
driver. Reads Completion and Problem shards, writes Verdict shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import ledger, manifests, slices
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.crew import RayCrew
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.pool import GraderPool, Work
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys
from ssd_ray.progress import Progress, Task

_POLL_S = 0.2


def pool_on_ray(cluster: ClusterConfig, logs: Path) -> GraderPool:
    """Make the pool of a run, with graders as actors; it needs Ray once it is open and has work."""
    return GraderPool(RayCrew(cluster, logs), cluster.max_failures)


def grade(
    generations: Path,
    order: GradingSpec,
    pool: GraderPool,
    *,
    total: int,
    ended: Callable[[], bool],
    stage: str,
    progress: Progress,
) -> dict[str, Any]:
    """Grade `total` completions of `generations`, those to come until `ended()` included.

    Returns:
        What the artifact says of itself, as `verdicts.facts`.

    Raises:
        UserError: a grader found a mistake in its input, or a sandbox below the floor.
        InfrastructureError: graders of this step were lost more often than `cluster.max_failures`
            allows, or completions are missing.
    """
    done = graded_keys(order.out)
    with progress.task(stage, total=total, unit="verdicts", done=len(done)) as task:
        if len(done) < total:
            with pool.work(order, stage) as work:
                _follow(work, _Source(generations, done, ended), task, len(done))
        task.update(len(slices.keys_on_disk(order.out)))
    found = facts(order)
    if missing := total - found["rows"] - _never_drawn(generations):
        raise InfrastructureError(
            f"{stage}: {missing} of {total} completions came to no verdict; run again to resume"
        )
    return found


def _never_drawn(generations: Path) -> int:
    """Count the answers that could not be drawn: they are on record, and there is nothing to grade."""
    complete = (generations / "manifest.json").exists()
    return len(manifests.load(generations).facts.get("failed", ())) if complete else 0


class _Source:
    """Slices of the shards that are there, and of those that come."""

    def __init__(self, generations: Path, done: set[slices.Key], ended: Callable[[], bool]) -> None:
        self._arrivals = ledger.Arrivals(generations)
        self._done = done
        self._ended = ended
        self.closed = False

    def new(self) -> list[dict[str, Any]]:
        """Cut the shards that appeared since the last call; the last ones once `ended()`."""
        self.closed = self._ended()
        return [
            piece
            for path in self._arrivals.new()
            for piece in slices.slices_of(path, self._done, SLICE_ROWS)
        ]


def _follow(work: Work, source: _Source, task: Task, before: int) -> None:
    """Hand in slices as they appear until the source has ended and all of them are graded."""
    while work.left or not source.closed:
        if not source.closed:
            work.put(source.new())
        graded = work.wait(_POLL_S)
        if not work.left and not source.closed:
            task.wait("waiting for answers")
            time.sleep(_POLL_S)
        elif work.left and not work.at_work:
            task.wait("waiting for graders")
        else:
            task.update(before + graded)
