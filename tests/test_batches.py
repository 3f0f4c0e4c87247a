"""Batches: the same global order for any number of workers, fair shares, labels on responses only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.artifacts import write_shard
from ssd_ray.errors import UserError
from ssd_ray.schema import Example
from ssd_ray.training.batches import IGNORED, epoch_order, global_batch, load_examples, pad, share_out


def _examples(out: Path, *rows: tuple[list[int], int]) -> Path:
    for index, (input_ids, num_prompt) in enumerate(rows):
        row = Example(prompt_id=f"p{index}", sample_index=0, input_ids=tuple(input_ids), num_prompt_tokens=num_prompt)
        write_shard(out, f"part-{index:05}", [row], Example)
    return out


def test_examples_are_loaded_as_they_were_written(tmp_path: Path) -> None:
    examples = load_examples(_examples(tmp_path, ([5, 6, 7], 1), ([8, 9], 1), ([1, 2, 3, 4], 3)))
    assert [examples.row(index).tolist() for index in range(len(examples))] == [[5, 6, 7], [8, 9], [1, 2, 3, 4]]
    assert examples.lengths.tolist() == [3, 2, 4]
    assert examples.response_lengths.tolist() == [2, 1, 1]
    assert examples.tokens.dtype == np.int32


def test_an_empty_data_set_is_a_mistake_with_a_mend(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run prepare again"):
        load_examples(tmp_path)


@given(num_rows=st.integers(1, 60), batch=st.integers(1, 20), seed=st.integers(0, 2**40), epochs=st.integers(1, 3))
def test_every_row_is_seen_once_an_epoch(num_rows: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-num_rows * epochs // batch)
    seen = np.concatenate([global_batch(num_rows, batch, seed, step) for step in range(steps)])[: num_rows * epochs]
    assert np.bincount(seen, minlength=num_rows).tolist() == [epochs] * num_rows
    assert sorted(seen[:num_rows]) == list(range(num_rows))


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    # Written out: a change of this order would break resuming and reproducing older runs.
    assert epoch_order(8, seed=0, epoch=0).tolist() == ORDER_0_0
    assert epoch_order(8, seed=0, epoch=1).tolist() != ORDER_0_0
    assert epoch_order(8, seed=1, epoch=0).tolist() != ORDER_0_0


ORDER_0_0 = [0, 2, 1, 5, 4, 3, 6, 7]


@given(data=st.data(), ranks=st.integers(1, 5), micro=st.integers(1, 3), micro_steps=st.integers(1, 4))
def test_ranks_share_a_batch_without_loss_and_evenly(data: st.DataObject, ranks: int, micro: int, micro_steps: int) -> None:
    size = ranks * micro * micro_steps
    lengths = np.array(data.draw(st.lists(st.integers(2, 500), min_size=size, max_size=size)))
    shares = share_out(lengths, ranks, micro)
    assert shares.shape == (ranks, micro_steps, micro)
    assert sorted(shares.ravel()) == list(range(size))
    costs = lengths[shares].max(axis=2).sum(axis=1) * micro
    # The greedy deal leaves ranks at most one longest group apart.
    assert costs.max() - costs.min() <= lengths.max() * micro
    # All ranks work on sequences of like length at a time: no sequence is shorter than a later one.
    per_step = lengths[shares].transpose(1, 0, 2).reshape(micro_steps, -1)
    assert all(per_step[step].min() >= per_step[step + 1].max() for step in range(micro_steps - 1))


def test_a_batch_that_cannot_be_shared_is_a_mistake_that_names_the_fields() -> None:
    with pytest.raises(UserError, match=r"global_batch_size 6 is not a multiple of cluster.train_workers 2 times"):
        share_out(np.arange(6), 2, 2)


def test_labels_cover_responses_and_padding_follows_the_sequence(tmp_path: Path) -> None:
    examples = load_examples(_examples(tmp_path, ([5, 6, 7], 1), ([8, 9], 1)))
    input_ids, labels = pad(examples, np.array([1, 0]))
    assert input_ids.tolist() == [[8, 9, 0], [5, 6, 7]]
    assert labels.tolist() == [[IGNORED, 9, IGNORED], [IGNORED, 6, 7]]
