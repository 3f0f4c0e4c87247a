"""Cross-entropy on response tokens only, without ever holding all logits.

- Each token carries its weight in the mean of the global batch (`batches.py`). The loss of a step
  is a plain sum over micro-batches, accumulation steps and workers, however they are cut.
- Only response positions go through the output head (`response_head.py`), chunk by chunk.
- `ResponseHead` replaces `lm_head` under its name. ZeRO-3 gathers its weight by the usual module
  hooks, and tied weights stay tied.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ssd_ray.errors import UserError
from ssd_ray.training.model.cpu_kernels import add_in_place
from ssd_ray.training.model.moe import balancing_loss, check_router
from ssd_ray.training.model.response_head import LogitTransform, ResponseHead


class ResponseLoss(nn.Module):
    """Causal language model with the loss as its output, for the DeepSpeed engine to wrap."""

    def __init__(
        self,
        model: Any,
        chunk_tokens: int,
        *,
        liger: bool = False,
        router_aux_loss: float = 0.0,
        in_place: float | None = None,
    ) -> None:
        """Take over `model`, a transformers causal language model, and replace its output head.

        Args:
            model: the model.
            chunk_tokens: positions of the output head computed at a time.
            liger: True for Liger's fused kernel.
            router_aux_loss: weight of the balancing loss of a mixture of experts. `auxiliary` is
                its last value.
            in_place: the factor of the loss before its backward pass. If set, gradients of the
                vocabulary's matrices accumulate in place. That is correct if nothing takes or
                reduces gradients before the end of a step (ZeRO-0).

        Raises:
            UserError: the output head is not a linear layer, the module below it is unknown, or a
                model without experts is asked for their loss.
        """
        super().__init__()
        head = model.get_output_embeddings()
        kind = type(model).__name__
        # Llama 4's base_model_prefix is not the name of its base model.
        if model.base_model is model:
            raise UserError(
                f"cannot train {kind}: transformers does not name the module below its output head"
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
        self._router_aux_loss = router_aux_loss
        self.auxiliary = 0.0

    def forward(
        self,
        input_ids: torch.Tensor,
        targets: torch.Tensor,
        weights: torch.Tensor,
        position_ids: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return the sum of `weights` times the cross-entropy of predicting `targets`.

        All tensors are [sequences, tokens]. Without `position_ids` a line is one sequence from
        position 0. With them, a line may hold several sequences.
        """
        routed = {"output_router_logits": True} if self._router_aux_loss else {}
        out = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False, **routed
        )
        # Only positions with a weight go through the head, by far the widest layer.
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
        """Compare our logits with the model's own on a few tokens, [1, tokens].

        Raises:
            UserError: they differ, so `LogitTransform` does not cover this architecture.
        """
        position_ids = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        hidden = self.model.base_model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state
        logits = self.transform(self.model.get_output_embeddings()(hidden).float())
        expected = self.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).logits.float()
        near = 1e-4 if hidden.dtype == torch.float32 else 0.02
        if not torch.allclose(logits, expected, rtol=near, atol=near * float(expected.abs().max())):
            kind = type(self.model).__name__
            raise UserError(
                f"cannot train {kind} exactly: its logits are not its output head's, "
                "scaled and capped as configured"
            )

    @torch.no_grad()
    def check_packing(self, input_ids: torch.Tensor) -> None:
        """Check that packed sequences do not see each other.

        Pack the two halves of `input_ids` [1, tokens], change the first one, and compare the states
        of the second.

        Raises:
            UserError: they differ, as with convolutions and recurrent layers.
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
        moved = float((second[0] - second[1]).abs().max())
        size = float(second[0].abs().max())
        if moved > size * (1e-5 if second[0].dtype == torch.float32 else 0.02):
            kind = type(self.model).__name__
            raise UserError(
                f"train.packing does not keep the sequences of {kind} apart: "
                "set train.packing=false"
            )
