"""The engine and ten lines of PyTorch take the same step, however it is divided."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ssd_ray.config import TrainConfig
from tests.support import engine_cases, vllm_cases
from tests.support.reference_step import reference
from tests.support.tiny import tiny_model
from tests.support.training_runs import loss_log, save_weights, weights_of

pytestmark = pytest.mark.real

TRAIN: dict[str, Any] = {
    "steps": 1,
    "global_batch_size": 8,
    "learning_rate": 1e-4,
    "min_learning_rate": 1e-4,
    "warmup_steps": 0,
    "max_grad_norm": 0.5,
    "dtype": "float32",
    "gradient_checkpointing": False,
    "loss_chunk_tokens": 16,
    "trackers": [],
}
ONE = {
    "one worker, ZeRO-0, one micro-batch": {"zero_stage": 0, "micro_batch_tokens": 10_000},
    "one worker, ZeRO-3, packed": {"zero_stage": 3, "micro_batch_tokens": 90, "packing": True},
    "one worker, ZeRO-0, hub kernel": {"zero_stage": 0, "micro_batch_tokens": 90},
    "one worker, ZeRO-0, hub kernel, packed": {
        "zero_stage": 0,
        "micro_batch_tokens": 90,
        "packing": True,
    },
}
TWO = {
    "ZeRO-0, accumulation 1": {"zero_stage": 0, "micro_batch_tokens": 10_000},
    "ZeRO-0, accumulation 4, packed": {"zero_stage": 0, "micro_batch_tokens": 1, "packing": True},
    "ZeRO-1, accumulation 2": {"zero_stage": 1, "micro_batch_tokens": 80},
    "ZeRO-2, accumulation 4": {
        "zero_stage": 2,
        "micro_batch_tokens": 1,
        "accumulate_locally": False,
    },
    "ZeRO-3, accumulation 1, packed": {
        "zero_stage": 3,
        "micro_batch_tokens": 10_000,
        "packing": True,
    },
    "ZeRO-3, accumulation 2": {
        "zero_stage": 3,
        "micro_batch_tokens": 80,
        "gradient_checkpointing": True,
    },
    "ZeRO-3, accumulation 4": {
        "zero_stage": 3,
        "micro_batch_tokens": 1,
        "accumulate_locally": False,
    },
    "ZeRO-3, mean over sequences": {
        "zero_stage": 3,
        "micro_batch_tokens": 80,
        "loss_mean": "sequence",
    },
    "ZeRO-3, LoRA": {
        "zero_stage": 3,
        "micro_batch_tokens": 80,
        "lora": {"rank": 4},
        "gradient_checkpointing": True,
    },
    "ZeRO-3, experts": {"zero_stage": 3, "micro_batch_tokens": 80},
    "ZeRO-2, experts, router loss": {
        "zero_stage": 2,
        "micro_batch_tokens": 10_000,
        "router_aux_loss": 0.01,
    },
    "ZeRO-3, qwen3": {"zero_stage": 3, "micro_batch_tokens": 80, "packing": True},
    "ZeRO-3, llama3.1": {"zero_stage": 3, "micro_batch_tokens": 80},
    "ZeRO-3, sequence parallel 2": {"zero_stage": 3, "sequence_parallel_size": 2},
    "ZeRO-2, sequence parallel 2": {"zero_stage": 2, "sequence_parallel_size": 2},
    "ZeRO-0, sequence parallel 2": {"zero_stage": 0, "sequence_parallel_size": 2},
    "ZeRO-3, sequence parallel 2, hub kernel": {"zero_stage": 3, "sequence_parallel_size": 2},
    "ZeRO-3, sequence parallel 2, hub kernel, packed": {
        "zero_stage": 3,
        "sequence_parallel_size": 2,
        "packing": True,
        "micro_batch_tokens": 90,
    },
    "ZeRO-3, sequence parallel 2, as on a GPU": {
        "zero_stage": 3,
        "sequence_parallel_size": 2,
        "accumulate_locally": False,
        "packing": True,
        "gradient_checkpointing": True,
    },
}


IN_HALF = {
    "steps": 12,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-3,
    "dtype": "bfloat16",
    "gradient_checkpointing": True,
}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return engine_cases.write_examples(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {
        name: tiny_model(tmp_path_factory.mktemp("model"), name)
        for name in ("llama", "llama3.1", "qwen3", "qwen3_moe")
    }


def _architecture(name: str) -> str:
    return {"ZeRO-3, qwen3": "qwen3", "ZeRO-3, llama3.1": "llama3.1"}.get(
        name, "qwen3_moe" if "experts" in name else "llama"
    )


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are in bfloat16."""
    directory = tiny_model(tmp_path_factory.mktemp("half"), "qwen3")
    weights = weights_of(directory)
    in_half = {name: value.to(torch.bfloat16) for name, value in weights.items()}
    save_weights(directory, in_half, "bfloat16")
    return directory


