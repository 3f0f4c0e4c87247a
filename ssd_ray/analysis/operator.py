"""The sampling operator: temperature, then top-k, then top-p.

- Equations 5 to 7 of arXiv 2604.01193, and its appendix A for the order.
- It exists once. Measures, toy, probe and forecast use it; the engine's sampler is held against it.
- Survivors are among the few largest logits of a position. Those are fetched and cut, without a
  sort of the vocabulary. Where a position keeps more, more are fetched for this position alone.
- Probabilities are float64. The cut itself is computed as the engine does it: float32 logits are
  divided by the temperature in float32.

Memory is a few float64 copies of the logits. `chunks` bounds them. Does no I/O.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ssd_ray.errors import UserError

GREEDY = 1e-5
"""Bound of greedy decoding: temperatures below it are greedy (vLLM)."""
_FETCHED = 64
"""Logits fetched at first, beyond the k largest for their ties."""
_WIDER = 8
_CHUNK_ELEMENTS = 1 << 19
# Less than the probability of the most likely token of any vocabulary. This token always survives.
_LEAST_KEPT = 1e-12


class DecodingLike(Protocol):
    """A decoding: `config.Decoding`, or a `Setting` outside of the range of vLLM."""

    @property
    def temperature(self) -> float:
        """Temperature, applied before truncation."""

    @property
    def top_k(self) -> int | None:
        """Number of tokens to keep; None keeps all."""

    @property
    def top_p(self) -> float:
        """Mass to keep after top-k; 1 keeps all."""


@dataclass(frozen=True)
class Setting:
    """A decoding of any temperature.

    Raises:
        UserError: a number is out of its range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.temperature != 0 and not GREEDY <= self.temperature < math.inf:
            raise UserError(
                f"temperature {self.temperature} is out of range: use 0 for greedy decoding, "
                f"or {GREEDY:g} and more"
            )
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} keeps no token: use 1 or more, or null for all")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is no mass: use more than 0 and up to 1")


