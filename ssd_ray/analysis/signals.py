"""Signals of progress in a training, for which the loss is too blunt.

- gap closed: 1 - KL(q || p) / KL(q || p0). It is 0 at the base and 1 at the ideal fit.
- tail removed: 1 - (1 - p(S)) / (1 - p0(S)).
- temperature reached: the T with the least KL(Temper_T[p0 on S] || p on S). Compare T_train.

Each is a ratio of sums over positions. `progress_sums` gives the summands of a position, for sums
over chunks and workers; `Progress` has the signals. Pure functions without I/O.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_ray.analysis.operator import Support, log_normalize
from ssd_ray.analysis.theory import (
    LogProbabilities,
    divergence,
    log_kept_mass,
)

# Powers 1/T at which the response of the model to the base's logits is measured.
_POWERS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.35, 1.6, 2.0, 2.5, 3.5, 5.0, 10.0)
_HEAD = 1024
"""Tokens of S, the most likely, by which the temperature is measured."""
NUM_SUMS = 4 + 2 * len(_POWERS)
"""Columns of `progress_sums`."""


def progress_sums(support: Support, base: LogProbabilities, model: LogProbabilities) -> Tensor:
    """Return the summands of the signals at each position, float64 [positions, NUM_SUMS]."""
    log_q, log_p, log_p0 = support.log_q, model.on(support), base.on(support)
    kept, kept_base = log_kept_mass(support, log_p), log_kept_mass(support, log_p0)
    columns = [
        gap_to_target(log_q, log_p, kept),
        gap_to_target(log_q, log_p0, kept_base),
        -torch.expm1(kept),
        -torch.expm1(kept_base),
    ]
    head, head_base = _head(support, log_p, log_p0)
    empty = head_base == -torch.inf
    head = log_normalize(head).masked_fill(empty, 0.0)
    values = log_normalize(head_base).masked_fill(empty, 0.0)
    for power in _POWERS:
        weights = log_normalize(power * head_base).exp()
        mean = (weights * values).sum(1, keepdim=True)
        spread = weights * (values - mean)
        columns += [(spread * (values - mean)).sum(1), (spread * (head - mean)).sum(1)]
    return torch.stack(columns, dim=1)


def gap_to_target(log_q: Tensor, log_p: Tensor, log_kept: Tensor) -> Tensor:
    """Return KL(q || p), of log q and log p on S and log p(S) (Eq. 12).

    It is 0 where p = q.
    """
    return divergence(log_q, log_p - log_kept[:, None]) - log_kept


def _head(support: Support, log_p: Tensor, log_p0: Tensor) -> tuple[Tensor, Tensor]:
    if log_p0.shape[1] <= _HEAD:
        return log_p, log_p0
    if support.ids is not None:
        return log_p[:, :_HEAD], log_p0[:, :_HEAD]
    chosen, places = log_p0.topk(_HEAD, dim=1)
    return log_p.gather(1, places), chosen


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The signals over all positions; None where theory leaves one undefined."""

    gap_closed: float | None
    """None if q is p0: T_train is 1, without truncation."""
    temperature_reached: float | None
    """None if S is one token everywhere, or the model is not a tempering of the base at all."""
    tail_removed: float | None
    """None if S is the vocabulary everywhere."""


def progress(sums: Tensor) -> Progress:
    """Return the signals of summed `progress_sums`, [NUM_SUMS]."""
    gap, gap_base, tail, tail_base = sums[:4].tolist()
    return Progress(
        gap_closed=1 - gap / gap_base if gap_base > 0 else None,
        temperature_reached=_temperature(sums[4::2].tolist(), sums[5::2].tolist()),
        tail_removed=1 - tail / tail_base if tail_base > 0 else None,
    )


def _temperature(variances: list[float], covariances: list[float]) -> float | None:
    """Return the T of the least divergence.

    Its derivative by the power g = 1/T is g Var - Cov, with variance and covariance under the
    tempered base. Cov / Var hardly depends on g and equals it at the minimum.
    """
    if min(variances) <= 0:
        return None
    answers = [cov / var for cov, var in zip(covariances, variances, strict=True)]
    excess = [answer - power for answer, power in zip(answers, _POWERS, strict=True)]
    for index, (left, right) in enumerate(itertools.pairwise(excess)):
        if left >= 0 > right or left > 0 >= right:
            share = left / (left - right)
            power = _POWERS[index] + share * (_POWERS[index + 1] - _POWERS[index])
            return 1 / power
    return None
