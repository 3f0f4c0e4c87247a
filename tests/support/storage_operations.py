"""Draw units with an engine worker, and print its storage operations; run by a test.

python tests/support/storage_operations.py RUN LOG ROWS

`benchmarks/slow_storage.c` is preloaded and writes the operations in RUN to LOG. The heartbeat is
written only for news of units: its period is an hour.
"""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import shards
from ssd_ray.config import Decoding
from ssd_ray.inference import worker
from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import jobs, queue
from ssd_ray.inference.work.jobs import JobSpec, OpenJob
from ssd_ray.inference.work.queue import QueuePlan
from ssd_ray.schema import Prompt
from tests.support.doubles import InstantEngine

NUM_UNITS = 40
FIRST_UNITS = 8
"""Not counted: they open the files that stay open."""


def open_job(run: Path, rows: int) -> Path:
    """Write prompts, open a job for them in a closed pool, and return its control directory."""
    prompts, control, out = run / "prompts", run / ".engines" / "base", run / "samples"
    out.mkdir(parents=True)
    written = [
        Prompt(prompt_id=f"p{number}", source="s", difficulty="d", text="t", token_ids=(number,))
        for number in range(NUM_UNITS * rows)
    ]
    shards.write_shard(prompts, "prompts-00000000", written, Prompt)
    (prompts / "manifest.json").touch()
    spec = JobSpec(
        stage="samples",
        key="samples",
        prompts=prompts,
        out=out,
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=rows,
    )
    jobs.begin(control)
    jobs.open_job(control, OpenJob(number=0, spec=spec, covered={}))
    jobs.close(control)
    heartbeat.begin(control, "one")
    return control


def engine_worker(control: Path) -> worker.EngineWorker:
    """Return a worker without Ray, whose engine answers at once."""
    made = worker.EngineWorker.__new__(worker.EngineWorker)
    made.__dict__ |= {
        "_spec": types.SimpleNamespace(control=control, attempt="one"),
        "_actor": "a",
        "_jobs": {},
        "_ledgers": {},
        "_calls": ConcurrencyLimiter(1),
        "_engine_lock": SharedExclusiveLock(),
        "_engine": InstantEngine(),
        "_report": Reporter(control, "a", attempt="one"),
    }
    return made


def main(run: Path, log: Path, rows: int) -> None:
    """Draw all units, and print the operations of worker and queue after the first units."""
    heartbeat.PERIOD_S = 3600
    cluster_state.actors = frozenset
    control = open_job(run, rows)
    drawing = engine_worker(control)
    size = Pool(
        min_engines=1, max_engines=1, concurrent_units=9, resources=Resources(1, 0, {"num_cpus": 1})
    )
    units = queue.paced(QueuePlan(control=control, window=size.window))
    operations: dict[str, list[list[str]]] = {"queue": [], "worker": []}

    def counted(part: str, call: Callable[[], Any]) -> Any:
        before = len(log.read_text().splitlines())
        result = call()
        lines = log.read_text().splitlines()[before:]
        operations[part].append([" ".join(line.split(maxsplit=4)[3:]) for line in lines])
        return result

    while (unit := counted("queue", lambda: next(units, None))) is not None:
        counted("worker", lambda unit=unit: drawing._draw_and_write(unit))
    print(json.dumps({part: each[FIRST_UNITS:] for part, each in operations.items()}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
