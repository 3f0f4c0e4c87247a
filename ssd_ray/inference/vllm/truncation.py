"""Truncate tempered logits to top-k, then top-p, exactly and without sorting the vocabulary.

- Survivors are among the few largest logits of a row. Those are fetched, sorted, and cut.
- Shapes depend on Python values made once per batch, in `Bounds`. So on CUDA no step waits for the
  device.
- On a CPU a read is free: rows with survivors beyond the fetched logits are repeated with more.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_TIES = 32
"""Logits fetched beyond the k-th, for its ties."""
_NUCLEUS = 256
"""Logits fetched if there is no k, on a CPU."""
_WIDER = 8
# Less than the probability of the most likely token of any vocabulary. This token always survives.
_LEAST_KEPT = 1e-12


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows of a batch with the same kinds of bounds.

    Attributes:
        rows: Indices of the rows; None for the complete batch.
        from_top: int64, (rows, 1), k - 1: position of the k-th logit in descending order; None
            without a k.
        from_bottom: Its position among the `width` fetched logits in ascending order.
        most_dropped: float64, (rows, 1), 1 - p, and below 0 for p = 1; None if no row has a p.
        temperature: float64, (rows, 1): logits are divided by it to compute their mass; None if
            they are divided already. As float64, it makes the quotients float64 like the mass.
        width: Number of logits to fetch.
        may_read: Fetch more where survivors may lie beyond.
    """

    rows: Tensor | None
    from_top: Tensor | None
    from_bottom: Tensor | None
    most_dropped: Tensor | None
    temperature: Tensor | None
    width: int
    may_read: bool


class Bounds:
    """The k and p of the rows of a batch, on a device."""

    def __init__(
        self,
        chosen: Sequence[tuple[int | None, float]],
        vocabulary: int,
        device: torch.device | str = "cpu",
        *,
        temperatures: Sequence[float] | None = None,
        may_read: bool | None = None,
    ) -> None:
        """Sort rows into groups: with k and p, with k alone, with p alone; others keep all.

        Args:
            chosen: k and p by row. A k of None, or of the vocabulary or more, keeps all, and so
                does a p of 1.
            vocabulary: Number of logits of a row.
            device: Device of the logits.
            temperatures: Temperature by row of logits not divided by it yet; None if they are.
            may_read: Read values back from the device, to fetch fewer logits. By default on a CPU
                only.
        """
        self.num_rows = len(chosen)
        self.vocabulary = vocabulary
        self._device = torch.device(device)
        self._temperatures = temperatures
        self._may_read = self._device.type == "cpu" if may_read is None else may_read
        both: list[tuple[int, int, float]] = []
        limited: list[tuple[int, int, float]] = []
        nucleus: list[tuple[int, int, float]] = []
        for row, (k, p) in enumerate(chosen):
            if k is not None and k < vocabulary:
                (both if p < 1 else limited).append((row, k, p))
            elif p < 1:
                nucleus.append((row, vocabulary, p))
        most = max((k for _, k, _ in both + limited), default=0)
        # Without a k, only the logits say how many survive.
        fetched = _NUCLEUS if self._may_read else vocabulary
        self.groups = [
            self._group(rows, width, has_k=rows is not nucleus)
            for rows, width in (
                (both, most + _TIES),
                (limited, most + _TIES),
                (nucleus, fetched),
            )
            if rows
        ]

    def _group(self, chosen: list[tuple[int, int, float]], width: int, *, has_k: bool) -> _Group:
        rows, top_k, top_p = zip(*chosen, strict=True)
        width = min(width, self.vocabulary)
        # As in vLLM, p is a float32.
        rest = (1 - torch.tensor(top_p, dtype=torch.float32)).tolist()
        dropped = [min(part, 1 - _LEAST_KEPT) if part > 0 else -1.0 for part in rest]
        return _Group(
            rows=None if len(rows) == self.num_rows else self._vector(list(rows), torch.int64),
            from_top=self._column([k - 1 for k in top_k], torch.int64) if has_k else None,
            from_bottom=self._column([width - k for k in top_k], torch.int64) if has_k else None,
            most_dropped=self._column(dropped, torch.float64) if min(top_p) < 1 else None,
            temperature=(
                self._column([float(self._temperatures[row]) for row in rows], torch.float64)
                if self._temperatures
                else None
            ),
            width=width,
            may_read=self._may_read,
        )

    def _column(self, values: list[int] | list[float], kind: torch.dtype) -> Tensor:
        return self._vector(values, kind).unsqueeze(1)

    def _vector(self, values: list[int] | list[float], kind: torch.dtype) -> Tensor:
        if self._device.type == "cpu":
            return torch.tensor(values, dtype=kind)
        # A copy from memory that is not pinned would wait for all earlier work of the device.
        pinned = torch.tensor(values, dtype=kind, pin_memory=True)
        return pinned.to(self._device, non_blocking=True)


