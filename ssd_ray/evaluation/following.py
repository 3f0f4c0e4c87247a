"""Completions to grade, read from an artifact while it grows.

- Each complete shard is cut into slices for a pool (`pool.py`), few at a time.
- No row reaches the caller.

Reads keys of Completion shards.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import audit, manifests
from ssd_ray.artifacts.facts import AnswerFacts, VerdictFacts
from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.pool import Work
from ssd_ray.progress import Task

_POLL_S = 0.2
_MOST_WAITING = 1024
"""Slices waiting for a grader. Further shards are cut later, so memory has a bound."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """Completions to grade, some perhaps still to arrive."""

    directory: Path
    """The artifact of completions."""
    total: int
    """Completions in the artifact once it is complete."""
    ended: Callable[[], bool]
    """Return True once no more shards will arrive; raise the error if generating failed."""


class Source:
    """Slices of the shards on disk and of later ones, by `cut` of each shard."""

    def __init__(self, answers: Answers, cut: Callable[[Path], Iterator[Slice]]) -> None:
        self._arrivals = audit.Arrivals(answers.directory)
        self._ended = answers.ended
        self._cut = cut
        self._uncut: deque[Path] = deque()
        self.closed = False

    def new(self, room: int = _MOST_WAITING) -> list[Slice]:
        """Return slices of new shards, of one shard at least and about `room` at most.

        `closed` is True once these are the last.
        """
        # Asked before looking, so that a shard that arrives in between is not missed.
        ended = self._ended()
        self._uncut.extend(self._arrivals.new())
        pieces: list[Slice] = []
        while self._uncut and len(pieces) < max(1, room):
            pieces += self._cut(self._uncut.popleft())
        self.closed = ended and not self._uncut
        return pieces


def hand_in(work: Work, source: Source, task: Task, before: int) -> None:
    """Hand in slices as they appear, until the source is closed and all are graded.

    `before` counts the verdicts of earlier runs.
    """
    while work.remaining or not source.closed:
        if not source.closed and len(work.waiting) < _MOST_WAITING:
            work.put(source.new(_MOST_WAITING - len(work.waiting)))
        graded = work.wait(_POLL_S)
        if not work.remaining and not source.closed:
            task.wait("waiting for answers")
            time.sleep(_POLL_S)
        elif work.remaining and not work.at_work:
            task.wait("waiting for graders")
        else:
            task.update(before + graded)
    # Raises the error of the last slice.
    work.wait(0)


def require_all(answers: Answers, graded: VerdictFacts, stage: str) -> None:
    """Raise an error if completions of a complete artifact have no verdict.

    Raises:
        InfrastructureError: counts the missing verdicts.
        UserError: shards of the completions were changed since they were complete.
    """
    total = answers.total
    if missing := total - graded.rows - _num_undrawn(answers.directory):
        raise InfrastructureError(
            f"{stage}: {missing} of {total} completions have no verdict; run again to resume"
        )


def _num_undrawn(generations: Path) -> int:
    """Return the number of answers that engines failed to draw, by the manifest."""
    if not (generations / "manifest.json").exists():
        return 0
    return len(manifests.load_facts(generations, AnswerFacts).failed)
