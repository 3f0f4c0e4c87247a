"""Expert parallelism with DeepSpeed's AutoEP: workers divide the experts of each layer.

- Each worker of a group holds some experts. Tokens are exchanged before and after the experts.
- AutoEP replaces each sparse block while the engine is built. Its parameters have other names:
  `router.gate.weight`, and `experts.w1`, `w2`, `w3` for the worker's own experts.
- A group is of consecutive workers. ZeRO-3 cuts experts among the workers that have the same ones,
  and all other parameters among all workers.
- Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import distributed, nn

from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models.architecture import EXPERT_PARALLEL

_BLOCKS = r"model\.model\.layers\.\d+\.mlp"
"""Names of the sparse blocks within `ResponseLoss`."""
MERGED = {"w1": ("gate_up_proj", 0, 2), "w3": ("gate_up_proj", 1, 2), "w2": ("down_proj", 0, 1)}
"""For each of AutoEP's matrices of an expert: the base's parameter, the place of the matrix among
those of the expert there, and their number."""
_ROUTER = ".router.gate.weight"


def check_experts(config: Any, train: TrainConfig) -> None:
    """Check that workers can divide the experts of a model.

    Raises:
        UserError: they cannot.
    """
    size = train.expert_parallel_size
    if size == 1:
        return
    if config.model_type != EXPERT_PARALLEL:
        raise UserError(
            f"train.expert_parallel_size {size} divides experts of the model type "
            f"{EXPERT_PARALLEL}, and this model is of the type {config.model_type}: set it to 1"
        )
    if config.num_experts % size:
        raise UserError(
            f"train.expert_parallel_size {size} does not divide the model's "
            f"{config.num_experts} experts"
        )


def section(config: Any, train: TrainConfig) -> dict[str, object]:
    """Return the section `expert_parallel` of DeepSpeed's configuration for a model.

    It states the routing, because AutoEP finds no configuration in `ResponseLoss`.
    """
    return {
        "enabled": True,
        "autoep_size": train.expert_parallel_size,
        "preset_model": EXPERT_PARALLEL,
        "moe_layer_pattern": _BLOCKS,
        "top_k": config.num_experts_per_tok,
        "route_norm": bool(config.norm_topk_prob),
    }


def is_divided(block: nn.Module) -> bool:
    """Return True for a sparse block with its experts divided among workers."""
    return bool(getattr(block, "_is_autoep_layer", False))


def _blocks(model: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, module in model.named_modules():
        if is_divided(module):
            yield name, module


@dataclass(frozen=True)
class Division:
    """Division of experts among workers."""

    size: int = 1
    """Workers that divide the experts of a block."""
    blocks: frozenset[str] = frozenset()
    """Names of the divided blocks."""

    @classmethod
    def of(cls, model: nn.Module) -> Division:
        """Return the division in the model of an engine."""
        sizes = {name: int(block.ep_size) for name, block in _blocks(model)}
        return cls(max(sizes.values(), default=1), frozenset(sizes))

    def matrix(self, name: str) -> str:
        """Return AutoEP's name of the experts' matrix that a parameter is, such as w1; else ""."""
        block, _, leaf = name.rpartition(".experts.")
        return leaf if block in self.blocks else ""

    def base_name(self, name: str) -> str:
        """Return the base's name of a parameter."""
        if matrix := self.matrix(name):
            return name.removesuffix(matrix) + MERGED[matrix][0]
        if name.removesuffix(_ROUTER) in self.blocks:
            return name.removesuffix(_ROUTER) + ".gate.weight"
        return name


def num_elements(model: nn.Module, *, trained: bool = False) -> int:
    """Return the number of elements of all parameters, or of trained ones, on all workers."""
    division = Division.of(model)
    return sum(
        # Under ZeRO-3, the parameter itself may be released.
        int(getattr(parameter, "ds_numel", parameter.numel()))
        * (division.size if division.matrix(name) else 1)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad or not trained
    )


class Gathering:
    """Collection of the experts of all workers, under the base's names of parameters."""

    def __init__(self, model: nn.Module) -> None:
        """Look up the divided blocks of `model`."""
        self._division = Division.of(model)
        self._group = next((block.ep_group for _, block in _blocks(model)), None)

    def complete(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Return a parameter with the experts of all workers; every worker calls it.

        Other parameters are returned as they are.
        """
        if not self._division.matrix(name):
            return value
        parts = [torch.empty_like(value) for _ in range(self._division.size)]
        distributed.all_gather(parts, value.contiguous(), group=self._group)
        return torch.cat(parts)

    def renamed(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return complete parameters under the base's names, and empty `weights`."""
        out = {}
        while weights:
            name = next(iter(weights))
            value = weights.pop(name)
            if self._division.matrix(name) == "w1":
                value = torch.cat([value, weights.pop(f"{name.removesuffix('w1')}w3")], dim=1)
            out[self._division.base_name(name)] = value
        return out