def truncate(logits: Tensor, bounds: Bounds) -> Tensor:
    """Set every logit outside top-k and top-p to minus infinity, in place.

    Keeps the k largest logits of a row with all ties of the k-th. Of these it keeps the smallest
    set of the most likely with a mass of at least p; the largest logit always stays. This is
    vLLM's operator (2604.01193, appendix A), except for equal logits at the border of p: here those
    with the larger index survive, and vLLM's sort leaves this open.

    On CUDA, a row with both bounds keeps at most 32 further ties of its k-th.

    Args:
        logits: float32, (rows, vocabulary).
        bounds: Those of the rows, on the device of the logits.

    Returns:
        The same tensor.
    """
    for group in bounds.groups:
        if group.rows is None:
            _cut(logits, group)
        else:
            logits.index_copy_(0, group.rows, _cut(logits.index_select(0, group.rows), group))
    return logits


def _cut(scores: Tensor, group: _Group) -> Tensor:
    """Truncate the rows of a group in place and return them."""
    if group.most_dropped is None:
        assert group.from_top is not None, "a group has a k or a p"
        values, ids = scores.topk(group.width, dim=1)
        kth = values.gather(1, group.from_top)
        # If all ties were fetched, filling the row and writing them is faster than comparing it.
        if group.may_read and bool((kth > values[:, -1:]).all()):
            kept = values.masked_fill_(values < kth, -torch.inf)
            return scores.fill_(-torch.inf).scatter_(1, ids, kept)
        return scores.masked_fill_(scores < kth, -torch.inf)
    width = group.width
    while True:
        values, ids = _largest(scores, width)
        kept, border = _survivors(scores, values, group)
        if width == scores.shape[1] or not group.may_read or bool((border() > values[:, :1]).all()):
            return scores.fill_(-torch.inf).scatter_(1, ids, kept)
        width = min(scores.shape[1], width * _WIDER)


def _largest(scores: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the `width` largest logits of each row and their ids.

    They are in ascending order, and equal logits in the order of their indices, as in a stable sort
    of the vocabulary.
    """
    if width == scores.shape[1]:
        values, ids = scores.sort(dim=1, stable=True)
        return values, ids
    values, ids = scores.topk(width, dim=1)
    ids, order = ids.sort(dim=1)
    values, order = values.gather(1, order).sort(dim=1, stable=True)
    return values, ids.gather(1, order)


def _survivors(
    scores: Tensor, values: Tensor, group: _Group
) -> tuple[Tensor, Callable[[], Tensor]]:
    """Mask those of `values`, given in ascending order, that are outside of the bounds.

    Returns:
        The masked values, and a function for the border of each row: its k-th logit, or without a
        k its smallest survivor. If a fetched logit is below the border, no survivor was missed.
    """
    assert group.most_dropped is not None
    width = values.shape[1]
    below: Tensor | float = 0.0
    if group.from_top is not None and group.from_bottom is not None:
        # One operation less for the width that the group asks for.
        same = width == group.width
        kth = values.gather(1, group.from_bottom if same else width - 1 - group.from_top)
        limited = values.masked_fill(values < kth, -torch.inf)
        mass = _tempered(limited, group).softmax(1, dtype=torch.float64)
    elif width == scores.shape[1]:
        limited = values
        mass = _tempered(values, group).softmax(1, dtype=torch.float64)
    else:
        limited = values
        scores = _tempered(scores, group)
        mass = (_tempered(values, group) - scores.logsumexp(1, keepdim=True)).double().exp_()
        below = (1 - mass.sum(1, keepdim=True)).clamp_(min=0)
    mass = mass.cumsum(1) if isinstance(below, float) else mass.cumsum(1).add_(below)
    # From the least likely on, logits are dropped while their mass is at most 1 - p.
    kept = limited.masked_fill(mass <= group.most_dropped, -torch.inf)
    if group.from_top is not None:
        return kept, lambda: kth
    return kept, lambda: kept.masked_fill(kept == -torch.inf, torch.inf).amin(1, keepdim=True)


def _tempered(logits: Tensor, group: _Group) -> Tensor:
    return logits if group.temperature is None else logits / group.temperature
