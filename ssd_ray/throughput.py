"""Rates of long work, over its last minute and over all of its working time."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass

_WINDOW_S = 60.0
_POLL_S = 0.5
_SHORTEST_S = 0.05


@dataclass(frozen=True, kw_only=True)
class Remaining:
    """Tokens left to a task."""

    tokens: float
    at_most: bool = False
    """True while `tokens` is an upper bound, as no unit has ended and lengths are unknown."""
    then: str = ""
    """Work after the last unit, of unknown length: "saving and exporting"."""


class Throughput:
    """Rates of one task over its last minute and over all of its working time.

    - `done` units were complete before; the clock starts `age_s` before now.
    - A pause ends with the next mark. Half a second of it counts as work, the time between polls.
    - Counts may fall, as after a crash that costs steps. The window then starts again.
    """

    def __init__(self, done: int = 0, age_s: float = 0.0) -> None:
        self._marks: deque[tuple[float, int, int]] = deque([(time.monotonic() - age_s, done, 0)])
        self._paused = False
        self.working_s = 0.0

    def mark(self, done: int, tokens: int = 0) -> None:
        """Record the counts so far."""
        now = time.monotonic()
        last, last_done, last_tokens = self._marks[-1]
        elapsed_s = now - last
        if self._paused:
            # Marks move forward by the pause, so that the window holds a minute of work.
            pause_s = max(0.0, elapsed_s - _POLL_S)
            self._marks = deque((at + pause_s, units, count) for at, units, count in self._marks)
            elapsed_s -= pause_s
        self._paused = False
        self.working_s += elapsed_s
        if done < last_done or tokens < last_tokens:
            self._marks.clear()
        self._marks.append((now, done, tokens))
        while len(self._marks) > 2 and now - self._marks[1][0] >= _WINDOW_S:
            self._marks.popleft()

    def pause(self) -> None:
        """Leave out the time from the last mark to the next one."""
        self._paused = True

    @property
    def rates(self) -> tuple[float, float]:
        """Units and tokens per second over the last minute; zeros in the first 50 ms."""
        (began, first_done, first_tokens), (now, done, tokens) = self._marks[0], self._marks[-1]
        seconds = now - began
        if seconds < _SHORTEST_S:
            return 0.0, 0.0
        return (done - first_done) / seconds, (tokens - first_tokens) / seconds
