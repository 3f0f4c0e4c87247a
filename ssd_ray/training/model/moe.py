"""Mixtures of experts: leaves of ZeRO-3, balance of routing, the router's auxiliary loss.

- One convention of transformers is used, for any architecture: a block calls its `experts` with
  (hidden states, chosen experts, their weights).
- Experts are computed as grouped matrix products where transformers can
  (`experts_implementation`, its default).
- Does no I/O.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch
from torch import distributed, nn

from ssd_ray.errors import UserError
from ssd_ray.training.model.expert_parallel import is_divided


def sparse_blocks(model: nn.Module) -> list[Any]:
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
            if is_divided(block):
                # The experts see the tokens of all workers; the router sees this worker's.
                block.router.register_forward_hook(
                    partial(self._count_routed, layer, int(block.num_experts))
                )
            else:
                block.experts.register_forward_pre_hook(
                    partial(self._count_inputs, layer, int(block.experts.num_experts))
                )

    def _count_inputs(
        self, layer: int, size: int, module: nn.Module, inputs: tuple[Any, ...]
    ) -> None:
        # Llama 4's experts get no choice as input.
        if len(inputs) >= 2:
            self._count(layer, size, module, inputs[1])

    def _count_routed(
        self, layer: int, size: int, module: nn.Module, inputs: Any, routed: tuple[Any, ...]
    ) -> None:
        self._count(layer, size, module, routed[1])

    def _count(self, layer: int, size: int, module: nn.Module, choice: torch.Tensor) -> None:
        """Count the chosen experts [tokens, experts of a token] of a layer with `size` experts."""
        # Held-out samples are not part of a step.
        if not module.training or _is_recomputing():
            return
        chosen = choice.detach().reshape(-1, choice.shape[-1])
        weights = torch.ones_like(chosen)
        if self.real is not None:
            weights *= self.real[:, None]
        if layer not in self._counts:
            # The last place is for choices beyond the experts.
            self._counts[layer] = weights.new_zeros(size + 1)
        # For a mask or bincount, the host would wait for the GPU in every layer.
        places = chosen.clamp(max=size).flatten()
        self._counts[layer].scatter_add_(0, places, weights.flatten())

    def imbalance(self) -> float | None:
        """Return the tokens of the busiest expert, divided by the mean, since the last call.

        - The value is the worst layer's, with counts summed over workers. Every worker calls it.
        - 1 is even. The number of experts is the worst value, with all tokens at one expert.
        - None without experts.
        """
        if not self._counts:
            return None
        counts = torch.stack([self._counts[layer] for layer in sorted(self._counts)])
        counts = counts[:, :-1].float()
        self._counts.clear()
        distributed.all_reduce(counts)
        return float((counts.max(dim=1).values / counts.mean(dim=1)).max())


def _is_recomputing() -> bool:
    """Return True within a backward pass, where checkpointing repeats a forward pass."""
    return torch._C._current_graph_task_id() != -1


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
