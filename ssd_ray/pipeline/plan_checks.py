"""Checks of a training's plan against the memory of this machine.

- `faults` yields the reasons why the training can never fit.
- `notes` reports memory that would suffice and is in use now. Training begins after sampling, so
  this is no refusal.
"""

from __future__ import annotations

from collections.abc import Iterator

from ssd_ray.cluster import room
from ssd_ray.config import Recipe
from ssd_ray.machine.facts import Machine
from ssd_ray.machine.findings import GIB, Finding, gib
from ssd_ray.models.architecture import Architecture
from ssd_ray.pipeline import remedies
from ssd_ray.pipeline.remedies import Hardware
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import TrainingPlan, host_bytes, plan_training


def hardware(machine: Machine) -> Hardware:
    """Return the GPUs of this machine, and the assumptions of a plan for them."""
    sizes: dict[str, float] = {"host_memory_gib": machine.host.memory / GIB}
    visible = machine.gpus.visible
    num_gpus = machine.gpus.largest_group
    if visible:
        sizes["gpus_per_node"] = num_gpus
        if smallest := min(gpu.total for gpu in visible):
            sizes["gpu_memory_gib"] = smallest / GIB
    assumed = Assumptions.model_validate(sizes)
    return Hardware(num_gpus=num_gpus, assumed=assumed)


def faults(recipe: Recipe, machine: Machine, model: Architecture) -> Iterator[Finding]:
    """Yield a fault if the planner says that training does not fit the memory of this machine."""
    plan = _plan(recipe, machine, model)
    if plan is None:
        return
    if recipe.cluster.device == "cpu":
        yield from _cpu_faults(plan, machine)
        return
    requested = plan.requested
    if requested.fits:
        return
    cluster = recipe.cluster.model_copy(update={"train_workers": plan.num_workers})
    started = recipe.model_copy(update={"cluster": cluster})
    yield Finding(
        subject="training",
        state="fault",
        text=(
            f"training on cluster.train_workers={plan.num_workers} does not fit this machine: "
            f"{requested.refusal} (each GPU needs {gib(round(requested.bytes_needed))} of "
            f"{plan.assumed.gpu_memory_gib:,.1f} GiB, the host has "
            f"{gib(machine.host.memory)} GiB)"
        ),
        remedy=remedies.remedy(started, model, hardware(machine)),
    )


def notes(recipe: Recipe, machine: Machine, model: Architecture) -> Iterator[Finding]:
    """Yield a note if the training needs more memory of the host than is available now."""
    plan = _plan(recipe, machine, model)
    if plan is None:
        return
    needed = _host_bytes(plan)
    if machine.host.available < needed <= machine.host.memory:
        yield Finding(
            subject="host memory",
            state="note",
            text=(
                f"training needs {gib(needed)} GiB of host memory, and "
                f"{gib(machine.host.available)} of {gib(machine.host.memory)} GiB are available now"
            ),
            remedy="end other programs before it begins",
        )


def _plan(recipe: Recipe, machine: Machine, model: Architecture) -> TrainingPlan | None:
    """Return the plan for this machine; None if no permitted number of workers fits its GPUs."""
    here = hardware(machine)
    if recipe.cluster.device == "cpu":
        return plan_training(recipe, model, here.assumed)
    # An elastic training begins with as many workers as there are GPUs.
    least = room.training_need(recipe.train, recipe.cluster).workers
    counts = recipe.train.worker_counts(least, min(recipe.cluster.train_workers, here.num_gpus))
    if not counts:
        return None
    cluster = recipe.cluster.model_copy(update={"train_workers": counts[-1]})
    return plan_training(recipe.model_copy(update={"cluster": cluster}), model, here.assumed)


def _host_bytes(plan: TrainingPlan) -> int:
    """Return the memory of the host that all workers of this machine need together."""
    if plan.device == "cpu":
        return round(plan.num_workers * plan.requested.bytes_needed)
    return round(host_bytes(plan.requested.memory, plan.num_workers))


def _cpu_faults(plan: TrainingPlan, machine: Machine) -> Iterator[Finding]:
    needed = _host_bytes(plan)
    if needed > machine.host.memory:
        yield Finding(
            subject="training",
            state="fault",
            text=(
                f"training on cluster.train_workers={plan.num_workers} needs {gib(needed)} GiB of "
                f"memory, and this machine has {gib(machine.host.memory)} GiB"
            ),
            remedy="use a smaller model or a machine with more memory",
        )
