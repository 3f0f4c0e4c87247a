"""Data set of a training: an index in memory, token ids read from Parquet on demand.

- The index takes 32 bytes a row.
- Token ids are read a row group at a time; `prepare` writes at most two million into one, 8 MB.
- The last used groups are kept up to `cache_bytes`, so memory is bounded for any size of data set.
  A data set below the bound is read once.
- Writes nothing.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ssd_ray.artifacts.shards import read_row_group, row_groups, shard_paths
from ssd_ray.errors import UserError

CACHE_BYTES = 256 * 2**20

Ints: TypeAlias = NDArray[np.int64]


class Examples:
    """The rows of a data set in the order of its shards, with an index in memory."""

    def __init__(self, dataset: Path, cache_bytes: int = CACHE_BYTES) -> None:
        """Index the shards of `dataset`, reading each row group once.

        Raises:
            UserError: the directory holds no rows.
        """
        self._dataset = dataset
        self._cache_bytes = cache_bytes
        self._groups = list(_row_groups(dataset))
        self._cache: OrderedDict[int, tuple[NDArray[np.int32], Ints]] = OrderedDict()
        # An empty first entry keeps the types of a data set without rows.
        lengths = [np.zeros(0, np.int64)]
        prompts = [np.zeros(0, np.int64)]
        ends = [0]
        extremes = [0]
        for group in range(len(self._groups)):
            tokens, offsets = self._tokens(group)
            lengths.append(np.diff(offsets))
            num_prompt = self._column(group, "num_prompt_tokens").astype(np.int64)
            # A masked row counts as a prompt from end to end, so the loss covers none of it.
            prompts.append(np.where(self._column(group, "masked"), lengths[-1], num_prompt))
            ends.append(ends[-1] + len(offsets) - 1)
            extremes += [int(tokens.min()), int(tokens.max())] if len(tokens) else []
        self.lengths: Ints = np.concatenate(lengths)
        """Tokens of each row, prompt included."""
        self.num_prompt_tokens: Ints = np.concatenate(prompts)
        """Prompt tokens of each row; all tokens of a masked row."""
        self.response_lengths: Ints = np.maximum(
            self.lengths - np.maximum(self.num_prompt_tokens, 1), 0
        )
        """Tokens at the end of each row covered by the loss; nothing predicts a first token."""
        self.extreme_ids = (min(extremes), max(extremes))
        """Smallest and largest token id; the smallest counts as 0 unless an id is negative."""
        self._ends = np.array(ends[1:])
        self._rows: Ints = np.arange(len(self.lengths))
        if not len(self.lengths):
            raise UserError(f"the data set {dataset} holds no rows to train on; run prepare again")

    def __len__(self) -> int:
        return len(self.lengths)

    def part(self, rows: Ints) -> Examples:
        """Return these rows alone, in this order; both share one cache of token ids."""
        other = copy.copy(self)
        other._rows = self._rows[rows]
        other.lengths = self.lengths[rows]
        other.num_prompt_tokens = self.num_prompt_tokens[rows]
        other.response_lengths = self.response_lengths[rows]
        return other

    def prompt_ids(self) -> list[str]:
        """Return the prompt id of each row."""
        columns = [self._column(group, "prompt_id") for group in range(len(self._groups))]
        return [str(prompt) for prompt in np.concatenate(columns)[self._rows]]

    def row(self, index: int) -> NDArray[np.int32]:
        """Return the token ids of one row, [tokens]."""
        group, place = self._place(index)
        tokens, offsets = self._tokens(group)
        return tokens[offsets[place] : offsets[place + 1]]

    def name(self, index: int) -> str:
        """Return prompt and sample of one row, for a message."""
        group, place = self._place(index)
        prompt = self._column(group, "prompt_id")[place]
        return f"{prompt}/{self._column(group, 'sample_index')[place]}"

    def _place(self, index: int) -> tuple[int, int]:
        """Return the row group of a row, and its place in the group."""
        index = int(self._rows[index])
        group = int(np.searchsorted(self._ends, index, side="right"))
        return group, index - (int(self._ends[group - 1]) if group else 0)

    def _tokens(self, group: int) -> tuple[NDArray[np.int32], Ints]:
        """Return all token ids of a row group, and the offsets of its rows, [rows + 1]."""
        if group not in self._cache:
            self._cache[group] = self._read_tokens(group)
            while (
                len(self._cache) > 1
                and sum(tokens.nbytes for tokens, _ in self._cache.values()) > self._cache_bytes
            ):
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]

    def _read_tokens(self, group: int) -> tuple[NDArray[np.int32], Ints]:
        column = read_row_group(*self._groups[group], "input_ids").combine_chunks()
        lengths = column.value_lengths().to_numpy(zero_copy_only=False)
        return column.flatten().to_numpy(), np.concatenate(
            [[0], np.cumsum(lengths, dtype=np.int64)]
        )

    def _column(self, group: int, name: str) -> NDArray[np.generic]:
        values: NDArray[np.generic] = read_row_group(*self._groups[group], name).to_numpy()
        return values


def _row_groups(dataset: Path) -> Iterator[tuple[Path, int]]:
    for path in shard_paths(dataset):
        yield from ((path, number) for number in range(len(row_groups(path))))
