"""Drawn tokens, held against the logits of their model by brute force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ssd_ray.schema import Completion

_TOLERANCE = 1e-3
"""Float32 kernels of the engine and of transformers differ by less."""


def largest_rank(model: Path, rows: Sequence[Completion]) -> int:
    """Return the largest number of tokens that are more likely than a drawn one."""
    return max(
        int((logits > logits[token] + _TOLERANCE).sum()) for logits, token in _drawn(model, rows)
    )


def largest_mass_before(model: Path, rows: Sequence[Completion], *, t: float, k: int) -> float:
    """Return the largest probability of the tokens before a drawn one, within the top k at T."""
    masses = []
    for logits, token in _drawn(model, rows):
        kept = np.sort(logits)[-k:]
        shares = np.exp((kept - kept[-1]) / t)
        masses.append(shares[kept > logits[token] + _TOLERANCE].sum() / shares.sum())
    return float(max(masses))


def smallest_adaptive_ratio(
    model: Path, rows: Sequence[Completion], *, t: float, theta: float
) -> float:
    """Return the smallest probability of a drawn token, as a share of the largest."""
    ratios = []
    for logits, token in _drawn(model, rows):
        shares = np.exp(logits - logits.max())
        shares /= shares.sum()
        entropy = -(shares * np.log(shares)).sum()
        ratios.append(np.exp((logits[token] - logits.max()) / (t * 0.8 ** (theta / entropy))))
    return float(min(ratios))


def _drawn(model: Path, rows: Sequence[Completion]) -> Iterator[tuple[Any, int]]:
    """Yield the logits before each drawn token, in float64, and the token."""
    import torch
    from transformers import AutoModelForCausalLM

    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    for row in rows:
        ids = torch.tensor([[*row.prompt_token_ids, *row.output_token_ids]])
        with torch.inference_mode():
            logits = loaded(ids).logits[0].double().numpy()
        start = len(row.prompt_token_ids) - 1
        for place, token in enumerate(row.output_token_ids):
            yield logits[start + place], token
