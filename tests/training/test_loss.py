"""The loss equals cross-entropy over full logits, in value and gradient, for any chunk."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GptOssConfig,
    GraniteConfig,
    Lfm2Config,
    LlamaConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    RecurrentGemmaConfig,
)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from loss_memory import CHUNK, TOKENS, VOCABULARY, WIDTH, LiveBytes, loss_peak_bytes

from ssd_ray.config import Decoding
from ssd_ray.errors import UserError
from ssd_ray.models.cpu_kernels import use_fast_products
from ssd_ray.training.model.engine import parameter_groups
from ssd_ray.training.model.loss import ResponseLoss
from ssd_ray.training.observe.distributions import measure
from ssd_ray.training.observe.heldout import CHUNKS
from tests.support.tiny import SHAPE

CONFIGS = {
    "llama, tied embeddings": LlamaConfig(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False),
    "qwen3 mixture of experts": Qwen3MoeConfig(
        **SHAPE, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16
    ),
    "granite, divided logits": GraniteConfig(**SHAPE, logits_scaling=4.0),
    "gemma2, capped logits": Gemma2Config(
        **SHAPE, head_dim=8, final_logit_softcapping=3.0, attn_logit_softcapping=None
    ),
    "recurrent gemma, capped logits": RecurrentGemmaConfig(
        **SHAPE, head_dim=8, logits_soft_cap=3.0
    ),
    "cohere, scaled logits": CohereConfig(**SHAPE, logit_scale=0.3),
}


def _model(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return ids, next ids and weights: prompts of 4 tokens, the second sequence shorter."""
    input_ids = torch.randint(3, 97, (3, 13), generator=torch.Generator().manual_seed(1))
    weights = torch.tensor([[0.5], [2.0], [1.0]]).repeat(1, 13)
    weights[:, :3] = weights[:, -1] = weights[1, 8:] = 0
    return input_ids, input_ids.roll(-1, dims=1), weights


def _reference(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    input_ids, targets, weights = _batch()
    logits = model(input_ids=input_ids).logits.flatten(0, 1)
    loss = (
        functional.cross_entropy(logits, targets.flatten(), reduction="none") * weights.flatten()
    ).sum()
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


@pytest.mark.parametrize("name", CONFIGS)
def test_in_place_gradients_equal_those_of_full_logits(name: str) -> None:
    model = _model(CONFIGS[name])
    input_ids, targets, weights = _batch()
    input_ids[0, 2] = input_ids[1, 5] = (
        0  # the row of padding, which torch's embedding does not train
    )
    logits = model(input_ids=input_ids).logits.flatten(0, 1)
    (
        functional.cross_entropy(logits, targets.flatten(), reduction="none") * weights.flatten()
    ).sum().backward()
    grads = {
        parameter_name: parameter.grad.clone()
        for parameter_name, parameter in model.named_parameters()
    }
    model.zero_grad()
    use_fast_products(model)
    loss = ResponseLoss(model, 5, in_place=2.0)
    for part in (slice(0, 1), slice(1, 3)):
        (loss(input_ids[part], targets[part], weights[part]) * 2.0).backward()
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[parameter_name] * 2, atol=4e-6, rtol=1e-4)
    with pytest.raises(RuntimeError, match=r"multiplied by 3\.0, but .* for a factor of 2\.0"):
        (loss(input_ids, targets, weights) * 3.0).backward()


def test_nothing_is_added_in_place_where_no_gradient_is_wanted() -> None:
    model = _model(CONFIGS["llama, tied embeddings"])
    loss = ResponseLoss(model, 5, in_place=1.0)
    with torch.no_grad():
        loss(*_batch())
    assert model.lm_head.weight.grad is None


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


def test_prompt_tokens_have_no_loss_of_their_own() -> None:
    loss = ResponseLoss(_model(CONFIGS["qwen3"]), 5)
    input_ids, targets, weights = _batch()
    only = torch.zeros_like(weights)
    only[0, 6] = 1
    logits = loss.model(input_ids=input_ids).logits
    torch.testing.assert_close(
        loss(input_ids, targets, only), functional.cross_entropy(logits[0, 6], input_ids[0, 7])
    )


def test_a_batch_without_response_tokens_has_no_gradient() -> None:
    loss = ResponseLoss(_model(CONFIGS["llama, tied embeddings"]), 5)
    input_ids, targets, weights = _batch()
    total = loss(input_ids, targets, torch.zeros_like(weights))
    total.backward()
    assert total.item() == 0
    assert all(
        parameter.grad is None or not parameter.grad.any() for parameter in loss.parameters()
    )


