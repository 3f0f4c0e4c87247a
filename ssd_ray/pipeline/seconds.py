"""Wall time of overlapping steps: their seconds add up to those of the run.

- Time belongs to the steps of the lowest rank at work: first those without engines at the current
  place of the run's order, then those on the engines, then those on the graders.
- Steps of one rank share their common time equally, as those drawn by one pool of engines.

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
from itertools import pairwise


class Rank(IntEnum):
    """Order of overlapping steps: the lowest rank has the common time."""

    LEADING = 0
    """The step at the current place of the run's order, unless it draws."""
    DRAWING = 1
    """A step on the engines."""
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
                span.seconds = self._share(span, ended)
                span.ended = ended

    def _share(self, span: Span, ended: float) -> float:
        """Return the share of a span in the wall time from its begin to `ended`."""
        others = [other for other in self._spans if other is not span and other.rank <= span.rank]
        moments = {span.began, ended}
        for other in others:
            moments |= {
                moment for moment in (other.began, other.ended) if span.began < moment < ended
            }
        share = 0.0
        for start, stop in pairwise(sorted(moments)):
            at_work = [other for other in others if other.began <= start and other.ended >= stop]
            if all(other.rank == span.rank for other in at_work):
                share += (stop - start) / (1 + len(at_work))
        return share
