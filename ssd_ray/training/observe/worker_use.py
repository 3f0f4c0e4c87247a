"""Measure the use of training workers, from the loss log and the first worker's heartbeat.

- Workers step together, so one figure counts for each of them.
- They are busy in steps, by the seconds in the loss log. Until the end of training all other time
  since their start is idle: loading, saving, export, waits for workers after a loss.

Writes `devices.json` of the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from ssd_ray.artifacts.device_use import UseMeter
from ssd_ray.training.observe.heartbeat import LOADING, Beat

_LONGEST_S = 30.0
"""Longest time between two marks that counts; a paused driver knows nothing of the rest."""


class WorkerUse:
    """The meter of one training; `begin` is the number of steps of earlier attempts."""

    def __init__(
        self,
        out: Path,
        gpus: int,
        begin: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = UseMeter(out, clock)
        self._gpus = gpus
        self._counted = begin
        self._clock = clock
        self._at: float | None = None
        self._phase = ""
        self._starts = 0
        self._workers = 0

    def mark(self, beat: Beat | None, seconds: Sequence[float]) -> None:
        """Count the time since the last mark; `seconds` are those of each step in the log."""
        now = self._clock()
        elapsed = 0.0 if self._at is None else min(now - self._at, _LONGEST_S)
        self._at = now
        if beat is None:
            return
        if beat.phase == LOADING != self._phase:
            self._starts += 1
            self._meter.preemptions = self._starts - 1
        self._phase = beat.phase
        self._workers = beat.workers or self._workers
        if len(seconds) < self._counted:
            # Only a start of workers cuts the log, back to the step of its resume state.
            self._meter.redone += self._counted - len(seconds)
            self._counted = len(seconds)
        # A step is in the log at its end. So its seconds are taken from time counted as idle.
        busy_s = sum(seconds[self._counted :])
        self._counted = len(seconds)
        for worker in range(self._workers):
            name = f"worker {worker}"
            self._meter.add(name, self._gpus, busy_s=busy_s, idle_s=elapsed - busy_s)
        self._meter.save_regularly()

    def close(self) -> None:
        """Write what was measured."""
        self._meter.save()
