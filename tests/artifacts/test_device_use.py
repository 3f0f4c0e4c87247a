"""Seconds of devices add up over attempts, and a broken record costs no report."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssd_ray.artifacts import device_use
from ssd_ray.artifacts.device_use import DeviceUse, StageUse, UseMeter, read_use


def test_attempts_add_up(tmp_path: Path) -> None:
    assert read_use(tmp_path) is None
    for attempt in (1, 2):
        meter = UseMeter(tmp_path)
        meter.add("engine a", 2, busy_s=3.0)
        meter.add("engine a", 2, idle_s=1.0)
        meter.add(f"engine {attempt}", 2, busy_s=0.5)
        meter.preemptions = 1
        meter.redone = 5
        meter.save()
    use = read_use(tmp_path)
    assert use is not None
    assert use.devices[0] == DeviceUse(name="engine a", gpus=2, busy_s=6.0, idle_s=2.0)
    assert len(use.devices) == 3
    assert (use.preemptions, use.redone) == (2, 10)
    assert use.busy_gpu_s == pytest.approx(2 * 6 + 2 * 0.5 * 2)
    assert use.idle_gpu_s == 4


def test_a_stage_without_devices_has_no_file(tmp_path: Path) -> None:
    UseMeter(tmp_path).save()
    assert list(tmp_path.iterdir()) == []


def test_a_long_stage_is_saved_regularly(tmp_path: Path) -> None:
    now = [0.0]
    meter = UseMeter(tmp_path, lambda: now[0])
    meter.add("worker 0", 1, busy_s=4.0)
    meter.save_regularly()
    assert read_use(tmp_path) is None
    now[0] = 11.0
    meter.save_regularly()
    assert read_use(tmp_path) == StageUse(devices=(DeviceUse(name="worker 0", gpus=1, busy_s=4.0),))


def test_an_unreadable_record_counts_as_none(tmp_path: Path) -> None:
    (tmp_path / device_use.NAME).write_text('{"devices": "many"}')
    assert read_use(tmp_path) is None
