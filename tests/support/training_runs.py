"""Training runs of a tiny model on CPU workers: start one, watch it, disturb it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.progress import LineProgress
from tests.support.processes import command_of

ROOT = Path(__file__).parents[2]
STEPS, EVERY, EXPORTED = 24, 6, 12
"""All steps, those between two resume states, and the one exported before the last."""
TRAIN = {
    "steps": STEPS,
    "global_batch_size": 8,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "warmup_steps": 5,
    "max_grad_norm": 0.5,
    "dtype": "float32",
    "checkpoint_every": EVERY,
    "resume_states": 1,
    "export_every": EXPORTED,
    "gradient_checkpointing": False,
    "loss_chunk_tokens": 16,
}
SEED = 3


def cluster_of(
    workers: int, max_failures: int = 0, local_states: str | None = None
) -> ClusterConfig:
    return ClusterConfig(
        device="cpu",
        train_workers=workers,
        cpus_per_train_worker=1,
        max_failures=max_failures,
        local_states=local_states,
    )


def train(
    dataset: Path,
    model: Path,
    out: Path,
    workers: int = 2,
    max_failures: int = 0,
    local_states: str | None = None,
    **changes: Any,
) -> dict[str, Any]:
    from ssd_ray.training import trainer
    from ssd_ray.training.job import Job

    out.mkdir(parents=True, exist_ok=True)
    job = Job(
        dataset=dataset,
        model=model,
        out=out,
        logs=out.parent / f"{out.name}-logs",
        train=TrainConfig(**{**TRAIN, **changes}),
        cluster=cluster_of(workers, max_failures, local_states),
        seed=SEED,
    )
    return trainer.train(job, LineProgress())


def loss_log(out: Path) -> list[dict[str, Any]]:
    """Return the loss log without time and memory of steps."""
    costs = {"seconds", "peak_gib", "memory_gib", "tokens_per_s"}
    return [
        {key: value for key, value in json.loads(line).items() if key not in costs}
        for line in log_lines(out)
    ]


def log_lines(out: Path) -> list[str]:
    path = out / "loss.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def weights_of(directory: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")


def save_weights(directory: Path, weights: dict[str, Any], dtype: str) -> None:
    """Replace the weights of a model directory, and its precision."""
    from safetensors.torch import save_file

    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, "dtype": dtype}))


DRIVER = """
import signal, sys
from pathlib import Path
from tests.support import training_runs
from ssd_ray import cluster
if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the command line does
    with cluster.connected():
        places = [Path(place) for place in ({dataset!r}, {model!r}, {out!r})]
        try:
            training_runs.train(*places, max_failures=2, local_states={local_states!r})
        finally:
            if signal.getsignal(signal.SIGTERM) is signal.default_int_handler:
                print("SIGTERM is a Ctrl-C", file=sys.stderr)
"""


def start_driver(
    dataset: Path, model: Path, out: Path, local_states: str | None = None
) -> subprocess.Popen[bytes]:
    paths = {
        "dataset": str(dataset),
        "model": str(model),
        "out": str(out),
        "local_states": local_states,
    }
    script = out.parent / "driver.py"
    script.write_text(DRIVER.format(**paths))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, str(script)],
        env=environment,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_for(condition: Any, timeout_s: float = 300) -> Any:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if result := condition():
            return result
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def training_workers(out: Path) -> list[psutil.Process]:
    """Return the training processes whose output goes to the run's logs."""
    workers = []
    for process in psutil.process_iter():
        if "RayTrainWorker" not in command_of(process):
            continue
        try:
            if any(
                "-logs/train-worker-" in file.path and file.path.startswith(str(out))
                for file in process.open_files()
            ):
                workers.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return workers


ELASTIC = """
import contextlib, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from tests.support import training_runs
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.progress import LineProgress
from ssd_ray.training.job import Job
from ssd_ray.training.trainer import train
def train_and_lose_a_node(out, notice):
    doomed = nodes.add_node(num_cpus=1)
    def take_away():
        while len(training_runs.log_lines(out)) < training_runs.EVERY + 2:
            time.sleep(0.02)
        held = training_runs.training_workers(out)[0]
        held.suspend()  # so many small steps would end too soon
        if notice:
            training_runs.drain(nodes.address, doomed.node_id, held, out)
        nodes.remove_node(doomed, allow_graceful=False)
        with contextlib.suppress(psutil.NoSuchProcess):
            held.resume()
    threading.Thread(target=take_away, daemon=True).start()
    choices = ClusterConfig(
        device="cpu", train_workers=2, min_train_workers=1, cpus_per_train_worker=1, max_failures=3
    )
    out.mkdir(parents=True)
    # With a notice, every state is one that the notice caused.
    changes = {{"checkpoint_every": 1_000}} if notice else {{}}
    job = Job(
        dataset=Path({dataset!r}),
        model=Path({model!r}),
        out=out,
        logs=out.parent / f"{{out.name}}-logs",
        train=TrainConfig(**training_runs.TRAIN | changes),
        cluster=choices,
        seed=training_runs.SEED,
    )
    train(job, LineProgress())
if __name__ == "__main__":
    head = {{"num_cpus": 0, "include_dashboard": False}}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    ray.init(address=nodes.address, log_to_driver=False, logging_level="ERROR")
    for notice, out in {outs!r}.items():
        train_and_lose_a_node(Path(out), notice)
    ray.shutdown()
    nodes.shutdown()
"""


def drain(address: str, node: str, held: psutil.Process, out: Path) -> None:
    """Announce a node's end, as a spot machine does, and wait for the saved state.

    `held` is a suspended worker. It resumes once Ray Train knows of the end.
    """
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    GcsClient(address=address).drain_node(node, reason, "going", int((time.time() + 60) * 1000))
    time.sleep(4)
    held.resume()
    saved = wait_for(lambda: list((out / "resume").glob("step-*")), timeout_s=60)
    (out.parent / "saved").write_text(saved[0].name)
