"""An engine of one worker with the files of a resume state and nothing else."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.training.job import Job

SHARD = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
MODEL = "mp_rank_00_model_states.pt"


def engine_of(rank: int = 0, world_size: int = 1) -> Any:
    def save_checkpoint(folder: str, tag: str, **_: Any) -> None:
        directory = Path(folder) / tag
        directory.mkdir(parents=True, exist_ok=True)
        for name in (SHARD.format(rank), *([] if rank else [MODEL])):
            (directory / name).write_text(f"{tag.strip('.').partition('.')[0]}, worker {rank}\n")

    return SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        save_checkpoint=save_checkpoint,
        zero_optimization_stage=lambda: 2,
    )


def job_of(folder: Path, **choices: Any) -> Job:
    """Return a job with its run directory and its local disk in a folder."""
    out = folder / "checkpoint"
    out.mkdir(exist_ok=True)
    return Job(
        dataset=folder,
        model=folder,
        out=out,
        logs=folder,
        train=TrainConfig(**choices),
        cluster=ClusterConfig(device="cpu", local_states=str(folder / "disk")),
        seed=0,
    )


def save_and_hang(folder: Path, step: int, hangs: str) -> None:
    """Save the state after `step` steps, and hang in its copy or once it is complete."""
    from ssd_ray.artifacts.files import copy_file
    from ssd_ray.training.state.saver import Saver

    def copy(source: Path, target: Path) -> str:
        if hangs == "copying" and source.name == SHARD.format(0):
            target.write_bytes(source.read_bytes()[:4])
            time.sleep(3600)
        return copy_file(source, target)

    saver = Saver(engine_of(), job_of(folder), copy)
    saver.save(step)
    print("goes on", flush=True)
    saver.wait()
    print("complete", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    save_and_hang(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
    os._exit(1)
