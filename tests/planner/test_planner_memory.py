"""Bytes of the planner: model states, buckets, attention, and held-out samples."""

from __future__ import annotations

import dataclasses
import os
import socket
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.models.architecture import parse
from ssd_ray.planner import memory as formulas
from ssd_ray.planner.memory import bucket_bytes, memory
from tests.support.planner_cases import MODELS, SETTING, UNPACKED, model_of, plan_of
from tests.support.traced_layers import traced_layers

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from loss_memory import LiveBytes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("gpus", "nodes"), [(8, 1), (8, 4), (1, 1)])
def test_model_states_match_deepspeeds_estimator(name: str, gpus: int, nodes: int) -> None:
    """Equal to the byte up to rounding, without the margins for buffers and largest layer."""
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs as estimate

    model, setting = model_of(name), dataclasses.replace(SETTING, num_workers=gpus * nodes)
    asked = {"total_params": model.parameters, "largest_layer_params": model.largest_module}
    asked |= {"num_gpus_per_node": gpus, "num_nodes": nodes}
    _, whole, largest = estimate(**asked, cpu_offload=False, cpu_offload_params=False)
    assert memory(model, setting).states == pytest.approx(whole - largest, rel=1e-6)
    for offload, all_of_it in (("optimizer", False), ("parameters", True)):
        ours = memory(model, dataclasses.replace(setting, offload=offload))
        host, device, largest = estimate(
            **asked, cpu_offload=True, cpu_offload_params=all_of_it, additional_buffer_factor=1
        )
        assert ours.host * gpus == pytest.approx(host, rel=1e-6)
        assert ours.parts["parameters"] == pytest.approx(device - largest, rel=1e-6, abs=1)


def test_stages_two_and_one_match_deepspeeds_estimator() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import (
        estimate_zero2_model_states_mem_needs as estimate,
    )

    model = model_of("qwen3-4b-instruct")
    _, whole = estimate(model.parameters, num_gpus_per_node=8, num_nodes=1, cpu_offload=False)
    ours = memory(model, dataclasses.replace(SETTING, zero_stage=2)).states
    # It counts half-precision gradients too. This project accumulates in float32 alone.
    assert ours == pytest.approx(whole - 2 * model.parameters / 8, rel=1e-6)
    assert memory(model, dataclasses.replace(SETTING, zero_stage=1)).states > ours


def test_sizes_of_buckets_are_deepspeeds_defaults() -> None:
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
def test_memory_falls_with_sharding_and_grows_with_tokens(
    workers: int, stage: int, tokens: int, shared: int, checkpointing: bool
) -> None:
    model = model_of("qwen3-30b-instruct")
    chosen = dataclasses.replace(
        SETTING,
        num_workers=workers,
        zero_stage=stage,
        micro_batch_tokens=tokens,
        gradient_checkpointing=checkpointing,
    )
    estimate = memory(model, chosen)
    assert min(estimate.parts.values()) >= 0
    assert (
        memory(model, dataclasses.replace(chosen, micro_batch_tokens=2 * tokens)).device
        >= estimate.device
    )
    assert (
        memory(model, dataclasses.replace(chosen, num_workers=2 * workers)).states
        <= estimate.states
    )
    assert (
        memory(model, dataclasses.replace(chosen, zero_stage=min(3, stage + 1))).states
        <= estimate.states
    )
    split = memory(model, dataclasses.replace(chosen, sequence_parallel=2 * shared))
    assert (
        split.parts["activations"]
        <= memory(model, dataclasses.replace(chosen, sequence_parallel=shared)).parts["activations"]
    )


