"""A resume state that another number of workers wrote: each worker takes its own part of weights and moments out of all shards.

Not DeepSpeed's universal checkpoints: in 0.19.8, under ZeRO-3, they give all sub-groups one step counter, which then counts as
many steps at once as there are sub-groups, and every parameter the first group's weight decay, norms and biases too. Here shards
are read by parameter, a worker's flat tensors are filled, and DeepSpeed's ordinary loading takes them.
Shards are mapped into memory, so that a worker reads what it needs and no more.
Reads a resume state; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import distributed

from ssd_ray.errors import UserError, one_line

WEIGHTS = "weights"
_STAGE3, _STAGE12 = "fp32_flat_groups", "single_partition_of_fp32_groups"


@dataclass(frozen=True)
class Span:
    """The part of a parameter that one worker holds: `numel` elements from `start` on in the flat tensors of `group`.

    The spans of a parameter, in the order of the workers, make up the parameter without gaps.
    """

    group: int
    start: int
    numel: int


@dataclass(frozen=True)
class Shard:
    """What one worker holds: spans by a parameter's name, and by group the flat weights and the optimiser's state."""

    spans: Mapping[str, Span]
    groups: Sequence[Mapping[str, Any]]


def load(engine: Any, directory: Path, num_workers: int) -> None:
    """Put the state that `num_workers` workers wrote into `directory` into a fresh ZeRO engine; every worker calls it.

    Raises:
        UserError: a shard is missing or damaged, or is of another model.
    """
    optimizer, rank = engine.optimizer, engine.global_rank
    fresh = optimizer.state_dict()
    everyone: list[Any] = [None] * engine.world_size
    distributed.all_gather_object(
        everyone, _spans(fresh, engine._get_zero_param_shapes(), rank, engine.world_size)
    )
    shards = [_read(directory, worker, num_workers) for worker in range(num_workers)]
    if _sizes(everyone) != _sizes([shard.spans for shard in shards]):
        raise UserError(
            f"{directory} holds the state of other parameters than the model's: {_anew(directory)}"
        )
    before = {
        name: sum(spans[name].numel for spans in everyone[:rank] if name in spans)
        for name in everyone[rank]
    }
    if _STAGE3 in fresh:
        numels = [group.numel() for group in fresh[_STAGE3]]
    else:
        numels = [group["params"][0].numel() for group in optimizer.optimizer.param_groups]
    groups = [
        fill(everyone[rank], before, number, numel, shards) for number, numel in enumerate(numels)
    ]
    _take(optimizer, rank, fresh, groups)


def _take(
    optimizer: Any, rank: int, fresh: dict[str, Any], groups: Sequence[dict[str, Any]]
) -> None:
    """Let DeepSpeed load what this worker would have saved, had so many workers trained from the start."""
    weights = [group.pop(WEIGHTS) for group in groups]
    state = dict(enumerate(groups))
    if _STAGE3 in fresh:
        inner = {**fresh["optimizer_state_dict"], "state": state}
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict(
            {rank: {**fresh, _STAGE3: weights, "optimizer_state_dict": inner}}
        )
        optimizer.checkpoint_event_epilogue()
    else:
        inner = {**fresh["base_optimizer_state"], "state": state}
        mine = {**fresh, _STAGE12: weights, "base_optimizer_state": inner}
        optimizer.load_state_dict({rank: mine}, load_from_fp32_weights=True)
        optimizer.update_lp_params()


def _read(directory: Path, worker: int, num_workers: int) -> Shard:
    saved = read(directory, f"*zero_pp_rank_{worker}_mp_rank_00_optim_states.pt")[
        "optimizer_state_dict"
    ]
    is_stage3 = _STAGE3 in saved
    shapes = read(directory, "*_model_states.pt")["param_shapes"] if is_stage3 else []
    weights = saved[_STAGE3 if is_stage3 else _STAGE12]
    state = saved["optimizer_state_dict" if is_stage3 else "base_optimizer_state"]["state"]
    groups = [{**state[number], WEIGHTS: flat} for number, flat in enumerate(weights)]
    return Shard(_spans(saved, shapes, worker, num_workers), groups)


def read(directory: Path, pattern: str) -> Any:
    """What the first file of a resume state holds that has such a name, mapped into memory.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = next(directory.glob(pattern), None)
    if path is None:
        raise UserError(f"{directory} lacks the file {pattern}: {_anew(directory)}")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise UserError(f"{path} cannot be read ({one_line(error)}): {_anew(directory)}") from error


