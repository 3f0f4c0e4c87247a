"""Limits of decoding alone (2604.01193, Eq. 35 to 40).

One policy of temperature, top-k and top-p serves all positions. Pure functions without I/O.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssd_ray.analysis.operator import Ranking, Setting, log_normalize


def normal_form(logits: Tensor, power: float, size: int) -> Tensor:
    """Return p^power on the `size` most likely tokens, normalized (Eq. 35).

    Temperature, top-k and top-p in any order give a distribution of this form.
    """
    prefix = Ranking(logits).support(Setting(top_k=size))
    powers = (power * prefix.log_q).masked_fill(~prefix.kept, -torch.inf)
    powered = replace(prefix, log_q=log_normalize(powers))
    return powered.dense(logits.shape[1]).exp()


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Values of top-p in (low, high] that serve a fork and a lock at once (Eq. 40)."""

    low: float
    """Mass of the tokens before the fork's correct one. Top-p at most this cuts it off."""
    high: float
    """Mass of the tokens that the lock is to keep. A larger top-p keeps more."""

    @property
    def width(self) -> float:
        """Length of the interval; below 0, no top-p serves both."""
        return self.high - self.low


def decode_interval(
    fork: tuple[Tensor, int], lock: tuple[Tensor, int], temperature: float, top_k: int | None = None
) -> Interval:
    """Return the values of top-p that serve a fork and a lock at once (Eq. 40).

    Args:
        fork: logits of the fork, [vocabulary], and the rank of its correct token, from 1.
        lock: logits of the lock, [vocabulary], and the number of tokens that it is to keep.
        temperature: temperature of the evaluation.
        top_k: top-k of the evaluation.
    """
    return Interval(
        low=prefix_mass(fork[0], fork[1] - 1, temperature, top_k),
        high=prefix_mass(lock[0], lock[1], temperature, top_k),
    )


def prefix_mass(logits: Tensor, size: int, temperature: float, top_k: int | None = None) -> float:
    """Return the mass of the `size` most likely tokens after temperature and top-k (Eq. 39)."""
    kept = Ranking(logits[None]).support(Setting(temperature=temperature, top_k=top_k))
    largest, _ = Ranking(kept.log_q).largest(size)
    return float(largest.exp().sum())
