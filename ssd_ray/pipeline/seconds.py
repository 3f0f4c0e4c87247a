"""Wall time of overlapping steps: their seconds add up to those of the run.

- Time belongs to the step of the lowest rank at work: first the step of the run itself, then one on
  the engines, then one on the graders.
- Steps of one rank share no second: the first of them to end has the common time.

Reads and writes nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum


class Rank(IntEnum):
    """Order of overlapping steps: the lowest rank has the common time."""

    LEADING = 0
    """The step at the current place of the run's order."""
    DRAWING = 1
    """A step on the engines, following a growing input."""
    GRADING = 2
    """Any other step that follows a growing input."""


@dataclass(kw_only=True)
class Span:
    """A step at work; `seconds` is its share of the wall time, set at its end."""

    rank: Rank
    began: float
    ended: float = math.inf
    seconds: float = 0.0


class Seconds:
    """The spans of all steps of a run; safe for several threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._spans: list[Span] = []

    @contextmanager
    def of(self, rank: Rank) -> Iterator[Span]:
        """Measure a block."""
        span = Span(rank=rank, began=self._clock())
        with self._lock:
            self._spans.append(span)
        try:
            yield span
        finally:
            with self._lock:
                ended = self._clock()
                span.seconds = self._uncovered(span, ended)
                span.ended = ended

    def _uncovered(self, span: Span, ended: float) -> float:
        """Return the seconds of a span not covered by spans with precedence."""
        # A span of the same rank has precedence once it has ended: this one ends later.
        others = [
            (other.began, min(other.ended, ended))
            for other in self._spans
            if other.rank < span.rank or (other.rank == span.rank and other.ended < math.inf)
        ]
        uncovered = 0.0
        reached = span.began
        for start, stop in sorted(others):
            uncovered += max(0.0, start - reached)
            reached = max(reached, stop)
        return uncovered + max(0.0, ended - reached)
