"""Grading under evictions: `python evicted_graders.py DIRECTORY once|always`.

- `once`: memory is filled until the first eviction, and no result is taken before it.
- `always`: any use of memory is above the limit.

Prints JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from ssd_ray import cluster
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.following import Answers
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.pool import GraderPool, LostGraderError
from ssd_ray.evaluation.ray_pool import grade
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.progress import LineProgress

ROWS = 12 * 32
ROOM = 2 << 30
# Other tests of the machine have Rays too, which evict above 95 % of all memory.
LEFT = 3 << 30
FILLING_S = 60
# Other processes of the machine may take memory too, and cause further evictions.
FAILURES = {"once": 50, "always": 3}


class Watched(RayBackend):
    """Notes why graders were lost, and when the first slice was given out.

    Results wait for `released`, so slices are left for the successor of an evicted grader.
    """

    def __init__(self, settings: ClusterConfig, logs: Path) -> None:
        super().__init__(settings, logs)
        self.lost: list[str] = []
        self.at_work = threading.Event()
        self.released = threading.Event()

    def grade(self, *what: Any) -> Any:
        self.at_work.set()
        return super().grade(*what)

    def result(self, reference: Any) -> int:
        # Starts have results too. The first slice goes out after the first of them.
        if self.at_work.is_set():
            self.released.wait(timeout=2 * FILLING_S)
        try:
            return super().result(reference)
        except LostGraderError as error:
            self.lost.append(str(error).partition(":")[0])
            raise


def fill(backend: Watched) -> None:
    """Take memory, a piece at a time, until a grader is evicted."""
    backend.at_work.wait()
    held: list[bytearray] = []
    seen: set[int] = set()
    until = time.monotonic() + FILLING_S
    while time.monotonic() < until:
        alive = set(graders())
        seen |= alive
        if seen - alive:
            break
        if psutil.virtual_memory().available > LEFT:
            held.append(bytearray(b"1") * (128 << 20))
        time.sleep(0.02)
    backend.released.set()


def graders() -> Iterator[int]:
    """Yield the process of each living grader of this driver."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "GraderActor" in " ".join(process.cmdline()):
                yield process.pid


def main() -> None:
    directory, evicted = Path(sys.argv[1]), sys.argv[2]
    memory = psutil.virtual_memory()
    share = 1e-4 if evicted == "always" else (memory.total - memory.available + ROOM) / memory.total
    os.environ |= {
        "RAY_memory_usage_threshold": f"{share:.4f}",
        "RAY_memory_monitor_refresh_ms": "50",
    }
    rules = Rules(limits=Limits(time_s=5, memory_mib=256, output_kib=64))
    order = GradingSpec(
        benchmark=directory / "benchmark", rules=rules, floor="L1", out=directory / "verdicts"
    )
    settings = ClusterConfig(device="cpu", grader_cpus=1, max_failures=FAILURES[evicted])
    backend = Watched(settings, directory / "logs")
    failed = ""
    if evicted == "always":
        backend.released.set()
    else:
        threading.Thread(target=fill, args=(backend,), daemon=True).start()
    with cluster.connected(), GraderPool(backend, settings.max_failures) as pool:
        try:
            grade(
                Answers(directory=directory / "generations", total=ROWS, ended=lambda: True),
                order,
                pool,
                stage="verdicts",
                progress=LineProgress(),
            )
        except InfrastructureError as error:
            failed = str(error)
    print(json.dumps({"lost": backend.lost, "failed": failed}))


if __name__ == "__main__":
    main()
