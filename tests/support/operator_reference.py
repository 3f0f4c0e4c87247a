"""The sampling operator of 2604.01193, appendix A, written as its definition."""

from __future__ import annotations

import numpy as np


def tempered(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Return logits divided by the temperature, in float32 as in the engine."""
    return logits.astype(np.float32) / np.float32(temperature)


def masses(scores: np.ndarray, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return token ids kept by top-k, least likely first, and cumulative mass.

    Ties of the k-th are included.
    """
    rising = np.lexsort((np.arange(len(scores)), scores))
    kth = scores[rising[-min(top_k, len(scores))]]
    rising = rising[scores[rising] >= kth]
    weights = np.exp(scores[rising].astype(np.float64) - scores.max())
    return rising, np.cumsum(weights / weights.sum())


def survivors(scores: np.ndarray, top_k: int, top_p: float) -> set[int]:
    """Return the tokens of tempered logits that top-k and then top-p keep."""
    rising, mass = masses(scores, top_k)
    kept = rising[mass > 1 - np.float32(top_p)] if top_p < 1 else rising
    return set((kept if len(kept) else rising[-1:]).tolist())


def borderline(scores: np.ndarray, top_k: int, top_p: float) -> bool:
    """Return True if float32 rounding may put a token on either side of p."""
    _, mass = masses(scores, top_k)
    return top_p < 1 and bool(np.min(np.abs(mass - (1 - top_p))) < 3e-6)


def probabilities(scores: np.ndarray, top_k: int, top_p: float) -> np.ndarray:
    """Return the tempered distribution restricted to the survivors, (vocabulary,)."""
    kept = sorted(survivors(scores, top_k, top_p))
    weights = np.zeros(len(scores))
    weights[kept] = np.exp(scores[kept].astype(np.float64) - scores.max())
    return weights / weights.sum()
