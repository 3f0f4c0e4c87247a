"""Resharding: restore a resume state of another number of workers or another ZeRO stage.

- Each worker reads its part of weights and moments from all shards, parameter by parameter. It
  fills flat tensors, and DeepSpeed's ordinary loading takes them.
- Shards are mapped into memory, so a worker reads only the elements it needs.
- DeepSpeed's universal checkpoints are not used. In 0.19.8, under ZeRO-3, all sub-groups share one
  step counter, so one step counts as many. Every parameter also gets the first group's weight
  decay, norms and biases included.
- Reads a resume state; writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import distributed

from ssd_ray.errors import UserError, one_line

WEIGHTS = "weights"
_STAGE3, _STAGE12 = "fp32_flat_groups", "single_partition_of_fp32_groups"


Group: TypeAlias = dict[str, Any]
"""Flat weights and optimizer state of a parameter group: tensors, and numbers such as the step."""


@dataclass(frozen=True)
class Span:
    """One worker's part of a parameter, as a range of the flat tensors of a parameter group.

    The spans of a parameter, in the order of workers, cover the parameter without gaps.
    """

    group: int
    start: int
    """First element in the flat tensors."""
    numel: int
    """Number of elements."""


@dataclass(frozen=True)
class Shard:
    """The saved state of one worker."""

    spans: Mapping[str, Span]
    """Spans by parameter name."""
    groups: Sequence[Group]
    """Flat weights and optimizer state, by parameter group."""


def load(engine: Any, directory: Path, num_workers: int) -> None:
    """Load a state written by `num_workers` workers into a fresh ZeRO engine.

    Every worker calls it.

    Raises:
        UserError: a shard is missing or damaged, or is of another model.
    """
    optimizer = engine.optimizer
    rank = engine.global_rank
    fresh = optimizer.state_dict()
    spans_by_worker: list[Any] = [None] * engine.world_size
    distributed.all_gather_object(
        spans_by_worker, _spans(fresh, engine._get_zero_param_shapes(), rank, engine.world_size)
    )
    shards = [_read(directory, worker, num_workers) for worker in range(num_workers)]
    if _sizes(spans_by_worker) != _sizes([shard.spans for shard in shards]):
        raise UserError(
            f"{directory} holds the state of other parameters than the model's: "
            f"{_remedy(directory)}"
        )
    before = {
        name: sum(spans[name].numel for spans in spans_by_worker[:rank] if name in spans)
        for name in spans_by_worker[rank]
    }
    if _STAGE3 in fresh:
        numels = [group.numel() for group in fresh[_STAGE3]]
    else:
        numels = [group["params"][0].numel() for group in optimizer.optimizer.param_groups]
    groups = [
        fill(spans_by_worker[rank], before, number, numel, shards)
        for number, numel in enumerate(numels)
    ]
    _load(optimizer, rank, fresh, groups)


def _load(optimizer: Any, rank: int, fresh: dict[str, Any], groups: Sequence[Group]) -> None:
    """Load filled groups through DeepSpeed, as if this worker had saved them itself."""
    weights = [group.pop(WEIGHTS) for group in groups]
    state = dict(enumerate(groups))
    if _STAGE3 in fresh:
        inner = {**fresh["optimizer_state_dict"], "state": state}
        # The prologue and epilogue are those of DeepSpeed's own loading of ZeRO-3.
        optimizer.checkpoint_event_prologue()
        optimizer.load_state_dict(
            {rank: {**fresh, _STAGE3: weights, "optimizer_state_dict": inner}}
        )
        optimizer.checkpoint_event_epilogue()
    else:
        inner = {**fresh["base_optimizer_state"], "state": state}
        state_dict = {**fresh, _STAGE12: weights, "base_optimizer_state": inner}
        optimizer.load_state_dict({rank: state_dict}, load_from_fp32_weights=True)
        # The model's own weights still are the base's; copy the master weights into them.
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
    """Read the first file of a resume state to match `pattern`, mapped into memory.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = next(directory.glob(pattern), None)
    if path is None:
        raise UserError(f"{directory} lacks the file {pattern}: {_remedy(directory)}")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}): {_remedy(directory)}"
        ) from error


def check(engine: Any, directory: Path) -> None:
    """Check a worker's own files of a state written by the same number of workers.

    Without the optimizer's file, DeepSpeed would silently start with fresh moments.

    Raises:
        UserError: a file is missing or damaged.
    """
    prefix = f"*zero_pp_rank_{engine.global_rank}_mp_rank_00"
    is_stage3 = engine.zero_optimization_stage() == 3
    read(directory, f"{prefix if is_stage3 else 'mp_rank_00'}_model_states.pt")
    if engine.zero_optimization():
        read(directory, f"{prefix}_optim_states.pt")


def _remedy(directory: Path) -> str:
    return f"delete {directory.parent} to train from the first step"


def _spans(
    state: dict[str, Any],
    shapes: Sequence[Mapping[str, Sequence[int]]],
    rank: int,
    num_workers: int,
) -> dict[str, Span]:
    """Return the spans of worker `rank` from its optimizer's state.

    Under ZeRO-3 the state has no mapping, and spans follow from the shapes of each group.
    """
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
    """Return the spans of worker `rank` under ZeRO-3.

    ZeRO-3 cuts every parameter into equal parts and pads the last.
    """
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
) -> Group:
    """Return flat weights and optimizer state of one parameter group of a worker.

    Tensors have `numel` elements, with zeros as padding.

    Args:
        spans: spans of the worker by parameter name.
        before: for each of its parameters, the elements held by the workers before it.
        group: index of the parameter group.
        numel: elements of the group's flat tensors.
        shards: saved state of each worker.
    """
    filled: Group = {}
    for key, example in shards[0].groups[0].items():
        # Scalars, such as the step counter, are the same in every shard.
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
    """Copy elements of parameter `name` from `begin` on out of the shards into `target`.

    `key` names the tensors: weights or a moment of the optimizer.
    """
    end = begin + target.numel()
    at = 0
    for shard in shards:
        if name in shard.spans:
            span = shard.spans[name]
            # The shard holds elements at to at + numel; copy the overlap with begin to end.
            low = max(begin, at)
            high = min(end, at + span.numel)
            if low < high:
                flat = shard.groups[span.group][key]
                target[low - begin : high - begin] = flat[
                    span.start + low - at : span.start + high - at
                ]
            at += span.numel
