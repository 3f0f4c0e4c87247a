"""Cross-entropy on response tokens only, without ever holding all logits.

Each token carries its weight in the mean of the global batch (`batches.py`), so the loss of a step is a plain sum over
micro-batches, accumulation steps and workers, whatever the pieces.

The one idea: only response positions go through the output head, `loss_chunk_tokens` at a time, and each chunk's gradient
is taken while its logits are there, so nothing is recomputed and memory is one chunk of logits. `ResponseHead` stands in
`lm_head`'s place under its name, so ZeRO-3 gathers its weight by the usual module hooks and tied weights stay tied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ssd_ray.errors import UserError
from ssd_ray.training.experts import balancing_loss


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's logits: multiplies them (Cohere), divides (Granite), caps them softly (Gemma)."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """The transform that a transformers configuration asks for."""
        text = config.get_text_config()
        factor = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
        return cls(factor=factor, cap=getattr(text, "final_logit_softcapping", None))

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The model's logits from its head's, of any shape."""
        scaled = logits if self.factor == 1.0 else logits * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap


class ResponseHead(nn.Module):
    """The output head: logits of hidden states as before, or the weighted sum of cross-entropies against targets."""

    def __init__(self, head: nn.Linear, transform: LogitTransform, chunk_tokens: int, *, liger: bool = False) -> None:
        """Take over `head`; `liger` computes with Liger's fused kernel, which needs CUDA and one weight for all tokens."""
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._transform, self._chunk_tokens, self._liger = transform, chunk_tokens, liger

    def forward(
        self, hidden: torch.Tensor, targets: torch.Tensor | None = None, weights: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Hidden states [..., width] to logits [..., vocabulary]; with targets and weights [tokens], to a float32 sum."""
        if targets is None or weights is None:
            return functional.linear(hidden, self.weight, self.bias)
        if self._liger and len(targets):
            return self._liger_sum(hidden, targets) * weights[0]
        apply: Callable[..., torch.Tensor] = _ChunkedSum.apply
        return apply(hidden, targets, weights, self.weight, self.bias, self._transform, self._chunk_tokens)

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


class _ChunkedSum(torch.autograd.Function):
    """Weighted sum of cross-entropies; gradients are computed along with it, chunk by chunk, and only scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        head: torch.Tensor,
        bias: torch.Tensor | None,
        transform: LogitTransform,
        chunk_tokens: int,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden, _, _, of_head, of_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_head = torch.zeros_like(head, dtype=torch.float32) if of_head else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = functional.linear(hidden[chunk], head, bias).float()
            wanted = any(ctx.needs_input_grad)
            loss, grad_logits = _cross_entropy(logits, targets[chunk], weights[chunk], transform, wanted)
            total += loss
            grad_logits = grad_logits.to(head.dtype)
            if grad_hidden is not None:
                torch.mm(grad_logits, head, out=grad_hidden[chunk])
            if grad_head is not None:
                _add_product(grad_head, grad_logits, hidden[chunk])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
        ctx.grads, ctx.dtype = (grad_hidden, grad_head, grad_bias), head.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, head, bias = (grad if grad is None else grad.mul_(grad_total).to(ctx.dtype) for grad in ctx.grads)
        ctx.grads = None
        return hidden, None, None, head, bias, None, None


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, transform: LogitTransform, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.set_grad_enabled(wanted):
        logits.requires_grad_(wanted)
        loss = functional.cross_entropy(transform(logits), targets, reduction="none") @ weights
    return loss.detach(), torch.autograd.grad(loss, logits)[0] if wanted else logits


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left.T @ right` in float32; in place where the types allow, so no second weight-sized buffer is made."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right


class ResponseLoss(nn.Module):
    """A causal language model that answers with its loss: what the DeepSpeed engine wraps."""

    def __init__(self, model: Any, chunk_tokens: int, *, liger: bool = False, router_aux_loss: float = 0.0) -> None:
        """Take over `model` (a transformers causal language model), replacing its output head.

        `router_aux_loss` is the weight of a mixture of experts' balancing loss; `auxiliary` is what it last came to.

        Raises:
            UserError: the model's output head is not a linear layer.
        """
        super().__init__()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            kind = type(model).__name__
            raise UserError(f"cannot train {kind}: its output head is {type(head).__name__}, not a linear layer")
        self.transform = LogitTransform.of(model.config)
        model.set_output_embeddings(ResponseHead(head, self.transform, chunk_tokens, liger=liger))
        self.model = model
        self._router_aux_loss, self.auxiliary = router_aux_loss, 0.0

    def forward(
        self, input_ids: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor, position_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Sum of `weights` times the cross-entropy of predicting `targets` at every position; all [sequences, tokens].

        Without `position_ids` every line is one sequence from position 0; with them a line may hold several.
        """
        routed = {"output_router_logits": True} if self._router_aux_loss else {}
        out = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False, **routed)
        counted = weights != 0
        head = self.model.get_output_embeddings()
        total: torch.Tensor = head(out.last_hidden_state[counted], targets[counted], weights[counted])
        if routed:
            auxiliary = self._router_aux_loss * balancing_loss(self.model, out.router_logits) * weights.sum()
            self.auxiliary = float(auxiliary)
            total = total + auxiliary
        return total

    @torch.no_grad()
    def check(self, input_ids: torch.Tensor) -> None:
        """Compare our logits with the model's own on a few tokens [1, tokens].

        Raises:
            UserError: they differ, so the architecture does more to its logits than `LogitTransform` knows.
        """
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.model.base_model(input_ids=input_ids, position_ids=position_ids, use_cache=False).last_hidden_state
        ours = self.transform(self.model.get_output_embeddings()(hidden).float())
        theirs = self.model(input_ids=input_ids, position_ids=position_ids, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max())):
            kind = type(self.model).__name__
            raise UserError(f"cannot train {kind} exactly: its logits are not its output head's, scaled and capped as configured")
