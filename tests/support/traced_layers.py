"""Live bytes of a model's layers at full width, counted without data (torch's fake tensors)."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ssd_ray.models.architecture import SHIPPED

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from loss_memory import LiveBytes

LAYERS = 4


class _Flash(torch.autograd.Function):
    """Attention with the memory of a flash kernel, for grouped key-value heads."""

    @staticmethod
    def forward(ctx: Any, *inputs: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(inputs[0])
        sums = torch.empty(out.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(*inputs, out, sums)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def _attention(
    module: Any, query: Any, key: Any, value: Any, mask: Any, **_: Any
) -> tuple[torch.Tensor, None]:
    return _Flash.apply(query, key, value).transpose(1, 2).contiguous(), None


def traced_layers(name: str, tokens: int, *, checkpointing: bool) -> tuple[dict[str, Any], int]:
    """Return the config of a shipped model cut to `LAYERS`, and the peak of its activations.

    Both passes run in bfloat16. Weights are not counted, and their gradients are dropped once they
    are complete.
    """
    (path,) = SHIPPED.glob(f"{name}*.json")
    config = json.loads(path.read_text())["config"] | {
        "num_hidden_layers": LAYERS,
        "vocab_size": 1024,
    }
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:LAYERS]
    fields = {key: value for key, value in config.items() if key != "model_type"}
    ALL_ATTENTION_FUNCTIONS.register("traced", _attention)
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **fields),
            attn_implementation="traced",
            dtype=torch.bfloat16,
        ).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": True})
            model.enable_input_require_grads()
        live = LiveBytes()
        for parameter in model.parameters():
            live._known.add(parameter.untyped_storage()._cdata)
            parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with live:
            ids = torch.zeros(1, tokens, dtype=torch.int64)
            model.base_model(input_ids=ids, use_cache=False).last_hidden_state.sum().backward()
    return config, live.peak


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
