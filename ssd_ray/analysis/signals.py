"""Signals of progress in a training, for which the loss is too blunt.

- gap closed: 1 - KL(q || p) / KL(q || p0). It is 0 at the base and 1 at the ideal fit.
- tail removed: 1 - (1 - p(S)) / (1 - p0(S)).
- temperature reached: the T with the least KL(Temper_T[p0 on S] || p on S). Compare T_train.

Each is a ratio of sums over positions. `progress_sums` gives the summands of a position, for sums
over chunks and workers; `Progress` has the signals. Pure functions without I/O.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ssd_ray.analysis.operator import Support, log_normalize
from ssd_ray.analysis.theory import LogProbabilities, without_rounding

# Powers 1/T at which the response of the model to the base's logits is measured.
_POWERS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.35, 1.6, 2.0, 2.5, 3.5, 5.0, 10.0)
_HEAD = 256
"""Tokens of S, the most likely, by which the temperature is measured."""
NUM_SUMS = 4 + 2 * len(_POWERS)
"""Columns of `progress_sums`."""


def progress_sums(support: Support, base: LogProbabilities, model: LogProbabilities) -> Tensor:
    """Return the summands of the signals at each position, float64 [positions, NUM_SUMS]."""
    columns = [
        _gap(support, model),
        _gap(support, base),
        -torch.expm1(model.log_kept_mass(support)),
        -torch.expm1(base.log_kept_mass(support)),
    ]
    head = _head(support, base)
    outside = ~head.kept
    logits = head.of(base.logits)
    values, answers = (
        log_normalize(part).masked_fill(outside, 0.0) for part in (logits, head.of(model.logits))
    )
    # All powers at once, [positions, powers, tokens].
    powers = torch.tensor(_POWERS, dtype=torch.float64, device=logits.device)
    weights = (powers[:, None] * logits[:, None]).softmax(2)
    means = torch.linalg.vecdot(weights, values[:, None])
    spread = values[:, None] - means[:, :, None]
    weights *= spread
    variances = torch.linalg.vecdot(weights, spread)
    covariances = torch.linalg.vecdot(weights, answers[:, None])
    return torch.cat([torch.stack(columns, dim=1), variances, covariances], dim=1)


def _gap(support: Support, model: LogProbabilities) -> Tensor:
    """Return KL(q || p), float64 [positions]."""
    cross_entropy = model.log_norm - support.mean(support.of(model.logits))
    return without_rounding(cross_entropy - support.entropy, model.log_norm)


def _head(support: Support, base: LogProbabilities) -> Support:
    """Restrict a support to its most likely tokens."""
    if support.log_q.shape[1] <= _HEAD:
        return support
    if support.ids is None:
        ids = base.logits.topk(_HEAD, dim=1, sorted=False).indices
        return replace(support, ids=ids, log_q=support.log_q.gather(1, ids))
    return replace(support, ids=support.ids[:, :_HEAD], log_q=support.log_q[:, :_HEAD])


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
        temperature_reached=_temperature(*sums[4:].view(2, -1).tolist()),
        tail_removed=1 - tail / tail_base if tail_base > 0 else None,
    )


def effective_temperature(sums: Tensor, temperature: float) -> float | None:
    """Return the temperature reached by the model, decoded at a temperature, of summed sums.

    Tempering the model divides its log-probabilities, and so the covariances, by the temperature.
    """
    variances, covariances = sums[4:].view(2, -1)
    return _temperature(variances.tolist(), (covariances / temperature).tolist())


def weights(sums: Tensor) -> dict[str, Tensor]:
    """Return the weight of each row of sums, [rows, NUM_SUMS], in each signal, by its name.

    A signal is a mean of the rows' own signals with about these weights.
    """
    variances = sums[:, 4 : 4 + len(_POWERS)]
    reached = _temperature(*sums.sum(0)[4:].view(2, -1).tolist())
    power = 1 / reached if reached is not None else 1.0
    place = min(range(len(_POWERS)), key=lambda at: abs(_POWERS[at] - power))
    return {
        "gap_closed": sums[:, 1],
        "temperature_reached": variances[:, place],
        "tail_removed": sums[:, 3],
    }


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
