"""Batches: one global order for any number of workers, fair shares, bounded memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.artifacts.shards import write_shard
from ssd_ray.errors import UserError
from ssd_ray.schema import Example
from ssd_ray.training.data.batches import collate, epoch_order, global_batch, global_rows, share_out
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.model.sequence_parallel import slice_of


def _dataset(out: Path, *rows: tuple[list[int], int]) -> Path:
    """Write each row, (ids, number of prompt tokens), to a shard of its own."""
    for index, (input_ids, num_prompt) in enumerate(rows):
        row = Example(
            prompt_id=f"p{index}",
            sample_index=0,
            input_ids=tuple(input_ids),
            num_prompt_tokens=num_prompt,
        )
        write_shard(out, f"part-{index:05}", [row], Example)
    return out


def test_examples_are_read_as_they_were_written(tmp_path: Path) -> None:
    examples = Examples(_dataset(tmp_path, ([5, 6, 7], 1), ([8, 9], 0), ([1, 2, 3, 4], 4)))
    assert [examples.row(index).tolist() for index in range(len(examples))] == [
        [5, 6, 7],
        [8, 9],
        [1, 2, 3, 4],
    ]
    assert examples.lengths.tolist() == [3, 2, 4]
    assert examples.response_lengths.tolist() == [2, 1, 0]
    assert examples.extreme_ids == (0, 9)
    assert examples.name(2) == "p2/0"


def test_a_masked_row_has_its_place_and_no_response(tmp_path: Path) -> None:
    rows = [
        Example(
            prompt_id="p",
            sample_index=index,
            input_ids=(5, 6, 7),
            num_prompt_tokens=1,
            masked=index == 1,
        )
        for index in (0, 1)
    ]
    write_shard(tmp_path, "part-00000", rows, Example)
    examples = Examples(tmp_path)
    assert examples.lengths.tolist() == [3, 3]
    assert examples.response_lengths.tolist() == [2, 0]
    batch = global_batch(examples, 2, seed=0, step=0)
    assert (batch.tokens, batch.response_tokens) == (3, 2)


def test_memory_holds_recent_shards_up_to_the_bound(tmp_path: Path) -> None:
    rows = [([index, index + 1] * 50, 1) for index in range(8)]
    examples = Examples(_dataset(tmp_path, *rows), cache_bytes=2 * 400)
    for index in (3, 0, 7, 3, 5, 1):
        assert examples.row(index).tolist() == rows[index][0]
        assert sum(tokens.nbytes for tokens, _ in examples._cache.values()) <= 2 * 400
    examples = Examples(tmp_path, cache_bytes=1)
    assert examples.row(4).tolist() == rows[4][0]
    assert len(examples._cache) == 1


def test_an_empty_data_set_is_refused_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run prepare again"):
        Examples(tmp_path)
    write_shard(tmp_path, "part-00000", [], Example)
    with pytest.raises(UserError, match="run prepare again"):
        Examples(tmp_path)


@given(
    num_rows=st.integers(1, 60),
    batch=st.integers(1, 20),
    seed=st.integers(0, 2**40),
    epochs=st.integers(1, 3),
)
def test_every_row_is_seen_once_an_epoch(num_rows: int, batch: int, seed: int, epochs: int) -> None:
    steps = -(-num_rows * epochs // batch)
    seen = np.concatenate([global_rows(num_rows, batch, seed, step) for step in range(steps)])[
        : num_rows * epochs
    ]
    assert np.bincount(seen, minlength=num_rows).tolist() == [epochs] * num_rows
    assert sorted(seen[:num_rows]) == list(range(num_rows))


def test_the_order_is_fixed_by_seed_and_epoch() -> None:
    # Written out: a change of this order would break resuming and reproducing older runs.
    assert epoch_order(8, seed=0, epoch=0).tolist() == ORDER_0_0
    assert epoch_order(8, seed=0, epoch=1).tolist() != ORDER_0_0
    assert epoch_order(8, seed=1, epoch=0).tolist() != ORDER_0_0


def test_the_orders_of_two_epochs_are_computed_once() -> None:
    first, second = epoch_order(20, 0, 0), epoch_order(20, 0, 1)
    assert epoch_order(20, 0, 0) is first
    assert epoch_order(20, 0, 1) is second
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


ORDER_0_0 = [0, 2, 1, 5, 4, 3, 6, 7]


def test_token_weights_make_the_mean_that_was_asked_for(tmp_path: Path) -> None:
    examples = Examples(_dataset(tmp_path, ([1, 2, 3, 4, 5], 1), ([6, 7], 1), ([8, 9, 10], 3)))
    for mean in ("token", "sequence"):
        batch = global_batch(examples, 3, seed=0, step=0, mean=mean)
        by_row = dict(zip(batch.rows.tolist(), batch.token_weights.tolist(), strict=True))
        assert (batch.tokens, batch.response_tokens) == (
            7,
            5,
        )  # the third row has no response and is not computed
        if mean == "token":
            assert [by_row[row] for row in (0, 1)] == pytest.approx([1 / 5, 1 / 5])
        else:  # two sequences have a response: of four tokens and of one
            assert [by_row[row] for row in (0, 1)] == pytest.approx([1 / 8, 1 / 2])
        assert (batch.token_weights * examples.response_lengths[batch.rows]).sum() == pytest.approx(
            1
        )


@given(
    data=st.data(),
    shares=st.integers(1, 5),
    micro_steps=st.integers(1, 4),
    budget=st.integers(1, 1500),
    packed=st.booleans(),
)
def test_workers_share_a_batch_evenly_and_within_the_budget(
    data: st.DataObject, shares: int, micro_steps: int, budget: int, packed: bool
) -> None:
    size = shares * micro_steps
    lengths = np.array(data.draw(st.lists(st.integers(2, 500), min_size=size, max_size=size)))
    silent = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    dealt = share_out(lengths, np.where(silent, 0, 1), shares, budget, packed=packed)
    assert len({len(share) for share in dealt}) == 1
    groups = [group for share in dealt for group in share]
    seen = np.concatenate(groups).tolist()
    assert len(seen) == len(set(seen))
    assert set(np.flatnonzero(~silent)) <= set(seen)  # every response is trained on
    assert silent[seen].sum() <= shares  # and next to nothing else is computed
    for group in groups:
        cost = lengths[group].sum() if packed else lengths[group].max() * len(group)
        assert len(group) == 1 or cost <= budget
    costs = [
        sum(lengths[g].sum() if packed else lengths[g].max() * len(g) for g in share)
        for share in dealt
    ]
    largest = max(lengths[g].sum() if packed else lengths[g].max() * len(g) for g in groups)
    assert (
        max(costs) - min(costs) <= largest
    )  # the greedy deal leaves shares at most one micro-batch apart


def test_sequences_of_like_length_share_a_micro_batch() -> None:
    lengths = np.array([600, 60, 590, 61, 62, 595, 63, 64])
    groups = [
        sorted(group.tolist()) for group in share_out(lengths, lengths, 1, 600, packed=False)[0]
    ]
    assert groups == [[0], [5], [2], [1, 3, 4, 6, 7]]


def test_a_batch_that_cannot_be_shared_names_the_field() -> None:
    with pytest.raises(UserError, match=r"global_batch_size 5 is not a multiple of the 2 workers"):
        share_out(np.arange(5), np.arange(5), 2, 100, packed=False)


def test_loss_weights_cover_responses_and_no_padding(tmp_path: Path) -> None:
    examples = Examples(_dataset(tmp_path, ([5, 6, 7], 1), ([8, 9], 1), ([3, 4], 2)))
    micro = collate(examples, np.array([1, 0, 2]), [0.5, 0.25, 9.0], multiple=2)
    assert micro.input_ids.tolist() == [[8, 9, 0, 0], [5, 6, 7, 0], [3, 4, 0, 0]]
    assert micro.targets[:2].tolist() == [[9, 0, 0, 0], [6, 7, 0, 0]]
    assert micro.weights.tolist() == [[0.5, 0, 0, 0], [0.25, 0.25, 0, 0], [0, 0, 0, 0]]
    assert micro.real.astype(int).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0]]
    assert slice_of(micro, 2, 1).real.astype(int).tolist() == [[0, 0], [1, 0], [0, 0]]
    assert micro.position_ids[0].tolist() == [0, 1, 2, 3]


def test_packed_sequences_have_their_own_positions(tmp_path: Path) -> None:
    examples = Examples(_dataset(tmp_path, ([5, 6, 7], 1), ([8, 9], 1)))
    micro = collate(examples, np.array([0, 1]), [0.5, 0.25], packed=True, multiple=4)
    assert micro.input_ids.tolist() == [[5, 6, 7, 8, 9, 0, 0, 0]]
    assert micro.targets.tolist() == [[6, 7, 0, 9, 0, 0, 0, 0]]
    assert micro.weights.tolist() == [[0.5, 0.5, 0, 0.25, 0, 0, 0, 0]]
    assert micro.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert micro.real.astype(int).tolist() == [[1, 1, 1, 1, 1, 0, 0, 0]]
    assert (micro.cu_seq_lens.tolist(), micro.max_length) == ([0, 3, 5, 8], 3)
    assert micro.cu_seq_lens.dtype == np.int32
    assert slice_of(micro, 2, 1).cu_seq_lens.tolist() == [0, 3, 5, 8]


def test_padded_sequences_have_the_boundaries_of_their_rows(tmp_path: Path) -> None:
    examples = Examples(_dataset(tmp_path, ([5, 6, 7], 1), ([8, 9], 1)))
    micro = collate(examples, np.array([0, 1]), [0.5, 0.25])
    assert (micro.cu_seq_lens.tolist(), micro.max_length) == ([0, 3, 6], 3)
