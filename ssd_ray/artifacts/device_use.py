"""Use of devices by a stage: busy and idle seconds of each engine or training worker.

The file `devices.json` in the directory of the artifact adds up all attempts. A killed attempt
lacks at most its last ten seconds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts import files
from ssd_ray.errors import UserError

NAME = "devices.json"
_PERIOD_S = 10.0


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """Use of the devices of one engine or one training worker."""

    name: str
    """The engine or worker, such as `engine 1f3c on node 7d02`."""
    gpus: int
    """GPUs of it; 0 on a CPU."""
    busy_s: float = 0.0
    """Seconds with answers in flight, or with a training step."""
    idle_s: float = 0.0
    """Seconds with reserved devices and without work: starts, waits, loading, saving."""
    load_s: float | None = None
    """Seconds from the start of an engine's process until it could answer, at its last start."""


@dataclass(frozen=True, kw_only=True)
class StageUse:
    """Use of devices by one stage, over all attempts."""

    devices: tuple[DeviceUse, ...] = ()
    preemptions: int = 0
    """Engines that were taken away with their nodes or on notice, and restarts of training."""
    redone: int = 0
    """Answers requested again, or training steps computed again."""

    @property
    def longest_load_s(self) -> float | None:
        """Longest load of an engine; None where none was recorded."""
        return max((each.load_s for each in self.devices if each.load_s is not None), default=None)

    @property
    def busy_gpu_s(self) -> float:
        """Busy seconds of all GPUs."""
        return sum(each.gpus * each.busy_s for each in self.devices)

    @property
    def idle_gpu_s(self) -> float:
        """Idle seconds of all GPUs."""
        return sum(each.gpus * each.idle_s for each in self.devices)


_STAGE_USE = TypeAdapter(StageUse)


def read_use(out: Path) -> StageUse | None:
    """Return the recorded use of an artifact, None if it was not recorded."""
    path = out / NAME
    if not path.exists():
        return None
    try:
        return _STAGE_USE.validate_json(path.read_bytes())
    except ValidationError:
        # A later version may write it otherwise, and a report is more than this part.
        return None


class UseMeter:
    """The use of one attempt, added to that of earlier ones."""

    def __init__(self, out: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._out = out
        self._clock = clock
        self._saved = clock()
        before = read_use(out) or StageUse()
        self._devices = {each.name: each for each in before.devices}
        self._preemptions = before.preemptions
        self._redone = before.redone
        self.preemptions = 0
        self.redone = 0

    def add(self, name: str, gpus: int, *, busy_s: float = 0.0, idle_s: float = 0.0) -> None:
        """Add seconds of one engine or worker."""
        if not busy_s and not idle_s:
            return
        use = self._devices.get(name) or DeviceUse(name=name, gpus=gpus)
        self._devices[name] = replace(use, busy_s=use.busy_s + busy_s, idle_s=use.idle_s + idle_s)

    def loaded(self, name: str, gpus: int, load_s: float) -> None:
        """Record the seconds that an engine took to load."""
        use = self._devices.get(name) or DeviceUse(name=name, gpus=gpus)
        self._devices[name] = replace(use, load_s=round(load_s, 1))

    def save_regularly(self) -> None:
        """Write the file if ten seconds have passed since the last time."""
        if self._clock() - self._saved >= _PERIOD_S:
            self.save()

    def save(self) -> None:
        """Write the file; a full disk is reported by the stage itself."""
        self._saved = self._clock()
        use = StageUse(
            devices=tuple(
                replace(each, busy_s=round(each.busy_s, 1), idle_s=round(each.idle_s, 1))
                for each in self._devices.values()
            ),
            preemptions=self._preemptions + self.preemptions,
            redone=self._redone + self.redone,
        )
        if not use.devices:
            return
        with suppress(UserError):
            files.write_atomic(self._out / NAME, json.dumps(asdict(use)))