def check(engine: Any, directory: Path) -> None:
    """Whether a worker can read its part of a state that as many workers wrote, without the optimiser's of which DeepSpeed would
    begin with fresh moments and not say so.

    Raises:
        UserError: it is missing or damaged.
    """
    mine = f"*zero_pp_rank_{engine.global_rank}_mp_rank_00"
    read(
        directory,
        f"{mine if engine.zero_optimization_stage() == 3 else 'mp_rank_00'}_model_states.pt",
    )
    if engine.zero_optimization():
        read(directory, f"{mine}_optim_states.pt")


def _anew(directory: Path) -> str:
    return f"delete {directory.parent} to train from the first step"


def _spans(
    state: dict[str, Any],
    shapes: Sequence[Mapping[str, Sequence[int]]],
    rank: int,
    num_workers: int,
) -> dict[str, Span]:
    """What worker `rank` holds, from its optimiser's state; under ZeRO-3 from the shapes of each group's parameters."""
    if _STAGE3 not in state:
        mappings = enumerate(state["param_slice_mappings"])
        return {
            name: Span(group, at.start, at.numel)
            for group, names in mappings
            for name, at in names.items()
        }
    return slices(shapes, rank, num_workers)


def slices(
    shapes: Sequence[Mapping[str, Sequence[int]]], rank: int, num_workers: int
) -> dict[str, Span]:
    """What worker `rank` holds under ZeRO-3, which cuts every parameter into equal parts and pads the last."""
    spans = {}
    for group, names in enumerate(shapes):
        start = 0
        for name, shape in names.items():
            part = ceil(prod(shape) / num_workers)
            spans[name] = Span(group, start, max(0, min(part, prod(shape) - rank * part)))
            start += part
    return spans


def _sizes(workers: Sequence[Mapping[str, Span]]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spans in workers:
        for name, span in spans.items():
            sizes[name] = sizes.get(name, 0) + span.numel
    return sizes


def fill(
    spans: Mapping[str, Span],
    before: Mapping[str, int],
    group: int,
    numel: int,
    shards: Sequence[Shard],
) -> dict[str, Any]:
    """The flat weights and the optimiser's state of one group of a worker, `numel` elements each, zero where it is padded.

    Args:
        spans: what the worker holds.
        before: for each of its parameters, the elements that workers before it hold.
        group: the group that is filled.
        numel: elements of the group's flat tensors.
        shards: what each worker saved.
    """
    filled: dict[str, Any] = {}
    for key, example in shards[0].groups[0].items():
        if not (torch.is_tensor(example) and example.dim()):
            filled[key] = example.clone() if torch.is_tensor(example) else copy(example)
            continue
        filled[key] = torch.zeros(numel, dtype=example.dtype)
        for name, span in spans.items():
            if span.group == group:
                _copy(
                    filled[key][span.start : span.start + span.numel],
                    name,
                    key,
                    before[name],
                    shards,
                )
    return filled


def _copy(target: torch.Tensor, name: str, key: str, begin: int, shards: Sequence[Shard]) -> None:
    """Copy what `key` says of the elements of parameter `name` from `begin` on into `target`, from the shards that hold them."""
    end, at = begin + target.numel(), 0
    for shard in shards:
        if name in shard.spans:
            span = shard.spans[name]
            low, high = max(begin, at), min(end, at + span.numel)
            if low < high:
                flat = shard.groups[span.group][key]
                target[low - begin : high - begin] = flat[
                    span.start + low - at : span.start + high - at
                ]
            at += span.numel
