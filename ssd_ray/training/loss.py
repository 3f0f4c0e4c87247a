"""Cross-entropy on response tokens only, without ever holding all logits.

The paper's loss (Eq. 2) is a sum over the response tokens; what it is divided by is not stated. Here it is a sum that the
loop divides by the number of response tokens of the global batch: a token mean, whatever the number of workers.

The one idea: only response positions go through the output head, `loss_chunk_tokens` at a time, and each chunk's gradient
is taken while its logits are there, so nothing is recomputed and memory is one chunk of logits. `ResponseHead` stands in
`lm_head`'s place under its name, so ZeRO-3 gathers its weight by the usual module hooks and tied weights stay tied.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from ssd_ray.errors import UserError
from ssd_ray.training.batches import IGNORED

Transform = Callable[[torch.Tensor], torch.Tensor]


class ResponseHead(nn.Module):
    """The output head: logits of hidden states as before, or the summed cross-entropy against targets."""

    def __init__(self, head: nn.Linear, transform: Transform, chunk_tokens: int) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias
        self._transform, self._chunk_tokens = transform, chunk_tokens

    def forward(self, hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        """Hidden states [..., width] to logits [..., vocabulary]; with targets [tokens], [tokens, width] to a float32 sum."""
        if targets is None:
            return functional.linear(hidden, self.weight, self.bias)
        apply: Callable[..., torch.Tensor] = _ChunkedSum.apply
        return apply(hidden, targets, self.weight, self.bias, self._transform, self._chunk_tokens)


class _ChunkedSum(torch.autograd.Function):
    """Sum of cross-entropies; gradients are computed along with it, chunk by chunk, and only scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        targets: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        transform: Transform,
        chunk_tokens: int,
    ) -> torch.Tensor:
        total = hidden.new_zeros((), dtype=torch.float32)
        wanted = any(ctx.needs_input_grad)
        grad_hidden = torch.empty_like(hidden) if wanted else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if wanted else None
        grad_bias = torch.zeros_like(bias, dtype=torch.float32) if wanted and bias is not None else None
        for start in range(0, len(targets), chunk_tokens):
            chunk = slice(start, start + chunk_tokens)
            logits = functional.linear(hidden[chunk], weight, bias).float()
            loss, grad_logits = _cross_entropy(logits, targets[chunk], transform, wanted)
            total += loss
            if grad_hidden is None or grad_weight is None:
                continue
            grad_logits = grad_logits.to(weight.dtype)
            torch.mm(grad_logits, weight, out=grad_hidden[chunk])
            _add_product(grad_weight, grad_logits, hidden[chunk])
            if grad_bias is not None:
                grad_bias += grad_logits.sum(0, dtype=torch.float32)
        if wanted:
            ctx.grads = (grad_hidden, grad_weight, grad_bias)
            ctx.dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        hidden, weight, bias = (grad if grad is None else grad.mul_(grad_total).to(ctx.dtype) for grad in ctx.grads)
        ctx.grads = None
        return hidden, None, weight, bias, None, None


def _cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, transform: Transform, wanted: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.set_grad_enabled(wanted):
        logits.requires_grad_(wanted)
        loss = functional.cross_entropy(transform(logits), targets, reduction="sum")
    return loss.detach(), torch.autograd.grad(loss, logits)[0] if wanted else logits


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add `left.T @ right` in float32; in place where the types allow, so no second weight-sized buffer is made."""
    if left.dtype == total.dtype:
        total.addmm_(left.t(), right)
    else:
        total += left.t() @ right


class ResponseLoss(nn.Module):
    """A causal language model that answers with its loss: what the DeepSpeed engine wraps."""

    def __init__(self, model: Any, chunk_tokens: int) -> None:
        """Take over `model` (a transformers causal language model), replacing its output head.

        Raises:
            UserError: the model's output head is not a linear layer.
        """
        super().__init__()
        head = model.get_output_embeddings()
        if not isinstance(head, nn.Linear):
            kind = type(model).__name__
            raise UserError(f"cannot train {kind}: its output head is {type(head).__name__}, not a linear layer")
        self._transform = logit_transform(model.config)
        model.set_output_embeddings(ResponseHead(head, self._transform, chunk_tokens))
        self.model = model

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Summed cross-entropy over positions whose label is not `IGNORED`; both arguments [sequences, tokens]."""
        hidden = self._hidden(input_ids)[:, :-1]
        targets = labels[:, 1:]
        counted = targets != IGNORED
        total: torch.Tensor = self.model.get_output_embeddings()(hidden[counted], targets[counted])
        return total

    def _hidden(self, input_ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return states

    @torch.no_grad()
    def check(self, input_ids: torch.Tensor) -> None:
        """Compare our logits with the model's own on a few tokens [1, tokens].

        Raises:
            UserError: they differ, so the architecture does more to its logits than `logit_transform` knows.
        """
        ours = self._transform(self.model.get_output_embeddings()(self._hidden(input_ids)).float())
        theirs = self.model(input_ids=input_ids, use_cache=False).logits.float()
        if not torch.allclose(ours, theirs, rtol=0.02, atol=0.02 * float(theirs.abs().max())):
            kind = type(self.model).__name__
            raise UserError(f"cannot train {kind} exactly: its logits are not its output head's, scaled and capped as configured")


def logit_transform(config: Any) -> Transform:
    """What a model does to its head's logits, from its configuration: a factor, a divisor (Granite), a soft cap (Gemma)."""
    text = config.get_text_config()
    factor = float(getattr(text, "logit_scale", None) or 1.0) / float(getattr(text, "logits_scaling", None) or 1.0)
    cap = getattr(text, "final_logit_softcapping", None)

    def transform(logits: torch.Tensor) -> torch.Tensor:
        scaled = logits if factor == 1.0 else logits * factor
        return scaled if cap is None else torch.tanh(scaled / cap) * cap

    return transform
