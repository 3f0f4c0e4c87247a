"""The loss: equal to cross-entropy over full logits, in value and gradient, whatever the chunk; or refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    Qwen3Config,
    Qwen3MoeConfig,
)

from ssd_ray.errors import UserError
from ssd_ray.training.batches import IGNORED
from ssd_ray.training.loss import ResponseLoss

SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
CONFIGS = {
    "llama, tied embeddings": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),
    "qwen3 mixture of experts": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "granite, divided logits": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "gemma2, capped logits": Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=3.0),
    "cohere, scaled logits": CohereConfig(**SHAPE, logit_scale=0.3),
}


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _batch() -> tuple[torch.Tensor, torch.Tensor]:
    input_ids = torch.randint(3, 97, (3, 13), generator=torch.Generator().manual_seed(1))
    labels = input_ids.clone()
    labels[:, :4] = IGNORED
    labels[1, 9:] = IGNORED
    return input_ids, labels


def _reference(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    input_ids, labels = _batch()
    logits = model(input_ids=input_ids).logits[:, :-1].flatten(0, 1)
    loss = functional.cross_entropy(logits, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum")
    loss.backward()
    grads = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    return loss, grads


@pytest.mark.parametrize("chunk_tokens", [1, 5, 1000])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_chunked_sum_is_the_cross_entropy_of_full_logits(name: str, chunk_tokens: int) -> None:
    model = _model(CONFIGS[name])
    expected, grads = _reference(model)
    loss = ResponseLoss(model, chunk_tokens)
    loss.check(_batch()[0][:1])
    total = loss(*_batch())
    total.backward()
    torch.testing.assert_close(total, expected)
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[parameter_name], atol=2e-6, rtol=1e-4)


def test_gradients_scale_with_what_the_sum_is_multiplied_by() -> None:
    model = _model(CONFIGS["llama, tied embeddings"])
    _, grads = _reference(model)
    (ResponseLoss(model, 7)(*_batch()) * 0.25).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name] * 0.25, atol=1e-6, rtol=1e-4)


def test_a_head_with_a_bias_is_trained_too() -> None:
    model = _model(CONFIGS["qwen3"])
    model.lm_head.bias = torch.nn.Parameter(torch.linspace(-1, 1, 97))
    expected, grads = _reference(model)
    total = ResponseLoss(model, 5)(*_batch())
    total.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(model.lm_head.bias.grad, grads["lm_head.bias"], atol=2e-6, rtol=1e-4)


def test_bfloat16_sums_in_float32() -> None:
    model = _model(CONFIGS["qwen3"]).to(torch.bfloat16)
    total = ResponseLoss(model, 5)(*_batch())
    total.backward()
    assert total.dtype == torch.float32
    assert model.lm_head.weight.grad.dtype == torch.bfloat16


def test_names_and_tied_weights_stay_as_they_were() -> None:
    model = _model(CONFIGS["llama, tied embeddings"])
    before = list(model.state_dict())
    ResponseLoss(model, 5)
    assert list(model.state_dict()) == before
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_prompt_tokens_do_not_move_the_loss_of_their_own() -> None:
    loss = ResponseLoss(_model(CONFIGS["qwen3"]), 5)
    input_ids, labels = _batch()
    only = torch.full_like(labels, IGNORED)
    only[0, 7] = input_ids[0, 7]
    logits = loss.model(input_ids=input_ids).logits
    torch.testing.assert_close(loss(input_ids, only), functional.cross_entropy(logits[0, 6], input_ids[0, 7]))


def test_an_architecture_whose_logits_are_otherwise_is_refused() -> None:
    shape = {**SHAPE, "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_state": 8, "lm_head_multiplier": 0.5}
    loss = ResponseLoss(_model(FalconH1Config(**shape)), 5)
    with pytest.raises(UserError, match="cannot train FalconH1ForCausalLM exactly"):
        loss.check(_batch()[0][:1])


def test_a_batch_of_masked_rows_alone_has_no_loss_and_no_gradient() -> None:
    model = ResponseLoss(_model(CONFIGS["llama, tied embeddings"]), 4)
    input_ids, labels = _batch()
    loss = model(input_ids, torch.full_like(labels, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert all(not parameter.grad.any() for parameter in model.parameters() if parameter.grad is not None)
