"""Measure the use of engines by one job, from their heartbeats.

- An engine is busy while it has answers of the job in flight. Time with several jobs in flight is
  divided among them.
- It is idle while it starts, waits or has no unit. Idle time counts for the job opened first.
- It also is idle from the start of its process to its first heartbeat, between two jobs, and after
  the last job until it is gone.
- A dead engine whose actor waits for a node holds no device, and no time counts.

Writes `devices.json` of the artifact.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from ssd_ray.artifacts.device_use import UseMeter
from ssd_ray.inference.crashes.engine_status import EngineStatus

_ACTORS_S = 10.0
_LONGEST_S = 30.0
"""Longest time between two marks that counts; a paused driver knows nothing of the rest."""


class EngineUse:
    """The meter of one job.

    `gpus` is the number of GPUs of an engine. `list_actors` returns the live actors, and nothing
    while Ray cannot tell.
    """

    def __init__(
        self,
        out: Path,
        job: str,
        gpus: int,
        list_actors: Callable[[], Collection[str]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._meter = UseMeter(out, clock)
        self._job = job
        self._gpus = gpus
        self._list_actors = list_actors
        self._clock = clock
        self._at: float | None = None
        self._asked = -_ACTORS_S
        self._alive: Collection[str] = ()
        self._taken: set[str] = set()
        self._started: set[str] = set()
        self._loaded: set[str] = set()
        self._holding: set[str] = set()

    def mark(
        self, statuses: Iterable[EngineStatus], *, leads: bool, between_s: float = 0.0
    ) -> None:
        """Count the time since the last mark; `leads` is True for the job opened first.

        `between_s` is the time that the engines waited for this job without any other.
        """
        now = self._clock()
        elapsed = 0.0 if self._at is None else min(now - self._at, _LONGEST_S)
        listed = list(statuses)
        if self._at is None:
            # Those that were ready before this job began were loaded for an earlier one.
            earlier = {status.engine for status in listed if status.ready}
            self._started |= earlier
            self._loaded |= earlier
        self._at = now
        redone = 0
        self._holding.clear()
        for status in listed:
            redone += status.of(self._job).retries
            if _is_taken(status) and status.engine not in self._taken:
                self._taken.add(status.engine)
                self._meter.preemptions += leads
            if self._holds_devices(status, now):
                self._holding.add(_name(status))
                self._count(status, elapsed, leads=leads)
                self._count_start(status, leads=leads)
                if leads:
                    self._meter.add(_name(status), self._gpus, idle_s=between_s)
        self._meter.redone = max(self._meter.redone, redone)
        self._meter.save_regularly()

    def _count(self, status: EngineStatus, elapsed: float, *, leads: bool) -> None:
        drawing = {span.job for span in status.drawing}
        if self._job in drawing:
            self._meter.add(_name(status), self._gpus, busy_s=elapsed / len(drawing))
        elif not drawing and leads:
            self._meter.add(_name(status), self._gpus, idle_s=elapsed)

    def _count_start(self, status: EngineStatus, *, leads: bool) -> None:
        """Count a new process before its first heartbeat, and record its load once it is ready."""
        is_new = status.engine not in self._started
        self._started.add(status.engine)
        if is_new and leads and status.spawned:
            self._meter.add(_name(status), self._gpus, idle_s=status.began - status.spawned)
        if status.load_s and status.engine not in self._loaded:
            self._loaded.add(status.engine)
            if leads:
                self._meter.loaded(_name(status), self._gpus, status.load_s)

    def released(self, seconds: float) -> None:
        """Count the time until the engines were gone, after the last mark of the last job."""
        for name in self._holding:
            self._meter.add(name, self._gpus, idle_s=seconds)

    def _holds_devices(self, status: EngineStatus, now: float) -> bool:
        if status.crashed or status.state in ("failed", "ended"):
            return False
        # Ray counts an actor as alive once its engine has started.
        if status.state == "starting":
            return True
        if now - self._asked >= _ACTORS_S:
            self._asked = now
            self._alive = self._list_actors()
        return not self._alive or status.actor in self._alive

    def close(self) -> None:
        """Write what was measured."""
        self._meter.save()


def _name(status: EngineStatus) -> str:
    return f"engine {status.actor[:8]} on node {status.node[:8]}"


def _is_taken(status: EngineStatus) -> bool:
    """Return True for an engine that ended on notice, or with its node."""
    return status.state in ("draining", "ended") or (status.crashed and status.unattributed)
