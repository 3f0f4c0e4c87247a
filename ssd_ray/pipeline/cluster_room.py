"""Compare the connected Ray with the work of a run, before anything is sampled.

- A cluster that is described (`growth.own_cluster`) is compared as `ssd-ray plan --cluster` does:
  GPUs, cores and memory of each stage, with the smallest change that makes it fit.
- Present nodes and the largest size are compared in any case.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from ssd_ray import roles
from ssd_ray.cluster import address, growth, room
from ssd_ray.cluster.cluster_files import DescribedCluster
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.inference.vllm import placement
from ssd_ray.pipeline import remedies
from ssd_ray.pipeline.described_cluster import stages_on
from ssd_ray.pipeline.preflight import known_architecture
from ssd_ray.pipeline.remedies import Hardware
from ssd_ray.planner.assumptions import Assumptions

_UNSTATED = Assumptions.model_construct(
    _fields_set=set(), gpu_memory_gib=math.inf, host_memory_gib=math.inf
)
"""Memory that a cluster does not state is no reason to refuse a run. A plan assumes a size."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Kinds of work of a run that need room in the cluster."""

    draws: bool = False
    trains: bool = False
    grades: bool = False


def check_cluster(recipe: Recipe, work: Work, say: Callable[[str], None]) -> None:
    """Refuse a recipe for which the connected Ray can never have room; report a wait for growth.

    Raises:
        UserError: this process runs on a node of a wrong role, or the cluster cannot hold an
            engine, the training or a grader, with a command that fits.
    """
    device, choice = recipe.cluster.device, recipe.cluster.roles
    roles.check_driver(choice)
    described = growth.own_cluster() if address.named() else None
    if described is not None:
        _check_described(recipe, work, described)
    if work.draws:
        need = placement.engine_resources(recipe.engine, device, choice).need
        room.check_room(need, say, lambda most: placement.remedy(recipe.engine, device, most))
    if work.trains:
        need = room.training_need(recipe.train, recipe.cluster)
        room.check_room(need, say, lambda most: _remedy_on_cluster(recipe, most))
    # Without roles, graders take cores between engines and training.
    is_graded_here = work.grades and recipe.cluster.graders == "ray"
    if is_graded_here and roles.in_effect(choice):
        need = room.grading_need(recipe.cluster)
        room.check_room(need, say, lambda _: "lower cluster.grader_cpus, or use larger machines")


def _check_described(recipe: Recipe, work: Work, cluster: DescribedCluster) -> None:
    """Refuse a recipe with a stage that the described cluster never holds.

    Raises:
        UserError: names the stage's need, the group, and the smallest change.
    """
    is_wanted = {"sample": work.draws, "train": work.trains, "grade": work.grades}
    for fit in stages_on(recipe, cluster, known_architecture(recipe), _UNSTATED):
        if is_wanted.get(fit.stage) and not fit.fits:
            raise UserError(f"{cluster.source} does not hold this run, as {fit.sentence}")


def _remedy_on_cluster(recipe: Recipe, most: int) -> str:
    """Return a command for a cluster that holds `most` workers of training.

    Ray does not know the memory of its GPUs, so the plan assumes that of its defaults.
    """
    if recipe.cluster.device == "cuda":
        hardware = Hardware(num_gpus=most, assumed=Assumptions())
        return remedies.remedy(recipe, known_architecture(recipe), hardware)
    if most == 0:
        return "lower cluster.cpus_per_train_worker, or use larger machines"
    return remedies.remedy(recipe, None, Hardware(num_gpus=most, assumed=Assumptions()))