def test_divided_experts_are_gathered_by_their_own_workers_only() -> None:
    model = model_of("qwen3-30b-instruct")
    # With sequences this long, a layer takes more than the logits.
    long = dataclasses.replace(SETTING, micro_batch_tokens=65_536)
    whole, divided = (
        memory(model, dataclasses.replace(long, expert_parallel=size)) for size in (1, 8)
    )
    assert divided.states == whole.states
    experts = 128 * 3 * 768 * 2048
    gathered = ("gathered parameters", "gradients of one block")
    less = sum(whole.parts[name] - divided.parts[name] for name in gathered)
    # Two layers ahead, DeepSpeed's minimum of 10^9 elements at least; then the flat buffer and the
    # gradients of a block, in which a worker has 16 of 128 experts.
    flat = experts - model.vocabulary * model.hidden
    assert less == 2 * (2 * model.layer_parameters - 10**9 + flat + model.block_parameters)
    # Of each routed token, three more rows: sent, received, and in the order of experts.
    more = divided.parts["one layer at work"] - whole.parts["one layer at work"]
    assert more == 65_536 * 2 * 3 * 8 * 2048
    on_cpu = [
        memory(model, dataclasses.replace(SETTING, expert_parallel=size, on_cpu=True))
        for size in (1, 2)
    ]
    whole_cpu, halves = (each.parts["gathered parameters"] for each in on_cpu)
    assert whole_cpu - halves == 2 * model.parts["experts"] // 2


def test_checkpointing_keeps_a_layers_input_instead_of_the_layer() -> None:
    model = model_of("llama-3.1-8b-instruct")
    less, more = (
        memory(model, dataclasses.replace(SETTING, gradient_checkpointing=flag)).parts
        for flag in (True, False)
    )
    assert less["activations"] * 5 < more["activations"]
    assert less["activations"] >= model.layers * 8192 * model.hidden * 2


def test_lora_needs_no_states_for_frozen_weights() -> None:
    model = model_of("qwen3-4b-instruct")
    adapters = model.lora_parameters(16, ())
    assert adapters == 16 * 36 * sum(
        (2560 + 4096, 2 * (2560 + 1024), 4096 + 2560, 3 * (2560 + 9728))
    )
    estimate = memory(model, dataclasses.replace(SETTING, num_workers=1, lora_parameters=adapters))
    assert estimate.states == 2 * (model.parameters + adapters) + 16 * adapters


def test_packing_with_sdpa_counts_a_quadratic_mask() -> None:
    def needed(*overrides: str) -> int:
        return plan_of("qwen3-4b-instruct", *UNPACKED, *overrides).requested.memory.device

    masked = needed("train.packing=true") - needed()
    assert masked == 65536**2 * (1 + 2)  # 4 GiB of flags, 8 GiB of bfloat16 in the layer at work
    assert needed("train.packing=true", "train.micro_batch_tokens=8192") - needed() == 8192**2 * 3
    assert needed("train.packing=true", "train.attention=flash_attention_2") == needed()


