"""Draw, grade and train on a Ray of four nodes with roles; note what ran where.

python tests/support/roles_driver.py DIRECTORY

- Graders grade while the engine draws: it holds its last answer back until a verdict is on disk.
- Training begins once the engine and the grader are gone, as in a run.

Writes `places.json`: pairs of a class of actors, or of a function, and the role of its node; what
lived together; and the free GPUs of the sampler as the gang of the trainer was asked for.
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
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from ssd_ray import cluster, roles
from ssd_ray.artifacts import shards
from ssd_ray.config import ClusterConfig, Decoding, TrainConfig
from ssd_ray.evaluation.following import Answers
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.ray_pool import grade, pool_on_ray
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.inference import pool
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.engine import Answer, Request
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import queue
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Problem, Prompt, Test
from ssd_ray.training import trainer
from ssd_ray.training.job import Job
from tests.support.doubles import TimedEngine

CORES = {"driver": 0, "sampler": 1, "trainer": 2, "grader": 2}
GPUS = {"sampler": 1, "trainer": 2}
"""In Ray's books alone: no process here uses one."""
CLUSTER = ClusterConfig(device="cpu", train_workers=2, roles="required", max_failures=0)
PROMPTS = 8
LONGEST_S = 120.0


class HoldingEngine(TimedEngine):
    """Holds the last prompt back until a verdict is on disk, and notes that it saw one."""

    def __init__(self, directory: Path) -> None:
        super().__init__(0.05)
        self._directory = directory

    def submit(self, request: Request) -> Future[Answer]:
        """Wait for a verdict before the last prompt."""
        if request.prompt_token_ids[0] == PROMPTS - 1:
            until = time.monotonic() + LONGEST_S
            while not shards.shard_paths(self._directory / "verdicts"):
                if time.monotonic() > until:
                    return super().submit(request)
                time.sleep(0.1)
            (self._directory / "graded-while-drawing").touch()
        return super().submit(request)


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
        self.together: set[tuple[str, ...]] = set()
        self.free_gpus_at_gang: float | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def look(self) -> list[str]:
        """Add the actors that live now, and return their classes."""
        table = ray._private.state.state.actor_table(None, None, "ALIVE").values()
        role = {node["NodeID"]: roles.labels_of(node)[roles.LABEL] for node in ray.nodes()}
        live = [(row["ActorClassName"], role[row["Address"]["NodeID"]]) for row in table]
        self.pairs.update(live)
        names = [name for name, _ in live]
        kinds = ("MapWorker", "GraderActor", "RayTrainWorker")
        self.together.add(tuple(kind for kind in kinds if any(kind in name for name in names)))
        # Engines of one GPU have no placement group, so one is the gang of the trainer.
        if self.free_gpus_at_gang is None and ray.util.placement_group_table():
            self.free_gpus_at_gang = self.free_gpus("sampler")
        return names

    def free_gpus(self, role: str) -> float:
        """Return the free GPUs of the node of a role."""
        (node,) = roles.live_nodes({roles.LABEL: role})
        free = ray._private.state.available_resources_per_node()[node["NodeID"]]
        return float(free.get("GPU", 0.0))

    def _loop(self) -> None:
        while not self._done.wait(0.1):
            self.look()

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def draw(directory: Path) -> None:
    """Draw with a double of the engine, which reserves one core and one GPU."""
    rows = [
        Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n, 3))
        for n in range(PROMPTS)
    ]
    shards.write_shard(directory / "prompts", "prompts-00000000", rows, Prompt)
    (directory / "prompts" / "manifest.json").touch()
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
        make_engine=functools.partial(HoldingEngine, directory),
        control=directory / ".engines",
        logs=directory / "logs",
    )
    size = Pool(
        min_engines=1,
        max_engines=1,
        concurrent_units=2,
        resources=Resources(1, 1, {"num_cpus": 1, "num_gpus": 1}, roles=CLUSTER.roles),
    )
    progress = LineProgress(2)
    with EnginePool(spec, size, max_failures=0, progress=progress) as engines:
        SamplingRun(job=job, engines=engines, ended=lambda: True, progress=progress).draw()


def order(directory: Path) -> GradingSpec:
    """Write a problem for each prompt, and return the order to grade the answers to them."""
    tests = (Test(input="1\n", output="2\n"),)
    problems = [
        Problem(problem_id=f"p{n}", source="s", statement="Double it.", tests=tests)
        for n in range(PROMPTS)
    ]
    stored = list(store_problems(problems, directory / "benchmark" / "tests", "L1", []))
    shards.write_shard(directory / "benchmark", "problems", stored, Problem)
    (directory / "verdicts").mkdir()
    rules = Rules(limits=Limits(time_s=5, memory_mib=256, output_kib=64))
    return GradingSpec(
        benchmark=directory / "benchmark", rules=rules, floor="L1", out=directory / "verdicts"
    )


def draw_and_grade(directory: Path, places: Places) -> dict[str, Any]:
    """Draw, grade the answers as they appear, and return what became of engine and graders."""
    spec = order(directory)
    (directory / "samples").mkdir()
    drawn = threading.Event()
    answers = Answers(directory=directory / "samples", total=PROMPTS, ended=drawn.is_set)
    seen: dict[str, Any] = {}
    with pool_on_ray(CLUSTER, directory / "logs") as graders, ThreadPoolExecutor(1) as threads:
        grading = threads.submit(
            grade, answers, spec, graders, stage="verdicts", progress=LineProgress(2)
        )
        try:
            draw(directory)
        finally:
            drawn.set()
        seen["left"] = places.look()
        seen["verdicts"] = grading.result(LONGEST_S).rows
        graded_at = time.monotonic()
        # The pool stays open, as in a run with more to grade later.
        while any("GraderActor" in name for name in places.look()):
            if time.monotonic() - graded_at > LONGEST_S:
                break
            time.sleep(0.1)
        seen["graders_gone_after_s"] = time.monotonic() - graded_at
    seen["graded_while_drawing"] = (directory / "graded-while-drawing").exists()
    return seen


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
            num_gpus=GPUS.get(role, 0),
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
            seen = draw_and_grade(directory, places)
            seconds["draw and grade"] = time.monotonic()
            train(directory)
            seconds["train"] = time.monotonic()
            places.close()
    finally:
        nodes.shutdown()
    noted = [path.name.split("-")[1:3] for path in sorted(directory.glob("place-*"))]
    seen |= {
        "actors": sorted(places.pairs),
        "functions": noted,
        "together": sorted(places.together),
        "free_gpus_at_gang": places.free_gpus_at_gang,
        "seconds": seconds,
    }
    (directory / "places.json").write_text(json.dumps(seen, indent=1))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(
        prefix="roles", dir="/tmp", ignore_cleanup_errors=True
    ) as place:
        main(Path(sys.argv[1]), place)
