"""Save and restore the resume state of an interrupted training.

- A state is a DeepSpeed checkpoint, one shard a worker, on storage that all workers see.
- It is renamed into place when all shards are on disk, so a partial one is never read.
- Only the latest is kept. Its record is `state.json`.
- As many workers as wrote it restore it bit for bit. Another number of workers, or another ZeRO
  stage, assembles its own shards (`resharding.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ssd_ray.artifacts.files import Json, read_json, replace_directory, sync, write_atomic
from ssd_ray.errors import UserError
from ssd_ray.training.state import resharding
from ssd_ray.training.state.export import STEPS
from ssd_ray.training.state.logs import cut_log

RESUME = "resume"
STOP = "leave"
"""Name of the file that requests a stop."""


def latest(out: Path) -> tuple[int, Json]:
    """Return step and record of the latest complete resume state; 0 and {} without one.

    Raises:
        UserError: the record lacks a field, as in states of earlier versions.
    """
    steps = [
        int(path.parent.name.removeprefix("step-"))
        for path in (out / RESUME).glob("step-*/state.json")
    ]
    if not steps:
        return 0, {}
    path = out / RESUME / f"step-{max(steps)}" / "state.json"
    state = read_json(path)
    if lacking := sorted({"num_workers", "zero_stage"} - state.keys()):
        raise UserError(
            f"{path} has no field {lacking[0]}: delete {out / RESUME} to train from the first step"
        )
    return max(steps), state


def request_stop(out: Path) -> None:
    """Ask the workers for a resume state after the current step; `save` deletes the request."""
    (out / RESUME).mkdir(exist_ok=True)
    (out / RESUME / STOP).touch()


def stop_requested(out: Path) -> bool:
    """Return True if a request to stop is pending."""
    return (out / RESUME / STOP).exists()


def begin(out: Path, step: int) -> None:
    """Remove the remains of an interrupted attempt after `step`.

    These are lines of the loss log, and partial states and exports.
    """
    cut_log(out, step)
    for folder in (out / RESUME, out / STEPS):
        for partial in folder.glob(".*.partial"):
            shutil.rmtree(partial)


def save(engine: Any, out: Path, step: int, model: str = "") -> None:
    """Write the resume state after `step` steps and delete older ones.

    Every worker calls it. `model` is the digest of the base.
    """
    resume = out / RESUME
    partial = resume / f".step-{step}.partial"
    if engine.global_rank == 0:
        # A partial state of more workers would leave its shards among those of fewer workers.
        shutil.rmtree(partial, ignore_errors=True)
    engine.save_checkpoint(
        str(resume), tag=partial.name, save_latest=False, exclude_frozen_parameters=True
    )
    # Each node flushes the shards it wrote; another node cannot.
    sync(partial.glob(f"*zero_pp_rank_{engine.global_rank}_mp_rank_*"))
    torch.distributed.barrier()
    if engine.global_rank == 0:
        record = {"step": step, "model": model, **_layout(engine)}
        write_atomic(partial / "state.json", json.dumps(record))
        sync([*partial.iterdir(), partial])
        # The logs must be on disk before the state, or a power cut could lose lines of its steps.
        sync([*out.iterdir(), out])
        replace_directory(partial, resume / f"step-{step}")
        sync([resume])
        _delete_others(resume, f"step-{step}")
    torch.distributed.barrier()


def _delete_others(resume: Path, latest_name: str) -> None:
    """Delete all but the latest state: earlier and partial ones, and a request to stop."""
    # DeepSpeed also leaves a script there.
    for path in resume.iterdir():
        if path.name == latest_name:
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def restore(engine: Any, out: Path) -> int:
    """Restore the latest complete resume state into a fresh engine and return its step.

    Every worker calls it. The step is 0 without a state.

    Raises:
        UserError: a file of the state is missing or damaged.
    """
    step, state = latest(out)
    directory = out / RESUME / f"step-{step}"
    if (
        step
        and engine.zero_optimization()
        and any(state.get(name) != value for name, value in _layout(engine).items())
    ):
        resharding.load(engine, directory, state["num_workers"])
    elif step:
        resharding.check(engine, directory)
        # Frozen parameters are not part of a state.
        frozen = any(not parameter.requires_grad for parameter in engine.module.parameters())
        engine.load_checkpoint(str(out / RESUME), tag=directory.name, load_module_strict=not frozen)
    return step


def _layout(engine: Any) -> dict[str, int]:
    """Return the settings that decide the division of weights and moments into shards."""
    stage = int(engine.zero_optimization_stage())
    sizes = {"sub_group_size": int(engine.zero_sub_group_size())} if stage == 3 else {}
    return {"num_workers": engine.world_size, "zero_stage": stage, **sizes}
