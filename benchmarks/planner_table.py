"""Table of hours for the paper's six recipes on clusters of GPUs, as in docs/planner.md.

    python benchmarks/planner_table.py

Memory is planned. Hours are those of the simulation in `planner_hours.py`, and the plan's for
optimizer steps on the host. A recipe that does not fit is changed by the planner's remedy.
"""

from __future__ import annotations

import argparse

import numpy as np
from planner_hours import draw, simulated

from ssd_ray import recipes
from ssd_ray.config import Recipe, TrainConfig
from ssd_ray.models.architecture import shipped
from ssd_ray.planner.assumptions import Assumptions, assumptions
from ssd_ray.planner.clusters import Candidate, plan_training
from ssd_ray.planner.work import max_tokens

NAMES = (
    "llama-3.1-8b-instruct",
    "qwen3-4b-instruct",
    "qwen3-4b-thinking",
    "qwen3-30b-instruct",
    "qwen3-30b-thinking",
    "gpt-oss-20b-high",
)
CLUSTERS = {1: "1", 8: "8", 16: "2×8", 32: "4×8"}
MEMORY = {80: 79.0, 141: 139.0}
"""GiB that a GPU has, by the GB that it is sold with."""
MARKS = {"none": "", "optimizer": " o", "parameters": " p"}


def fitting(recipe: Recipe, assumed: Assumptions) -> tuple[Recipe, Candidate] | None:
    """Return the recipe as it fits its number of workers, changed if need be; None if it cannot."""
    model = shipped(recipe.model.source)
    assert model is not None
    plan = plan_training(recipe, model, assumed)
    if plan.requested.fits:
        return recipe, plan.requested
    if plan.remedy is None or plan.remedy[1].num_workers != plan.num_workers:
        return None
    candidate = plan.remedy[1]
    changed = {
        "zero_stage": candidate.setting.zero_stage,
        "offload": candidate.setting.offload,
        "sequence_parallel_size": candidate.setting.sequence_parallel,
    }
    train = TrainConfig.model_validate(recipe.train.model_dump() | changed)
    return recipe.model_copy(update={"train": train}), candidate


def cell(name: str, gpus: int, assumed: Assumptions, steps: int) -> str:
    """Return the hours of a recipe on a cluster with a mark for offloading, or a dash."""
    recipe = recipes.load(name)
    cluster = recipe.cluster.model_copy(update={"train_workers": gpus})
    if (fit := fitting(recipe.model_copy(update={"cluster": cluster}), assumed)) is None:
        return "–"
    changed, candidate = fit
    batch = recipe.train.global_batch_size
    limit = max_tokens(recipe) - round(assumed.mean_prompt_tokens)
    lengths = draw(np.random.default_rng(1), steps * batch, assumed, limit).reshape(-1, batch)
    time = candidate.time
    assert time is not None
    hours = simulated(changed, assumed, lengths) + time.updating
    return f"{hours:.{0 if hours >= 10 else 1}f}{MARKS[candidate.setting.offload]}"


def main() -> None:
    """Print the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300, help="simulated steps of each case")
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, help="recipes")
    arguments = parser.parse_args()
    columns = [(size, gpus) for size in MEMORY for gpus in CLUSTERS]
    heading = [f"{CLUSTERS[gpus]}, {size} GB" for size, gpus in columns]
    print(f"| recipe | {' | '.join(heading)} |\n|{'---|' * (1 + len(columns))}")
    for name in arguments.only:
        cells = [
            cell(name, gpus, assumptions([f"gpu_memory_gib={MEMORY[size]}"]), arguments.steps)
            for size, gpus in columns
        ]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