@pytest.fixture(scope="module")
def trained(
    dataset: Path, models: dict[str, Path], half: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("trained")
    groups = {
        world: {
            name: {
                "train": train,
                "model": str(models[_architecture(name)]),
                **({"hub_kernel": True} if "hub kernel" in name else {}),
            }
            for name, train in cases.items()
        }
        for world, cases in ((1, ONE), (2, TWO))
    }
    shared = TWO["ZeRO-3, sequence parallel 2"]
    groups[2]["unwrapped"] = {"train": shared, "model": str(models["llama"]), "unwrapped": True}
    groups[2]["unbounded"] = {
        "train": TWO["ZeRO-3, sequence parallel 2, hub kernel, packed"],
        "model": str(models["llama"]),
        "hub_kernel": True,
        "unbounded": True,
    }
    groups[2]["bfloat16"] = {"train": IN_HALF, "model": str(half)}
    engine_cases.run_groups([groups], out, dataset=str(dataset), train=TRAIN)
    return out


def _merged(network: Any) -> dict[str, torch.Tensor]:
    for module in network.modules():
        if hasattr(module, "merge"):
            module.merge()
    return {
        name.replace(".base_layer.", "."): value for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", [name for name in [*ONE, *TWO] if "router loss" not in name])
def test_one_step_equals_that_of_the_reference(
    name: str, trained: Path, dataset: Path, models: dict[str, Path]
) -> None:
    train, model = TrainConfig(**{**TRAIN, **(ONE | TWO)[name]}), models[_architecture(name)]
    loss, norm, network = reference(model, dataset, train)
    line = _line(trained / name)
    assert line["loss"] == pytest.approx(loss, abs=1e-6)
    assert line["grad_norm"] == pytest.approx(norm, rel=1e-5)
    if "accumulation" in name:
        assert line["micro_steps"] == int(name.split("accumulation ")[1][0])
    after, before = (
        AutoModelForCausalLM.from_pretrained(trained / name),
        AutoModelForCausalLM.from_pretrained(model),
    )
    expected, moved = _merged(network), 0.0
    for key, value in after.state_dict().items():
        torch.testing.assert_close(value, expected[key], atol=1e-5, rtol=0)
        moved = max(moved, float((value - before.state_dict()[key]).abs().max()))
    assert moved > 5e-5  # without a change of the weights, the comparison would prove nothing
    if train.lora is not None:
        changed = {
            key
            for key, value in after.state_dict().items()
            if not torch.equal(value, before.state_dict()[key])
        }
        assert all(key.endswith("_proj.weight") for key in changed)
        assert len(changed) == 7 * 3


def test_bfloat16_keeps_the_precision_of_the_base(trained: Path, half: Path) -> None:
    out = trained / "bfloat16"
    first, *_, last = loss_log(out)
    assert last["loss"] < first["loss"]
    after, before = weights_of(out), weights_of(half)
    assert {value.dtype for value in after.values()} == {torch.bfloat16}
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert set(after) == set(before)
    assert not torch.equal(after["lm_head.weight"], before["lm_head.weight"])


@pytest.mark.parametrize("name", [name for name in [*ONE, *TWO] if "hub kernel" in name])
def test_flash_attention_searches_no_position_ids(name: str, trained: Path) -> None:
    calls = _line(trained / name)["attention_calls"]
    assert calls.keys() == {"flash_attn_varlen_func"}
    assert calls["flash_attn_varlen_func"] >= 3


def test_attention_within_slices_is_refused_by_all_workers(trained: Path) -> None:
    messages = [(trained / "unwrapped" / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages == 2 * [
        "the attention of LlamaForCausalLM (sdpa) stays within the slice of each of 2 workers: "
        "set train.sequence_parallel_size=1"
    ]


def test_packed_sequences_that_see_each_other_are_refused(trained: Path) -> None:
    messages = [(trained / "unbounded" / f"refused-{rank}.txt").read_text() for rank in (0, 1)]
    assert messages == 2 * [
        "train.packing does not keep the sequences of LlamaForCausalLM apart between 2 workers: "
        "set train.packing=false"
    ]


def _line(out: Path) -> dict[str, Any]:
    (line,) = (json.loads(text) for text in (out / "loss.jsonl").read_text().splitlines())
    return dict(line)


def test_expert_balance_is_logged_without_router_loss(
    trained: Path,
) -> None:
    plain, balanced = (
        _line(trained / name) for name in ("ZeRO-3, experts", "ZeRO-2, experts, router loss")
    )
    assert 1 <= plain["expert_imbalance"] <= 8
    assert balanced["loss"] == pytest.approx(plain["loss"], abs=1e-6)
    assert balanced["grad_norm"] != pytest.approx(plain["grad_norm"], rel=1e-4)
    assert "expert_imbalance" not in _line(trained / "ZeRO-3, LoRA")


EXPORTS = ("ZeRO-3, experts", "ZeRO-3, qwen3", "ZeRO-3, llama3.1")


@pytest.fixture(scope="module")
def served(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Prompts and greedy answers of three exports in vLLM."""
    cases = {name: {"function": "greedy", "directory": str(trained / name)} for name in EXPORTS}
    return vllm_cases.run_cases(tmp_path_factory.mktemp("served"), cases, cpus=1)


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_draws_the_same_tokens_in_vllm(
    name: str, trained: Path, served: dict[str, Any]
) -> None:
    network = AutoModelForCausalLM.from_pretrained(trained / name, dtype=torch.float32)
    assert len(served[name]) == 3
    for prompt, drawn in served[name]:
        ids = torch.tensor([prompt])
        generated = network.generate(
            ids,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=2,
            attention_mask=torch.ones_like(ids),
        )
        assert generated[0, len(prompt) :].tolist() == drawn
