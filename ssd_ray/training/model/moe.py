"""Mixtures of experts: which modules ZeRO-3 must take whole, how evenly tokens are routed, and the router's auxiliary loss.

Whatever the architecture, transformers calls a block's `experts` with (hidden states, chosen experts, their weights); that
one convention is all that is used here. Experts are computed as grouped matrix products where transformers can
(`experts_implementation`, its default). Reads and writes nothing.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import distributed, nn

from ssd_ray.errors import UserError


def sparse_blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that route tokens to experts (`Qwen3MoeSparseMoeBlock` and its like), in the order of the layers."""
    return [
        module
        for module in model.modules()
        if isinstance(getattr(module, "experts", None), nn.Module)
    ]


def take_blocks_whole(model: nn.Module) -> int:
    """Make every sparse block a leaf of ZeRO-3 and return their number.

    Which experts run differs between workers and steps; gathered one by one, workers would wait for one another for ever.
    """
    from deepspeed.utils import set_z3_leaf_module

    blocks = sparse_blocks(model)
    for block in blocks:
        set_z3_leaf_module(block, True)
    return len(blocks)


class ExpertLoad:
    """Counts the tokens that each expert of each layer is given in training, padding left out."""

    def __init__(self, model: nn.Module) -> None:
        """Watch the sparse blocks of `model`; a model without any is watched for nothing."""
        self._counts: dict[int, torch.Tensor] = {}
        self.real: torch.Tensor | None = None
        """Which tokens of the micro-batch, in its order, are no padding; None counts all."""
        for layer, block in enumerate(sparse_blocks(model)):
            experts: Any = block.experts
            size = int(experts.num_experts)

            def count(
                module: nn.Module, inputs: tuple[Any, ...], layer: int = layer, size: int = size
            ) -> None:
                if not module.training or len(inputs) < 2:
                    return  # held-out samples are no part of a step; Llama 4's experts are not told what was chosen
                chosen = inputs[1].detach().reshape(-1, inputs[1].shape[-1])
                chosen = chosen if self.real is None else chosen[self.real]
                seen = torch.bincount(chosen.flatten(), minlength=size)[:size]
                self._counts[layer] = self._counts[layer] + seen if layer in self._counts else seen

            experts.register_forward_pre_hook(count)

    def imbalance(self) -> float | None:
        """Since the last call: the largest expert's tokens over the mean expert's, the worst layer, over all workers.

        1 is even, the number of experts means that all go to one. None without experts; every worker calls it.
        """
        if not self._counts:
            return None
        counts = torch.stack([self._counts[layer] for layer in sorted(self._counts)]).float()
        self._counts.clear()
        distributed.all_reduce(counts)
        return float((counts.max(dim=1).values / counts.mean(dim=1)).max())


def check_router(model: nn.Module) -> None:
    """Whether the architecture has a loss that balances the load of experts.

    Raises:
        UserError: it has none.
    """
    if not sparse_blocks(model) or not hasattr(
        sys.modules[type(model).__module__], "load_balancing_loss_func"
    ):
        raise UserError(
            f"train.router_aux_loss is set, but {type(model).__name__} has no router loss: set it to 0"
        )


def balancing_loss(model: Any, router_logits: Any) -> torch.Tensor:
    """The architecture's own load-balancing loss (Switch Transformer, Eq. 4 to 6) of one micro-batch, padding included.

    `check_router` comes before it.
    """
    function: Any = vars(sys.modules[type(model).__module__])["load_balancing_loss_func"]
    loss: torch.Tensor = function(router_logits, model.num_experts, model.num_experts_per_tok)
    return loss
