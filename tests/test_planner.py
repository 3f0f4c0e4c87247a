"""The planner: bytes that agree with DeepSpeed's estimator, clusters that fit, and assumptions that a person can replace."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray import recipes
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.planner import memory as formulas
from ssd_ray.planner.architecture import Architecture, shipped
from ssd_ray.planner.clusters import GIB, TrainingPlan, assumptions, plan_training
from ssd_ray.planner.memory import Setting, memory
from ssd_ray.planner.shown import plain

MODELS = ("llama-3.1-8b-instruct", "qwen3-4b-instruct", "qwen3-30b-instruct", "gpt-oss-20b-high")
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


def _model(name: str) -> Architecture:
    model = shipped(recipes.load(name).model.source)
    assert model is not None
    return model


def _plan(name: str, *overrides: str, assume: tuple[str, ...] = ()) -> TrainingPlan:
    recipe: Recipe = recipes.load(name, overrides)
    return plan_training(recipe, _model(name), assumptions(assume))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("gpus", "nodes"), [(8, 1), (8, 4), (1, 1)])
def test_model_states_are_what_deepspeeds_estimator_says(name: str, gpus: int, nodes: int) -> None:
    """Equal to the byte but for rounding; its margin of half for the host's buffers and its largest layer are left out."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    model, setting = _model(name), dataclasses.replace(SETTING, num_workers=gpus * nodes)
    asked = {"total_params": model.parameters, "largest_layer_params": model.largest_module}
    asked |= {"num_gpus_per_node": gpus, "num_nodes": nodes}
    _, whole, largest = estimate(**asked, cpu_offload=False, cpu_offload_params=False)
    assert memory(model, setting).states == pytest.approx(whole - largest, rel=1e-6)
    for offload, all_of_it in (("optimizer", False), ("parameters", True)):
        ours = memory(model, dataclasses.replace(setting, offload=offload))
        host, device, largest = estimate(**asked, cpu_offload=True, cpu_offload_params=all_of_it, additional_buffer_factor=1)
        assert ours.host * gpus == pytest.approx(host, rel=1e-6)
        assert ours.parts["parameters"] == pytest.approx(device - largest, rel=1e-6, abs=1)


def test_stage_two_and_one_are_what_deepspeeds_estimator_says() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs as estimate

    model = _model("qwen3-4b-instruct")
    _, whole = estimate(model.parameters, num_gpus_per_node=8, num_nodes=1, cpu_offload=False)
    ours = memory(model, dataclasses.replace(SETTING, zero_stage=2)).states
    # It counts half-precision gradients beside the float32 ones, which this project accumulates in float32 alone.
    assert ours == pytest.approx(whole - 2 * model.parameters / 8, rel=1e-6)
    assert memory(model, dataclasses.replace(SETTING, zero_stage=1)).states > ours


def test_the_buckets_are_deepspeeds_defaults_and_those_of_our_engine() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    defaults = DeepSpeedZeroConfig()
    assert defaults.reduce_bucket_size == formulas.REDUCE_BUCKET
    assert defaults.max_live_parameters == formulas.MAX_LIVE_PARAMETERS
    assert defaults.sub_group_size == formulas.SUB_GROUP


@settings(deadline=None)
@given(
    workers=st.sampled_from([1, 2, 4, 8, 16, 32]),
    stage=st.sampled_from([0, 1, 2, 3]),
    tokens=st.integers(1024, 200_000),
    shared=st.sampled_from([1, 2, 4]),
    checkpointing=st.booleans(),
)
def test_memory_falls_with_stage_workers_and_sharing_and_grows_with_tokens(
    workers: int, stage: int, tokens: int, shared: int, checkpointing: bool
) -> None:
    model = _model("qwen3-30b-instruct")
    chosen = dataclasses.replace(
        SETTING, num_workers=workers, zero_stage=stage, micro_batch_tokens=tokens, gradient_checkpointing=checkpointing
    )
    found = memory(model, chosen)
    assert min(found.parts.values()) >= 0
    assert memory(model, dataclasses.replace(chosen, micro_batch_tokens=2 * tokens)).device >= found.device
    assert memory(model, dataclasses.replace(chosen, num_workers=2 * workers)).states <= found.states
    assert memory(model, dataclasses.replace(chosen, zero_stage=min(3, stage + 1))).states <= found.states
    split = memory(model, dataclasses.replace(chosen, sequence_parallel=2 * shared))
    assert split.parts["activations"] <= memory(model, dataclasses.replace(chosen, sequence_parallel=shared)).parts["activations"]


def test_checkpointing_keeps_a_layers_input_instead_of_the_layer() -> None:
    model = _model("llama-3.1-8b-instruct")
    less, more = (memory(model, dataclasses.replace(SETTING, gradient_checkpointing=flag)).parts for flag in (True, False))
    assert less["activations"] * 5 < more["activations"]
    assert less["activations"] >= model.layers * 8192 * model.hidden * 2


def test_the_papers_models_fit_on_the_clusters_that_are_named() -> None:
    smallest = {name: _plan(name).smallest for name in MODELS}
    assert all(smallest.values())
    assert smallest["qwen3-4b-instruct"].num_workers <= 8  # type: ignore[union-attr]
    assert smallest["qwen3-30b-instruct"].num_workers == 16  # type: ignore[union-attr]
    for name in MODELS:
        fitting = [candidate.fits for candidate in _plan(name).candidates]
        assert fitting == sorted(fitting)  # a larger cluster fits wherever a smaller one does


