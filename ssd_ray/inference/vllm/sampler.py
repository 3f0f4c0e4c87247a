"""Truncate to top-k and top-p as a logits processor of vLLM, without the full sort.

- vLLM divides logits by the temperature, calls this processor, truncates, and draws.
- A request carries its k and p in `extra_args`, and asks vLLM itself for no truncation.
- So the noise falls on the same survivors, and the tokens are the same as vLLM's.
- vLLM answers greedy requests before it calls this processor.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from ssd_ray.inference.vllm.truncation import Bounds, truncate

_TOP_K, _TOP_P = "exact_top_k", "exact_top_p"


def exact_arguments(top_k: int | None, top_p: float) -> dict[str, object]:
    """Return sampling arguments for truncation by this processor."""
    return {"top_k": 0, "top_p": 1.0, "extra_args": {_TOP_K: top_k, _TOP_P: top_p}}


class ExactTopKTopP(LogitsProcessor):  # type: ignore[misc]
    """Truncate the rows of requests with a k or p of their own."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a k or p outside its range.

        Raises:
            ValueError: k below 1, or p outside of (0, 1].
        """
        validate(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._chosen: dict[int, tuple[int | None, float]] = {}
        self._bounds: Bounds | None = None

    def is_argmax_invariant(self) -> bool:
        """Return True: the most likely token survives.

        So vLLM calls this after the temperature, and not for greedy batches.
        """
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Track requests as they enter, leave, and move in the batch."""
        if process_dict_updates(self._chosen, batch_update, lambda params, _, __: choice(params)):
            self._bounds = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Truncate tempered logits, (requests, vocabulary), in place."""
        if not self._chosen:
            return logits
        rows, vocabulary = logits.shape
        if self._bounds is None or self._bounds.num_rows != rows:
            chosen = [self._chosen.get(row, (None, 1.0)) for row in range(rows)]
            self._bounds = Bounds(chosen, vocabulary, self._device)
        return truncate(logits, self._bounds)


def choice(params: SamplingParams) -> tuple[int | None, float] | None:
    """Return the k and p of a request for this processor; None if it has none."""
    arguments = params.extra_args or {}
    if _TOP_P not in arguments:
        return None
    return arguments[_TOP_K], arguments[_TOP_P]


def validate(params: SamplingParams) -> None:
    """Refuse a k or p outside its range.

    Raises:
        ValueError: k below 1, or p outside of (0, 1].
    """
    chosen = choice(params)
    if chosen and ((chosen[0] is not None and chosen[0] < 1) or not 0 < chosen[1] <= 1):
        raise ValueError(
            f"{_TOP_K} must be at least 1 and {_TOP_P} in (0, 1]; got {chosen[0]} and {chosen[1]}"
        )
