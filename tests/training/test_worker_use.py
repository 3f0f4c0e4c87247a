"""Busy and idle seconds of training workers, restarts, and steps computed again."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssd_ray.artifacts.device_use import StageUse, read_use
from ssd_ray.training.observe.heartbeat import LOADING, Beat, Heartbeat, read
from ssd_ray.training.observe.worker_use import WorkerUse


class Training:
    """The meter of a training with a clock."""

    def __init__(self, out: Path, begin: int = 0) -> None:
        self.out = out
        self.now = 0.0
        self.use = WorkerUse(out, 1, begin, lambda: self.now)

    def mark(self, phase: str | None, *seconds: float, after: float = 10.0) -> None:
        self.now += after
        beat = None if phase is None else Beat(phase=phase, workers=2)
        self.use.mark(beat, seconds)

    @property
    def recorded(self) -> StageUse:
        self.use.close()
        return read_use(self.out) or StageUse()


@pytest.fixture
def training(tmp_path: Path) -> Training:
    return Training(tmp_path)


def test_steps_are_busy_and_the_rest_is_idle(training: Training) -> None:
    training.mark(None)
    training.mark(None)
    training.mark(LOADING)
    training.mark("")
    training.mark("", 6.0, 7.0)
    training.mark("exporting the model", 6.0, 7.0)
    use = training.recorded
    assert [(each.name, each.busy_s, each.idle_s) for each in use.devices] == [
        ("worker 0", 13.0, 27.0),
        ("worker 1", 13.0, 27.0),
    ]
    assert use.busy_gpu_s == 26.0
    assert (use.preemptions, use.redone) == (0, 0)


def test_steps_of_earlier_attempts_are_not_counted(tmp_path: Path) -> None:
    training = Training(tmp_path, begin=2)
    training.mark(LOADING, 9.0, 9.0)
    training.mark("", 9.0, 9.0, 4.0)
    assert training.recorded.devices[0].busy_s == 4.0


def test_restarts_and_steps_computed_again_count(training: Training) -> None:
    training.mark(LOADING)
    training.mark("", 1.0, 1.0, 1.0)
    training.mark(LOADING, 1.0, 1.0, 1.0)
    training.mark(LOADING, 1.0)
    training.mark("", 1.0, 2.0, 2.0, 2.0)
    use = training.recorded
    assert (use.preemptions, use.redone) == (1, 2)
    assert use.devices[0].busy_s == 9.0


def test_every_beat_states_the_number_of_workers(tmp_path: Path) -> None:
    heartbeat = Heartbeat(tmp_path, 0, 3)
    for write in (
        lambda: heartbeat.phase(LOADING),
        lambda: heartbeat.begin_step(1, 8),
        lambda: heartbeat.say("saved"),
    ):
        write()
        beat = read(tmp_path)
        assert beat is not None
        assert beat.workers == 3 or not beat.phase
    heartbeat.phase("exporting the model")
    assert read(tmp_path) == Beat(phase="exporting the model", notice="saved", workers=3)
