"""The exact sampler as vLLM's logits processor: top-k and top-p without the full sort, in vLLM's order and with its draws.

vLLM divides by the temperature, then calls the processors that leave the largest logit in place, then truncates, then draws.
A request that carries its k and p in `extra_args` is truncated by this processor and asks vLLM for no truncation, so the
noise falls on the same survivors and the tokens are the same. Greedy requests are taken before it.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from ssd_ray.inference.vllm.truncation import truncate

_TOP_K, _TOP_P = "exact_top_k", "exact_top_p"


def exact_arguments(top_k: int | None, top_p: float) -> dict[str, Any]:
    """The arguments of a request's SamplingParams that leave truncation to this processor."""
    return {"top_k": 0, "top_p": 1.0, "extra_args": {_TOP_K: top_k, _TOP_P: top_p}}


class ExactTopKTopP(LogitsProcessor):  # type: ignore[misc]
    """Truncates the rows of the batch whose requests ask for it, each with its own k and p."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a k or p that truncates nothing or everything.

        Raises:
            ValueError: k below 1, or p outside of (0, 1].
        """
        chosen = _choice(sampling_params)
        if chosen and ((chosen[0] is not None and chosen[0] < 1) or not 0 < chosen[1] <= 1):
            raise ValueError(
                f"{_TOP_K} must be at least 1 and {_TOP_P} in (0, 1]; got {chosen[0]} and {chosen[1]}"
            )

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._chosen: dict[int, tuple[int | None, float]] = {}
        self._bounds: tuple[torch.Tensor, torch.Tensor] | None = None

    def is_argmax_invariant(self) -> bool:
        """The most likely token always survives; so vLLM calls this after the temperature, and not for greedy batches."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow requests as they enter, leave and change places in the batch."""
        if process_dict_updates(self._chosen, batch_update, lambda params, _, __: _choice(params)):
            self._bounds = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Truncate tempered logits, (requests, vocabulary), in place."""
        if not self._chosen:
            return logits
        rows, vocabulary = logits.shape
        if self._bounds is None or len(self._bounds[0]) != rows:
            chosen = [self._chosen.get(row, (None, 1.0)) for row in range(rows)]
            self._bounds = (
                torch.tensor(
                    [vocabulary if k is None else min(k, vocabulary) for k, _ in chosen],
                    device=self._device,
                ),
                torch.tensor([p for _, p in chosen], dtype=torch.float32, device=self._device),
            )
        return truncate(logits, *self._bounds)


def _choice(params: SamplingParams) -> tuple[int | None, float] | None:
    """The k and p that a request leaves to this processor; None where it leaves none."""
    asked = params.extra_args or {}
    if _TOP_P not in asked:
        return None
    return asked[_TOP_K], asked[_TOP_P]
