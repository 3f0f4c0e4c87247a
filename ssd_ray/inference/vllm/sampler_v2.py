"""Truncate to top-k and top-p as a logits processor of vLLM's second model runner.

- vLLM calls processors before the temperature, and draws with seeded Gumbel noise without a loop
  over requests.
- The order of logits does not depend on the temperature; the mass of a nucleus does. So the bounds
  carry the temperatures, and logits stay as they are.
- Nothing is read back from the device.

Light to import, because vLLM loads it in its front end too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor

from ssd_ray.inference.vllm.sampler import choice, validate

if TYPE_CHECKING:
    import torch
    from vllm.sampling_params import SamplingParams

    from ssd_ray.inference.vllm.truncation import Bounds


class ExactTopKTopPV2(LogitsProcessor):  # type: ignore[misc]
    """Truncate the rows of requests with a k or p of their own."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a k or p outside its range.

        Raises:
            ValueError: k below 1, or p outside of (0, 1].
        """
        validate(sampling_params)

    def __init__(self, vllm_config: Any, req_states: Any) -> None:
        """Start without requests.

        Raises:
            ValueError: the engine decodes speculatively, with a row for each draft token.
        """
        if vllm_config is not None and vllm_config.speculative_config is not None:
            raise ValueError("the exact sampler does not support speculative decoding")
        self._vocabulary = int(req_states.vocab_size)
        self._device = req_states.device
        self._requests: dict[int, tuple[int | None, float, float]] = {}
        """k, p and temperature by slot."""
        self._bounds: tuple[bytes, Bounds] | None = None

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over the slot of an earlier request; return True if this one is truncated."""
        chosen = choice(sampling_params)
        self._bounds = None
        if chosen is None:
            self._requests.pop(req_idx, None)
            return False
        self._requests[req_idx] = (*chosen, sampling_params.temperature)
        return True

    def apply(self, logits: torch.Tensor, ctx: Any) -> torch.Tensor:
        """Truncate logits, (requests, vocabulary), in place."""
        from ssd_ray.inference.vllm.truncation import Bounds, truncate

        slots = ctx.idx_mapping_np
        key = slots.tobytes()
        # Rows are the same in most steps, and the bounds of a batch are copied to the device once.
        if self._bounds is None or self._bounds[0] != key:
            rows = [self._requests.get(int(slot), (None, 1.0, 1.0)) for slot in slots]
            bounds = Bounds(
                [(k, p) for k, p, _ in rows],
                self._vocabulary,
                self._device,
                temperatures=[temperature for _, _, temperature in rows],
            )
            self._bounds = key, bounds
        return truncate(logits, self._bounds[1])