def test_a_recipe_that_fits_nowhere_is_told_what_would() -> None:
    plan = _plan("qwen3-30b-instruct", assume=("gpu_memory_gib=40",))
    assert plan.smallest is None
    assert plan.mend is not None
    assert plan.mend[0].startswith("--set train.")
    assert plan.mend[1].fits
    hopeless = _plan("qwen3-30b-instruct", assume=("gpu_memory_gib=4",))
    assert hopeless.smallest is None
    assert hopeless.mend is None


def test_time_is_operations_over_speed_or_bytes_over_bandwidth() -> None:
    fast = ("node_gb_s=1e9", "network_gb_s=1e9")
    plan = _plan("llama-3.1-8b-instruct", assume=fast)
    eight, sixteen = (next(each for each in plan.candidates if each.num_workers == size) for size in (8, 16))
    flops = plan.work.steps * plan.work.expected.flops
    assert eight.time is not None
    assert sixteen.time is not None
    assert eight.time.hours == pytest.approx(flops / (8 * 989e12 * 0.35) / 3600)
    assert eight.time.hours == pytest.approx(2 * sixteen.time.hours)
    assert eight.usd == pytest.approx(sixteen.usd)
    # 6 P operations a token and attention on top: between those and 1.3 times those at this length
    tokens = plan.work.steps * plan.work.expected.tokens
    assert 6 * 7.5e9 < flops / tokens < 1.3 * 6 * 8.03e9
    slow = _plan("llama-3.1-8b-instruct", assume=("network_gb_s=1",)).candidates[-1].time
    assert slow is not None
    assert slow.bound == "network"
    assert slow.hours == pytest.approx(2500 * 8 * 8_030_261_248 * 31 / 32 / 1e9 / 3600)


def test_sequences_that_go_alone_cost_an_exchange_each() -> None:
    slow = ("network_gb_s=1", "node_gb_s=1")
    share = "train.sequence_parallel_size=4"
    packed = (share, "train.packing=true", "train.attention=flash_attention_2")
    alone, together = (_plan("qwen3-4b-instruct", *set_, assume=slow).candidates[3].time for set_ in ((share,), packed))
    assert alone is not None
    assert together is not None
    parameters = _model("qwen3-4b-instruct").parameters
    assert together.hours == pytest.approx(2500 * 8 * parameters * 7 / 8 / 1e9 / 3600)  # one micro-step holds the whole batch
    assert alone.hours == pytest.approx(16 * together.hours)  # two groups of four workers, sixteen sequences each


def test_a_finished_data_set_replaces_what_was_assumed() -> None:
    recipe, model = recipes.load("qwen3-4b-instruct"), _model("qwen3-4b-instruct")
    counted = {"rows": 10, "prompt_tokens": 1000, "response_tokens": 50_000}
    work = plan_training(recipe, model, assumptions([]), counted).work
    assert work.measured
    assert work.expected.tokens == 32 * 5100


@pytest.mark.parametrize("override", ["speed=1", "mfu_moe", "mfu_moe=2", "peak_tflops=fast"])
def test_a_wrong_assumption_costs_a_sentence(override: str) -> None:
    with pytest.raises(UserError, match="--assume"):
        assumptions([override])


def test_lora_needs_no_states_for_frozen_weights() -> None:
    model = _model("qwen3-4b-instruct")
    adapters = model.lora_parameters(16, ())
    assert adapters == 16 * 36 * sum((2560 + 4096, 2 * (2560 + 1024), 4096 + 2560, 3 * (2560 + 9728)))
    found = memory(model, dataclasses.replace(SETTING, num_workers=1, lora_parameters=adapters))
    assert found.states == 2 * (model.parameters + adapters) + 16 * adapters


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = "import sys; from ssd_ray.cli import main; main(sys.argv[1:])"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_the_command_prints_a_plan_and_the_same_as_json(tmp_path: Path) -> None:
    shown = _run("plan", "qwen3-30b-instruct", "--out", str(tmp_path / "run"))
    assert "smallest cluster that fits: 2×8 GPUs" in shown.stdout
    assert "not the recipe as it is, with cluster.train_workers=8 (too little memory): set it to 16" in shown.stdout
    assert "30.5 B parameters, 3.35 B active" in shown.stdout
    found: dict[str, Any] = json.loads(_run("plan", "qwen3-30b-instruct", "--json", "--assume", "mfu_moe=0.2").stdout)
    assert found["training"]["assumptions"]["mfu_moe"] == 0.2
    assert found["training"]["smallest"] == 16
    clusters = {each["workers"]: each for each in found["training"]["clusters"]}
    assert sum(clusters[8]["bytes"].values()) < clusters[8]["bytes_needed"]
    assert clusters[8]["bytes_needed"] > 79 * GIB
    assert {step["verb"] for step in found["steps"]} >= {"sample", "train", "report"}
    plan = plain(_plan("quickstart"))
    assert plan["clusters"][0]["hours"] is None
    json.dumps(plan)


def test_a_model_that_the_planner_does_not_know_leaves_the_rest_of_the_plan(tmp_path: Path) -> None:
    found = _run("plan", "quickstart", "--set", "model.source=nobody/nothing", "--out", str(tmp_path / "run"))
    assert found.returncode == 0
    assert "no plan for the training: the configuration of nobody/nothing is not on this machine" in " ".join(
        found.stdout.split()
    )


def test_a_plan_loads_no_engine() -> None:
    code = (
        "import sys; from ssd_ray import cli\n"
        "try: cli.main(['plan', 'qwen3-30b-instruct'])\n"
        "finally: print([name for name in ('torch', 'ray', 'transformers', 'deepspeed', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.stdout.strip().endswith("[]")
