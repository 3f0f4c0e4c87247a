"""One process of a group that trains a list of cases, each with its own engine: `python engine_cases.py RANK WORLD PORT PLAN`.

PLAN is a JSON file: data set, out, the recipe that cases share, and the cases by name, each with its model and changes.
The first process writes each case's loss log and its exported model into out/NAME.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

SEED = 3


def job_of(plan: dict[str, Any], name: str, world: int) -> Any:
    """The job of one case."""
    from ssd_ray.config import ClusterConfig, TrainConfig
    from ssd_ray.training.loop import Job

    out = Path(plan["out"]) / name
    return Job(
        dataset=Path(plan["dataset"]),
        model=Path(plan["cases"][name]["model"]),
        out=out,
        logs=out,
        train=TrainConfig(**{**plan["train"], **plan["cases"][name]["train"]}),
        cluster=ClusterConfig(device="cpu", train_workers=world, cpus_per_train_worker=1),
        seed=SEED,
    )


def run_case(plan: dict[str, Any], name: str, world: int) -> None:
    """Train one case for its number of steps and export it."""
    from torch import distributed

    from ssd_ray.training import batches, checkpoints
    from ssd_ray.training.loop import Worker

    job = job_of(plan, name, world)
    job.out.mkdir(parents=True, exist_ok=True)
    worker = Worker(job)
    worker.observer.begin(0)
    for step in range(job.train.steps):
        batch = batches.global_batch(worker.examples, job.train.global_batch_size, job.seed, step)
        line = {**worker.step(step), "micro_steps": len(worker._mine(batch))}
        if distributed.get_rank() == 0:
            checkpoints.append_log(job.out, line)
    checkpoints.export(worker.engine, job.model, job.out, job.train)


def main(rank: int, world: int, port: str, plan_file: str) -> None:
    """Join the group and run the cases in their order."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    from ssd_ray.config import ClusterConfig
    from ssd_ray.training.engine import prepare_process

    prepare_process(ClusterConfig(device="cpu", train_workers=world, cpus_per_train_worker=1))
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    plan = json.loads(Path(plan_file).read_text())
    from deepspeed.runtime.sequence_parallel import parallel_state_sp
    from deepspeed.utils import groups
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    attention = ALL_ATTENTION_FUNCTIONS["sdpa"]
    for name in plan["cases"]:
        run_case(plan, name, world)
        ALL_ATTENTION_FUNCTIONS["sdpa"] = attention  # sequence parallelism stays for the rest of a process otherwise
        parallel_state_sp._release_sequence_parallel_groups()
        groups.mpu = None


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
