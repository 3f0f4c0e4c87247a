"""Mixtures of experts in training: the load of experts, and the layers that ZeRO-3 gathers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3MoeConfig

from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.model.engine import fetch_sizes
from ssd_ray.training.model.expert_parallel import check_experts
from ssd_ray.training.model.moe import ExpertLoad, sparse_blocks
from tests.support.tiny import SHAPE

WAITS = ("_local_scalar_dense", "nonzero", "bincount", "masked_select", "is_nonzero", "equal")
"""Operators for which the host waits on CUDA: it reads a value or a size from the device."""


class _Waits(TorchDispatchMode):
    """Lists the operators for which the host would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        masks = [
            index
            for index in (args[1] if name.startswith("index") and len(args) > 1 else ())
            if isinstance(index, torch.Tensor) and index.dtype == torch.bool
        ]
        if name in WAITS or masks:
            self.seen.append(name)
        return function(*args, **(kwargs or {}))


def _model(**choices: Any) -> Any:
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        **SHAPE,
        num_experts=8,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        head_dim=8,
        **choices,
    )
    return AutoModelForCausalLM.from_config(config).train()


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda counts: None)


def test_counting_the_load_of_experts_never_waits_for_the_device(reduced: None) -> None:
    model = _model()
    load = ExpertLoad(model)
    real = torch.arange(12) < 9
    chosen = torch.stack([torch.arange(12) % 8, torch.arange(12) % 3], dim=1)
    with _Waits() as waits:
        load.real = real
        for _ in range(2):
            for block in sparse_blocks(model):
                for hook in block.experts._forward_pre_hooks.values():
                    hook(block.experts, (None, chosen, None))
    assert waits.seen == []
    counts = torch.bincount(chosen[real].flatten(), minlength=8).float()
    assert load.imbalance() == float(counts.max() / counts.mean())


def test_operators_that_wait_are_detected() -> None:
    with _Waits() as waits:
        values = torch.arange(4)
        values[values > 1]
        torch.bincount(values)
        values.sum().item()
    assert waits.seen == ["index", "bincount", "_local_scalar_dense"]


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_layers_are_not_counted_again(reentrant: bool) -> None:
    model = _model(use_cache=False)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    load = ExpertLoad(model)
    model(input_ids=torch.arange(20)[None]).logits.sum().backward()
    assert [int(counts.sum()) for counts in load._counts.values()] == 2 * [20 * 2]


def test_zero_3_gathers_one_layer_ahead() -> None:
    large = Qwen3MoeConfig(
        hidden_size=2048,
        intermediate_size=6144,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
    )
    layer = 2 * 2048 * (32 + 4) * 128 + 2 * 128 + 128 * (3 * 768 + 1) * 2048 + 2 * 2048
    small = Qwen3Config(hidden_size=512, intermediate_size=1024, num_hidden_layers=2)
    with torch.device("meta"):
        experts, dense = (AutoModelForCausalLM.from_config(config) for config in (large, small))
    assert fetch_sizes(experts) == {
        "stage3_prefetch_bucket_size": layer,
        "stage3_max_live_parameters": 2 * layer,
    }
    assert layer > 620_000_000
    # A worker with 16 of 128 experts gathers no others.
    less = layer - 112 * 3 * 768 * 2048
    assert fetch_sizes(experts, 8)["stage3_prefetch_bucket_size"] == less
    assert less < layer / 5
    assert fetch_sizes(dense) == {
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_max_live_parameters": 1_000_000_000,
    }


def test_workers_divide_experts_evenly() -> None:
    config = Qwen3MoeConfig(num_experts=8)
    check_experts(config, TrainConfig(expert_parallel_size=4))
    message = "train.expert_parallel_size 3 does not divide the model's 8 experts"
    with pytest.raises(UserError, match=message):
        check_experts(config, TrainConfig(expert_parallel_size=3))
