"""Shards of any number of workers become those of any other number, bit for bit."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.training.model.expert_parallel import Division
from ssd_ray.training.state import resharding
from ssd_ray.training.state.resharding import WEIGHTS, Shard, Span, Spans, fill, slices

Shapes = list[dict[str, tuple[int, ...]]]
KEYS = (WEIGHTS, "exp_avg", "exp_avg_sq")


def cut_flat(shapes: Shapes, rank: int, workers: int) -> Spans:
    """Divide as ZeRO-1 and 2 do: parameters of a group end to end, in equal parts."""
    spans = {}
    for group, names in enumerate(shapes):
        part, at = part_of(names, workers), 0
        for name, shape in names.items():
            size = torch.Size(shape).numel()
            low, high = max(at, rank * part), min(at + size, (rank + 1) * part)
            if low < high:
                spans[name] = [Span(group, low - rank * part, high - low, low - at)]
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
    for spans in everyone:
        sizes = numels(shapes, workers, cut)
        made.append(
            Shard(
                spans,
                [fill(spans, group, size, shards) for group, size in enumerate(sizes)],
            )
        )
    return made


def assembled(shards: list[Shard], name: str, key: str, numel: int) -> torch.Tensor:
    """Return a parameter from the shards of all workers; elements without a span are NaN."""
    whole = torch.full((numel,), torch.nan)
    for shard in shards:
        for span in shard.spans.get(name, ()):
            flat = shard.groups[span.group][key][span.start : span.start + span.numel]
            whole[span.offset : span.offset + span.numel] = flat
    return whole


@st.composite
def models(draw: st.DrawFn) -> tuple[dict[str, tuple[int, ...]], Shapes, Shapes]:
    """Draw a model's shapes, and two ways to put its parameters into groups."""
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
def test_resharding_there_and_back_changes_no_bit(
    cut: Any, model: Any, first: int, second: int
) -> None:
    shapes, before, after = model
    whole = {
        name: {key: torch.randn(torch.Size(shape).numel()) for key in KEYS}
        for name, shape in shapes.items()
    }
    spans = {
        name: [Span(number, 0, whole[name][WEIGHTS].numel(), 0)]
        for number, name in enumerate(whole)
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
            assert torch.equal(assembled(read, name, key, tensors[key].numel()), tensors[key])


def test_groups_do_not_share_a_step_counter() -> None:
    shapes: Shapes = [{"a": (3,)}, {"b": (2,)}]
    one = Shard(
        slices(shapes, 0, 1), [{WEIGHTS: torch.ones(n), "step": torch.tensor(3.0)} for n in (3, 2)]
    )
    first, second = reshard([one], shapes, 2, slices)[0].groups
    first["step"] += 1
    assert (float(first["step"]), float(second["step"])) == (4.0, 3.0)


BLOCK = "layers.0.mlp"
WIDTH, ROWS = 3, 2


def moe_shapes(experts: int, division: Division) -> Shapes:
    """One sparse block as the base has it, or as a worker has it with divided experts."""
    own = experts // division.size
    if division.size == 1:
        names = {
            f"{BLOCK}.gate.weight": (experts, WIDTH),
            f"{BLOCK}.experts.gate_up_proj": (experts, 2 * ROWS, WIDTH),
            f"{BLOCK}.experts.down_proj": (experts, WIDTH, ROWS),
        }
        return [names]
    router: dict[str, tuple[int, ...]] = {f"{BLOCK}.router.gate.weight": (experts, WIDTH)}
    matrices: dict[str, tuple[int, ...]] = {
        f"{BLOCK}.experts.w1": (own, ROWS, WIDTH),
        f"{BLOCK}.experts.w2": (own, WIDTH, ROWS),
        f"{BLOCK}.experts.w3": (own, ROWS, WIDTH),
    }
    return [router, matrices]


@st.composite
def divisions(draw: st.DrawFn) -> tuple[int, list[tuple[int, Division]]]:
    """Experts, and layouts of workers that divide them."""
    layouts = []
    for _ in range(3):
        size = draw(st.sampled_from([1, 2, 4]))
        blocks = frozenset({BLOCK} if size > 1 else ())
        layouts.append((size * draw(st.integers(1, 3)), Division(size, blocks)))
    return 4 * draw(st.integers(1, 2)), layouts


@settings(max_examples=100, deadline=None)
@given(case=divisions())
def test_any_division_of_experts_becomes_any_other(
    case: tuple[int, list[tuple[int, Division]]],
) -> None:
    experts, layouts = case
    (base,) = moe_shapes(experts, Division())
    whole = {
        name: {key: torch.randn(torch.Size(shape).numel()) for key in KEYS}
        for name, shape in base.items()
    }
    spans = {
        name: [Span(number, 0, tensors[WEIGHTS].numel(), 0)]
        for number, (name, tensors) in enumerate(whole.items())
    }
    shards = [Shard(spans, list(whole.values()))]
    for workers, division in layouts:
        shapes = moe_shapes(experts, division)
        numels = [
            sum(part_of({name: shape}, workers // _shares(name, division)) for name, shape in names)
            for names in (group.items() for group in shapes)
        ]
        everyone = [slices(shapes, rank, workers, division) for rank in range(workers)]
        shards = [
            Shard(own, [fill(own, group, numel, shards) for group, numel in enumerate(numels)])
            for own in everyone
        ]
        for name, tensors in whole.items():
            for key, value in tensors.items():
                assert torch.equal(assembled(shards, name, key, value.numel()), value)


def _shares(name: str, division: Division) -> int:
    return division.size if division.matrix(name) else 1


def test_divided_experts_lie_where_deepspeed_puts_them() -> None:
    """Two of four workers divide four experts: worker 3 has the second half of experts 2 and 3."""
    shapes: Shapes = [{f"{BLOCK}.experts.w3": (2, 2, 3)}]
    division = Division(2, frozenset({BLOCK}))
    spans = slices(shapes, 3, 4, division)
    # Two matrices of six elements for each expert, the second of them w3.
    assert spans == {f"{BLOCK}.experts.gate_up_proj": [Span(0, 0, 6, 3 * 12 + 6)]}


@pytest.mark.parametrize("stage", [2, 3])
def test_shards_are_read_from_the_files_of_all_workers(stage: int, tmp_path: Path) -> None:
    shapes: Shapes = [{"a": (5, 3), "b": (4,)}, {"c": (7,)}]
    cut = slices if stage == 3 else cut_flat
    whole = {
        name: {key: torch.randn(torch.Size(shape).numel()) for key in KEYS}
        for names in shapes
        for name, shape in names.items()
    }
    spans = {
        name: [Span(number, 0, tensors[WEIGHTS].numel(), 0)]
        for number, (name, tensors) in enumerate(whole.items())
    }
    written = reshard([Shard(spans, list(whole.values()))], shapes, 3, cut)
    for worker, shard in enumerate(written):
        weights = [group.pop(WEIGHTS) for group in shard.groups]
        state = {"state": dict(enumerate(shard.groups))}
        mappings: list[dict[str, Any]] = [{} for _ in shapes]
        for name, (span,) in shard.spans.items():
            mappings[span.group][name] = SimpleNamespace(start=span.start, numel=span.numel)
        saved = (
            {"fp32_flat_groups": weights, "optimizer_state_dict": state}
            if stage == 3
            else {
                "single_partition_of_fp32_groups": weights,
                "base_optimizer_state": state,
                "param_slice_mappings": mappings,
            }
        )
        prefix = f"{tmp_path}/zero_pp_rank_{worker}_mp_rank_00"
        torch.save({"optimizer_state_dict": saved}, f"{prefix}_optim_states.pt")
        torch.save({"param_shapes": shapes}, f"{prefix}_model_states.pt")
    read = resharding._read_all(tmp_path, 3)
    assert [shard.spans for shard in read] == [shard.spans for shard in written]
    for name, tensors in whole.items():
        for key, value in tensors.items():
            assert torch.equal(assembled(read, name, key, value.numel()), value)
