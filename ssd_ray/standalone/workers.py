"""Worker processes that grade slices of completions; a crashed pool is replaced.

The graders of the processes read slices of completions and write shards of verdicts.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager

from ssd_ray.artifacts import slices
from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.grader import Grader, GradingSpec
from ssd_ray.evaluation.sandbox.inside import walls

_MAX_FAILURES = 3


_grader: Grader | None = None


def _set_up(spec: GradingSpec, parent: int) -> None:
    """Make the grader of a worker process, and end the process with its parent."""
    global _grader
    walls.die_with_parent()
    # The parent may have ended before the kernel was asked.
    if os.getppid() != parent:
        os._exit(1)
    _grader = Grader(spec)


def _grade(piece: Slice) -> int:
    """Grade a slice in a worker process; return its number of rows."""
    assert _grader is not None
    return _grader.grade(piece)


def grade_slices(spec: GradingSpec, pieces: list[Slice], workers: int) -> Iterator[int]:
    """Yield the number of rows of each slice as it is graded.

    A pool with a crashed process is replaced, at most `_MAX_FAILURES` times.

    Raises:
        InfrastructureError: processes crashed more often.
    """
    # A faulty machine or benchmark is reported here, before any process starts.
    Grader(spec).close()
    waiting = list(pieces)
    failures = 0
    while waiting:
        with _pool(spec, min(workers, len(waiting))) as pool:
            running: dict[Future[int], Slice] = {}
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * workers:
                        # Popped only once it was submitted: a broken pool raises in `submit`.
                        running[pool.submit(_grade, waiting[-1])] = waiting[-1]
                        waiting.pop()
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        rows = future.result()
                        del running[future]
                        yield rows
            except BrokenProcessPool as error:
                failures += 1
                if failures > _MAX_FAILURES:
                    raise InfrastructureError(
                        "grading processes kept crashing; run again to resume"
                    ) from error
                # A shard may be on disk although its process crashed before it answered.
                done = slices.keys_on_disk(spec.out)
                waiting += [piece for piece in running.values() if not _finished(piece, done)]


def _finished(piece: Slice, done: set[slices.Key]) -> bool:
    """Return True if every completion of a slice has a verdict on disk."""
    table = slices.read_slice(piece)
    keys = zip(
        table.column("prompt_id").to_pylist(), table.column("sample_index").to_pylist(), strict=True
    )
    return done.issuperset(keys)


@contextmanager
def _pool(spec: GradingSpec, workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start worker processes and end them with the block."""
    # Workers load this module too, and need none of the packages below.
    from ssd_ray.cluster import import_path

    import_path.keep_children_safe()
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        workers, mp_context=context, initializer=_set_up, initargs=(spec, os.getpid())
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
