"""Transform between the output head of a model and its logits, as configured. Does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LogitTransform:
    """Transform of the head's logits: a factor (Cohere, Granite), then a soft cap (Gemma)."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, config: Any) -> LogitTransform:
        """Return the transform of a transformers configuration."""
        text = config.get_text_config()
        # Cohere multiplies by logit_scale; Granite divides by logits_scaling.
        factor = float(getattr(text, "logit_scale", None) or 1.0) / float(
            getattr(text, "logits_scaling", None) or 1.0
        )
        # The second name is RecurrentGemma's.
        cap = getattr(text, "final_logit_softcapping", None) or getattr(
            text, "logits_soft_cap", None
        )
        return cls(factor=factor, cap=cap)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the model's logits from its head's, of any shape."""
        scaled = logits if self.factor == 1.0 else logits * self.factor
        return scaled if self.cap is None else torch.tanh(scaled / self.cap) * self.cap

    def gradient(self, grad: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the head's logits.

        `grad` is the gradient of the model's `logits`, and may be changed in place.
        """
        if self.cap is not None:
            grad = grad.mul_(1 - (logits / self.cap).square())
        return grad if self.factor == 1.0 else grad.mul_(self.factor)
