"""Output head for training: a weighted sum of cross-entropies, chunk by chunk.

- A chunk is `loss_chunk_tokens` positions.
- The gradient of a chunk is computed while its logits exist. Nothing is recomputed, and memory is
  one chunk of logits.
- A transform of logits (a factor, a soft cap) is part of the sum and of its gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ssd_ray.models.cpu_kernels import gradient_of, product
from ssd_ray.models.logit_transform import LogitTransform


class ResponseHead(nn.Module):
    """Output head: logits of hidden states, or a weighted sum of cross-entropies."""

    def __init__(
        self,
        head: nn.Linear,
        transform: LogitTransform,
        chunk_tokens: int,
        *,
        liger: bool = False,
        in_place: float | None = None,
    ) -> None:
        """Take over the parameters of `head`.

        Args:
            head: the model's output head.
            transform: the model's transform of logits.
            chunk_tokens: positions computed at a time.
            liger: True for Liger's fused kernel. It needs CUDA and equal weights for all tokens.
            in_place: the factor that multiplies the sum before its backward pass. If set, the
                forward pass adds the weight's gradient to `weight.grad`.
        """
        super().__init__()
        self.weight = head.weight
        self.bias = head.bias
        self._transform = transform
        self._chunk_tokens = chunk_tokens
        self._liger = liger
        self._in_place = in_place

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits [..., vocabulary] of hidden states [..., width].

        With targets and weights [tokens] of hidden states [tokens, width], return the weighted sum
        of cross-entropies, in float32.
        """
        if targets is None or weights is None:
            return functional.linear(hidden, self.weight, self.bias)
        if self._liger and len(targets):
            return self._liger_sum(hidden, targets) * weights[0]
        sink = None
        if self._in_place is not None and self.weight.requires_grad and torch.is_grad_enabled():
            sink = (gradient_of(self.weight), self._in_place)
        constants = _Constants(
            targets=targets,
            weights=weights,
            transform=self._transform,
            chunk_tokens=self._chunk_tokens,
            sink=sink,
        )
        apply: Callable[..., torch.Tensor] = _ChunkedSum.apply
        return apply(hidden, self.weight, self.bias, constants)

    def _liger_sum(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        total: torch.Tensor = liger_fused_linear_cross_entropy(
            hidden * self._transform.factor,
            self.weight,
            targets,
            bias=None if self.bias is None else self.bias * self._transform.factor,
            reduction="sum",
            softcap=self._transform.cap,
            accum_dtype=torch.float32,
        )
        return total.float()


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """Inputs of the sum without a gradient."""

    targets: torch.Tensor
    """Token ids, [tokens]."""
    weights: torch.Tensor
    """Weight of each cross-entropy, [tokens]."""
    transform: LogitTransform
    chunk_tokens: int
    sink: tuple[torch.Tensor, float] | None
    """Tensor to add the head's gradient to, and the factor that later multiplies the sum."""


class _ChunkedSum(torch.autograd.Function):
    """Weighted sum of cross-entropies.

    Gradients are computed with the sum, chunk by chunk. The backward pass only scales them.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        constants: _Constants,
    ) -> torch.Tensor:
        targets = constants.targets
        weights = constants.weights
        transform = constants.transform
        sink = constants.sink
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden, of_head, of_bias, _ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_head = (
            torch.zeros_like(head, dtype=torch.float32) if of_head and sink is None else None
        )
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        )
        into, factor = (grad_head, 1.0) if sink is None else sink
        for start in range(0, len(targets), constants.chunk_tokens):
            chunk = slice(start, start + constants.chunk_tokens)
            # These logits and their gradient exist for one iteration only.
            logits = transform(product(hidden[chunk], head, bias).float())
            loss, grad_logits = _cross_entropy(logits, targets[chunk], weights[chunk])
            total += loss
            if not any(ctx.needs_input_grad):
                continue
            grad_logits = transform.gradient(grad_logits, logits).to(head.dtype)
            if grad_hidden is not None:
                grad_hidden[chunk] = product(grad_logits, head.t())
            if into is not None:
                _add_product(into, grad_logits, hidden[chunk], factor)
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
        ctx.grads = (grad_hidden, grad_head, grad_bias)
        ctx.dtype = head.dtype
        ctx.factor = None if sink is None else factor
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The sink already has the head's gradient times this factor, so no other one can be right.
        if ctx.factor is not None and float(grad_total) != ctx.factor:
            raise RuntimeError(
                f"the loss was multiplied by {float(grad_total)}, "
                f"but the head's gradient was added for a factor of {ctx.factor}"
            )
        hidden, head, bias = (
            grad if grad is None else grad.mul_(grad_total).to(ctx.dtype) for grad in ctx.grads
        )
        ctx.grads = None
        return hidden, head, bias, None


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weighted sum of cross-entropies, and its gradient.

    `logits` are float32 [tokens, vocabulary], `targets` and `weights` [tokens].
    """
    log_probabilities = logits.log_softmax(1)
    places = targets[:, None]
    loss = -(log_probabilities.gather(1, places)[:, 0] @ weights)
    # In place, to save a tensor as large as the logits.
    grad = log_probabilities.exp_()
    grad.scatter_add_(1, places, torch.full_like(places, -1, dtype=grad.dtype))
    return loss, grad.mul_(weights[:, None])


def _add_product(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float
) -> None:
    """Add `factor * left.T @ right` to the float32 `total`.

    Where types are equal, no second buffer of that size is needed.
    """
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right, alpha=factor)
    else:
        total.add_(left.t() @ right, alpha=factor)
