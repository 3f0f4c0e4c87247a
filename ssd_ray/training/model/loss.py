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
from ssd_ray.training.model.cpu_kernels import add_in_place, gradient_of, product
from ssd_ray.training.model.moe import balancing_loss, check_router


@dataclass(frozen=True)
class LogitTransform:
    """What a model does to its head's logits: multiplies them (Cohere), divides (Granite), caps them softly (Gemma)."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """The transform that a transformers configuration asks for."""
        text = config.get_text_config()
        factor = float(getattr(text, "logit_scale", None) or 1.0) / float(
            getattr(text, "logits_scaling", None) or 1.0
        )
        cap = getattr(text, "final_logit_softcapping", None) or getattr(
            text, "logits_soft_cap", None
        )  # RecurrentGemma's name
        return cls(factor=factor, cap=cap)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """The model's logits from its head's, of any shape."""
        scaled = logits if self.factor == 1.0 else logits * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def gradient(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """The gradient of the head's logits from that of the model's `logits`; may change `grad` in place."""
        if self.cap is not None:
            grad = grad.mul_(1 - (logits / self.cap).square())
        return grad if self.factor == 1.0 else grad.mul_(self.factor)


class ResponseHead(nn.Module):
    """The output head: logits of hidden states as before, or the weighted sum of cross-entropies against targets."""

    def __init__(
        self,
        head: nn.Linear,
        transform: LogitTransform,
        chunk_tokens: int,
        *,
        liger: bool = False,
        in_place: float | None = None,
    ) -> None:
        """Take over `head`; `liger` computes with Liger's fused kernel, which needs CUDA and one weight for all tokens.

        With `in_place` the weight's gradient is added to `weight.grad` in the forward pass already, for a sum that will be
        multiplied by this number before its backward pass.
        """
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._transform, self._chunk_tokens, self._liger, self._in_place = (
            transform,
            chunk_tokens,
            liger,
            in_place,
        )

    def forward(
        self,
        hidden: torch.Tensor,
        targets: torch.Tensor | None = None,
        weights: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [..., width] to logits [..., vocabulary]; with targets and weights [tokens], to a float32 sum."""
        if targets is None or weights is None:
            return functional.linear(hidden, self.weight, self.bias)
        if self._liger and len(targets):
            return self._liger_sum(hidden, targets) * weights[0]
        sink = None
        if self._in_place is not None and self.weight.requires_grad and torch.is_grad_enabled():
            sink = (gradient_of(self.weight), self._in_place)
        apply: Callable[..., torch.Tensor] = _ChunkedSum.apply
        return apply(
            hidden,
            targets,
            weights,
            self.weight,
            self.bias,
            self._transform,
            self._chunk_tokens,
            sink,
        )

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
        sink: tuple[torch.Tensor, float] | None,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        of_hidden, _, _, of_head, of_bias, *_ = ctx.needs_input_grad
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_head = (
            torch.zeros_like(head, dtype=torch.float32) if of_head and sink is None else None
        )
        grad_bias = (
            torch.zeros_like(bias, dtype=torch.float32) if of_bias and bias is not None else None
        )
        into, factor = (grad_head, 1.0) if sink is None else sink
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
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
        ctx.grads, ctx.dtype, ctx.factor = (
            (grad_hidden, grad_head, grad_bias),
            head.dtype,
            None if sink is None else factor,
        )
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        if ctx.factor is not None and float(grad_total) != ctx.factor:
            raise RuntimeError(
                f"the loss was multiplied by {float(grad_total)}, its gradient was added for {ctx.factor}"
            )
        hidden, head, bias = (
            grad if grad is None else grad.mul_(grad_total).to(ctx.dtype) for grad in ctx.grads
        )
        ctx.grads = None
        return hidden, None, None, head, bias, None, None, None


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The weighted sum over rows of float32 `logits`, and its gradient, which takes the place of one temporary."""
    log_probabilities = logits.log_softmax(1)
    places = targets[:, None]
    loss = -(log_probabilities.gather(1, places)[:, 0] @ weights)
    grad = log_probabilities.exp_()
    grad.scatter_add_(1, places, torch.full_like(places, -1, dtype=grad.dtype))
    return loss, grad.mul_(weights[:, None])


def _add_product(
    total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, factor: float
) -> None:
    """Add `factor * left.T @ right` in float32; in place where the types allow, so no second weight-sized buffer is made."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right, alpha=factor)
    else:
        total.add_(left.t() @ right, alpha=factor)


