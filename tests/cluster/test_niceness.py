"""Engines run at the niceness of other processes, or the run reports where they cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ssd_ray.cluster import niceness
from ssd_ray.cluster.waiting import Waiting
from ssd_ray.config import EngineConfig
from ssd_ray.inference import watch
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.vllm.placement import engine_resources
from ssd_ray.inference.watch import PoolWatch
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from tests.support.doubles import InstantEngine

NICE = """
import os, pathlib, threading, time
from ssd_ray.cluster import niceness
os.nice(15)
threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
found = niceness.settle()
tasks = pathlib.Path("/proc/self/task").iterdir()
print(found, *{int((task / "stat").read_text().rpartition(")")[2].split()[16]) for task in tasks})
os._exit(0)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root may lower a niceness")
def test_threads_of_a_worker_are_reniced_where_permitted() -> None:
    """Each thread has its own niceness, and Ray starts some before a worker's own code runs."""
    process = subprocess.run(
        [sys.executable, "-c", NICE], capture_output=True, text=True, timeout=60, check=True
    )
    assert process.stdout == "0 0\n"


def test_a_worker_without_permission_reports_its_niceness(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: int) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "setpriority", refuse)
    monkeypatch.setattr(os, "getpriority", lambda *_: 15)
    assert niceness.settle() == 15


def test_a_run_reports_once_that_engines_have_low_priority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "_NAMED_NODES", set())
    spec = EngineSpec(make_engine=InstantEngine, control=tmp_path, logs=tmp_path, attempt="one")
    waiting = Waiting(engine_resources(EngineConfig(), "cpu").need, pytest.fail, None)
    for _ in range(2):  # two pools of a run
        Reporter(tmp_path, "actor", node="abcdef0123456789", attempt="one", niceness=15)
        driver = PoolWatch(spec, 3, LineProgress(), dict, waiting)
        driver.poll()
        driver.poll()
    lines = [line for line in capsys.readouterr().err.splitlines() if "niceness" in line]
    assert len(lines) == 1
    assert "engines on node abcdef012345 run at niceness 15" in lines[0]
    assert "start Ray on its nodes with RAY_worker_niceness=0" in lines[0]
