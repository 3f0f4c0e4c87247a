"""Mixtures of experts: leaves of ZeRO-3, balance of routing, the router's auxiliary loss.

- One convention of transformers is used, for any architecture: a block calls its `experts` with
  (hidden states, chosen experts, their weights).
- Experts are computed as grouped matrix products where transformers can
  (`experts_implementation`, its default).
- Reads and writes nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import distributed, nn

from ssd_ray.errors import UserError


def sparse_blocks(model: nn.Module) -> list[nn.Module]:
    """Return the blocks of experts, such as `Qwen3MoeSparseMoeBlock`, by layer."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "experts", None), nn.Module)
    ]


def make_blocks_leaves(model: nn.Module) -> int:
    """Make every sparse block a leaf of ZeRO-3 and return their number.

    Workers run different experts at different steps. If experts were gathered one by one, workers
    would deadlock.
    """
    from deepspeed.utils import set_z3_leaf_module

    blocks = sparse_blocks(model)
    for block in blocks:
        set_z3_leaf_module(block, True)
    return len(blocks)


class ExpertLoad:
    """Counter of tokens by layer and expert in training, padding left out."""

    def __init__(self, model: nn.Module) -> None:
        """Hook the sparse blocks of `model`, if there are any."""
        self._counts: dict[int, torch.Tensor] = {}
        self.real: torch.Tensor | None = None
        """Mask of the micro-batch's tokens, False on padding; None counts all."""
        for layer, block in enumerate(sparse_blocks(model)):
            experts: Any = block.experts
            size = int(experts.num_experts)

            def count(
                module: nn.Module, inputs: tuple[Any, ...], layer: int = layer, size: int = size
            ) -> None:
                # Held-out samples are not part of a step. Llama 4's experts get no choice as input.
                if not module.training or len(inputs) < 2:
                    return
                chosen = inputs[1].detach().reshape(-1, inputs[1].shape[-1])
                chosen = chosen if self.real is None else chosen[self.real]
                counts = torch.bincount(chosen.flatten(), minlength=size)[:size]
                if layer in self._counts:
                    counts = self._counts[layer] + counts
                self._counts[layer] = counts

            experts.register_forward_pre_hook(count)

    def imbalance(self) -> float | None:
        """Return the busiest expert's tokens over the mean's since the last call.

        - The value is the worst layer's, with counts summed over workers. Every worker calls it.
        - 1 is even. The number of experts is the worst value, with all tokens at one expert.
        - None without experts.
        """
        if not self._counts:
            return None
        counts = torch.stack([self._counts[layer] for layer in sorted(self._counts)]).float()
        self._counts.clear()
        distributed.all_reduce(counts)
        return float((counts.max(dim=1).values / counts.mean(dim=1)).max())


def check_router(model: nn.Module) -> None:
    """Check that the architecture has a loss to balance the load of experts.

    Raises:
        UserError: it has none.
    """
    if not sparse_blocks(model) or not hasattr(
        sys.modules[type(model).__module__], "load_balancing_loss_func"
    ):
        raise UserError(
            f"train.router_aux_loss is set, but {type(model).__name__} has no router loss: "
            "set it to 0"
        )


def balancing_loss(model: Any, router_logits: Any) -> torch.Tensor:
    """Return the architecture's own load-balancing loss of one micro-batch, padding included.

    Source: Switch Transformer, Eq. 4 to 6. Call `check_router` first.
    """
    function: Any = vars(sys.modules[type(model).__module__])["load_balancing_loss_func"]
    loss: torch.Tensor = function(router_logits, model.num_experts, model.num_experts_per_tok)
    return loss