class ResponseLoss(nn.Module):
    """A causal language model that answers with its loss: what the DeepSpeed engine wraps."""

    def __init__(
        self,
        model: Any,
        chunk_tokens: int,
        *,
        liger: bool = False,
        router_aux_loss: float = 0.0,
        in_place: float | None = None,
    ) -> None:
        """Take over `model` (a transformers causal language model), replacing its output head.

        `router_aux_loss` is the weight of a mixture of experts' balancing loss; `auxiliary` is what it last came to. With
        `in_place`, which the loss will be multiplied by, gradients of the vocabulary's matrices are added where they belong;
        that is right where nothing takes or reduces gradients before a step's end (ZeRO-0).

        Raises:
            UserError: the model's output head is not a linear layer or what is below it not known, or a model without experts is
                asked for their loss.
        """
        super().__init__()
        head, kind = model.get_output_embeddings(), type(model).__name__
        if model.base_model is model:  # Llama 4 gives it another name than it says
            raise UserError(
                f"cannot train {kind}: transformers does not tell what lies below its output head"
            )
        if not isinstance(head, nn.Linear):
            raise UserError(
                f"cannot train {kind}: its output head is {type(head).__name__}, not a linear layer"
            )
        if router_aux_loss:
            check_router(model)
        self.transform = LogitTransform.of(model.config)
        model.set_output_embeddings(
            ResponseHead(head, self.transform, chunk_tokens, liger=liger, in_place=in_place)
        )
        if in_place is not None:
            add_in_place(model.get_input_embeddings())
        self.model = model
        self._router_aux_loss, self.auxiliary = router_aux_loss, 0.0

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Sum of `weights` times the cross-entropy of predicting `targets` at every position; all [sequences, tokens].

        Without `position_ids` every line is one sequence from position 0; with them a line may hold several.
        """
        routed = {"output_router_logits": True} if self._router_aux_loss else {}
        out = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **routed
        )
        counted = weights != 0
        head = self.model.get_output_embeddings()
        total: torch.Tensor = head(
            out.last_hidden_state[counted], targets[counted], weights[counted]
        )
        if routed:
            auxiliary = (
                self._router_aux_loss
                * balancing_loss(self.model, out.router_logits)
                * weights.sum()
            )
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
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        ours = self.transform(self.model.get_output_embeddings()(hidden).float())
        theirs = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).logits.float()
        near = 1e-4 if hidden.dtype == torch.float32 else 0.02
        if not torch.allclose(ours, theirs, rtol=near, atol=near * float(theirs.abs().max())):
            kind = type(self.model).__name__
            raise UserError(
                f"cannot train {kind} exactly: its logits are not its output head's, scaled and capped as configured"
            )

    @torch.no_grad()
    def check_packing(self, input_ids: torch.Tensor) -> None:
        """Change the first half of [1, tokens], packed as two sequences, and see whether the second one moves.

        Raises:
            UserError: it does, so a sequence sees what lies before it, as convolutions and recurrent layers do.
        """
        half = input_ids.shape[1] // 2
        positions = torch.arange(half, device=input_ids.device).repeat(2)[None]
        second = [
            self.model.base_model(
                input_ids=torch.cat([first, input_ids[:, half : 2 * half]], dim=1),
                position_ids=positions,
                use_cache=False,
            ).last_hidden_state[:, half:]
            for first in (input_ids[:, :half], input_ids[:, :half].flip(1))
        ]
        moved, size = float((second[0] - second[1]).abs().max()), float(second[0].abs().max())
        if moved > size * (1e-5 if second[0].dtype == torch.float32 else 0.02):
            kind = type(self.model).__name__
            raise UserError(
                f"train.packing does not keep the sequences of {kind} apart: set train.packing=false"
            )
