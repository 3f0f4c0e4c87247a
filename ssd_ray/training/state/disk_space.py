"""Space for resume states, checked before hours of training need it.

- `check` compares the free bytes of the run directory with the states about to be written there.
- `check_here` runs in a worker. It also compares its node's disk with the parts of the node.

Writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssd_ray.config import TrainConfig
from ssd_ray.errors import OutsideError
from ssd_ray.machine.findings import gib
from ssd_ray.machine.storage import free_bytes
from ssd_ray.planner.states import most_at_once, state_bytes
from ssd_ray.training.job import Job
from ssd_ray.training.model.expert_parallel import num_elements
from ssd_ray.training.state import resume


def check(out: Path, size: int, train: TrainConfig) -> None:
    """Check the run directory for room for resume states of `size` bytes.

    Raises:
        UserError: it has too little.
    """
    number = max(1, most_at_once(train) - len(resume.steps(out)))
    free = free_bytes(out)
    if free < number * size:
        fewer = ", set train.resume_states=1" if train.resume_states > 1 else ""
        raise OutsideError(
            f"{out} has {gib(free)} GiB left, and {number} more resume states of training need "
            f"{gib(number * size)} GiB: free some{fewer} or choose another --out"
        )


def check_here(engine: Any, job: Job, workers_here: int) -> None:
    """Check run directory and local disk from a worker, one of `workers_here` on its node.

    Raises:
        UserError: one of them has too little room.
    """
    train = job.train
    trained = num_elements(engine.module, trained=True)
    width = 4 if train.dtype == "float32" else 2
    size = state_bytes(trained, engine.zero_optimization_stage(), width)
    if engine.global_rank == 0:
        check(job.out, size, train)
    if job.cluster.local_states is None:
        return
    disk = Path(job.cluster.local_states)
    part = size * workers_here // engine.world_size
    free = free_bytes(disk)
    if free < part:
        raise OutsideError(
            f"{disk} has {gib(free)} GiB left on a node, and its part of a resume state needs "
            f"{gib(part)} GiB: free some, or set cluster.local_states to another directory or null"
        )
