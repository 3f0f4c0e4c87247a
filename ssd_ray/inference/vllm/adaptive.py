"""A temperature of its own at every token, and min-p, as a logits processor of vLLM.

- The temperature falls where the model is sure: T * 0.8 ** (theta / H), with H the entropy of the
  next token in nats before any temperature (arXiv 2403.14541).
- Min-p follows: tokens below a share of the largest tempered probability are left out.
- The processor divides by the temperature itself, so its requests ask vLLM for temperature 1.
- Top-k and top-p come after it, by `sampler.py` or by vLLM.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, process_dict_updates

from ssd_ray.config.section import AdaptiveDecoding

_TEMPERATURE, _THETA, _MIN_P = "adaptive_temperature", "adaptive_theta", "adaptive_min_p"
_BASE = 0.8
_LEAST_ENTROPY = 1e-4
"""Nats. Below it a token is certain in float32, and the quotient of theta would overflow."""
_LEAST_TEMPERATURE = 0.01
"""The least of vLLM's own sampler."""


@dataclass(frozen=True, kw_only=True)
class AdaptiveChoice:
    """Decoding of one request."""

    temperature: float
    theta: float
    """0 for one temperature at all tokens."""
    min_p: float


def adaptive_arguments(decoding: AdaptiveDecoding) -> dict[str, object]:
    """Return the extra arguments of a request for this processor."""
    return {
        _TEMPERATURE: decoding.temperature,
        _THETA: decoding.entropy_theta or 0.0,
        _MIN_P: decoding.min_p,
    }


def adaptive_choice(params: SamplingParams) -> AdaptiveChoice | None:
    """Return the decoding of a request for this processor; None if it has none."""
    arguments = params.extra_args or {}
    if _TEMPERATURE not in arguments:
        return None
    return AdaptiveChoice(
        temperature=arguments[_TEMPERATURE], theta=arguments[_THETA], min_p=arguments[_MIN_P]
    )


def validate_adaptive(params: SamplingParams) -> None:
    """Refuse a temperature, theta or min-p outside its range.

    Raises:
        ValueError: temperature or theta not above 0, or min-p not in [0, 1).
    """
    chosen = adaptive_choice(params)
    if chosen and not (chosen.temperature > 0 and chosen.theta >= 0 and 0 <= chosen.min_p < 1):
        raise ValueError(
            f"{_TEMPERATURE} must be above 0, {_THETA} at least 0 and {_MIN_P} in [0, 1); "
            f"got {chosen.temperature}, {chosen.theta} and {chosen.min_p}"
        )


class Columns:
    """The decodings of the rows of a batch as columns, float32 [rows, 1], on a device."""

    def __init__(self, chosen: list[AdaptiveChoice], device: torch.device) -> None:
        # One copy to the device for all three.
        table = torch.tensor([(row.temperature, row.theta, row.min_p) for row in chosen])
        self.num_rows = len(chosen)
        self.temperature, self.theta, self.min_p = table.to(device).unsqueeze(2).unbind(1)


def adapt(logits: torch.Tensor, columns: Columns) -> torch.Tensor:
    """Divide logits by the temperature of each row, and mask those below min-p, in place.

    Args:
        logits: float32 [rows, vocabulary], before any temperature.
        columns: decodings of the rows.

    Returns:
        The same tensor.
    """
    scores = logits.log_softmax(1)
    # A masked token has probability 0, and 0 * -inf is no number.
    entropy = -(scores.exp() * scores.clamp(min=torch.finfo(scores.dtype).min)).sum(1, keepdim=True)
    lowered = _BASE ** (columns.theta / entropy.clamp(min=_LEAST_ENTROPY))
    temperature = (columns.temperature * lowered).clamp(min=_LEAST_TEMPERATURE)
    # In place: logits of a batch are hundreds of megabytes.
    logits.div_(temperature)
    # The logarithm of min-p 0 is minus infinity: no logit is below that.
    border = logits.amax(1, keepdim=True) + columns.min_p.log()
    return logits.masked_fill_(logits < border, -torch.inf)


class Adaptive(LogitsProcessor):  # type: ignore[misc]
    """Adapt the rows of requests with a decoding of their own."""

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a decoding outside its range.

        Raises:
            ValueError: as for `validate_adaptive`.
        """
        validate_adaptive(sampling_params)

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._device = device
        self._chosen: dict[int, AdaptiveChoice] = {}
        self._columns: Columns | None = None

    def is_argmax_invariant(self) -> bool:
        """Return False: vLLM then calls this before the temperature, where entropy is measured."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Track requests as they enter, leave, and move in the batch."""
        if process_dict_updates(
            self._chosen, batch_update, lambda params, _, __: adaptive_choice(params)
        ):
            self._columns = None

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Adapt logits, (requests, vocabulary), in place."""
        if not self._chosen:
            return logits
        # Rows of other requests keep every bit of their logits.
        rows = sorted(row for row in self._chosen if row < logits.shape[0])
        if self._columns is None or self._columns.num_rows != len(rows):
            self._columns = Columns([self._chosen[row] for row in rows], self._device)
        if len(rows) == logits.shape[0]:
            return adapt(logits, self._columns)
        index = torch.tensor(rows, device=logits.device)
        return logits.index_copy_(0, index, adapt(logits.index_select(0, index), self._columns))
