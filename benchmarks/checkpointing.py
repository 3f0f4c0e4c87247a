"""The cost of checkpoints: their share of training, and the time to the first new step.

    python benchmarks/checkpointing.py --out figures.json

- ZeRO-3 without Ray in `--workers` processes of one core each.
- The quick start's model in float32, with sequences of 60 to 600 tokens.
- Steps with a checkpoint after each, then two starts from the last checkpoint: one with the
  same number of workers, one with a single worker.

Figures are medians. The JSON holds the load; figures from a busy machine mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from machine import machine

HERE = Path(__file__).parent
MOST_SHARE, MOST_START_S = 0.05, 30.0


def work(rank: int, world: int, port: str, plan: dict[str, Any]) -> None:
    """Run one process: resume if possible, step, checkpoint after each step, print times."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    from ssd_ray.config import ClusterConfig, TrainConfig
    from ssd_ray.training.model.engine import prepare_process

    cluster = ClusterConfig(device="cpu", train_workers=world, cpus_per_train_worker=1)
    prepare_process(cluster)
    import deepspeed

    from ssd_ray.training.job import Job
    from ssd_ray.training.state import resume
    from ssd_ray.training.worker import Worker

    deepspeed.init_distributed("gloo", verbose=False)
    paths = {name: Path(plan[name]) for name in ("dataset", "model", "out")}
    worker = Worker(
        Job(**paths, logs=paths["out"], train=TrainConfig(**plan["train"]), cluster=cluster, seed=0)
    )
    begin = resume.restore(worker.engine, paths["out"])
    worker.observer.begin(begin)
    steps, saves, start_s = [], [], 0.0
    begins_s = time.time() - plan["started"]
    for step in range(begin, begin + plan["steps"]):
        steps.append(worker.step(step)["seconds"])
        start_s = time.time() - plan["started"] if step == begin else start_s
        began = time.perf_counter()
        if not begin:
            resume.save(worker.engine, paths["out"], step + 1)
        saves.append(time.perf_counter() - began)
    state = paths["out"] / resume.RESUME / f"step-{begin + plan['steps']}"
    size = sum(path.stat().st_size for path in state.iterdir()) / 2**30 if state.exists() else 0
    if rank == 0:
        figures = {
            "begin": begin,
            "begins_s": begins_s,
            "start_s": start_s,
            "steps_s": steps,
            "saves_s": saves,
            "state_gib": size,
        }
        print(json.dumps(figures))


def run(plan: dict[str, Any], world: int, folder: Path, name: str) -> dict[str, Any]:
    """Run a group of processes and return what the first printed."""
    file = folder / f"{name}.json"
    file.write_text(json.dumps({**plan, "started": time.time()}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    running = []
    for rank in range(world):
        command = [sys.executable, __file__, "--rank", str(rank), str(world), port, str(file)]
        environment = {
            **os.environ,
            "PYTHONPATH": f"{HERE.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}",
        }
        with (folder / f"{name}-{rank}.log").open("w") as log:
            running.append(
                subprocess.Popen(
                    command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
                )
            )
    printed = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        sys.exit(f"{name} failed:\n{(folder / f'{name}-0.log').read_text()[-2000:]}")
    figures: dict[str, Any] = json.loads(printed[0].splitlines()[-1])
    return figures


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    from training import make_dataset

    vocabulary = json.loads((options.model / "config.json").read_text())["vocab_size"]
    dataset, out = make_dataset(folder / "dataset", vocabulary, 60, 600), folder / "out"
    out.mkdir()
    train = {
        "steps": 1000,
        "global_batch_size": 8,
        "dtype": "float32",
        "warmup_steps": 0,
        "gradient_checkpointing": False,
    }
    plan = {"dataset": str(dataset), "model": str(options.model), "out": str(out), "train": train}
    first = run({**plan, "steps": options.steps}, options.workers, folder, "first")
    again = run({**plan, "steps": 1}, options.workers, folder, "again")
    fewer = run({**plan, "steps": 1}, 1, folder, "fewer")
    step_s, save_s = median(first["steps_s"][1:]), median(first["saves_s"])
    return {
        "step_s": round(step_s, 2),
        "save_s": round(save_s, 2),
        "state_gib": round(first["state_gib"], 2),
        "every": options.every,
        "share": round(save_s / (options.every * step_s + save_s), 5),
        "first_new_step_begins_s": round(again["begins_s"], 1),
        "first_new_step_s": round(again["start_s"], 1),
        "first_new_step_with_one_worker_begins_s": round(fewer["begins_s"], 1),
        "first_new_step_with_one_worker_s": round(fewer["start_s"], 1),
        "load_1_min": round(os.getloadavg()[0], 2),
    }


def main() -> None:
    """Measure, print, write."""
    from ssd_ray import models, recipes

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument(
        "--model", type=Path, help="a Hugging Face model directory (default: the quick start's)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=2,
        help="processes that train and save (default: %(default)s)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=4,
        help="steps with a checkpoint after each (default: %(default)s)",
    )
    parser.add_argument(
        "--every",
        type=int,
        default=250,
        help="steps between checkpoints of a recipe (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    options.model = (options.model or models.fetch(recipes.load("quickstart").model)).resolve()
    around = machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    print(
        f"a step {figures['step_s']} s, a checkpoint {figures['save_s']} s and "
        f"{figures['state_gib']} GiB"
    )
    print(
        f"share of training at one in {options.every} steps: {figures['share']:.2%} (wanted: at "
        f"most {MOST_SHARE:.0%})"
    )
    begins, done = figures["first_new_step_begins_s"], figures["first_new_step_s"]
    print(
        f"from start, the first new step begins after {begins} s (wanted: at most "
        f"{MOST_START_S:g} s), is made after {done} s"
    )
    begins, done = (
        figures["first_new_step_with_one_worker_begins_s"],
        figures["first_new_step_with_one_worker_s"],
    )
    print(f"the same with one worker instead of {options.workers}: {begins} s and {done} s")
    if options.out:
        options.out.write_text(json.dumps({"machine": around, "figures": figures}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rank"]:
        work(
            int(sys.argv[2]),
            int(sys.argv[3]),
            sys.argv[4],
            json.loads(Path(sys.argv[5]).read_text()),
        )
    else:
        main()
