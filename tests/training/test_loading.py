"""Loading under ZeRO-3: all workers but the first read names and shapes only."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Glm4MoeConfig, Qwen3Config
from transformers import modeling_utils as transformers_models

from ssd_ray.training.model import pretrained
from tests.support.tiny import SHAPE

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import loading_memory

BUFFER = "model.layers.1.mlp.gate.e_score_correction_bias"


@pytest.fixture
def glm(tmp_path: Path) -> Path:
    """A model with a buffer among its weights."""
    config = Glm4MoeConfig(
        **SHAPE,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        head_dim=8,
    )
    model: Any = AutoModelForCausalLM.from_config(config)
    model.get_buffer(BUFFER).copy_(torch.arange(4.0))
    model.save_pretrained(tmp_path)
    return tmp_path


def test_only_the_first_worker_reads_weights(glm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = glm / "model.safetensors"
    config = Glm4MoeConfig.from_pretrained(glm)
    read = transformers_models.load_state_dict
    complete = read(file)
    for rank, is_partitioned in ((0, True), (1, False)):
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        with pretrained.first_worker_reads(config, is_partitioned=is_partitioned):
            assert transformers_models.load_state_dict is read
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    with pretrained.first_worker_reads(config, is_partitioned=True):
        shapes = transformers_models.load_state_dict(file, map_location="cpu", weights_only=True)
    assert transformers_models.load_state_dict is read
    assert {name: each.shape for name, each in shapes.items()} == {
        name: each.shape for name, each in complete.items()
    }
    assert [name for name, each in shapes.items() if not each.is_meta] == [BUFFER]
    assert shapes[BUFFER].tolist() == [0, 1, 2, 3]


def test_qwen3_has_no_buffers_among_its_weights() -> None:
    assert pretrained._buffers(Qwen3Config(**SHAPE, tie_word_embeddings=True)) == set()


@pytest.mark.real
def test_a_second_worker_needs_a_fifth_of_the_first_ones_memory(tmp_path: Path) -> None:
    loading_memory.write_models(str(tmp_path), layers=16)
    first, second = loading_memory.measure(str(tmp_path), only_first=True)
    assert first["host_gb"] > 0.2
    assert second["host_gb"] <= 0.2 * first["host_gb"]
