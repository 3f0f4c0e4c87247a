"""Compare the connected Ray with the work of a run, before anything is sampled.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ssd_ray import roles
from ssd_ray.cluster import room
from ssd_ray.config import Recipe
from ssd_ray.inference.vllm import placement
from ssd_ray.pipeline import remedies
from ssd_ray.pipeline.preflight import known_architecture
from ssd_ray.pipeline.remedies import Hardware
from ssd_ray.planner.assumptions import Assumptions


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
    if work.draws:
        need = placement.engine_resources(recipe.engine, device, choice).need
        room.check_room(need, say, lambda most: placement.remedy(recipe.engine, device, most))
    if work.trains:
        need = room.training_need(recipe.train, recipe.cluster)
        room.check_room(need, say, lambda most: _remedy_on_cluster(recipe, most))
    # Elsewhere graders take cores between engines and training.
    if work.grades and roles.in_effect(choice):
        need = room.grading_need(recipe.cluster)
        room.check_room(need, say, lambda _: "lower cluster.grader_cpus, or use larger machines")


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
