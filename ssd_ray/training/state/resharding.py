"""Resharding: restore a state of another number of workers or another layout of shards.

- Each worker reads its parts of weights and moments from all shards, parameter by parameter. It
  fills flat tensors, and DeepSpeed's ordinary loading takes them.
- Layouts differ by ZeRO stage and by the division of experts. Parameters have the base's names
  here, also where divided experts have other ones.
- Shards are mapped into memory, so a worker reads only the elements it needs.
- DeepSpeed's universal checkpoints are not used. In 0.19.8, under ZeRO-3, all sub-groups share one
  step counter, so one step counts as many. Every parameter also gets the first group's weight
  decay, norms and biases included.
- Reads a resume state; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from math import ceil, prod
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeAlias

import torch
from torch import distributed

from ssd_ray.errors import LastingError, one_line
from ssd_ray.training.model.expert_parallel import MERGED, Division

WEIGHTS = "weights"
_STAGE3, _STAGE12 = "fp32_flat_groups", "single_partition_of_fp32_groups"


UNDIVIDED = Division()
Shapes: TypeAlias = Sequence[Mapping[str, Sequence[int]]]
"""Shapes of the parameters of each group by name, in the order of its flat tensors."""
Group: TypeAlias = dict[str, Any]
"""Flat weights and optimizer state of a parameter group: tensors, and numbers such as the step."""


@dataclass(frozen=True)
class Span:
    """A part of a parameter on one worker, as a range of the flat tensors of a parameter group.

    The spans of all workers cover the parameter without gaps.
    """

    group: int
    start: int
    """First element in the flat tensors."""
    numel: int
    """Number of elements."""
    offset: int
    """First element in the parameter."""


Spans: TypeAlias = Mapping[str, Sequence[Span]]
"""Spans of one worker by parameter name."""


@dataclass(frozen=True)
class Shard:
    """The saved state of one worker."""

    spans: Spans
    groups: Sequence[Group]
    """Flat weights and optimizer state, by parameter group."""


def load(engine: Any, directory: Path, num_workers: int) -> None:
    """Load a state written by `num_workers` workers into a fresh ZeRO engine.

    Every worker calls it.

    Raises:
        LastingError: a shard is missing or damaged, or is of another model.
    """
    optimizer = engine.optimizer
    rank = engine.global_rank
    fresh = optimizer.state_dict()
    parts: list[Any] = [None] * engine.world_size
    own = _parts(fresh, engine._get_zero_param_shapes(), Division.of(engine.module))
    distributed.all_gather_object(parts, own)
    spans = _spans(parts)
    shards = _read_all(directory, num_workers)
    if _sizes(spans) != _sizes([shard.spans for shard in shards]):
        raise LastingError(
            f"{directory} holds the state of other parameters than the model's: "
            f"{_remedy(directory)}"
        )
    if _STAGE3 in fresh:
        numels = [group.numel() for group in fresh[_STAGE3]]
    else:
        numels = [group["params"][0].numel() for group in optimizer.optimizer.param_groups]
    groups = [fill(spans[rank], number, numel, shards) for number, numel in enumerate(numels)]
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


def _read_all(directory: Path, num_workers: int) -> list[Shard]:
    """Read the shards of all workers, mapped into memory."""
    saved = [
        read(directory, f"*zero_pp_rank_{worker}_mp_rank_00_optim_states.pt")[
            "optimizer_state_dict"
        ]
        for worker in range(num_workers)
    ]
    is_stage3 = _STAGE3 in saved[0]
    shapes: Shapes = []
    division = UNDIVIDED
    if is_stage3:
        # The shapes, also of divided experts, are those of every worker.
        model = read(directory, "*_model_states.pt")
        shapes = model["param_shapes"]
        blocks = model.get("ds_autoep_layers") or ()
        division = Division(
            max((block["ep_size"] for block in blocks), default=1),
            frozenset(block["module_path"] for block in blocks),
        )
    spans = _spans([_parts(each, shapes, division) for each in saved])
    weights = _STAGE3 if is_stage3 else _STAGE12
    inner = "optimizer_state_dict" if is_stage3 else "base_optimizer_state"
    return [
        Shard(
            own,
            [
                {**each[inner]["state"][number], WEIGHTS: flat}
                for number, flat in enumerate(each[weights])
            ],
        )
        for own, each in zip(spans, saved, strict=True)
    ]


def read(directory: Path, pattern: str) -> Any:
    """Read the first file of a resume state to match `pattern`, mapped into memory.

    Raises:
        LastingError: there is none, or it is damaged.
    """
    path = next(directory.glob(pattern), None)
    if path is None:
        raise LastingError(f"{directory} lacks the file {pattern}: {_remedy(directory)}")
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=False)
    except (RuntimeError, EOFError, UnpicklingError, ValueError, KeyError) as error:
        raise LastingError(
            f"{path} cannot be read ({one_line(error)}): {_remedy(directory)}"
        ) from error


def check(engine: Any, directory: Path) -> None:
    """Check a worker's own files of a state written by the same number of workers.

    Without the optimizer's file, DeepSpeed would silently start with fresh moments.

    Raises:
        LastingError: a file is missing or damaged.
    """
    prefix = f"*zero_pp_rank_{engine.global_rank}_mp_rank_00"
    is_stage3 = engine.zero_optimization_stage() == 3
    read(directory, f"{prefix if is_stage3 else 'mp_rank_00'}_model_states.pt")
    if engine.zero_optimization():
        read(directory, f"{prefix}_optim_states.pt")


def _remedy(directory: Path) -> str:
    """Return the remedy for a state that cannot be read, though its files are as recorded."""
    if len(list(directory.parent.glob("step-*"))) > 1:
        return f"delete {directory} to go back to the state before it"
    return f"delete {directory.parent} to train from the first step"


@dataclass(frozen=True)
class _Parts:
    """Facts of a worker's optimizer from which the spans of its parameters follow."""

    mappings: Sequence[Mapping[str, Any]] | None
    """Up to ZeRO-2: by group, the range of each of its parameters. None under ZeRO-3."""
    shapes: Shapes
    """Under ZeRO-3: by group, the shape of each parameter, in order."""
    division: Division


