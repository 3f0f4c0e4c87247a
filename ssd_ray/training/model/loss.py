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
from torch import distributed, nn

from ssd_ray.errors import UserError
from ssd_ray.models.cpu_kernels import add_in_place
from ssd_ray.models.logit_transform import LogitTransform
from ssd_ray.training.model.moe import balancing_loss, check_router
from ssd_ray.training.model.response_head import ResponseHead


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
            router_aux_loss: weight of the balancing loss of a mixture of experts. The attribute
                `auxiliary` is the last weighted value of this loss.
            in_place: the factor that multiplies the loss before its backward pass. If set,
                gradients of embedding and output head accumulate in place. This is correct if
                nothing takes or reduces gradients before the end of a step (ZeRO-0).

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
        bounds: dict[str, torch.Tensor | int] | None = None,
    ) -> torch.Tensor:
        """Return the sum of `weights` times the cross-entropy of predicting `targets`.

        All tensors are [lines, tokens], as in `MicroBatch`. Without `position_ids` a line is one
        sequence from position 0. With them, a line may hold several sequences, within `bounds`
        (`self.bounds`).
        """
        routed = {"output_router_logits": True} if self._router_aux_loss else {}
        out = self.model.base_model(
            input_ids=input_ids,
            position_ids=position_ids,
            use_cache=False,
            **routed,
            **(bounds or {}),
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

    def bounds(self, cu_seq_lens: torch.Tensor, max_length: int) -> dict[str, torch.Tensor | int]:
        """Return the arguments that give flash attention the bounds of sequences.

        Without them, transformers searches the position ids in every layer, and the host waits for
        the device several times. Other kernels take no bounds.
        """
        if "flash" not in self.model.config._attn_implementation:
            return {}
        return {
            "cu_seq_lens_q": cu_seq_lens,
            "cu_seq_lens_k": cu_seq_lens,
            "max_length_q": max_length,
            "max_length_k": max_length,
        }

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
        ends = torch.tensor([0, half, 2 * half], dtype=torch.int32, device=input_ids.device)
        second = [
            self.model.base_model(
                input_ids=torch.cat([first, input_ids[:, half : 2 * half]], dim=1),
                position_ids=positions,
                use_cache=False,
                **self.bounds(ends, half),
            ).last_hidden_state[:, half:]
            for first in (input_ids[:, :half], input_ids[:, :half].flip(1))
        ]
        if _moved(*second):
            kind = type(self.model).__name__
            raise UserError(
                f"train.packing does not keep the sequences of {kind} apart: "
                "set train.packing=false"
            )

    @torch.no_grad()
    def check_slices(self, input_ids: torch.Tensor, place: int, size: int) -> None:
        """Check that the slices of a sequence see each other under Ulysses.

        Every worker calls it. Change a token of the first slice, and compare the states of the last
        one. A second pass over the same tokens shows how far rounding alone moves them.

        Args:
            input_ids: the tokens of each slice, [1, tokens].
            place: the slice of this worker.
            size: number of slices.

        Raises:
            UserError: the states do not move, because attention is computed within slices.
        """
        width = input_ids.shape[1]
        positions = place * width + torch.arange(width, device=input_ids.device)[None]
        changed = input_ids.clone()
        if place == 0:
            changed[0, 0] = input_ids[0, -1]
        first, again, after = (
            self.model.base_model(
                input_ids=ids, position_ids=positions, use_cache=False
            ).last_hidden_state
            for ids in (input_ids, input_ids, changed)
        )
        rounding = (again - first).abs().max()
        is_blind = place == size - 1 and bool((after - first).abs().max() <= rounding)
        if _any_worker(is_blind, input_ids.device):
            kind = type(self.model).__name__
            raise UserError(
                f"the attention of {kind} ({self.model.config._attn_implementation}) stays within "
                f"the slice of each of {size} workers: set train.sequence_parallel_size=1"
            )

    @torch.no_grad()
    def check_packed_slices(self, input_ids: torch.Tensor, place: int, size: int) -> None:
        """Check that packed sequences do not see each other under Ulysses.

        Every worker calls it, with the arguments of `check_slices`. Two sequences fill the slices.
        Change a token of the first one, and compare the states of the last slice, in the second.

        Raises:
            UserError: they differ.
        """
        width = input_ids.shape[1]
        half = width * size // 2
        positions = (place * width + torch.arange(width, device=input_ids.device)[None]) % half
        ends = torch.tensor([0, half, 2 * half], dtype=torch.int32, device=input_ids.device)
        changed = input_ids.clone()
        if place == 0:
            changed[0, 0] = input_ids[0, -1]
        before, after = (
            self.model.base_model(
                input_ids=ids, position_ids=positions, use_cache=False, **self.bounds(ends, half)
            ).last_hidden_state
            for ids in (input_ids, changed)
        )
        if _any_worker(place == size - 1 and _moved(before, after), input_ids.device):
            kind = type(self.model).__name__
            raise UserError(
                f"train.packing does not keep the sequences of {kind} apart between {size} "
                "workers: set train.packing=false"
            )


def _moved(before: torch.Tensor, after: torch.Tensor) -> bool:
    """Return True if states differ by more than rounding."""
    near = 1e-5 if before.dtype == torch.float32 else 0.02
    return bool((before - after).abs().max() > near * before.abs().max())


def _any_worker(flag: bool, device: torch.device) -> bool:
    """Return True if `flag` is set on any worker.

    All workers stop together; one alone would leave the others in a collective.
    """
    flags = torch.tensor(float(flag), device=device)
    distributed.all_reduce(flags, op=distributed.ReduceOp.MAX)
    return bool(flags)
