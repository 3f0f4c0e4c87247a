"""The planner's formula counts the parameters of every shipped configuration exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import recipes
from ssd_ray.errors import UserError
from ssd_ray.models.architecture import SHIPPED, parse, read, shipped

TINY = {
    "vocab_size": 88,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
MOE = {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
OSS = {
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "attention_bias": True,
    "sliding_window": 16,
}
CONFIGS: dict[str, dict[str, Any]] = {
    **{path.stem: json.loads(path.read_text())["config"] for path in SHIPPED.glob("*.json")},
    "tiny llama": {"model_type": "llama", **TINY, "tie_word_embeddings": True},
    "tiny llama, every bias": {
        "model_type": "llama",
        **TINY,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "tiny mistral": {"model_type": "mistral", **TINY, "sliding_window": 16},
    "tiny qwen2": {
        "model_type": "qwen2",
        **{key: value for key, value in TINY.items() if key != "head_dim"},
    },
    "tiny qwen3": {"model_type": "qwen3", **TINY, "tie_word_embeddings": False},
    "tiny qwen3, biases, tied": {
        "model_type": "qwen3",
        **TINY,
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "tiny qwen3-moe": {"model_type": "qwen3_moe", **TINY, **MOE},
    "tiny qwen3-moe, some layers dense": {
        "model_type": "qwen3_moe",
        **TINY,
        **MOE,
        "mlp_only_layers": [1],
    },
    "tiny qwen3-moe, every second layer": {
        "model_type": "qwen3_moe",
        **TINY,
        **MOE,
        "decoder_sparse_step": 2,
    },
    "tiny gpt-oss": {"model_type": "gpt_oss", **TINY, **OSS, "tie_word_embeddings": False},
}
# Totals of the model cards: 8.03B, 4.0B, 30.5B with 3.3B active, 21B with 3.6B active.
STATED = {
    "llama-3.1-8b": 8_030_261_248,
    "qwen3-4b-2507": 4_022_468_096,
    "qwen3-30b-a3b-2507": 30_532_122_624,
}


def _on_meta(config: dict[str, Any]) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = {key: value for key, value in config.items() if key != "model_type"}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **fields)
        )


@pytest.mark.parametrize("name", CONFIGS)
def test_the_formula_counts_the_parameters_of_the_real_model(name: str) -> None:
    model, ours = _on_meta(CONFIGS[name]), parse(CONFIGS[name], name)
    assert ours.parameters == sum(parameter.numel() for parameter in model.parameters())
    by_module = [
        sum(each.numel() for each in module.parameters(recurse=False)) for module in model.modules()
    ]
    assert ours.largest_module == pytest.approx(max(by_module), rel=0.02)
    layers = [sum(each.numel() for each in layer.parameters()) for layer in model.model.layers]
    assert ours.layer_parameters == max(layers)


@pytest.mark.parametrize("name", STATED)
def test_the_total_is_the_one_that_publishers_state(name: str) -> None:
    assert parse(CONFIGS[name], name).parameters == STATED[name]


def test_active_parameters_are_those_that_the_model_cards_state() -> None:
    assert parse(CONFIGS["qwen3-30b-a3b-2507"], "").active_parameters == pytest.approx(
        3.3e9, rel=0.03
    )
    assert parse(CONFIGS["gpt-oss-20b"], "").active_parameters == pytest.approx(3.6e9, rel=0.2)
    dense = parse(CONFIGS["llama-3.1-8b"], "")
    assert dense.active_parameters == dense.parameters


def test_every_shipped_recipe_has_an_architecture_without_a_hub() -> None:
    for name in recipes.shipped():
        assert shipped(recipes.load(name).model.source) is not None


@pytest.mark.parametrize("name", ["tiny llama", "tiny qwen3", "tiny qwen3-moe"])
def test_flops_are_those_that_torch_counts(name: str) -> None:
    """torch counts attention over all pairs of positions, ours over the causal half."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    config = CONFIGS[name]
    fields = {key: value for key, value in config.items() if key != "model_type"}
    shape = AutoConfig.for_model(config["model_type"], **fields)
    model = AutoModelForCausalLM.from_config(
        shape, attn_implementation="eager", experts_implementation="eager"
    )
    tokens, ours = 32, parse(config, name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.arange(tokens)[None], use_cache=False)
    attention = 4 * ours.query * ours.layers * tokens
    counted = counter.get_total_flops() - attention * (tokens - (tokens + 1) / 2)
    assert ours.flops(0, tokens) / 3 == pytest.approx(counted, rel=0.02)


def test_flops_with_adapters_are_those_that_torch_counts() -> None:
    """Frozen matrices and embeddings have no gradient; eager attention counts all pairs."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from ssd_ray.config import LoraConfig
    from ssd_ray.training.model.adapters import add_adapters

    config = CONFIGS["tiny qwen3"]
    shape = AutoConfig.for_model(
        "qwen3", **{key: value for key, value in config.items() if key != "model_type"}
    )
    model = AutoModelForCausalLM.from_config(shape, attn_implementation="eager")
    add_adapters(model, LoraConfig(rank=4), seed=0)
    tokens, ours = 32, parse(config, "tiny qwen3")
    with FlopCounterMode(display=False) as counter:
        model(input_ids=torch.arange(tokens)[None], use_cache=False).logits.sum().backward()
    attention = 3 * 4 * ours.query * ours.layers * tokens
    counted = counter.get_total_flops() - attention * (tokens - (tokens + 1) / 2)
    assert ours.flops(0, tokens, ours.lora_parameters(4, ())) == pytest.approx(counted, rel=0.02)
    assert ours.flops(0, tokens, 0) < ours.flops(0, tokens)


def test_an_unknown_architecture_is_named(tmp_path: Path) -> None:
    assert shipped("nobody/knows") is None
    with pytest.raises(UserError, match="no formula for model_type 'mamba'; it knows llama"):
        parse({"model_type": "mamba"}, "config.json")
    with pytest.raises(UserError, match="lacks 'hidden_size'"):
        parse(
            {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1}, "config.json"
        )
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as a model configuration"):
        read(tmp_path)
