"""Shards of any number of workers become those of any other number, to the bit."""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.training.state.resharding import WEIGHTS, Shard, Span, fill, slices

Shapes = list[dict[str, tuple[int, ...]]]
KEYS = (WEIGHTS, "exp_avg", "exp_avg_sq")


def cut_flat(shapes: Shapes, rank: int, workers: int) -> dict[str, Span]:
    """Divide as ZeRO-1 and 2 do: parameters of a group end to end, in equal parts."""
    spans = {}
    for group, names in enumerate(shapes):
        part, at = part_of(names, workers), 0
        for name, shape in names.items():
            size = torch.Size(shape).numel()
            low, high = max(at, rank * part), min(at + size, (rank + 1) * part)
            if low < high:
                spans[name] = Span(group, low - rank * part, high - low)
            at += size
    return spans


def part_of(names: dict[str, tuple[int, ...]], workers: int) -> int:
    return ceil(sum(torch.Size(shape).numel() for shape in names.values()) / workers)


def numels(shapes: Shapes, workers: int, cut: Any) -> list[int]:
    if cut is cut_flat:
        return [part_of(names, workers) for names in shapes]
    return [
        sum(ceil(torch.Size(shape).numel() / workers) for shape in names.values())
        for names in shapes
    ]


def reshard(shards: list[Shard], shapes: Shapes, workers: int, cut: Any) -> list[Shard]:
    everyone = [cut(shapes, rank, workers) for rank in range(workers)]
    made = []
    for rank, spans in enumerate(everyone):
        before = {
            name: sum(other[name].numel for other in everyone[:rank] if name in other)
            for name in spans
        }
        sizes = numels(shapes, workers, cut)
        made.append(
            Shard(
                spans,
                [fill(spans, before, group, size, shards) for group, size in enumerate(sizes)],
            )
        )
    return made


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], Shapes, Shapes]:
    """A model's shapes, and two ways to put its parameters into groups."""
    sizes = draw(
        st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=2), min_size=2, max_size=6)
    )
    shapes = {f"p{number}": tuple(shape) for number, shape in enumerate(sizes)}
    cuts = [draw(st.integers(1, len(shapes) - 1)) for _ in range(2)]
    groups = [[dict(list(shapes.items())[:cut]), dict(list(shapes.items())[cut:])] for cut in cuts]
    return shapes, groups[0], groups[1]


@pytest.mark.parametrize("cut", [slices, cut_flat])
@settings(max_examples=150, deadline=None)
@given(model=models(), first=st.integers(1, 5), second=st.integers(1, 5))
def test_there_and_back_is_the_same_to_the_bit(
    cut: Any, model: Any, first: int, second: int
) -> None:
    shapes, before, after = model
    whole = {
        name: {key: torch.randn(torch.Size(shape).numel()) for key in KEYS}
        for name, shape in shapes.items()
    }
    spans = {
        name: Span(number, 0, whole[name][WEIGHTS].numel()) for number, name in enumerate(whole)
    }
    origin = [Shard(spans, [{**tensors, "step": torch.tensor(7.0)} for tensors in whole.values()])]
    written = reshard(origin, before, first, cut)
    read = reshard(written, after, second, cut)
    again = reshard(read, before, first, cut)
    for shard, same in zip(written, again, strict=True):
        assert shard.spans == same.spans
        for group, twin in zip(shard.groups, same.groups, strict=True):
            assert group.keys() == twin.keys()
            assert all(torch.equal(group[key], twin[key]) for key in group)
    for name, tensors in whole.items():
        for key in KEYS:
            parts = [(shard, shard.spans[name]) for shard in read if name in shard.spans]
            pieces = [
                shard.groups[span.group][key][span.start : span.start + span.numel]
                for shard, span in parts
            ]
            assert torch.equal(torch.cat(pieces), tensors[key])


def test_groups_do_not_share_a_step_counter() -> None:
    shapes: Shapes = [{"a": (3,)}, {"b": (2,)}]
    one = Shard(
        slices(shapes, 0, 1), [{WEIGHTS: torch.ones(n), "step": torch.tensor(3.0)} for n in (3, 2)]
    )
    first, second = reshard([one], shapes, 2, slices)[0].groups
    first["step"] += 1
    assert (float(first["step"]), float(second["step"])) == (4.0, 3.0)