def test_host_memory_counts_held_out_samples_and_exports() -> None:
    model, estimate = model_of("qwen3-4b-instruct"), plan_of("qwen3-4b-instruct").requested.memory
    assert estimate.kept == 2 * (model.vocabulary * model.hidden + 64 * 65536 * model.hidden // 8)
    assert estimate.export == 2 * 2 * model.parameters
    assert plan_of("qwen3-4b-instruct", "train.heldout_samples=0").requested.memory.kept == 0
    small = plan_of("qwen3-4b-instruct", assume=("host_memory_gib=5",))
    assert small.requested.refusal == "too little host memory"
    on_cpu = (
        plan_of(
            "quickstart", "cluster.train_workers=2", f"train.heldout_samples={number}"
        ).requested.memory
        for number in (0, 4)
    )
    without, with_ = on_cpu
    assert with_.device - without.device == 4 * (49152 * 576 + 4 * 1024 * 576 // 2)


@pytest.mark.parametrize(
    ("change", "held"),
    [
        ("seed=0", True),
        ("train.dtype=bfloat16", False),
        ("train.zero_stage=1", False),
        ("train.global_batch_size=2", False),
    ],
)
def test_a_cpu_holds_a_full_gradient_in_float32(change: str, held: bool) -> None:
    choices = ("cluster.train_workers=2", "train.accumulate_locally=true", change)
    assert plan_of("quickstart", *choices).requested.setting.whole_gradient == held


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize("name", ["qwen3-4b", "llama-3.1-8b", "qwen3-30b-a3b", "gpt-oss-20b"])
def test_activations_are_those_of_the_layers_of_transformers(
    name: str, checkpointing: bool
) -> None:
    """Live bytes of four layers at full width, in passes that are traced without data."""
    tokens = 65536 if checkpointing else 8192
    config, live = traced_layers(name, tokens, checkpointing=checkpointing)
    chosen = {"micro_batch_tokens": tokens, "gradient_checkpointing": checkpointing}
    parts = memory(
        parse(config, name), dataclasses.replace(SETTING, chunk_tokens=1, **chosen)
    ).parts
    planned = parts["activations"] + parts["one layer at work"]
    assert live <= planned <= 1.25 * live


def test_a_gathered_block_is_held_twice_with_its_gradients() -> None:
    """A block of experts holds 604M parameters; DeepSpeed gathers it into one flat buffer."""
    model = model_of("qwen3-30b-instruct")
    many, one = (
        memory(model, dataclasses.replace(SETTING, num_workers=number)).parts for number in (8, 1)
    )
    block = 128 * 3 * 2048 * 768
    assert many["gathered parameters"] - one["gathered parameters"] == 2 * block
    assert many["gradients of one block"] == 2 * (block + 128 * 2048)
    adapters = dataclasses.replace(SETTING, lora_parameters=model.lora_parameters(8, ()))
    assert memory(model, adapters).parts["gradients of one block"] == 0
    assert memory(model_of("qwen3-4b-instruct"), SETTING).parts["gradients of one block"] == 0


def test_long_sequences_are_shared_before_a_30b_model_fits() -> None:
    plan = plan_of("qwen3-30b-instruct", *UNPACKED)
    assert plan.requested.refusal == "too little memory"
    assert plan.remedy is not None
    assert plan.remedy[0] == "--set train.sequence_parallel_size=2"
    assert plan.remedy[1].num_workers == 16


TINY = {
    "model_type": "qwen3",
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 32,
}
TINY |= {
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [True, False])
def test_the_planned_mask_equals_the_live_tensors(precision: Any, checkpointing: bool) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {name: value for name, value in TINY.items() if name != "model_type"}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model("qwen3", **fields), attn_implementation="sdpa"
    )
    model.to(getattr(torch, precision)).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    tokens, peaks, planned = 1024, [], []
    for packed in (False, True):
        places = torch.arange(tokens)[None] % (tokens // 2 if packed else tokens)
        with LiveBytes() as live:
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            model.base_model(
                input_ids=ids, position_ids=places, use_cache=False
            ).last_hidden_state.float().sum().backward()
        peaks.append(live.peak)
        chosen = {"micro_batch_tokens": tokens, "mask_tokens": tokens if packed else 0}
        chosen |= {"precision": precision, "gradient_checkpointing": checkpointing}
        planned.append(memory(parse(TINY, ""), dataclasses.replace(SETTING, **chosen)).device)
    assert planned[1] - planned[0] == pytest.approx(peaks[1] - peaks[0], rel=0.15)


BUCKET = 1 << 19
"""Elements; eight of the matrices below."""


@pytest.mark.real
def test_bucket_bytes_are_those_that_deepspeed_allocates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overlapped as on a GPU, with gloo as the collective; and as on a CPU."""
    # As in a run's workers on a CPU: DeepSpeed loads no compiler.
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        measured, _ = pool.map(_bytes_of_an_element, range(2), [port] * 2)
    assert len(measured) == 10
    for (on_cpu, stage, precision), element in measured.items():
        setting = dataclasses.replace(SETTING, zero_stage=stage, precision=precision, on_cpu=on_cpu)
        assert element == bucket_bytes(setting), (on_cpu, stage, precision)


def _bytes_of_an_element(rank: int, port: int) -> dict[tuple[bool, int, Any], tuple[int, int]]:
    """Return bytes per element: kept by a bucket, and added by its reduction.

    Keyed by device, stage and precision.
    """
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": "2",
        "LOCAL_RANK": str(rank),
        "MASTER_ADDR": "127.0.0.1",
    }
    os.environ["MASTER_PORT"] = str(port)
    from ssd_ray.config import ClusterConfig
    from ssd_ray.training.model.engine import prepare_process

    prepare_process(ClusterConfig(device="cpu", train_workers=2))
    import deepspeed

    deepspeed.init_distributed("gloo", verbose=False)
    cases = [(1, "float32"), (2, "float32"), (2, "bfloat16"), (3, "float32"), (3, "bfloat16")]
    return {
        (on_cpu, stage, precision): _reduction(stage, precision, on_cpu)
        for on_cpu in (False, True)
        for stage, precision in cases
    }


def _reduction(stage: int, precision: Any, on_cpu: bool) -> tuple[int, int]:
    """Reduce a stack of matrices with one bucket shared by two workers."""
    import deepspeed
    import torch
    from deepspeed.runtime.comm import coalesced_collectives

    from ssd_ray.config import ClusterConfig, TrainConfig
    from ssd_ray.training.model.engine import deepspeed_config

    cluster = ClusterConfig(device="cpu" if on_cpu else "cuda", train_workers=2)
    config = deepspeed_config(TrainConfig(zero_stage=stage, dtype=precision), cluster)
    config["optimizer"]["params"].pop("fused")
    config["zero_optimization"]["reduce_bucket_size"] = BUCKET
    layers = [torch.nn.Linear(256, 256, bias=False) for _ in range(61)]
    model, most = (
        torch.nn.Sequential(*layers).to(getattr(torch, precision)),
        {"buffers": 0, "copies": 0},
    )
    with LiveBytes() as live, pytest.MonkeyPatch.context() as patch:
        engine, *_ = deepspeed.initialize(
            model=model, model_parameters=model.parameters(), config=config
        )
        optimizer, begun = engine.optimizer, [0]

        def note(now: int) -> None:
            most["copies"] = max(most["copies"], now - begun[0])

        def reduce(*arguments: Any) -> Any:
            begun[0] = live.peak = live.now
            buffers = [bucket.buffer for bucket in optimizer.ipg_buckets.values()]
            alive = sum(each.nbytes for each in (buffers if stage == 3 else buffers[0]))
            most["buffers"] = max(most["buffers"], alive)
            result = inner(*arguments)
            if on_cpu:
                note(live.peak)
            return result

        def spied(collective: Any) -> Any:
            def spy(*arguments: Any, **options: Any) -> Any:
                note(live.now)
                return collective(*arguments, **options)

            return spy

        name = (
            "_DeepSpeedZeroOptimizer_Stage3__avg_scatter_grads" if stage == 3 else "average_tensor"
        )
        inner = getattr(optimizer, name)
        patch.setattr(optimizer, name, reduce)
        patch.setattr(deepspeed.comm, "all_reduce", spied(deepspeed.comm.all_reduce))
        scatter = "_torch_reduce_scatter_fn"
        patch.setattr(
            coalesced_collectives, scatter, spied(getattr(coalesced_collectives, scatter))
        )
        for last in (False, True):
            most |= {
                "buffers": 0,
                "copies": 0,
            }  # the first micro-batch also allocates the buffers that accumulate gradients
            engine.set_gradient_accumulation_boundary(last)
            engine.backward(
                engine(torch.ones(4, 256, dtype=getattr(torch, precision))).float().sum(),
                scale_wrt_gas=False,
            )
    return round(most["buffers"] / BUCKET), round(most["copies"] / BUCKET)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "gpt_oss"])
@pytest.mark.parametrize("layers", [7, 28, 31])
@pytest.mark.parametrize("first", [None, 0, 4, 28])
def test_the_layers_with_a_window_are_those_of_transformers(
    kind: str, layers: int, first: int | None
) -> None:
    from transformers import AutoConfig

    config = {"num_hidden_layers": layers, "sliding_window": 64, "use_sliding_window": True}
    config |= {} if first is None else {"max_window_layers": first}
    fields = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": 9,
        **config,
    }
    fields |= {"num_local_experts": 2, "num_experts_per_tok": 1, "max_position_embeddings": 99}
    theirs = AutoConfig.for_model(kind, **config).layer_types.count("sliding_attention")
    assert parse({"model_type": kind, **fields}, "here").windowed_layers == theirs
