"""The decoder of `adaptive.py` as a logits processor of vLLM's second model runner.

Never run on CUDA. Light to import, because vLLM loads it in its front end too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from ssd_ray.inference.vllm.adaptive import (
    AdaptiveChoice,
    Columns,
    adapt,
    adaptive_choice,
    validate_adaptive,
)

if TYPE_CHECKING:
    import torch
    from vllm.sampling_params import SamplingParams


class AdaptiveV2(LogitsProcessor):  # type: ignore[misc]
    """Adapt the rows of requests with a decoding of their own."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a decoding outside its range.

        Raises:
            ValueError: as for `validate_adaptive`.
        """
        validate_adaptive(sampling_params)

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        self._device = req_states.device
        self._requests: dict[int, AdaptiveChoice] = {}
        """Decoding by slot."""

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over the slot of an earlier request; return True if this one is adapted."""
        chosen = adaptive_choice(sampling_params)
        if chosen is None:
            self._requests.pop(req_idx, None)
            return False
        self._requests[req_idx] = chosen
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Adapt logits, (requests, vocabulary), in place."""
        import torch

        slots = [int(slot) for slot in ctx.idx_mapping_np]
        rows = [row for row, slot in enumerate(slots) if slot in self._requests]
        if not rows:
            return logits
        columns = Columns([self._requests[slots[row]] for row in rows], self._device)
        index = torch.tensor(rows, device=logits.device)
        return logits.index_copy_(0, index, adapt(logits.index_select(0, index), columns))
