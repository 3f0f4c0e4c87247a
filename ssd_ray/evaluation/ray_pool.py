"""The verb `grade` on Ray: completions to verdicts, while completions still arrive.

The driver watches the directory of generations (`following.py`) and hands slices of the missing
keys to the pool (`pool.py`).

Reads keys of completions and verdicts. The graders read Completion and Problem shards and write
Verdict shards.
"""

from __future__ import annotations

from pathlib import Path

from ssd_ray.artifacts import slices
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.config import ClusterConfig
from ssd_ray.evaluation.following import Answers, Source, hand_in, require_all
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.evaluation.pool import GraderPool
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys
from ssd_ray.progress import Progress


def pool_on_ray(cluster: ClusterConfig, logs: Path) -> GraderPool:
    """Return the pool of a run, with graders as actors.

    It needs Ray once it is open and has work.
    """
    return GraderPool(RayBackend(cluster, logs), cluster.max_failures)


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
            source = Source(answers, lambda path: slices.slices_of(path, done, SLICE_ROWS))
            with pool.work(spec, stage) as work:
                hand_in(work, source, task, len(done))
        # Counted on disk: a slice graded twice, after a crash, is one shard.
        task.update(len(slices.keys_on_disk(spec.out)))
    result = facts(spec)
    require_all(answers, result, stage)
    return result
