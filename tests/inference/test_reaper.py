"""Processes of an engine end with the engine or with its raylet."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

# The parent plays the raylet, its child the actor with a reaper, and its workers those of vLLM.
ACTOR = """
import signal, subprocess, sys, time
from pathlib import Path
from ssd_ray.inference.crashes import reaper
reaper.guard()
signal.signal(signal.SIGTERM, signal.SIG_IGN)
ignore = "for each in (signal.SIGTERM, signal.SIGHUP): signal.signal(each, signal.SIG_IGN)"
stubborn = f"import signal, time\\n{ignore}\\ntime.sleep(600)"
workers = [subprocess.Popen([sys.executable, "-c", stubborn]) for _ in range(2)]
Path(sys.argv[1]).write_text(" ".join(str(worker.pid) for worker in workers))
time.sleep(600)
"""
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["actor", "raylet"])
def test_no_process_outlives_its_owner(tmp_path: Path, victim: str) -> None:
    noted = tmp_path / "pids"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, "-c", ACTOR, str(noted)])
    while not noted.exists() or len(noted.read_text().split()) < 2:
        assert parent.poll() is None
        psutil.wait_procs([psutil.Process(parent.pid)], timeout=0.05)
    (actor,) = (
        child for child in psutil.Process(parent.pid).children() if ACTOR in child.cmdline()
    )
    family = [actor, *actor.children(recursive=True)]
    assert {int(pid) for pid in noted.read_text().split()} < {process.pid for process in family}
    assert len(family) == 4, "the actor, its reaper and two workers"
    (actor if victim == "actor" else psutil.Process(parent.pid)).send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(family, timeout=10)
    parent.wait(10)
    assert not alive


STALLED = """
import time
from ssd_ray.inference.vllm.delivery import Delivery
from ssd_ray.inference.vllm.engine import Engine
engine = Engine.__new__(Engine)
engine._delivery = Delivery(lambda answer: None)
engine._built, engine._running, engine._moved = True, dict(), time.monotonic() - 9
if {running}:
    engine._running["0"] = None
import threading
threading.Timer(1.5, lambda: __import__("os")._exit(0)).start()
engine._watch(0.4)
"""


@pytest.mark.parametrize(("running", "status"), [(True, 70), (False, 0)])
def test_a_hung_engine_exits_and_an_idle_one_does_not(running: bool, status: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLED.format(running=running)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == status
    assert ("nothing came back for 0.4 s (engine.stall_s)" in done.stderr) is running