def _parts(state: dict[str, Any], shapes: Shapes, division: Division) -> _Parts:
    mappings = None if _STAGE3 in state else state["param_slice_mappings"]
    return _Parts(mappings, shapes, division)


def _spans(workers: Sequence[_Parts]) -> list[Spans]:
    """Return the spans of each worker, from the facts of all workers in their order."""
    if workers[0].mappings is None:
        number = len(workers)
        return [
            slices(parts.shapes, rank, number, parts.division) for rank, parts in enumerate(workers)
        ]
    ends: dict[str, int] = {}
    spans: list[Spans] = []
    for parts in workers:
        own = {}
        for group, names in enumerate(parts.mappings or ()):
            for name, at in names.items():
                offset = ends.get(name, 0)
                own[name] = [Span(group, at.start, at.numel, offset)]
                ends[name] = offset + at.numel
        spans.append(own)
    return spans


def slices(
    shapes: Shapes, rank: int, num_workers: int, division: Division = UNDIVIDED
) -> dict[str, list[Span]]:
    """Return the spans of worker `rank` under ZeRO-3.

    ZeRO-3 cuts every parameter into equal parts and pads the last. Divided experts are cut among
    the workers that have the same ones.
    """
    spans: dict[str, list[Span]] = {}
    for group, names in enumerate(shapes):
        start = 0
        for name, shape in names.items():
            matrix = division.matrix(name)
            size = division.size if matrix else 1
            part = ceil(prod(shape) / (num_workers // size))
            offset = rank // size * part
            span = Span(group, start, max(0, min(part, prod(shape) - offset)), offset)
            cut = _by_expert(span, shape, rank % size, matrix) if matrix else [span]
            spans.setdefault(division.base_name(name), []).extend(cut)
            start += part
    return spans


def _by_expert(span: Span, shape: Sequence[int], place: int, matrix: str) -> Iterator[Span]:
    """Cut a span of a worker's experts into single ones, with their offsets in the base.

    Args:
        span: part of the worker's experts.
        shape: their shape, [experts, rows, columns].
        place: the worker's place among those that divide the experts.
        matrix: AutoEP's name of the matrix.
    """
    experts, size = shape[0], prod(shape[1:])
    _, index, number = MERGED[matrix]
    at = span.offset
    end = span.offset + span.numel
    while at < end:
        expert, within = divmod(at, size)
        numel = min(size - within, end - at)
        base = ((place * experts + expert) * number + index) * size + within
        yield Span(span.group, span.start + at - span.offset, numel, base)
        at += numel


def _sizes(workers: Sequence[Spans]) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for spans in workers:
        for name, parts in spans.items():
            sizes[name] = sizes.get(name, 0) + sum(part.numel for part in parts)
    return sizes


def fill(spans: Spans, group: int, numel: int, shards: Sequence[Shard]) -> Group:
    """Return flat weights and optimizer state of one parameter group of a worker.

    Tensors have `numel` elements, with zeros as padding.

    Args:
        spans: spans of the worker.
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
        for name, parts in spans.items():
            for part in parts:
                if part.group == group:
                    target = filled[key][part.start : part.start + part.numel]
                    _copy(target, name, key, part.offset, shards)
    return filled


def _copy(target: torch.Tensor, name: str, key: str, begin: int, shards: Sequence[Shard]) -> None:
    """Fill `target` with parameter `name` from the shards, from element `begin` on.

    `key` names the tensors: weights or a moment of the optimizer.
    """
    end = begin + target.numel()
    for shard in shards:
        for span in shard.spans.get(name, ()):
            # The shard holds elements [offset, offset + numel). Copy those in [begin, end).
            low = max(begin, span.offset)
            high = min(end, span.offset + span.numel)
            if low < high:
                flat = shard.groups[span.group][key]
                shift = span.start - span.offset
                target[low - begin : high - begin] = flat[shift + low : shift + high]
