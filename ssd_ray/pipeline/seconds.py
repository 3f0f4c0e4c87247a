"""Wall time of overlapping steps: their seconds add up to those of the run.

- While steps of several ranks run, time counts for those of the lowest rank alone (`Rank`).
- Steps of this rank share it equally, such as several steps drawn by one pool of engines.

Does no I/O.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise


class Rank(IntEnum):
    """Order of overlapping steps: the lowest rank gets the common time."""

    LEADING = 0
    """The current step of the run's order, unless it draws."""
    DRAWING = 1
    """A step on the engines."""
    GRADING = 2
    """Any other step that follows a growing input."""


@dataclass(kw_only=True)
class StepTime:
    """A step; `Seconds` sets its times at its end, and on request while it runs."""

    rank: Rank
    began: float
    ended: float = math.inf
    seconds: float = 0.0
    """Share of the run's time."""
    wall_seconds: float = 0.0
    """Time since `began`."""


class Seconds:
    """The times of all steps of a run; safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._times: list[StepTime] = []

    @contextmanager
    def of(self, rank: Rank) -> Iterator[StepTime]:
        """Measure the time of a block."""
        step = StepTime(rank=rank, began=self._clock())
        with self._lock:
            self._times.append(step)
        try:
            yield step
        finally:
            with self._lock:
                step.ended = self._set(step)

    def update(self, step: StepTime) -> None:
        """Set the times of a running step as of now."""
        with self._lock:
            self._set(step)

    def _set(self, step: StepTime) -> float:
        """Set the times of a step as of now, and return now."""
        now = self._clock()
        step.seconds = self._share(step, now)
        step.wall_seconds = now - step.began
        return now

    def _share(self, step: StepTime, ended: float) -> float:
        """Return the share of a step in the wall time from its start to `ended`."""
        others = [other for other in self._times if other is not step and other.rank <= step.rank]
        moments = {step.began, ended}
        for other in others:
            moments |= {
                moment for moment in (other.began, other.ended) if step.began < moment < ended
            }
        share = 0.0
        for start, stop in pairwise(sorted(moments)):
            running = [other for other in others if other.began <= start and other.ended >= stop]
            if all(other.rank == step.rank for other in running):
                share += (stop - start) / (1 + len(running))
        return share
