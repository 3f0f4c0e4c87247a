"""The engine and ten lines of PyTorch take the same step, however it is divided."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from ssd_ray.config import TrainConfig
from ssd_ray.training.data.batches import global_batch
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.model.adapters import add_adapters
from tests.support import engine_cases
from tests.support.tiny import tiny_model

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
}
ONE = {
    "one worker, ZeRO-0, one micro-batch": {"zero_stage": 0, "micro_batch_tokens": 10_000},
    "one worker, ZeRO-3, packed": {"zero_stage": 3, "micro_batch_tokens": 90, "packing": True},
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
    "ZeRO-3, sequence parallel 2, as on a GPU": {
        "zero_stage": 3,
        "sequence_parallel_size": 2,
        "accumulate_locally": False,
        "packing": True,
        "gradient_checkpointing": True,
    },
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
def trained(
    dataset: Path, models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("trained")
    groups = {
        world: {
            name: {"train": train, "model": str(models[_architecture(name)])}
            for name, train in cases.items()
        }
        for world, cases in ((1, ONE), (2, TWO))
    }
    engine_cases.run_groups([groups], out, dataset=str(dataset), train=TRAIN)
    return out


def reference(model: Path, dataset: Path, train: TrainConfig) -> tuple[float, float, Any]:
    """Return loss, gradient norm and network after one plain PyTorch step."""
    network, examples = (
        AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        Examples(dataset),
    )
    if train.lora is not None:
        add_adapters(network, train.lora, engine_cases.SEED)
    losses = []
    for row in global_batch(examples, 8, engine_cases.SEED, 0).rows:
        ids, start = (
            torch.tensor(examples.row(int(row)).astype("int64")),
            int(examples.num_prompt_tokens[row]),
        )
        logits = network(input_ids=ids[None]).logits[0, start - 1 : -1]
        losses.append(torch.nn.functional.cross_entropy(logits, ids[start:], reduction="none"))
    loss = (
        torch.cat(losses).mean()
        if train.loss_mean == "token"
        else torch.stack([e.mean() for e in losses if len(e)]).mean()
    )
    loss.backward()
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, train.max_grad_norm)
    decayed, others = ([p for p in trained if (p.ndim > 1) is matrix] for matrix in (True, False))
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=train.learning_rate, betas=(0.9, 0.95)
    ).step()
    return loss.item(), norm.item(), network


def _merged(network: Any) -> dict[str, torch.Tensor]:
    for module in network.modules():
        if hasattr(module, "merge"):
            module.merge()
    return {
        name.replace(".base_layer.", "."): value for name, value in network.state_dict().items()
    }


@pytest.mark.parametrize("name", [name for name in [*ONE, *TWO] if "router loss" not in name])
def test_one_step_is_the_reference_s(
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
    assert moved > 5e-5  # what is compared is a step, not a standstill
    if train.lora is not None:
        changed = {
            key
            for key, value in after.state_dict().items()
            if not torch.equal(value, before.state_dict()[key])
        }
        assert all(key.endswith("_proj.weight") for key in changed)
        assert len(changed) == 7 * 3


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


GREEDY = """
import json, sys
from pathlib import Path
from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from ssd_ray.inference.vllm.engine import Engine, Request
model = ModelConfig(source=sys.argv[2], dtype="float32", max_model_len=256)
knobs = EngineConfig(enforce_eager=True, kv_cache_gib=0.1, max_num_seqs=4)
greedy = Decoding(temperature=0)
engine = Engine(Path(sys.argv[2]), model=model, engine=knobs, device="cpu")
prompts = [tuple(range(3 + number, 20 + 3 * number)) for number in range(3)]
requests = [
    Request(prompt_token_ids=prompt, seed=0, decoding=greedy, max_tokens=24) for prompt in prompts
]
futures = [engine.submit(request) for request in requests]
drawn = [[prompt, future.result().output_token_ids] for prompt, future in zip(prompts, futures)]
engine.close()
Path(sys.argv[1]).write_text(json.dumps(drawn))
"""


@pytest.mark.parametrize("name", ["ZeRO-3, experts", "ZeRO-3, qwen3", "ZeRO-3, llama3.1"])
def test_an_export_draws_the_same_tokens_in_vllm(name: str, trained: Path, tmp_path: Path) -> None:
    from ssd_ray.config import EngineConfig
    from ssd_ray.inference.vllm.arguments import engine_environment

    environment = os.environ | engine_environment(EngineConfig(cpus=2), "cpu")
    command = [sys.executable, "-c", GREEDY, str(tmp_path / "drawn.json"), str(trained / name)]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=540, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    network = AutoModelForCausalLM.from_pretrained(trained / name, dtype=torch.float32)
    for prompt, drawn in json.loads((tmp_path / "drawn.json").read_text()):
        ids = torch.tensor([prompt])
        generated = network.generate(
            ids,
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=2,
            attention_mask=torch.ones_like(ids),
        )
        assert generated[0, len(prompt) :].tolist() == drawn
