"""Which sequences an optimiser step sees, and how they are shared out: pure functions on arrays.

The order depends on (seed, epoch) alone, so any number of workers trains the same global batches. Within a batch,
sequences of like length meet in one micro-batch and at the same moment on every worker, so little is padding and no
worker waits long. Reads a data set's Parquet shards into flat arrays; writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd_ray.artifacts import shard_paths
from ssd_ray.errors import UserError

IGNORED = -100

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Examples:
    """A data set in memory: all token ids in one flat array (4 bytes each), row i at `tokens[offsets[i]:offsets[i + 1]]`.

    A masked row is all prompt: `num_prompt_tokens` is its length.
    """

    tokens: NDArray[np.int32]
    offsets: Ints
    num_prompt_tokens: Ints

    def __len__(self) -> int:
        return len(self.num_prompt_tokens)

    @property
    def lengths(self) -> Ints:
        """Tokens of each row, prompt included."""
        lengths: Ints = np.diff(self.offsets)
        return lengths

    @property
    def response_lengths(self) -> Ints:
        """Tokens of each row that the loss covers; a sequence's very first token has nothing to be predicted from."""
        lengths: Ints = self.lengths - np.maximum(self.num_prompt_tokens, 1)
        return lengths

    def row(self, index: int) -> NDArray[np.int32]:
        """The token ids of one row."""
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]


def load_examples(dataset: Path) -> Examples:
    """The rows of a data set, in the order of its shards.

    Raises:
        UserError: the directory holds no rows.
    """
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    tokens, lengths, prompts = [], [], []
    for path in shard_paths(dataset):
        table = pq.read_table(path, columns=["input_ids", "num_prompt_tokens", "masked"]).combine_chunks()
        for chunk in table.column("input_ids").chunks:
            tokens.append(chunk.flatten().to_numpy())
            lengths.append(chunk.value_lengths().to_numpy())
        prompts.append(np.where(table["masked"].to_numpy(), pc.list_value_length(table["input_ids"]), table["num_prompt_tokens"]))
    if not sum(map(len, prompts)):
        raise UserError(f"the data set {dataset} holds no rows to train on; run prepare again")
    offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths), dtype=np.int64)])
    return Examples(tokens=np.concatenate(tokens), offsets=offsets, num_prompt_tokens=np.concatenate(prompts))


def epoch_order(num_rows: int, seed: int, epoch: int) -> Ints:
    """A permutation of the rows, the same on every machine: rows sorted by raw Philox draws keyed by (seed, epoch)."""
    draws = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(num_rows)
    return np.argsort(draws, kind="stable")


def global_batch(num_rows: int, batch_size: int, seed: int, step: int) -> Ints:
    """The rows of optimiser step `step` (from 0): the next `batch_size` of the epochs laid end to end.

    A batch may span two epochs, so no row is left out of an epoch.
    """
    positions = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs, places = np.divmod(positions, num_rows)
    orders = {int(epoch): epoch_order(num_rows, seed, int(epoch)) for epoch in np.unique(epochs)}
    return np.array([orders[int(epoch)][place] for epoch, place in zip(epochs, places, strict=True)], dtype=np.int64)


def share_out(lengths: Ints, num_ranks: int, micro_batch_size: int) -> Ints:
    """Positions of a batch for each rank and micro-step: shape [num_ranks, micro_steps, micro_batch_size].

    Longest first: each micro-step takes the next `num_ranks` groups of like length, and the costliest group goes to the
    rank that has had the least so far (cost of a group: its size times its longest sequence, for padding is computed too).
    """
    if len(lengths) % (num_ranks * micro_batch_size):
        raise UserError(
            f"train.global_batch_size {len(lengths)} is not a multiple of cluster.train_workers {num_ranks} times "
            f"train.micro_batch_size {micro_batch_size}"
        )
    groups = np.argsort(-lengths, kind="stable").reshape(-1, num_ranks, micro_batch_size)
    loads = np.zeros(num_ranks, dtype=np.int64)
    shares = np.empty((num_ranks, len(groups), micro_batch_size), dtype=np.int64)
    for micro_step, candidates in enumerate(groups):
        for rank, group in zip(np.argsort(loads, kind="stable"), candidates, strict=True):
            shares[rank, micro_step] = group
            loads[rank] += lengths[group].max() * micro_batch_size
    return shares


def pad(examples: Examples, rows: Ints) -> tuple[Ints, Ints]:
    """A micro-batch: input ids and labels, both [len(rows), longest].

    Labels are the input ids on response positions and `IGNORED` on prompt and padding; the shift by one is the loss's.
    Padding follows the sequence, so causal attention never sees it and needs no mask.
    """
    lengths = examples.lengths[rows]
    input_ids = np.zeros((len(rows), int(lengths.max())), dtype=np.int64)
    labels = np.full_like(input_ids, IGNORED)
    for place, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        input_ids[place, :length] = examples.row(int(row))
        start = examples.num_prompt_tokens[row]
        labels[place, start:length] = input_ids[place, start:length]
    return input_ids, labels
