"""Attribute wall time to steps that overlap, so that the seconds of all steps add up to a run's.

- Time belongs to the step of the lowest rank at work: the one that a run waits for, then one on the
  engines, then one on the graders.
- Of several steps of one rank, the first to end has the time that they share.

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
    """Which of two overlapping steps has the time that they share: the lower one."""

    LEADING = 0
    """The step that a run has come to."""
    DRAWING = 1
    """A step on the engines that follows another one."""
    GRADING = 2
    """Any other step that follows one."""


@dataclass(kw_only=True)
class Span:
    """A step at work; `seconds` are those that belong to it, known at its end."""

    rank: Rank
    began: float
    ended: float = math.inf
    seconds: float = 0.0


class Seconds:
    """The spans of all steps of a run; for several threads."""

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
                span.seconds = self._own(span, ended)
                span.ended = ended

    def _own(self, span: Span, ended: float) -> float:
        """Return the length of a span that belongs to no other."""
        others = [
            (other.began, min(other.ended, ended))
            for other in self._spans
            if other.rank < span.rank or (other.rank == span.rank and other.ended < math.inf)
        ]
        own, reached = 0.0, span.began
        for start, stop in sorted(others):
            own += max(0.0, start - reached)
            reached = max(reached, stop)
        return own + max(0.0, ended - reached)
