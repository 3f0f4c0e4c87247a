"""Models, a setting, and plans of shipped recipes for the tests of the planner."""

from __future__ import annotations

from ssd_ray import recipes
from ssd_ray.models.architecture import Architecture, shipped
from ssd_ray.planner.assumptions import assumptions
from ssd_ray.planner.clusters import TrainingPlan, plan_training
from ssd_ray.planner.memory import Setting

MODELS = ("llama-3.1-8b-instruct", "qwen3-4b-instruct", "qwen3-30b-instruct", "gpt-oss-20b-high")
UNPACKED = ("train.packing=false", "train.attention=sdpa", "train.sequence_parallel_size=1")
"""Overrides for one padded sequence a worker."""
SETTING = Setting(
    num_workers=8,
    zero_stage=3,
    offload="none",
    sequence_parallel=1,
    micro_batch_tokens=8192,
    precision="bfloat16",
    gradient_checkpointing=True,
    chunk_tokens=1024,
)


def model_of(name: str) -> Architecture:
    model = shipped(recipes.load(name).model.source)
    assert model is not None
    return model


def plan_of(name: str, *overrides: str, assume: tuple[str, ...] = ()) -> TrainingPlan:
    return plan_training(recipes.load(name, overrides), model_of(name), assumptions(assume))
