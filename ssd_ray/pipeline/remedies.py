"""Commands that fit a recipe's training to the GPUs at hand, by the planner.

Reads the shipped recipes; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray import config, recipes
from ssd_ray.config import Recipe
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import HOST_MEMORY, indivisible, plan_training, unshareable


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """GPUs for a training: their number, and what a plan assumes about them."""

    num_gpus: int
    assumed: Assumptions


def remedy(recipe: Recipe, model: Architecture | None, hardware: Hardware) -> str:
    """Return a command or options to train on these GPUs, or the way to a plan.

    - More workers come before offloading, which is slower.
    - Without the model's architecture there is no plan: only the number of workers is fitted.
    """
    if hardware.num_gpus == 0:
        return "use machines with GPUs"
    if model is None:
        return _options_without_plan(recipe, hardware.num_gpus)
    plan = plan_training(recipe, model, hardware.assumed)
    fitting = [
        each for each in plan.candidates if each.fits and each.num_workers <= hardware.num_gpus
    ]
    if fitting:
        return f"run with{_workers(recipe, fitting[-1].num_workers)}"
    smaller = recipe.model_copy(
        update={"cluster": recipe.cluster.model_copy(update={"train_workers": hardware.num_gpus})}
    )
    changed = plan_training(smaller, model, hardware.assumed)
    options, workers = "", 0
    if changed.remedy and changed.remedy[1].num_workers <= hardware.num_gpus:
        options, workers = changed.remedy[0], changed.remedy[1].num_workers
    variant = shipped_recipe(recipe, model, hardware)
    if variant and (not options or "offload" in options):
        return f"`ssd-ray run {variant}` has the same choices and fits"
    if options:
        return f"run with {options}{_workers(recipe, workers)}"
    host = ", or a host with more memory" if plan.requested.refusal == HOST_MEMORY else ""
    return f"use more or larger GPUs, as `ssd-ray plan {recipe.name}` lists them{host}"


def _workers(recipe: Recipe, number: int) -> str:
    """Return options for this number of workers, after a space; "" if the recipe has it already."""
    cluster = recipe.cluster
    if number == cluster.train_workers:
        return ""
    least = cluster.min_train_workers
    lowered = least is not None and least > number
    extra = f" --set cluster.min_train_workers={number}" if lowered else ""
    return f" --set cluster.train_workers={number}{extra}"


def _options_without_plan(recipe: Recipe, most: int) -> str:
    if counts := recipe.train.worker_counts(1, most):
        return f"run with{_workers(recipe, counts[-1])}"
    # A recipe sets at most one of the two above 1.
    divides = recipe.train.expert_parallel_size > 1
    field = "expert_parallel_size" if divides else "sequence_parallel_size"
    number = recipe.train.model_copy(update={field: 1}).worker_counts(1, most)[-1]
    return f"run with --set train.{field}=1{_workers(recipe, number)}"


def shipped_recipe(recipe: Recipe, model: Architecture, hardware: Hardware) -> str:
    """Return the shipped recipe of the same choices that trains on the most of these GPUs.

    Returns "" if none fits.
    """
    fitting = {}
    for name in recipes.shipped():
        other = recipes.load(name)
        workers = other.cluster.train_workers
        has_gpus = other.cluster.device == "cuda" and workers <= hardware.num_gpus
        is_meant = has_gpus and _same(recipe, other)
        if is_meant and plan_training(other, model, hardware.assumed).requested.fits:
            fitting[workers] = name
    return fitting[max(fitting)] if fitting else ""


def _same(recipe: Recipe, other: Recipe) -> bool:
    """Return True if two recipes differ at most in their names and in tuning fields."""
    ours, theirs = config.choices(recipe), config.choices(other)
    return ours | {"name": ""} == theirs | {"name": ""}


def sharing(recipe: Recipe, model: Architecture) -> tuple[str, str]:
    """Return why workers cannot share a sequence, and a remedy; both are "" if they can."""
    shared = recipe.train.sequence_parallel_size
    reason = unshareable(model, shared)
    if not reason:
        return "", ""
    for fewer in range(shared - 1, 0, -1):
        changed = recipe.train.model_copy(update={"sequence_parallel_size": fewer})
        workers = recipe.cluster.train_workers
        if not unshareable(model, fewer) and changed.worker_counts(workers, workers):
            return reason, f"run with --set train.sequence_parallel_size={fewer}"
    counts = changed.worker_counts(1, recipe.cluster.train_workers)
    resized = _workers(recipe, counts[-1])
    return reason, f"run with --set train.sequence_parallel_size=1{resized}"


def dividing(recipe: Recipe, model: Architecture) -> tuple[str, str]:
    """Return why workers cannot divide the model's experts, and options; "" if they can."""
    size = recipe.train.expert_parallel_size
    reason = indivisible(model, size)
    if not reason:
        return "", ""
    fewer = next(number for number in range(size - 1, 0, -1) if _divides(recipe, model, number))
    return reason, f"run with --set train.expert_parallel_size={fewer}"


def _divides(recipe: Recipe, model: Architecture, size: int) -> bool:
    return not indivisible(model, size) and recipe.cluster.train_workers % size == 0
