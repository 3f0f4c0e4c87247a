"""Low-rank adapters through peft: injected for training, merged into the weights on export.

Injection is in place: the model keeps its class, and its output head stays where the loss expects
it. Does no I/O.
"""

from __future__ import annotations

from typing import Any

import torch

from ssd_ray.config import LoraConfig
from ssd_ray.errors import UserError

_NAME = "default"


def add_adapters(model: Any, lora: LoraConfig, seed: int) -> None:
    """Freeze `model` and add trainable adapters, identical on every worker.

    Raises:
        UserError: the model lacks a layer of `lora.target_modules`.
    """
    from peft import LoraConfig as PeftLoraConfig
    from peft import inject_adapter_in_model

    check_targets(model, lora)
    torch.manual_seed(seed)
    chosen = PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=list(lora.target_modules) or "all-linear",
    )
    inject_adapter_in_model(chosen, model, adapter_name=_NAME)
    # Without it, recomputed layers behind frozen embeddings get no gradient.
    model.enable_input_require_grads()


def check_targets(model: Any, lora: LoraConfig) -> None:
    """Check the model for the linear layers of `lora.target_modules`; weights are not needed.

    Raises:
        UserError: one of these names is not that of a linear layer below the output head.
    """
    head = model.get_output_embeddings()
    linear = (
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    )
    last_names = {name.rpartition(".")[2] for name, module in linear if module is not head}
    if missing := sorted(set(lora.target_modules) - last_names):
        raise UserError(
            f"train.lora.target_modules {missing[0]!r} is not a linear layer of "
            f"{type(model).__name__} below its output head: "
            f"those are {', '.join(sorted(last_names))}"
        )


def is_adapter(name: str) -> bool:
    """Return True if a parameter of this name is part of an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """Return a parameter's name before adapters were added."""
    return name.replace(".base_layer.", ".")


def adapter_of(
    model: Any, name: str
) -> tuple[torch.nn.Parameter, torch.nn.Parameter, float] | None:
    """Return A [rank, in], B [out, rank] and their factor for a weight; None without an adapter.

    The merged weight is W + factor * B @ A.
    """
    layer, _, leaf = name.rpartition(".base_layer.")
    if leaf != "weight":
        return None
    module = model.get_submodule(layer)
    return module.lora_A[_NAME].weight, module.lora_B[_NAME].weight, float(module.scaling[_NAME])
