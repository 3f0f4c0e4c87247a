"""Under ZeRO-3, parameters released after each use train as resident ones do.

On a CPU, every parameter is below DeepSpeed's persistence threshold and stays gathered. Here the
threshold is 0, so parameters are released as on a GPU with large layers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support import engine_cases
from tests.support.tiny import tiny_model

pytestmark = pytest.mark.real

TRAIN: dict[str, Any] = {
    "steps": 4,
    "global_batch_size": 8,
    "micro_batch_tokens": 80,
    "learning_rate": 1e-3,
    "min_learning_rate": 1e-4,
    "warmup_steps": 1,
    "max_grad_norm": 0.5,
    "dtype": "float32",
    "zero_stage": 3,
    "accumulate_locally": False,
    "gradient_checkpointing": True,
    "loss_chunk_tokens": 16,
    "trackers": [],
    "heldout_samples": 2,
    "evaluate_every": 1,
}
RELEASED = {
    "stage3_param_persistence_threshold": 0,
    "stage3_model_persistence_threshold": 0,
    # The default would keep every parameter of a small model until its next use.
    "stage3_max_reuse_distance": 0,
    # Smaller than a layer, so that several buckets are fetched ahead and reduced.
    "stage3_prefetch_bucket_size": 30_000,
    "reduce_bucket_size": 30_000,
}
HELD_OUT = ("step", "tokens", "kl_to_base")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "tied Llama": ("llama", {}),
    "tied Llama, Ulysses, bfloat16": (
        "llama",
        {"sequence_parallel_size": 2, "dtype": "bfloat16"},
    ),
    "experts, Ulysses": ("qwen3_moe", {"sequence_parallel_size": 2}),
    "experts, bfloat16": ("qwen3_moe", {"dtype": "bfloat16"}),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    dataset = engine_cases.write_examples(tmp_path_factory.mktemp("dataset"))
    models = {
        name: tiny_model(tmp_path_factory.mktemp("model"), name) for name in ("llama", "qwen3_moe")
    }
    cases: dict[str, Any] = {}
    for name, (model, train) in CASES.items():
        case = {"model": str(models[model]), "train": train}
        cases[f"{name}, released"] = case | {"zero": RELEASED}
        # DeepSpeed keeps parameters resident from its second equal pass on, until a pass differs.
        cases[f"{name}, resident"] = case | {"train": train | {"evaluate_every": 100}}
    shared = {"dataset": str(dataset), "train": TRAIN, "watch_first_layer": True}
    engine_cases.run_groups([{2: cases}], out, **shared)
    return out


def _lines(path: Path, *names: str) -> list[list[Any]]:
    lines = (json.loads(text) for text in path.read_text().splitlines())
    return [[line[name] for name in names] for line in lines]


@pytest.mark.parametrize("name", CASES)
def test_released_parameters_train_bit_for_bit_alike(name: str, trained: Path) -> None:
    resident, released = (trained / f"{name}, {kind}" for kind in ("resident", "released"))
    # Each step logs how many elements the first layer held when the last layer ended.
    assert all(0 in numel for (numel,) in _lines(released / "loss.jsonl", "first_layer_numel"))
    *_, last = _lines(resident / "loss.jsonl", "first_layer_numel")
    assert 0 not in last[0]
    names = ("loss", "grad_norm", "micro_steps")
    assert _lines(released / "loss.jsonl", *names) == _lines(resident / "loss.jsonl", *names)
    measures = {line[0]: line for line in _lines(released / "heldout.jsonl", *HELD_OUT)}
    assert len(measures) == TRAIN["steps"] + 1
    for line in _lines(resident / "heldout.jsonl", *HELD_OUT):
        assert line == measures[line[0]]
    expected = load_file(resident / "model.safetensors")
    weights = load_file(released / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
