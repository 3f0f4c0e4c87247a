"""Sums of a forecast: settings and decodings along the base's own answers.

- Answers are drawn at T 1 without truncation, so they are positions of the base's own paths.
- The student is the ideal one: its distribution at a position is q (Eq. 23). Decoded at T_eval it
  is q at T_eval, cut again (Eq. 25): its effective temperature is T_train T_eval.
- Sums are kept for each answer. So means over problems, accepted or rejected answers, and exact
  likelihoods of answers come from one pass over the logits.

`outlook` turns the sums into numbers. Pure functions without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ssd_ray.analysis.decoded import DECODED, Student, decoded, keeps_all
from ssd_ray.analysis.operator import DecodingLike, Ranking, Setting, chunks
from ssd_ray.analysis.theory import (
    LogProbabilities,
    cross_entropy,
    entropy,
    log_kept_mass,
)
from ssd_ray.errors import UserError

TRAINING = ("size", "one", "two", "kept_mass", "start", "floor")
"""Columns of a training setting: size of S, S of one token, of two, p0(S), CE(q, p0), H(q)."""
_NO_MASS = 700.0
"""Distance from the largest logit at which a probability is 0."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """The settings of a forecast."""

    training: tuple[Setting, ...]
    """Decodings of the samples, T_train and its truncation."""
    temperatures: tuple[float, ...]
    """T_eval, rising."""
    top_k: int | None
    """Top-k of the student's evaluation."""
    top_p: float
    """Top-p of the student's evaluation."""
    decodings: tuple[Setting, ...]
    """Decodings of the base alone. They begin with `temperatures` at the truncation above."""

    def __post_init__(self) -> None:
        """Check that the decodings of the base begin with those of the student."""
        if self.decodings[: len(self.temperatures)] != self.evaluations:
            raise ValueError("the decodings of the base must begin with those of the student")

    @property
    def evaluations(self) -> tuple[Setting, ...]:
        """The decodings of the student."""
        return tuple(
            Setting(temperature=temperature, top_k=self.top_k, top_p=self.top_p)
            for temperature in self.temperatures
        )

    def check(self, vocabulary: int) -> None:
        """Check top-k against a vocabulary.

        Raises:
            UserError: a top-k is above the vocabulary.
        """
        for setting in (*self.training, *self.decodings):
            if setting.top_k is not None and setting.top_k > vocabulary:
                raise UserError(
                    f"top_k {setting.top_k} is above the vocabulary of {vocabulary:,} tokens: "
                    "use a smaller one, or null for all"
                )


def grid(
    training: Sequence[DecodingLike],
    evaluate: DecodingLike,
    temperatures: Sequence[float],
    decodings: Sequence[DecodingLike] = (),
) -> Grid:
    """Return a grid with each setting once.

    Args:
        training: decodings of the samples.
        evaluate: decoding of the student, whose top-k and top-p hold at every T_eval.
        temperatures: T_eval; that of `evaluate` is added.
        decodings: further decodings of the base alone.
    """
    rising = tuple(sorted({*temperatures, evaluate.temperature}))
    shared = [Setting(t, evaluate.top_k, evaluate.top_p) for t in rising]
    others = (Setting(each.temperature, each.top_k, each.top_p) for each in decodings)
    cells = (Setting(each.temperature, each.top_k, each.top_p) for each in training)
    return Grid(
        training=tuple(dict.fromkeys(cells)),
        temperatures=rising,
        top_k=evaluate.top_k,
        top_p=evaluate.top_p,
        decodings=tuple(dict.fromkeys([*shared, *others])),
    )


class Tally:
    """Sums of a forecast for each answer, filled chunk by chunk.

    Attributes:
        grid: the settings.
        positions: number of positions, int64 [answers].
        log_base: log p0 of the answer, float64 [answers].
        entropy: sums of H(p0), float64 [answers].
        training: sums of TRAINING, float64 [answers, training settings, columns].
        student: sums of DECODED, float64 [answers, training settings, T_eval, columns].
        base: sums of DECODED, float64 [answers, decodings, columns].
    """

    def __init__(self, grid: Grid, num_answers: int) -> None:
        self.grid = grid
        cells = len(grid.training)
        evaluations = len(grid.temperatures)
        self.positions = torch.zeros(num_answers, dtype=torch.int64)
        self.log_base = _zeros(num_answers)
        self.entropy = _zeros(num_answers)
        self.training = _zeros(num_answers, cells, len(TRAINING))
        self.student = _zeros(num_answers, cells, evaluations, len(DECODED))
        self.base = _zeros(num_answers, len(grid.decodings), len(DECODED))

    def add(self, rows: Tensor, tokens: Tensor, logits: Tensor) -> None:
        """Add positions.

        Args:
            rows: number of the answer, int64 [positions].
            tokens: the token of the answer there, int64 [positions].
            logits: logits of the base, [positions, vocabulary].

        Raises:
            UserError: a logit is NaN or infinite, or a top-k is above the vocabulary.
        """
        self.grid.check(logits.shape[1])
        # One ranking and one norm serve all settings: a vocabulary is read once.
        position = _Positions(Ranking(logits), _Tempered(logits, 1.0, torch.float64), tokens)
        rows = rows.cpu()
        self.positions.index_add_(0, rows, torch.ones_like(rows))
        self.log_base.index_add_(0, rows, position.p0.of(tokens).cpu())
        self.entropy.index_add_(0, rows, position.p0.entropy.cpu())
        self.base.index_add_(0, rows, position.decoded(self.grid.decodings).cpu())
        # Sums go to the CPU, since a chunk's logits may be on a GPU.
        columns: list[Tensor] = []
        students: list[Tensor] = []
        for setting in self.grid.training:
            cell, student = position.trained(setting, self.grid.evaluations)
            columns.append(cell)
            students.append(student)
        self.training.index_add_(0, rows, torch.stack(columns, 1).cpu())
        self.student.index_add_(0, rows, torch.stack(students, 1).cpu())


