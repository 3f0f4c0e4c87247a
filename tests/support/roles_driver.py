"""Draw, grade and train on a Ray of four nodes with roles; note what ran where.

python tests/support/roles_driver.py DIRECTORY

Writes `places.json`: pairs of a class of actors, or of a function, and the role of its node.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ssd_ray import cluster, roles
from ssd_ray.artifacts import shards
from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.inference import pool
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import queue
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Prompt
from ssd_ray.training import trainer
from ssd_ray.training.job import Job
from tests.support.doubles import TimedEngine

CORES = {"driver": 0, "sampler": 1, "trainer": 2, "grader": 2}
CLUSTER = ClusterConfig(device="cpu", train_workers=2, roles="required", max_failures=0)
PROMPTS = 8


def own_role() -> str:
    """Return the role of the node of this process."""
    return str(ray.get_runtime_context().get_node_labels()[roles.LABEL])


def note(directory: Path, name: str) -> None:
    """Note the role of this node in a file of its own."""
    (directory / f"place-{name}-{own_role()}-{os.getpid()}").touch()


def noting_emit(directory: Path, batch: Any) -> Iterator[Any]:
    """Hand out units as `queue.emit` does."""
    note(directory, "emit")
    yield from queue.emit(batch)


def noting_work(config: Mapping[str, Job]) -> None:
    """Stand in for the loop of a training worker."""
    note(config["job"].logs.parent, "work")


class Places:
    """Classes of live actors with the roles of their nodes, seen many times a second."""

    def __init__(self) -> None:
        self.pairs: set[tuple[str, str]] = set()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def look(self) -> list[str]:
        """Add the actors that live now, and return their classes."""
        table = ray._private.state.state.actor_table(None, None, "ALIVE").values()
        role = {node["NodeID"]: roles.labels_of(node)[roles.LABEL] for node in ray.nodes()}
        live = [(row["ActorClassName"], role[row["Address"]["NodeID"]]) for row in table]
        self.pairs.update(live)
        return [name for name, _ in live]

    def _loop(self) -> None:
        while not self._done.wait(0.1):
            self.look()

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def draw(directory: Path) -> None:
    """Draw with a double of the engine, which reserves one core."""
    rows = [
        Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n, 3))
        for n in range(PROMPTS)
    ]
    shards.write_shard(directory / "prompts", "prompts-00000000", rows, Prompt)
    (directory / "prompts" / "manifest.json").touch()
    (directory / "samples").mkdir()
    job = JobSpec(
        stage="samples",
        key="samples",
        prompts=directory / "prompts",
        out=directory / "samples",
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=4,
    )
    spec = EngineSpec(
        make_engine=functools.partial(TimedEngine, 0.05),
        control=directory / ".engines",
        logs=directory / "logs",
    )
    size = Pool(
        min_engines=1,
        max_engines=1,
        concurrent_units=2,
        resources=Resources(1, 0, {"num_cpus": 1}, roles=CLUSTER.roles),
    )
    progress = LineProgress(2)
    with EnginePool(spec, size, max_failures=0, progress=progress) as engines:
        SamplingRun(job=job, engines=engines, ended=lambda: True, progress=progress).draw()


def grade(directory: Path, places: Places) -> None:
    """Start a grader and end it."""
    backend = RayBackend(CLUSTER, directory / "logs")
    actor, ready = backend.start()
    ray.get(ready)
    places.look()
    backend.end(actor)


def train(directory: Path) -> None:
    """Start the workers of a training, with a stand-in for their loop."""
    job = Job(
        dataset=directory,
        model=directory,
        out=directory / "checkpoint",
        logs=directory / "logs",
        train=TrainConfig(global_batch_size=2),
        cluster=CLUSTER,
        seed=0,
    )
    job.out.mkdir()
    trainer._run(job, LineProgress())


def start(temporary: str) -> Cluster:
    """Start a node for each role; patient, for a busy machine."""
    os.environ.update(cluster._ENVIRONMENT)
    os.environ |= {
        "RAY_raylet_start_wait_time_s": "180",
        "RAY_gcs_server_request_timeout_seconds": "180",
    }
    nodes = Cluster()
    for role, cores in CORES.items():
        nodes.add_node(
            wait=False,
            num_cpus=cores,
            labels={roles.LABEL: role},
            object_store_memory=80_000_000,
            temp_dir=temporary,
        )
    nodes.wait_for_nodes(180)
    return nodes


def main(directory: Path, temporary: str) -> None:
    """Run all three, and write what was seen."""
    pool.emit = functools.partial(noting_emit, directory)
    trainer.work = noting_work
    seconds = {"begin": time.monotonic()}
    nodes = start(temporary)
    os.environ["RAY_ADDRESS"] = nodes.address
    try:
        with cluster.connected():
            seconds["start"] = time.monotonic()
            roles.check_driver(CLUSTER.roles)
            places = Places()
            draw(directory)
            left = places.look()
            seconds["draw"] = time.monotonic()
            grade(directory, places)
            seconds["grade"] = time.monotonic()
            train(directory)
            seconds["train"] = time.monotonic()
            places.close()
    finally:
        nodes.shutdown()
    noted = [path.name.split("-")[1:3] for path in sorted(directory.glob("place-*"))]
    seen = {"actors": sorted(places.pairs), "functions": noted, "left": left, "seconds": seconds}
    (directory / "places.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(
        prefix="roles", dir="/tmp", ignore_cleanup_errors=True
    ) as place:
        main(Path(sys.argv[1]), place)