def test_a_frozen_head_passes_its_gradient_on() -> None:
    model = _model(CONFIGS["qwen3"])
    _, grads = _reference(model)
    model.lm_head.weight.requires_grad_(False)
    ResponseLoss(model, 5)(*_batch()).backward()
    assert model.lm_head.weight.grad is None
    name = "model.layers.0.mlp.up_proj.weight"
    torch.testing.assert_close(model.get_parameter(name).grad, grads[name], atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("multiplier", [0.5, 0.999])
def test_an_architecture_with_other_logits_is_refused(multiplier: float) -> None:
    shape = {
        **SHAPE,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_state": 8,
        "lm_head_multiplier": multiplier,
    }
    loss = ResponseLoss(_model(FalconH1Config(**shape)), 5)
    with pytest.raises(UserError, match="cannot train FalconH1ForCausalLM exactly"):
        loss.check(_batch()[0][:1])


@pytest.mark.parametrize(
    "name", ["llama, tied embeddings", "qwen3", "qwen3 mixture of experts", "gemma2, capped logits"]
)
def test_packed_logits_are_those_of_each_sequence_alone(name: str) -> None:
    model = _model(CONFIGS[name]).eval()
    generator = torch.Generator().manual_seed(2)
    alone = [torch.randint(3, 97, (1, length), generator=generator) for length in (9, 1, 14, 5)]
    packed = torch.cat(alone, dim=1)
    position_ids = torch.cat([torch.arange(ids.shape[1]) for ids in alone])[None]
    with torch.no_grad():
        together = model(input_ids=packed, position_ids=position_ids, use_cache=False).logits
        apart = torch.cat([model(input_ids=ids, use_cache=False).logits for ids in alone], dim=1)
        merged = model(input_ids=packed, use_cache=False).logits
    torch.testing.assert_close(together, apart, atol=2e-6, rtol=1e-5)
    assert not torch.allclose(
        merged, apart, atol=1e-2
    )  # without positions of their own, sequences would see one another


def test_packing_is_refused_where_sequences_would_see_others() -> None:
    ids = _batch()[0][:1]
    ResponseLoss(_model(CONFIGS["qwen3"]).eval(), 5).check_packing(ids)
    convolving = ResponseLoss(
        _model(Lfm2Config(**SHAPE, layer_types=["conv", "full_attention"])).eval(), 5
    )
    with pytest.raises(
        UserError,
        match=r"does not keep the sequences of Lfm2ForCausalLM apart: set train\.packing=false",
    ):
        convolving.check_packing(ids)


def test_the_loss_of_a_router_needs_experts() -> None:
    with pytest.raises(UserError, match="but LlamaForCausalLM has no router loss: set it to 0"):
        ResponseLoss(_model(CONFIGS["llama, tied embeddings"]), 5, router_aux_loss=0.01)


def test_experts_biases_are_not_decayed_though_they_are_stacked() -> None:
    model = _model(GptOssConfig(**SHAPE, head_dim=8, num_local_experts=4, num_experts_per_tok=2))
    decayed, others = parameter_groups(model, 0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {names[id(one)].rsplit(".", 1)[1] for one in others["params"]} >= {
        "bias",
        "gate_up_proj_bias",
        "down_proj_bias",
    }
    assert not [name for one in decayed["params"] if (name := names[id(one)]).endswith("bias")]


def test_peak_memory_is_at_most_a_fifth_of_the_plain_loss() -> None:
    peaks = {
        kind: loss_peak_bytes(kind, TOKENS, VOCABULARY, WIDTH) for kind in ("plain", "chunked")
    }
    assert peaks["plain"] > TOKENS * VOCABULARY * 4
    assert peaks["chunked"] <= peaks["plain"] / 5


@pytest.mark.slow
def test_held_out_measures_need_memory_for_one_chunk() -> None:
    positions = CHUNK // CHUNKS
    logits = [torch.randn(positions, VOCABULARY) for _ in range(2)]
    drawn = torch.zeros(positions, dtype=torch.int64)
    truncated, tempered = Decoding(temperature=1.3, top_k=20, top_p=0.9), Decoding(temperature=1.3)
    for decoding in (truncated, tempered):
        with LiveBytes() as live:
            measure(*logits, drawn, decoding)
        total = live.peak + sum(each.nbytes for each in logits)
        # 12 bytes per logit of a chunk, as the planner counts them
        assert total <= 12 * CHUNK * VOCABULARY