class _Positions:
    """Logits of the base at some positions, with the tokens that are there."""

    def __init__(self, ranking: Ranking, p0: LogProbabilities, tokens: Tensor) -> None:
        self.ranking = ranking
        self.p0 = p0
        self.tokens = tokens

    def decoded(self, settings: Sequence[Setting]) -> Tensor:
        """Return DECODED of the base, float64 [positions, settings, columns]."""
        vocabulary = self.ranking.vocabulary
        columns = {
            each: self._untruncated(self._tempered(each.temperature))
            for each in settings
            if keeps_all(each, vocabulary)
        }
        truncated = [each for each in settings if each not in columns]
        columns |= decoded(self.ranking, truncated, self.tokens)
        return torch.stack([columns[each] for each in settings], 1)

    def trained(self, setting: Setting, evaluations: Sequence[Setting]) -> tuple[Tensor, Tensor]:
        """Return TRAINING of a setting, and DECODED of its student at each evaluation."""
        if keeps_all(setting, self.ranking.vocabulary):
            columns = self._all_kept(setting.temperature)
            # Temperatures compose, and the support of the samples is the vocabulary (Eq. 28).
            effective = [
                Setting(setting.temperature * each.temperature, each.top_k, each.top_p)
                for each in evaluations
            ]
            return columns, self.decoded(effective)
        support = self.ranking.support(setting)
        log_p0 = self.p0.on(support)
        sizes = support.sizes
        columns = torch.stack(
            [
                sizes.double(),
                (sizes == 1).double(),
                (sizes == 2).double(),
                log_kept_mass(support, log_p0).exp(),
                cross_entropy(support.log_q, log_p0),
                entropy(support.log_q),
            ],
            dim=1,
        )
        students = decoded(Student(support), evaluations, self.tokens)
        return columns, torch.stack([students[each] for each in evaluations], 1)

    def _all_kept(self, temperature: float) -> Tensor:
        """Return TRAINING without truncation, without a distribution over the vocabulary."""
        tempered = self._tempered(temperature)
        floor = tempered.entropy
        start = floor
        if temperature != 1:
            # From H(q) = log Z - E[l] / T and log q(v) = l(v) / T - log Z, for any token v.
            logit = self.ranking.logits.gather(1, self.tokens[:, None]).squeeze(1).double()
            mean = logit - temperature * (tempered.of(self.tokens) + floor)
            start = logit - self.p0.of(self.tokens) - mean
        size = torch.full_like(floor, self.ranking.vocabulary)
        one, two = (size == number for number in (1, 2))
        full = torch.ones_like(floor)
        return torch.stack([size, one.double(), two.double(), full, start, floor], dim=1)

    def _tempered(self, temperature: float) -> LogProbabilities:
        if temperature == 1:
            return self.p0
        logits = self.ranking.logits
        return _Tempered(logits, temperature, logits.dtype)

    def _untruncated(self, p: LogProbabilities) -> Tensor:
        cut = torch.zeros_like(p.entropy)
        survivors = torch.full_like(cut, self.ranking.vocabulary)
        return torch.stack([p.of(self.tokens), cut, survivors, p.entropy], dim=1)


class _Tempered(LogProbabilities):
    """Tempered log-probabilities, without a copy of all logits.

    Norm and entropy come from blocks of positions that stay in the processor's cache, with
    exponentials of the given type.
    """

    def __init__(self, logits: Tensor, temperature: float, dtype: torch.dtype) -> None:
        self.logits = logits
        self._temperature = temperature
        log_norms, entropies = [], []
        for part in chunks(*logits.shape):
            scaled = logits[part].to(dtype, copy=True).div_(temperature)
            largest = scaled.amax(1, keepdim=True)
            # Lower values have no mass in a float32 sum.
            scaled.sub_(largest).clamp_(min=-_NO_MASS)
            weights = scaled.exp()
            mass = weights.sum(1).double()
            energy = torch.linalg.vecdot(weights, scaled).double()
            log_norms.append(largest[:, 0].double() + mass.log())
            entropies.append(mass.log() - energy / mass)
        self.log_norm = torch.cat(log_norms)
        self.entropy = torch.cat(entropies)

    def of(self, tokens: Tensor) -> Tensor:
        """Return log p of a token at each position, float64 [positions]."""
        chosen = self.logits.gather(1, tokens[:, None]).squeeze(1)
        return chosen.double() / self._temperature - self.log_norm


def _zeros(*size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.float64)
