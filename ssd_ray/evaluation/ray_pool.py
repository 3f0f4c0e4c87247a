"""The verb `grade` on Ray: completions to verdicts, while completions still arrive.

- The driver watches the directory of generations.
- It cuts the missing keys of each complete shard into slices for the pool (`pool.py`).
- No row reaches the driver.

Reads Completion and Problem shards, writes Verdict shards.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import audit, manifests, slices
from ssd_ray.artifacts.facts import AnswerFacts, VerdictFacts
from ssd_ray.artifacts.slices import Slice
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.evaluation.pool import GraderPool, Work
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys
from ssd_ray.progress import Progress, Task

_POLL_S = 0.2


def pool_on_ray(cluster: ClusterConfig, logs: Path) -> GraderPool:
    """Return the pool of a run, with graders as actors.

    It needs Ray once it is open and has work.
    """
    return GraderPool(RayBackend(cluster, logs), cluster.max_failures)


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Completions to grade, some perhaps still to arrive."""

    directory: Path
    """The artifact of completions."""
    total: int
    """Completions in the artifact once it is complete."""
    ended: Callable[[], bool]
    """Return True once no more shards will arrive; raise the error if generating failed."""


def grade(
    answers: Answers, spec: GradingSpec, pool: GraderPool, *, stage: str, progress: Progress
) -> VerdictFacts:
    """Grade all completions, including those still to arrive until `answers.ended()`.

    Returns:
        The facts of the artifact (`verdicts.facts`).

    Raises:
        UserError: a grader found a mistake in its input, or a sandbox is below the floor.
        InfrastructureError: graders of this step crashed more often than `cluster.max_failures`
            allows, or completions are missing.
    """
    done = graded_keys(spec.out)
    total = answers.total
    with progress.task(stage, total=total, unit="verdicts", done=len(done)) as task:
        if len(done) < total:
            with pool.work(spec, stage) as work:
                _follow(work, _Source(answers, done), task, len(done))
        # Counted on disk: a slice graded twice, after a crash, is one shard.
        task.update(len(slices.keys_on_disk(spec.out)))
    result = facts(spec)
    if missing := total - result.rows - _num_undrawn(answers.directory):
        raise InfrastructureError(
            f"{stage}: {missing} of {total} completions have no verdict; run again to resume"
        )
    return result


def _num_undrawn(generations: Path) -> int:
    """Return the number of answers that engines failed to draw, by the manifest."""
    if not (generations / "manifest.json").exists():
        return 0
    return len(manifests.load_facts(generations, AnswerFacts).failed)


class _Source:
    """Slices of the shards on disk and of later ones."""

    def __init__(self, answers: Answers, done: set[slices.Key]) -> None:
        self._arrivals = audit.Arrivals(answers.directory)
        self._done = done
        self._ended = answers.ended
        self.closed = False

    def new(self) -> list[Slice]:
        """Return slices of the shards new since the last call.

        `closed` is True once these are the last.
        """
        # Asked before looking, so that a shard that arrives in between is not missed.
        self.closed = self._ended()
        return [
            piece
            for path in self._arrivals.new()
            for piece in slices.slices_of(path, self._done, SLICE_ROWS)
        ]


def _follow(work: Work, source: _Source, task: Task, before: int) -> None:
    """Hand in slices as they appear, until the source is closed and all are graded."""
    while work.remaining or not source.closed:
        if not source.closed:
            work.put(source.new())
        graded = work.wait(_POLL_S)
        if not work.remaining and not source.closed:
            task.wait("waiting for answers")
            time.sleep(_POLL_S)
        elif work.remaining and not work.at_work:
            task.wait("waiting for graders")
        else:
            task.update(before + graded)
