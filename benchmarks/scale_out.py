"""Engines on several nodes: answers per second of eight engines against eight times one.

    python benchmarks/scale_out.py --engines 8 --out figures.json

A `ray.cluster_utils` cluster on this machine has one node with one logical GPU per engine.
An engine double answers eight requests at a time, each after a second of wall time without
CPU time. The measurement is therefore of the path around the engine. The rate is taken from
the last engine's start to the first 90 % of answers.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import types
from pathlib import Path

from machine import machine

EFFICIENCY = 0.9
SLOTS, ANSWER_S = 8, 1.0


class Slots:
    """An engine double with a number of slots, each busy for a while with a request."""

    tokens_drawn = types.MappingProxyType({})

    def __init__(self) -> None:
        from concurrent.futures import ThreadPoolExecutor

        self._slots = ThreadPoolExecutor(SLOTS)

    def submit(self, request):
        """Return a future that is done after a slot was busy for ANSWER_S seconds."""
        return self._slots.submit(self._answer, request)

    @staticmethod
    def _answer(request):
        from ssd_ray.inference.vllm.engine import Answer

        time.sleep(ANSWER_S)
        return Answer(
            output_token_ids=(request.seed % 1000,) * 8,
            text=str(request.seed),
            finish_reason="stop",
        )


def drive(prompts: Path, out: Path, engines: int) -> None:
    """Draw on the cluster at RAY_ADDRESS, and write the rate to a file."""
    from ssd_ray import cluster
    from ssd_ray.config import Decoding
    from ssd_ray.inference.crashes import heartbeat
    from ssd_ray.inference.engine_pool import EnginePool
    from ssd_ray.inference.generation import SamplingRun
    from ssd_ray.inference.pool import Pool
    from ssd_ray.inference.vllm.placement import Resources
    from ssd_ray.inference.work.jobs import JobSpec
    from ssd_ray.inference.worker import EngineSpec
    from ssd_ray.progress import LineProgress

    out.mkdir()
    control = out.parent / f"engines-{engines}"
    seen: list[tuple[float, int, int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            there = heartbeat.read(control)
            seen.append(
                (
                    time.monotonic(),
                    sum(one.ready > 0 for one in there),
                    sum(one.rows for one in there),
                )
            )

    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=prompts,
        out=out,
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=8,
    )
    spec = EngineSpec(make_engine=Slots, control=control, logs=out.parent / "logs")
    size = Pool(
        min_engines=engines,
        max_engines=engines,
        concurrent_units=3,
        resources=Resources(0, 1, {"num_gpus": 1}),
    )
    progress = LineProgress(10)
    with cluster.connected():
        threading.Thread(target=watch, daemon=True).start()
        with EnginePool(spec, size, max_failures=0, progress=progress) as pool:
            facts = SamplingRun(job=job, engines=pool, ended=lambda: True, progress=progress).draw()
        done.set()
    steady = [
        (when, rows) for when, ready, rows in seen if ready == engines and rows <= 0.9 * facts.rows
    ]
    (began, before), (ended, after) = steady[0], steady[-1]
    (out / "rate.json").write_text(
        json.dumps({"answers_per_s": (after - before) / (ended - began), "seconds": ended - began})
    )


def rate(directory: Path, engines: int, seconds: float) -> dict[str, float]:
    """Return answers a second of a number of engines, each on its own node."""
    from ray.cluster_utils import Cluster
    from sampling_at_size import render

    prompts, out = directory / f"prompts-{engines}", directory / f"out-{engines}"
    render(prompts, round(seconds * engines * SLOTS / ANSWER_S))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 10**8}
    )
    try:
        for _ in range(engines):
            cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=8 * 10**7)
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"RAY_ADDRESS": cluster.address, "PYTHONPATH": path}
        command = [
            sys.executable,
            __file__,
            "--drive",
            str(prompts),
            str(out),
            "--engines",
            str(engines),
        ]
        subprocess.run(command, check=True, env=environment)
    finally:
        cluster.shutdown()
    figures: dict[str, float] = json.loads((out / "rate.json").read_text())
    return figures


def main() -> None:
    """Measure; print and write the figures. Exit status 1 below the limit."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60.0, help="work of each engine")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--drive", nargs=2, metavar=("PROMPTS", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(Path(options.drive[0]), Path(options.drive[1]), options.engines)
        return
    with tempfile.TemporaryDirectory() as name:
        one, many = (rate(Path(name), engines, options.seconds) for engines in (1, options.engines))
    efficiency = many["answers_per_s"] / (options.engines * one["answers_per_s"])
    print(
        f"1 engine {one['answers_per_s']:.2f}/s, {options.engines} engines "
        f"{many['answers_per_s']:.2f}/s, ratio {efficiency:.3f}"
    )
    if options.out:
        record = {
            "one": one,
            "many": many,
            "engines": options.engines,
            "ratio": efficiency,
            "machine": machine(),
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(efficiency < EFFICIENCY)


if __name__ == "__main__":
    from scale_out import (
        main as _main,  # so that workers find the double by a name that they can import
    )

    _main()
