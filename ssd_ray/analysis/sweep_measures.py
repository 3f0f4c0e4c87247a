"""Distributions of a student in a sweep, next to the base's and the ideal student's.

- The ideal student is the distribution q of its samples. Decoded, it is q, tempered and cut again
  (Eq. 25).
- Distances are total variations: the least share of tokens that two distributions draw differently.
- All decodings of a student come from the same logits.

Sums are kept for each problem. Pure functions without I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_ray.analysis.decoded import Student, keeps_all
from ssd_ray.analysis.operator import Ranking, Setting, Support
from ssd_ray.analysis.signals import NUM_SUMS, progress_sums
from ssd_ray.analysis.theory import LogProbabilities, entropy

COLUMNS = (
    "entropy",
    "survivors",
    "base_entropy",
    "base_survivors",
    "ideal_entropy",
    "ideal_survivors",
    "distance",
    "base_distance",
)
"""Sums at a decoding: of student, base and ideal student; distances of both to the latter."""


@dataclass(frozen=True, kw_only=True)
class CellSums:
    """Sums over the positions of each problem."""

    positions: Tensor
    """float64 [problems]."""
    decoded: Tensor
    """Sums of COLUMNS, float64 [problems, decodings, columns]."""
    progress: Tensor
    """Sums of `progress_sums`, float64 [problems, NUM_SUMS]."""

    @classmethod
    def empty(cls, problems: int, decodings: int) -> CellSums:
        """Return sums of no position."""
        return cls(
            positions=torch.zeros(problems, dtype=torch.float64),
            decoded=torch.zeros((problems, decodings, len(COLUMNS)), dtype=torch.float64),
            progress=torch.zeros((problems, NUM_SUMS), dtype=torch.float64),
        )

    def add(self, rows: Tensor, base: Tensor, student: Tensor, settings: Settings) -> None:
        """Add positions.

        Args:
            rows: number of the problem, int64 [positions].
            base: logits of the base, [positions, vocabulary].
            student: logits of the student, [positions, vocabulary].
            settings: decodings.

        Raises:
            UserError: a logit is NaN or infinite.
        """
        ranked, own = Ranking(base), Ranking(student)
        support = ranked.support(settings.training)
        progress = progress_sums(support, LogProbabilities(base), LogProbabilities(student))
        columns = torch.stack(
            [
                _columns(own.support(each), ranked.support(each), ideal, base.shape[1])
                for each, ideal in zip(
                    settings.decodings, _ideal(ranked, support, settings), strict=True
                )
            ],
            dim=1,
        )
        rows = rows.cpu()
        self.positions.index_add_(0, rows, torch.ones(len(rows), dtype=torch.float64))
        self.decoded.index_add_(0, rows, columns.cpu())
        self.progress.index_add_(0, rows, progress.cpu())


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Decodings of a student's samples and of its evaluation."""

    training: Setting
    decodings: tuple[Setting, ...]


def _ideal(ranked: Ranking, support: Support, settings: Settings) -> list[Support]:
    """Return the tokens that each decoding keeps of the ideal student."""
    training = settings.training
    if keeps_all(training, ranked.vocabulary):
        # Temperatures compose, and the support of the samples is the vocabulary (Eq. 28).
        return [
            ranked.support(Setting(training.temperature * each.temperature, each.top_k, each.top_p))
            for each in settings.decodings
        ]
    student = Student(support)
    return [student.support(each) for each in settings.decodings]


def _columns(own: Support, base: Support, ideal: Support, vocabulary: int) -> Tensor:
    """Return COLUMNS of each position, float64 [positions, columns]."""
    columns = []
    for each in (own, base, ideal):
        columns += [entropy(each.log_q), each.sizes.double()]
    columns += [variation(each, ideal, vocabulary) for each in (own, base)]
    return torch.stack(columns, dim=1)


def variation(first: Support, second: Support, vocabulary: int) -> Tensor:
    """Return the total variation of two decoded distributions, float64 [positions]."""
    if first.ids is None:
        first, second = second, first
    if first.ids is None:
        shared = torch.minimum(first.q, second.q).sum(1)
        return (1 - shared).clamp(min=0.0)
    if second.ids is None:
        other = second.q.gather(1, first.ids)
    elif first.ids.shape[1] * second.ids.shape[1] <= vocabulary:
        # Ids of padding repeat others, and have no mass.
        match = first.ids[:, :, None] == second.ids[:, None, :]
        other = (match * second.q[:, None, :]).sum(2)
    else:
        # Wide supports: a row of the vocabulary is smaller than all pairs of their tokens.
        other = second.dense(vocabulary).exp().gather(1, first.ids)
    shared = torch.minimum(first.q, other).sum(1)
    return (1 - shared).clamp(min=0.0)
