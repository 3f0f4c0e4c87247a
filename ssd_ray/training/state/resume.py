"""Save and restore the state from which an interrupted training goes on.

- A state is a DeepSpeed checkpoint, one shard a worker, on storage that all workers see.
- It is renamed into place when all shards are there, so a partial one is never read.
- Only the latest is kept.
- As many workers as wrote it restore it bit for bit. Another number of workers, or another ZeRO
  stage, assembles its own shards (`resharding.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from ssd_ray.artifacts.files import read_json, replace_directory, sync, write_atomic
from ssd_ray.errors import UserError
from ssd_ray.training.state import resharding
from ssd_ray.training.state.export import STEPS
from ssd_ray.training.state.logs import cut_log

RESUME = "resume"
LEAVE = "leave"


def latest(out: Path) -> tuple[int, dict[str, Any]]:
    """The step of the latest whole resume state and its record; step 0 and an empty record when there is none."""
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
            f"{path} does not say {lacking[0]}: delete {out / RESUME} to train from the first step"
        )
    return max(steps), state


def ask_to_leave(out: Path) -> None:
    """Ask the workers to write a resume state after the step they are at; writing one takes the request back."""
    (out / RESUME).mkdir(exist_ok=True)
    (out / RESUME / LEAVE).touch()


def asked_to_leave(out: Path) -> bool:
    """Whether a request to leave stands."""
    return (out / RESUME / LEAVE).exists()


def begin(out: Path, step: int) -> None:
    """Take away what an attempt that was ended left beyond `step`: lines of the loss log, and halves of states and exports."""
    cut_log(out, step)
    for folder in (out / RESUME, out / STEPS):
        for half in folder.glob(".*.partial"):
            shutil.rmtree(half)


def save(engine: Any, out: Path, step: int, model: str = "") -> None:
    """Write the resume state after `step` steps and drop older ones; every worker calls it. `model` names the base."""
    resume = out / RESUME
    aside = resume / f".step-{step}.partial"
    if engine.global_rank == 0:
        shutil.rmtree(
            aside, ignore_errors=True
        )  # what more workers began here would stay among the shards of fewer
    engine.save_checkpoint(
        str(resume), tag=aside.name, save_latest=False, exclude_frozen_parameters=True
    )
    sync(
        aside.glob(f"*zero_pp_rank_{engine.global_rank}_mp_rank_*")
    )  # only the node that wrote a shard can see to that
    torch.distributed.barrier()
    if engine.global_rank == 0:
        write_atomic(
            aside / "state.json", json.dumps({"step": step, "model": model, **_layout(engine)})
        )
        sync([*aside.iterdir(), aside])
        sync([*out.iterdir(), out])  # the logs, which must not be behind the state
        replace_directory(aside, resume / f"step-{step}")
        sync([resume])
        for old in resume.iterdir():  # earlier states, halves of states, a request to leave, and a script that DeepSpeed leaves
            if old.name != f"step-{step}":
                shutil.rmtree(old) if old.is_dir() else old.unlink()
    torch.distributed.barrier()


def restore(engine: Any, out: Path) -> int:
    """Put the latest whole resume state into a fresh engine and return its step (0: none); every worker calls it.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    step, state = latest(out)
    directory = out / RESUME / f"step-{step}"
    if (
        step
        and engine.zero_optimization()
        and any(state.get(name) != here for name, here in _layout(engine).items())
    ):
        resharding.load(engine, directory, state["num_workers"])
    elif step:
        resharding.check(engine, directory)
        frozen = any(
            not parameter.requires_grad for parameter in engine.module.parameters()
        )  # those are not in a state
        engine.load_checkpoint(str(out / RESUME), tag=directory.name, load_module_strict=not frozen)
    return step


def _layout(engine: Any) -> dict[str, int]:
    """What decides which part of weights and moments lies in which shard."""
    stage = int(engine.zero_optimization_stage())
    sizes = {"sub_group_size": int(engine.zero_sub_group_size())} if stage == 3 else {}
    return {"num_workers": engine.world_size, "zero_stage": stage, **sizes}