@dataclass(frozen=True, kw_only=True)
class Support:
    """The tokens S kept by a decoding at each position, and their distribution q (Eq. 6, 7).

    Attributes:
        ids: int64 [positions, width], most likely first; None for the complete vocabulary in its
            own order.
        log_q: float64 [positions, width], minus infinity for tokens outside of S.
        complete: bool [positions]: S is the vocabulary.
    """

    ids: Tensor | None
    log_q: Tensor
    complete: Tensor

    @cached_property
    def q(self) -> Tensor:
        """The distribution, float64 [positions, width]."""
        return self.log_q.exp()

    @cached_property
    def entropy(self) -> Tensor:
        """H(q), float64 [positions]."""
        return -self.mean(self.log_q) + 0.0

    @cached_property
    def kept(self) -> Tensor:
        """Bool [positions, width]: the token is in S."""
        return self.log_q > -torch.inf

    @cached_property
    def sizes(self) -> Tensor:
        """Number of tokens in S, int64 [positions]."""
        if self.is_vocabulary:
            return torch.full_like(self.complete, self.log_q.shape[1], dtype=torch.int64)
        return self.kept.sum(1)

    @cached_property
    def is_vocabulary(self) -> bool:
        """S is the vocabulary at every position."""
        return self.ids is None and bool(self.complete.all())

    def of(self, values: Tensor) -> Tensor:
        """Return values of the vocabulary on S, float64 [positions, width].

        Minus infinity outside of S.
        """
        if self.is_vocabulary:
            return values.double()
        chosen = values if self.ids is None else values.gather(1, self.ids)
        return chosen.double().masked_fill(~self.kept, -torch.inf)

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean under q of values on S, [positions, width], float64 [positions]."""
        inside = values if self.is_vocabulary else values.masked_fill(~self.kept, 0.0)
        mean: Tensor = torch.linalg.vecdot(self.q, inside)
        return mean

    def at(self, tokens: Tensor) -> Tensor:
        """Return log q of a token at each position, float64 [positions]; minus infinity outside."""
        if self.ids is None:
            return self.log_q.gather(1, tokens[:, None]).squeeze(1)
        return self.log_q.masked_fill(self.ids != tokens[:, None], -torch.inf).amax(1)

    def dense(self, vocabulary: int) -> Tensor:
        """Return log q over the vocabulary, float64 [positions, vocabulary]."""
        if self.ids is None:
            return self.log_q
        # Padding repeats ids with minus infinity: of all values of an id, the largest counts.
        empty = self.log_q.new_full((len(self.log_q), vocabulary), -torch.inf)
        return empty.scatter_reduce_(1, self.ids, self.log_q, reduce="amax")


class Ranking:
    """The largest logits of some positions, fetched once for any number of decodings."""

    def __init__(self, logits: Tensor) -> None:
        """Rank the logits, [positions, vocabulary], before temperature and truncation.

        Minus infinity is the logit of a token that the model excludes.

        Raises:
            UserError: a position has NaN, infinity or no finite logit.
        """
        self.logits = logits if logits.dtype == torch.float64 else logits.float()
        require_finite(self.logits.amax(1))
        self._fetched: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def vocabulary(self) -> int:
        """Number of tokens."""
        return self.logits.shape[1]

    def largest(self, width: int) -> tuple[Tensor, Tensor]:
        """Return the `width` largest logits of each position and their ids, in descending order.

        Of equal logits, the larger id comes first.
        """
        width = min(width, self.vocabulary)
        # Those fetched before are the beginning of these, if they are not fewer.
        wider = min((each for each in self._fetched if each >= width), default=None)
        if wider is None:
            wider = width
            self._fetched[width] = _largest(self.logits, width)
        values, ids = self._fetched[wider]
        return values[:, :width], ids[:, :width]

    def support(self, decoding: DecodingLike) -> Support:
        """Return the tokens kept by a decoding.

        All ties of the k-th logit stay. Of equal logits at the border of top-p, those with the
        larger id stay.
        """
        logits = self.logits
        if decoding.temperature < GREEDY:
            ids = logits.argmax(1, keepdim=True)
            return Support(
                ids=ids,
                log_q=torch.zeros_like(ids, dtype=torch.float64),
                complete=torch.full((len(ids),), self.vocabulary == 1, device=ids.device),
            )
        limit = self.vocabulary if decoding.top_k is None else decoding.top_k
        if limit >= self.vocabulary and decoding.top_p >= 1:
            log_q = log_normalize(logits.double() / decoding.temperature)
            return Support(ids=None, log_q=log_q, complete=logits.amin(1) > -torch.inf)
        return self.supports([decoding.temperature], decoding.top_k, decoding.top_p)

    def supports(self, temperatures: Sequence[float], top_k: int | None, top_p: float) -> Support:
        """Return the tokens kept at several temperatures, none greedy, with one truncation.

        Positions are those of the first temperature, then those of the second, and so on.
        """
        logits, positions = self.logits, len(self.logits)
        limit = min(self.vocabulary, self.vocabulary if top_k is None else top_k)
        width = min(self.vocabulary, _FETCHED + (limit if limit < self.vocabulary else 0))
        rows = torch.arange(len(temperatures) * positions, device=logits.device)
        by_row = torch.tensor(temperatures, dtype=torch.float64, device=logits.device)
        by_row = by_row.repeat_interleave(positions)[:, None]
        norms = None
        if limit >= self.vocabulary and width < self.vocabulary:
            each = [(logits / t).double().logsumexp(1, keepdim=True) for t in temperatures]
            norms = torch.cat(each)
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        while len(rows):
            if len(rows) == len(by_row):
                values, ids = (each.repeat(len(temperatures), 1) for each in self.largest(width))
            else:
                values, ids = _largest(logits[rows % positions], width)
            norm = None if norms is None or width == self.vocabulary else norms[rows]
            scores, ends_inside = _cut(values, norm, limit, by_row[rows], top_p)
            if width == self.vocabulary:
                ends_inside = torch.ones_like(ends_inside)
            parts.append((rows[ends_inside], ids[ends_inside], scores[ends_inside]))
            rows, width = rows[~ends_inside], min(self.vocabulary, width * _WIDER)
        return _joined(parts, len(by_row), self.vocabulary)


def support(logits: Tensor, decoding: DecodingLike) -> Support:
    """Return the tokens that a decoding keeps of logits, [positions, vocabulary]."""
    return Ranking(logits).support(decoding)


def distribution(logits: Tensor, decoding: DecodingLike) -> Tensor:
    """Return q over the vocabulary, float64 [positions, vocabulary], 0 outside of S."""
    return support(logits, decoding).dense(logits.shape[1]).exp()


def log_normalize(values: Tensor) -> Tensor:
    """Return log-probabilities in proportion to exp(values)."""
    return values - values.logsumexp(1, keepdim=True)


def require_finite(largest: Tensor, start: int = 0) -> None:
    """Refuse logits by the largest of each position, counted from `start`.

    Raises:
        UserError: a position has NaN, infinity or no finite logit.
    """
    broken = (~largest.isfinite()).nonzero()
    if len(broken):
        row = int(broken[0])
        raise UserError(
            f"logits of position {start + row} have {float(largest[row])} as their largest: "
            "check the weights of the model, and use a wider dtype"
        )


def chunks(positions: int, vocabulary: int) -> Iterator[slice]:
    """Yield slices of positions, small enough for float64 copies of their logits (4 MiB each)."""
    step = max(1, _CHUNK_ELEMENTS // vocabulary)
    for start in range(0, positions, step):
        yield slice(start, min(start + step, positions))


def _largest(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    if width == logits.shape[1]:
        values, ids = logits.sort(dim=1, stable=True)
        return values.flip(1), ids.flip(1)
    values, ids = logits.topk(width, dim=1)
    ids, order = ids.sort(dim=1, descending=True)
    values, order = values.gather(1, order).sort(dim=1, descending=True, stable=True)
    return values, ids.gather(1, order)


def _cut(
    values: Tensor, log_norm: Tensor | None, limit: int, temperatures: Tensor, top_p: float
) -> tuple[Tensor, Tensor]:
    """Temper and cut descending values; also return the rows without survivors beyond them.

    Args:
        values: the largest logits of each row.
        log_norm: log of the mass of the tempered vocabulary; None if `values` hold all tokens that
            top-k keeps.
        limit: top-k.
        temperatures: temperature of each row, float64 [rows, 1].
        top_p: mass to keep.
    """
    kth = values[:, min(limit, values.shape[1]) - 1, None]
    kept = values >= kth
    ends_inside = kth[:, 0] > values[:, -1]
    if top_p < 1:
        scaled = (values / temperatures.to(values.dtype)).double().masked_fill(~kept, -torch.inf)
        norm = scaled.logsumexp(1, keepdim=True) if log_norm is None else log_norm
        mass = (scaled - norm).exp()
        # As in vLLM, p is a float32, and logits are dropped from the least likely on while their
        # mass is at most 1 - p.
        dropped = min(float(1 - torch.tensor(top_p)), 1 - _LEAST_KEPT)
        beyond = (1 - mass.sum(1, keepdim=True)).clamp_(min=0) if log_norm is not None else 0.0
        from_below = mass.flip(1).cumsum(1).flip(1) + beyond
        nucleus = from_below > dropped
        nucleus[:, 0] = True
        kept = kept & nucleus
        if log_norm is not None:
            border = values.masked_fill(~kept, torch.inf).amin(1)
            ends_inside = border > values[:, -1]
    tempered = (values.double() / temperatures).masked_fill(~kept, -torch.inf)
    return tempered, ends_inside


def _joined(parts: list[tuple[Tensor, Tensor, Tensor]], positions: int, vocabulary: int) -> Support:
    """Join rows of different widths, padded to the largest support."""
    counts = [(scores > -torch.inf).sum(1) for _, _, scores in parts]
    width = max((int(count.max()) for count in counts if len(count)), default=1)
    device = parts[0][0].device if parts else None
    ids = torch.zeros((positions, width), dtype=torch.int64, device=device)
    tempered = torch.full((positions, width), -torch.inf, dtype=torch.float64, device=device)
    sizes = torch.zeros(positions, dtype=torch.int64, device=device)
    for (rows, part_ids, scores), count in zip(parts, counts, strict=True):
        ids[rows, : part_ids.shape[1]] = part_ids[:, :width]
        tempered[rows, : scores.shape[1]] = scores[:, :width]
        sizes[rows] = count
    # Normalized last, in the final width: the same sums for any model with the same logits.
    return Support(ids=ids, log_q=log_normalize(tempered), complete=sizes == vocabulary)
