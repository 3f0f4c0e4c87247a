"""Sample with doubles on the cluster at RAY_ADDRESS, and count its nodes.

python tests/support/fleet_driver.py PROMPTS OUT MAX_ENGINES SECONDS_AN_ANSWER
"""

from __future__ import annotations

import functools
import json
import sys
import threading
import time
from pathlib import Path

import ray

from ssd_ray import cluster
from ssd_ray.config import Decoding
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from tests.support.doubles import TimedEngine

IDLE_PATIENCE_S = 60


def nodes() -> int:
    """Count the live nodes with a GPU."""
    return sum(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes())


def main(prompts: Path, out: Path, engines: int, seconds: float) -> None:
    """Draw, then wait until the nodes are gone; record the number of nodes all the while."""
    out.mkdir(exist_ok=True)
    noted: list[int] = []
    done = threading.Event()

    def note() -> None:
        while not done.is_set():
            noted.append(nodes())
            (out.parent / "nodes.json").write_text(json.dumps(noted))
            time.sleep(0.5)

    make_engine = functools.partial(TimedEngine, seconds)
    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=prompts,
        out=out,
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=4,
    )
    spec = EngineSpec(
        make_engine=make_engine, control=out.parent / ".engines", logs=out.parent / "logs"
    )
    size = Pool(
        min_engines=1,
        max_engines=engines,
        concurrent_units=2,
        resources=Resources(0, 1, {"num_gpus": 1}),
    )
    progress = LineProgress(2)
    with cluster.connected():
        threading.Thread(target=note, daemon=True).start()
        with EnginePool(spec, size, max_failures=3, progress=progress) as pool:
            facts = SamplingRun(job=job, engines=pool, ended=lambda: True, progress=progress).draw()
        time.sleep(1)
        free = ray.cluster_resources().get("GPU", 0) == ray.available_resources().get("GPU", 0)
        deadline = time.monotonic() + IDLE_PATIENCE_S
        while nodes() and time.monotonic() < deadline:
            time.sleep(0.5)
        done.set()
        (out.parent / "facts.json").write_text(
            json.dumps(
                {
                    **facts.document(),
                    "gpus_free_after": free,
                    "most_nodes": max(noted),
                    "nodes_at_end": nodes(),
                }
            )
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
