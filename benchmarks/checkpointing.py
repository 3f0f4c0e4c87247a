"""The cost of checkpoints: share of training, time to the first new step, slow storage.

    python benchmarks/checkpointing.py --out figures.json
    python benchmarks/checkpointing.py --slow-s 8 --only-slow    # slow storage alone

- ZeRO-3 without Ray in `--workers` processes of one core each.
- The quick start's model in float32, with sequences of 60 to 600 tokens.
- Steps with a checkpoint after each, then two starts from the last checkpoint: one with the
  same number of workers, one with a single worker.
- The same steps three times with storage on which each worker's copy takes `--slow-s` seconds more:
  without states, waiting for each state, and with states copied in the background.

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
MOST_RATIO = 1.3


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
    if "slow_s" in plan:
        cluster = cluster.model_copy(update={"local_states": plan["disk"]})
    train = TrainConfig(**plan["train"])
    job = Job(**paths, logs=paths["out"], train=train, cluster=cluster, seed=0)
    worker = Worker(job)
    if "slow_s" in plan:
        figures = compare(worker, job, plan["steps"], plan["slow_s"])
        if rank == 0:
            print(json.dumps(figures))
        return
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


def compare(worker: Any, job: Any, steps: int, slow_s: float) -> dict[str, Any]:
    """Return seconds of steps, and from step to step, by way of saving, with the same batches."""
    from torch import distributed

    from ssd_ray.artifacts.files import copy_file
    from ssd_ray.training.state.saver import Saver

    def slow(source: Path, target: Path) -> str:
        # Under ZeRO-3 each worker has two files, and this one holds nearly all bytes.
        if "optim_states" in source.name:
            time.sleep(slow_s)
        return copy_file(source, target)

    saver = Saver(worker.engine, job, slow)
    worker.observer.begin(0)
    worker.step(0)
    figures: dict[str, Any] = {}
    number = 0
    for way in ("alone", "waiting", "background"):
        in_step, to_next = [], []
        for step in range(steps + 1):
            began = time.perf_counter()
            worker.step(step)
            in_step.append(time.perf_counter() - began)
            if way != "alone":
                number += 1
                saver.save(number)
            if way == "waiting":
                saver.wait()
            distributed.barrier()
            to_next.append(time.perf_counter() - began)
        # No copy is under way in the first step of each.
        figures[way] = {"in_step_s": in_step[1:], "to_next_s": to_next[1:]}
        saver.wait()
        distributed.barrier()
    return figures


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
    """Measure and return all figures."""
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
    figures = {} if options.only_slow else measure_cost(options, folder, plan)
    if options.slow_s:
        slow = {"slow_s": options.slow_s, "disk": str(folder / "disk"), "steps": options.steps}
        figures |= compared(run({**plan, **slow}, options.workers, folder, "slow"), options.slow_s)
    return {**figures, "load_1_min": round(os.getloadavg()[0], 2)}


def compared(seconds: dict[str, Any], slow_s: float) -> dict[str, Any]:
    """Medians by way of saving, and their ratios to steps without states."""
    medians = {
        way: {name: median(values) for name, values in each.items()}
        for way, each in seconds.items()
    }
    return {
        "slow_s": slow_s,
        "slow_seconds": medians,
        "slow_ratios": {
            way: {name: each[name] / medians["alone"][name] for name in each}
            for way, each in medians.items()
        },
    }


def measure_cost(options: argparse.Namespace, folder: Path, plan: dict[str, Any]) -> dict[str, Any]:
    """Figures of checkpoints on this machine's storage."""
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
    }


def print_cost(figures: dict[str, Any], options: argparse.Namespace) -> None:
    """Print the figures of checkpoints on this machine's storage."""
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


def main() -> None:
    """Measure; print and write the figures."""
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
    parser.add_argument(
        "--slow-s",
        type=float,
        default=8.0,
        help="seconds of a copy to slow storage, 0 to leave it out (default: %(default)s)",
    )
    parser.add_argument("--only-slow", action="store_true", help="measure slow storage alone")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    options = parser.parse_args()
    options.model = (options.model or models.fetch(recipes.load("quickstart").model)).resolve()
    around = machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(options, Path(folder))
    if not options.only_slow:
        print_cost(figures, options)
    if options.slow_s:
        print(f"a state after each step, whose copy takes {options.slow_s:g} s more:")
        for way, seconds in figures["slow_seconds"].items():
            ratios = figures["slow_ratios"][way]
            print(
                f"{way}: a step {seconds['in_step_s']:.2f} s ({ratios['in_step_s']:.2f} times), "
                f"from step to step {seconds['to_next_s']:.2f} s ({ratios['to_next_s']:.2f} times)"
            )
        print(f"wanted: a step in the background at most {MOST_RATIO} times")
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
