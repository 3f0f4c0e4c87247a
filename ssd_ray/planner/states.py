"""Resume states of a training: size on disk, seconds of writing, and seconds without steps.

- DeepSpeed writes float32 weights and two moments of every trained parameter. At ZeRO-1 and 2, the
  first worker also writes the weights in the precision of training.
- Without `cluster.local_states`, training waits while the run directory takes a state.
- With it, training waits for local disks only. A state longer under way than the steps to the next
  one makes that one wait. The last state goes straight to the run directory.

Pure functions. `tests/training/test_checkpoints.py` compares the size with files of DeepSpeed.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.config import Recipe, TrainConfig
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.hours import Time
from ssd_ray.planner.memory import Setting


@dataclass(frozen=True, kw_only=True)
class States:
    """Resume states of a training on one cluster."""

    state_bytes: int
    """Bytes of one state, of all workers."""
    number: int
    """States written by a training without interruptions."""
    volume_bytes: int
    """Bytes needed in the run directory: the kept states, and the one being written."""
    volume_s: float
    """Seconds to write or copy one state to the run directory."""
    disk_bytes: int
    """Bytes needed on the local disk of a node; 0 without `cluster.local_states`."""
    disk_s: float
    """Seconds to write one state to local disks; 0 without `cluster.local_states`."""
    waiting_s: float | None
    """Seconds of a training without steps because of states; None where hours are unknown."""
    waiting_share: float | None
    """The same as a share of the training with states; None where hours are unknown."""


def state_bytes(trained: int, zero_stage: int, width: int) -> int:
    """Return the bytes of one resume state.

    Args:
        trained: number of parameters with a gradient.
        zero_stage: stage of ZeRO.
        width: bytes of a weight in the precision of training.
    """
    return (12 + (width if zero_stage in (1, 2) else 0)) * trained


def num_states(train: TrainConfig) -> int:
    """Return the number of states written by a training without interruptions."""
    return -(-train.steps // train.checkpoint_every)


def most_at_once(train: TrainConfig) -> int:
    """Return the most states in the run directory: the kept ones, and the one being written."""
    return min(train.resume_states + 1, num_states(train))


def states_of(
    recipe: Recipe, model: Architecture, assumed: Assumptions, setting: Setting, time: Time | None
) -> States:
    """Return the resume states of a training; `time` is its duration without them, if known."""
    train = recipe.train
    workers = min(setting.num_workers, assumed.gpus_per_node)
    size = state_bytes(setting.trained(model), setting.zero_stage, setting.width)
    is_local = recipe.cluster.local_states is not None
    number = num_states(train)
    disk_bytes = size * workers // setting.num_workers if is_local else 0
    disk_s = disk_bytes / (1e9 * assumed.local_disk_gb_s)
    volume_s = size / (1e9 * assumed.shared_volume_gb_s)
    waiting_s = share = None
    if time is not None:
        training_s = 3600 * time.hours
        waiting_s = number * volume_s
        if is_local:
            between_s = training_s * train.checkpoint_every / train.steps
            waiting_s = (number - 1) * (disk_s + max(0.0, volume_s - between_s)) + volume_s
        share = waiting_s / (training_s + waiting_s)
    return States(
        state_bytes=size,
        number=number,
        volume_bytes=most_at_once(train) * size,
        volume_s=volume_s,
        disk_bytes=disk_bytes,
        disk_s=disk_s,
        waiting_s=waiting_s,
        waiting_share=share,
    )
