"""Measures of held-out positions: base, samples and model in training, by their logits.

- p0: distribution of the frozen base. q: that of the samples, on the kept tokens S. p: distribution
  of the model in training. `ssd_ray/analysis` computes all of them.
- Data drawn from q costs p the cross-entropy CE(q, p) = H(q) + KL(q || p). H(q) is the floor of the
  loss on held-out samples, attained by p = q alone.

Pure functions without I/O.
"""

from __future__ import annotations

from dataclasses import asdict

import torch
from torch import Tensor

from ssd_ray.analysis.operator import chunks, require_finite, support
from ssd_ray.analysis.signals import NUM_SUMS, progress, progress_sums
from ssd_ray.analysis.theory import LogProbabilities, entropy_split, terms
from ssd_ray.config import Decoding

MEASURES = (
    "nll",
    "floor",
    "cross_entropy",
    "support_compression",
    "reshaping",
    "alignment",
    "constant",
    "kl_to_base",
    "entropy",
    "entropy_gate",
    "entropy_head",
    "entropy_tail",
    "kept_mass",
    "base_kept_mass",
    "outside_support",
)
"""Means over positions, in nats; the last three are shares."""

SIGNALS = ("gap_closed", "temperature_reached", "tail_removed")
"""Ratios of sums over positions (`ssd_ray/analysis/signals.py`)."""

NUM_COLUMNS = len(MEASURES) + NUM_SUMS
"""Columns of `measure`."""


def measure(model: Tensor, base: Tensor, drawn: Tensor, decoding: Decoding) -> Tensor:
    """Return `MEASURES` and the summands of `SIGNALS`, float64 [positions, NUM_COLUMNS].

    - nll: -log p of the drawn token.
    - floor: H(q).
    - cross_entropy: CE(q, p), the expectation of nll, and the sum of the next four (arXiv
      2604.01193, Eq. 4 = 15).
    - support_compression: -log p(S).
    - reshaping: (1 - T) H_1/T of p on S.
    - alignment: T KL(q || Temper_T of p on S).
    - constant: T H(q).
    - kl_to_base: KL(p || p0) over the full vocabulary.
    - entropy: H(p), the sum of the next three (Eq. 30).
    - entropy_gate: entropy of being in S or not.
    - entropy_head: entropy within S, times the mass of S.
    - entropy_tail: entropy outside of S, times the mass outside.
    - kept_mass, base_kept_mass: mass of S under p and under p0 (Eq. 10).
    - outside_support: 1 if the drawn token is outside of S. The engine and this model then disagree
      on the base's logits.

    Args:
        model: logits of the model in training, [positions, vocabulary].
        base: logits of the frozen base at the same positions, [positions, vocabulary].
        drawn: token ids drawn there, [positions].
        decoding: decoding of the samples.

    Raises:
        UserError: a position has NaN, infinity or no finite logit.
    """
    for logits in (base, model):
        require_finite(logits.amax(1))
    parts = [
        _measure(model[chunk], base[chunk], drawn[chunk], decoding) for chunk in chunks(*base.shape)
    ]
    return torch.cat(parts) if parts else base.new_zeros((0, NUM_COLUMNS), dtype=torch.float64)


def _measure(model: Tensor, base: Tensor, drawn: Tensor, decoding: Decoding) -> Tensor:
    kept = support(base, decoding)
    p0, p = LogProbabilities(base), LogProbabilities(model.double())
    parts = terms(kept, p0, p, decoding.temperature)
    split = entropy_split(kept, p)
    columns = {
        "nll": -p.of(drawn),
        "floor": parts.floor,
        "cross_entropy": parts.cross_entropy,
        "support_compression": parts.support_compression,
        "reshaping": parts.reshaping,
        "alignment": parts.alignment,
        "constant": parts.constant,
        "kl_to_base": p.divergence_from(p0),
        "entropy": split.total,
        "entropy_gate": split.gate,
        "entropy_head": split.head,
        "entropy_tail": split.tail,
        "kept_mass": parts.kept_mass,
        "base_kept_mass": parts.kept_mass_base,
        "outside_support": (kept.at(drawn) == -torch.inf).double(),
    }
    means = torch.stack([columns[name] for name in MEASURES], dim=1)
    return torch.cat([means, progress_sums(kept, p0, p)], dim=1)


def summarize(total: Tensor, positions: int) -> dict[str, float | None]:
    """Return `MEASURES` and `SIGNALS` by name, of `measure` summed over positions.

    A signal that theory leaves undefined is None.
    """
    means = (total[: len(MEASURES)] / positions).tolist()
    signals = asdict(progress(total[len(MEASURES) :]))
    return dict(zip(MEASURES, means, strict=True)) | {name: signals[name] for name in SIGNALS}
