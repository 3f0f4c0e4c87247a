"""Which sequences an optimiser step sees, what each token weighs, and how they are shared out: pure functions on arrays.

The order depends on (seed, epoch) alone, so any number of workers trains the same global batches. Each token carries its
weight in the global batch's mean loss, so a step is the plain sum over whatever pieces it is cut into. Within a batch,
sequences of like length meet in one micro-batch and at the same moment on every worker, so little is padding and no
worker waits long. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssd_ray.errors import UserError
from ssd_ray.training.data.examples import Examples, Ints

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """The sequences of one optimiser step: rows of the data set, what a response token of each weighs, and how many there are.

    `tokens` are those of the rows that have a response, prompts included: the others are not computed.
    """

    rows: Ints
    token_weights: Floats
    response_tokens: int
    tokens: int


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What goes through the model at once; all arrays are [sequences, tokens], or [1, tokens] where sequences are packed.

    `targets` are the ids that follow; `weights` is 0 on prompt and padding. `position_ids` starts anew in every sequence.
    `real` is false on padding.
    """

    input_ids: Ints
    position_ids: Ints
    targets: Ints
    weights: Floats
    real: NDArray[np.bool_]


@lru_cache(maxsize=2)  # a batch may span two epochs
def epoch_order(num_rows: int, seed: int, epoch: int) -> Ints:
    """A permutation of the rows, the same on every machine: rows sorted by raw Philox draws keyed by (seed, epoch)."""
    draws = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_rows)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


def global_rows(num_rows: int, batch_size: int, seed: int, step: int) -> Ints:
    """The rows of optimiser step `step` (from 0): the next `batch_size` of the epochs laid end to end.

    A batch may span two epochs, so no row is left out of an epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, num_rows)
    orders = {int(epoch): epoch_order(num_rows, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array(
        [orders[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)],
        dtype=np.int64,
    )


def global_batch(
    examples: Examples,
    batch_size: int,
    seed: int,
    step: int,
    mean: Literal["token", "sequence"] = "token",
) -> GlobalBatch:
    """The batch of a step, with what a response token of each row weighs in the mean loss.

    `token`: 1 / response tokens of the batch. `sequence`: 1 / (sequences with a response, times the row's response tokens).
    """
    rows = global_rows(len(examples), batch_size, seed, step)
    lengths = examples.response_lengths[rows]
    total = int(lengths.sum())
    if mean == "token":
        weights = np.full(len(rows), 1 / max(total, 1))
    else:
        weights = 1 / (np.maximum(lengths, 1) * max(int((lengths > 0).sum()), 1))
    return GlobalBatch(
        rows=rows,
        token_weights=weights.astype(np.float32),
        response_tokens=total,
        tokens=int(examples.lengths[rows][lengths > 0].sum()),
    )


def share_out(
    lengths: Ints, responses: Ints, num_shares: int, budget: int, *, packed: bool
) -> list[list[Ints]]:
    """Positions of a batch for each share and micro-step, equally many micro-steps for each share.

    Longest first: a micro-batch takes sequences of like length while they fit in `budget` tokens, and a longer one alone.
    Each micro-step deals the next `num_shares` micro-batches, the costliest to the share that has had the least so far.
    Sequences without a response are left out, but for the shortest that make the number come out even.

    Args:
        lengths: tokens of each sequence of the batch.
        responses: tokens of each that the loss covers.
        num_shares: workers, or groups of workers that share a sequence.
        budget: tokens of a micro-batch, padding included.
        packed: whether sequences lie end to end instead of being padded to the longest.

    Raises:
        UserError: the sequences cannot be dealt evenly.
    """
    if len(lengths) % num_shares:
        raise UserError(
            f"train.global_batch_size {len(lengths)} is not a multiple of the {num_shares} workers that share it"
        )

    def cost(group: Ints) -> int:
        return int(lengths[group].sum() if packed else lengths[group].max() * len(group))

    groups = _cut(lengths, _wanted(lengths, responses, num_shares), budget, packed=packed)
    while len(groups) % num_shares:
        largest = max((group for group in groups if len(group) > 1), key=cost)
        place = next(place for place, group in enumerate(groups) if group is largest)
        groups[place : place + 1] = [largest[: len(largest) // 2], largest[len(largest) // 2 :]]
    groups.sort(key=cost, reverse=True)
    shares: list[list[Ints]] = [[] for _ in range(num_shares)]
    loads = np.zeros(num_shares, dtype=np.int64)
    for start in range(0, len(groups), num_shares):
        dealt = zip(
            np.argsort(loads, kind="stable"), groups[start : start + num_shares], strict=True
        )
        for share, group in list(dealt):
            shares[share].append(group)
            loads[share] += cost(group)
    return shares


def _wanted(lengths: Ints, responses: Ints, num_shares: int) -> Ints:
    """Positions with a response, and as many of the shortest others as make a multiple of `num_shares` (at least one each)."""
    with_response = np.flatnonzero(responses > 0)
    others = np.flatnonzero(responses <= 0)
    lacking = -len(with_response) % num_shares if len(with_response) else num_shares
    return np.concatenate(
        [with_response, others[np.argsort(lengths[others], kind="stable")][:lacking]]
    )


def _cut(lengths: Ints, positions: Ints, budget: int, *, packed: bool) -> list[Ints]:
    groups: list[list[int]] = []
    filled = 0
    for position in positions[np.argsort(-lengths[positions], kind="stable")]:
        room = (
            filled + int(lengths[position])
            if packed
            else int(lengths[groups[-1][0]]) * (len(groups[-1]) + 1)
            if groups
            else 0
        )
        if not groups or room > budget:
            groups.append([])
            filled = 0
        groups[-1].append(int(position))
        filled += int(lengths[position])
    return [np.array(group, dtype=np.int64) for group in groups]


def collate(
    examples: Examples,
    rows: Ints,
    token_weights: Sequence[float] | Floats,
    *,
    packed: bool = False,
    multiple: int = 1,
) -> MicroBatch:
    """A micro-batch of `rows`, whose response tokens weigh `token_weights`, a multiple of `multiple` tokens long.

    Padding follows the sequences, so causal attention never sees it and needs no mask.
    """
    lengths = examples.lengths[rows]
    starts = np.cumsum(lengths) - lengths if packed else np.zeros_like(lengths)
    width = -(-int(lengths.sum() if packed else lengths.max()) // multiple) * multiple
    shape = (1, width) if packed else (len(rows), width)
    input_ids, targets = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    weights, real = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.bool_)
    position_ids = np.broadcast_to(np.arange(width), shape).copy()
    for place, (row, start, length) in enumerate(zip(rows, starts, lengths, strict=True)):
        line, end = 0 if packed else place, start + length
        input_ids[line, start:end] = examples.row(int(row))
        real[line, start:end] = True
        targets[line, start : end - 1] = input_ids[line, start + 1 : end]
        weights[line, end - 1 - examples.response_lengths[row] : end - 1] = token_weights[place]
        if packed:
            position_ids[line, start:] = np.arange(width - start)
    if packed:
        position_ids[0, int(lengths.sum()) :] = np.arange(width - int(lengths.sum()))
    return MicroBatch(
        input_ids=input_ids, position_ids=position_ids, targets=targets, weights=weights, real=real
    )
