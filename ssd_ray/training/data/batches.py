"""Order, weights and division of training sequences: pure functions on arrays.

- The order depends on (seed, epoch) alone, so any number of workers trains the same global batches.
- Each token carries its weight in the mean loss of the global batch. A step is a plain sum, however
  it is cut.
- Sequences of like length share a micro-batch, at the same moment on every worker. Little is
  padding, and no worker waits long.
- Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ssd_ray import shares
from ssd_ray.training.data.examples import Examples, Ints

Floats = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class GlobalBatch:
    """The sequences of one optimizer step."""

    rows: Ints
    """Rows of the data set, [sequences]."""
    token_weights: Floats
    """Weight of each response token of a row, [sequences]."""
    response_tokens: int
    """Response tokens of all rows."""
    tokens: int
    """Tokens of the rows with a response, prompts included; the others are not computed."""


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """Input of one forward pass; arrays are [lines, tokens].

    A padded line holds one sequence. If packed, one line holds all sequences.
    """

    input_ids: Ints
    position_ids: Ints
    """Positions from 0 in every sequence."""
    targets: Ints
    """The id after each position."""
    weights: Floats
    """Weight of each target; 0 on prompt and padding."""
    real: NDArray[np.bool_]
    """False on padding."""
    cu_seq_lens: NDArray[np.int32]
    """Bounds of the sequences in the flattened tokens, [sequences + 1].

    In a padded line, padding belongs to the sequence before it. In a packed line, padding is a
    sequence of its own. In a slice of Ulysses, bounds are those of the complete line.
    """
    max_length: int
    """Tokens of the longest sequence within these bounds."""


# Two orders are cached, because a batch may span two epochs.
@lru_cache(maxsize=2)
def epoch_order(num_rows: int, seed: int, epoch: int) -> Ints:
    """Return a permutation of the rows, sorted by raw Philox draws keyed by (seed, epoch).

    Raw draws are the same on every machine.
    """
    draws = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_rows)
    order = np.argsort(draws, kind="stable")
    order.flags.writeable = False
    return order


def global_rows(num_rows: int, batch_size: int, seed: int, step: int) -> Ints:
    """Return the rows of optimizer step `step` (from 0), [batch_size].

    Epochs are concatenated. A batch may span two of them, so no row is left out of an epoch.
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
    """Return the batch of a step, with the weight of a row's response tokens in the mean loss.

    - `token`: 1 / response tokens of the batch.
    - `sequence`: 1 / (sequences with a response x response tokens of the row).
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
    """Return `shares.share_out` with arrays: positions in the batch, by share and micro-step.

    Raises:
        UserError: the sequences cannot be dealt evenly.
    """
    dealt = shares.share_out(
        lengths.tolist(), responses.tolist(), num_shares, budget, packed=packed
    )
    return [[np.array(group, dtype=np.int64) for group in share] for share in dealt]


def collate(
    examples: Examples,
    rows: Ints,
    token_weights: Sequence[float] | Floats,
    *,
    packed: bool = False,
    multiple: int = 1,
) -> MicroBatch:
    """Return a micro-batch of `rows`.

    Padding follows the sequences, so causal attention never sees it and needs no mask.

    Args:
        examples: the data set.
        rows: its rows, [sequences].
        token_weights: weight of each response token of a row, [sequences].
        packed: True to concatenate sequences, False to pad each to the longest.
        multiple: divisor of the micro-batch's length in tokens.
    """
    lengths = examples.lengths[rows]
    starts = np.cumsum(lengths) - lengths if packed else np.zeros_like(lengths)
    width = -(-int(lengths.sum() if packed else lengths.max()) // multiple) * multiple
    shape = (1, width) if packed else (len(rows), width)
    input_ids = np.zeros(shape, dtype=np.int64)
    targets = np.zeros(shape, dtype=np.int64)
    weights = np.zeros(shape, dtype=np.float32)
    real = np.zeros(shape, dtype=np.bool_)
    position_ids = np.broadcast_to(np.arange(width), shape).copy()
    for place, (row, start, length) in enumerate(zip(rows, starts, lengths, strict=True)):
        line = 0 if packed else place
        end = start + length
        input_ids[line, start:end] = examples.row(int(row))
        real[line, start:end] = True
        # The logits at a position predict the next id, so weights lie one position to the left.
        targets[line, start : end - 1] = input_ids[line, start + 1 : end]
        weights[line, end - 1 - examples.response_lengths[row] : end - 1] = token_weights[place]
        if packed:
            position_ids[line, start:] = np.arange(width - start)
    bounds = np.arange(len(rows) + 1) * width
    if packed:
        # Positions restart at the padding, or attention would take it as part of the last sequence.
        position_ids[0, int(lengths.sum()) :] = np.arange(width - int(lengths.sum()))
        bounds = np.unique([*starts, int(lengths.sum()), width])
    return MicroBatch(
        input_ids=input_ids,
        position_ids=position_ids,
        targets=targets,
        weights=weights,
        real=real,
        cu_seq_lens=bounds.astype(np.int32),
        max_length=int(np.diff(bounds).max()),
    )
