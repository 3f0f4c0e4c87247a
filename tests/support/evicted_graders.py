"""Grading under evictions: `python evicted_graders.py DIRECTORY once|always`.

- `once`: memory is filled while a grader works, until the first eviction.
- `always`: any use is too much.

Prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import psutil

from ssd_ray import cluster
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.crew import LostGraderError, RayCrew
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.pool import GraderPool
from ssd_ray.evaluation.ray_pool import Answers, grade
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.progress import LineProgress

ROWS = 12 * 32
ROOM = 2 << 30
# Other processes of the machine may take memory too, and cause further evictions.
FAILURES = {"once": 50, "always": 3}


class Watched(RayCrew):
    """Notes why graders were lost, and when the first slice was given out."""

    def __init__(self, settings: ClusterConfig, logs: Path) -> None:
        super().__init__(settings, logs)
        self.lost: list[str] = []
        self.at_work = threading.Event()

    def grade(self, *what: Any) -> Any:
        self.at_work.set()
        return super().grade(*what)

    def result(self, reference: Any) -> int:
        try:
            return super().result(reference)
        except LostGraderError as error:
            self.lost.append(str(error).partition(":")[0])
            raise


def fill(crew: Watched) -> None:
    """Take memory, a piece at a time, until a grader is evicted."""
    crew.at_work.wait()
    held: list[bytearray] = []
    until = time.monotonic() + 60
    while not crew.lost and time.monotonic() < until:
        if psutil.virtual_memory().available > 1 << 30:
            held.append(bytearray(b"1") * (128 << 20))
        time.sleep(0.02)


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
    crew = Watched(settings, directory / "logs")
    failed = ""
    if evicted == "once":
        threading.Thread(target=fill, args=(crew,), daemon=True).start()
    with cluster.connected(settings), GraderPool(crew, settings.max_failures) as pool:
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
    print(json.dumps({"lost": crew.lost, "failed": failed}))


if __name__ == "__main__":
    main()
