"""Architectures of all kinds are trained with their own settings, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    GPT2Config,
    GptOssConfig,
    GraniteConfig,
    Llama4TextConfig,
    MambaConfig,
    PhimoeConfig,
)

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.checks import check_model
from ssd_ray.training.model.engine import deepspeed_config
from ssd_ray.training.model.loss import ResponseLoss
from ssd_ray.training.model.moe import ExpertLoad, sparse_blocks
from ssd_ray.training.model.pretrained import load, switch_noise_off
from tests.support.tiny import SHAPE


def test_a_model_with_dropout_computes_a_constant_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    config = GraniteConfig(**SHAPE, attention_dropout=0.1, initializer_range=0.3)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    train = TrainConfig(dtype="float32", zero_stage=0)
    model = load(tmp_path, train, deepspeed_config(train, ClusterConfig())).train()
    first, second = (
        model(input_ids=torch.arange(12)[None], use_cache=False).logits for _ in range(2)
    )
    assert torch.equal(first, second)
    assert (model.dtype, model.config._attn_implementation) == (torch.float32, "sdpa")


def test_every_kind_of_noise_is_switched_off_and_nothing_else() -> None:
    for config in (
        GPT2Config(),
        PhimoeConfig(router_jitter_noise=0.01),
        PhimoeConfig(attention_dropout=0.1),
    ):
        before = config.to_dict()
        switch_noise_off(config)
        changed = {name: value for name, value in config.to_dict().items() if value != before[name]}
        assert set(changed.values()) == {0}
        assert all("dropout" in name or "pdrop" in name or "jitter" in name for name in changed)


def test_noise_is_off_in_the_text_part_of_a_configuration_too() -> None:
    from transformers import LlavaConfig

    config = LlavaConfig(text_config=GraniteConfig(**SHAPE, attention_dropout=0.1))
    switch_noise_off(config)
    assert config.get_text_config().attention_dropout == 0


REFUSED: dict[str, tuple[Any, dict[str, Any], str]] = {
    "capped scores": (
        Gemma2Config(**SHAPE),
        {},
        "of Gemma2ForCausalLM, whose scores are capped: set train.attention=flash_att",
    ),
    "sinks": (
        GptOssConfig(**SHAPE),
        {},
        "the attention of GptOssForCausalLM: set train.attention=flash_attention_3",
    ),
    "neither, sdpa": (BloomConfig(), {}, "BloomForCausalLM cannot be trained here"),
    "neither, flash": (
        MambaConfig(),
        {"attention": "flash_attention_2"},
        "MambaForCausalLM cannot be trained here",
    ),
    "adapters of all layers": (
        GPT2Config(),
        {"lora": {}},
        "train.lora cannot adapt GPT2LMHeadModel, whose layers are of the kind Co",
    ),
    "adapters of one layer": (
        GPT2Config(),
        {"lora": {"target_modules": ["c_attn"]}},
        "train.lora cannot adapt GPT2LMHeadModel",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_architecture_that_would_train_wrongly_is_refused(case: str, tmp_path: Path) -> None:
    config, choices, message = REFUSED[case]
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=message):
        check_model(tmp_path, TrainConfig(**choices, trackers=()), ClusterConfig())


def test_supported_uses_of_sdpa_and_adapters_are_accepted(tmp_path: Path) -> None:
    Gemma2Config(**SHAPE, attn_logit_softcapping=None).save_pretrained(tmp_path)
    check_model(tmp_path, TrainConfig(lora={}, trackers=()), ClusterConfig())


def test_experts_without_known_choices_are_not_counted() -> None:
    model: Any = AutoModelForCausalLM.from_config(
        Llama4TextConfig(**SHAPE, num_local_experts=4, head_dim=8)
    ).train()
    assert sparse_blocks(model)
    load = ExpertLoad(model)
    model(input_ids=torch.arange(8)[None], use_cache=False)
    assert load.imbalance() is None
    with pytest.raises(
        UserError,
        match="cannot train Llama4ForCausalLM: transformers does not name the module below",
    ):
        ResponseLoss(model, 5)
