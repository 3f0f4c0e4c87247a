"""Tables of a probe: positions, answers and heads, written shard by shard.

- A shard holds some consecutive batches. Its three files appear by rename, `positions` last, so a
  killed probe resumes at its last complete shard.
- All models go through a batch together. Where that takes too much memory, each trained model goes
  with the base in a pass of its own, and no more than two are in memory.
- `positions`: a row for each position and model, with a few likely tokens. `answers`: a row for
  each answer and model. `heads`: the most likely tokens at a sample of the positions, and at all of
  the answers shown.
- Complete shards are joined into one file a table, row group by row group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ssd_ray.analysis import forward
from ssd_ray.analysis.forward import Context, ScoredModel
from ssd_ray.analysis.measures import Measures, Settings, measure
from ssd_ray.artifacts.files import make_directory
from ssd_ray.artifacts.shards import join_shards, shard_paths, write_table
from ssd_ray.progress import Progress, Task

if TYPE_CHECKING:
    import pyarrow as pa

SHARD_POSITIONS = 8192
"""Least positions of a shard but the last."""
NUM_HEADS = 2000
"""Positions sampled for `heads`."""
NUM_TOP = 6
"""Likely tokens kept at every position, for a reader of the answer."""
TABLES = ("answers", "heads", "positions")
"""Tables in the order of their writing."""
SHARDS = "shards"
_HEADS = ("head_ids", "head_log_probabilities", "base_log_probabilities", "tail_log_masses")

Bools = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work of a probe: models on contexts."""

    models: Sequence[ScoredModel]
    """The base first; their names are those in the tables. Items may be loaded when asked for."""
    contexts: tuple[Context, ...]
    domains: tuple[str, ...]
    """Domain of each context."""
    shown: frozenset[int]
    """Numbers of the contexts with a head at every position."""
    kinds: Callable[[Context], Sequence[str]]
    """Function to the kind of each token of an answer."""
    settings: Settings
    budget: int = forward.BATCH_TOKENS
    together: bool = True
    """All models in one pass; else the base with one other at a time."""


def write(job: Job, out: Path, progress: Progress) -> None:
    """Write the tables of a probe into `out`, resuming after its complete shards.

    Raises:
        UserError: as for `forward.check` and `forward.score`, or the disk is full.
    """
    passes = _passes(job)
    # Before anything is written: a refused probe leaves its directory free.
    forward.check([job.models[each] for each in passes[0]], job.contexts)
    directory = out / SHARDS / ("together" if job.together else "in pairs")
    make_directory(directory)
    groups = list(_shards(job))
    total = len(passes) * sum(context.num_positions for context in job.contexts)
    everything = [
        _Shards(directory=directory, place=place, groups=groups) for place in range(len(passes))
    ]
    done = sum(_num_complete(job, shards) for shards in everything)
    with progress.task("probe", total, "positions", done) as task:
        for shards, members in zip(everything, passes, strict=True):
            done = _write_pass(job, members, shards, task, done)
    for name in TABLES:
        paths = [
            [directory / f"{name}-{number:05}-{place:03}.parquet" for place in range(len(passes))]
            for number in range(len(groups))
        ]
        join_shards(paths, out / f"{name}.parquet")


def _passes(job: Job) -> list[tuple[int, ...]]:
    """Return the numbers of the models to write in each pass."""
    numbers = tuple(range(len(job.models)))
    if job.together or len(numbers) < 2:
        return [numbers]
    return [numbers[:2], *((number,) for number in numbers[2:])]


@dataclass(frozen=True, kw_only=True)
class _Shards:
    """The shards of one pass."""

    directory: Path
    place: int
    """Number of the pass."""
    groups: Sequence[Sequence[tuple[int, ...]]]
    """Batches of each shard."""

    def name(self, number: int) -> str:
        """Return the end of the names of a shard's files."""
        return f"{number:05}-{self.place:03}"

    def complete(self) -> list[bool]:
        """Return True for each shard on disk."""
        existing = {path.stem for path in shard_paths(self.directory)}
        return [f"positions-{self.name(number)}" in existing for number in range(len(self.groups))]


def _num_complete(job: Job, shards: _Shards) -> int:
    """Return the positions of the shards on disk."""
    return sum(
        _positions_of(job, batch)
        for group, is_complete in zip(shards.groups, shards.complete(), strict=True)
        for batch in group
        if is_complete
    )


def _write_pass(job: Job, members: Sequence[int], shards: _Shards, task: Task, done: int) -> int:
    """Write the incomplete shards of one pass, and return the positions done by then."""
    models: tuple[ScoredModel, ...] = ()
    complete = shards.complete()
    for number, group in enumerate(shards.groups):
        if complete[number]:
            continue
        if not models:
            # The base is in every pass: the others are compared with it.
            models = tuple(job.models[each] for each in dict.fromkeys((0, *members)))
            forward.check(models, job.contexts)
        shard = _Shard(job, models, members)
        for batch in group:
            shard.add(batch)
            done += _positions_of(job, batch)
            task.update(done)
        shard.write(shards.directory, shards.name(number))
    return done


def _shards(job: Job) -> Iterator[list[tuple[int, ...]]]:
    """Yield the batches of each shard."""
    group: list[tuple[int, ...]] = []
    positions = 0
    for batch in forward.batches(job.contexts, job.budget):
        group.append(batch)
        positions += _positions_of(job, batch)
        if positions >= SHARD_POSITIONS:
            yield group
            group, positions = [], 0
    if group:
        yield group


def _positions_of(job: Job, batch: Sequence[int]) -> int:
    return sum(job.contexts[row].num_positions for row in batch)


@dataclass(frozen=True, kw_only=True)
class _Places:
    """Positions of a shard, in the order of its rows."""

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int64]


class _Shard:
    """Measures of some batches, to be written as one shard."""

    def __init__(self, job: Job, models: Sequence[ScoredModel], members: Sequence[int]) -> None:
        self._job = job
        self._models = models
        # Measures of the base are written by the first pass alone.
        self._written = models if 0 in members else models[1:]
        self._measures: list[list[Measures]] = [[] for _ in self._written]
        self._places: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, batch: Sequence[int]) -> None:
        """Measure all models at the positions of a batch."""
        job = self._job
        for chunk in forward.score(self._models, job.contexts, batch):
            measured = measure(chunk.logits, chunk.tokens, job.settings)[-len(self._written) :]
            for parts, values in zip(self._measures, measured, strict=True):
                parts.append(values)
            self._places.append((chunk.rows, chunk.offsets, chunk.tokens.cpu()))

    def write(self, directory: Path, name: str) -> None:
        """Write the three files of the shard."""
        import pyarrow as pa

        job = self._job
        rows, offsets, tokens = (
            torch.cat(column).numpy() for column in zip(*self._places, strict=True)
        )
        places = _Places(rows=rows, offsets=offsets, tokens=tokens)
        measured = [Measures.joined(each) for each in self._measures]
        named = list(zip([model.name for model in self._written], measured, strict=True))
        sampled = _sampled(job, places)
        tables = {
            "answers": [_answers(job, places, *each) for each in named],
            "heads": [_heads(job, places, sampled, *each) for each in named],
            "positions": [_positions(job, places, *each) for each in named],
        }
        # Positions come last: a shard with them is complete.
        for table in TABLES:
            write_table(directory, f"{table}-{name}", pa.concat_tables(tables[table]))


def _sampled(job: Job, places: _Places) -> Bools:
    """Return which positions are in an even sample of all."""
    counts = np.array([context.num_positions for context in job.contexts], dtype=np.int64)
    skipped = np.array([context.num_skipped for context in job.contexts], dtype=np.int64)
    starts = np.cumsum(counts) - counts
    index = starts[places.rows] + places.offsets - skipped[places.rows]
    total = int(counts.sum())
    quota = min(NUM_HEADS, total)
    # Every total/quota-th position, in the order of the contexts, whatever the batches.
    chosen: Bools = (index + 1) * quota // total > index * quota // total
    return chosen


def _keys(job: Job, rows: NDArray[np.int64], model: str) -> dict[str, pa.Array]:
    """Return the columns that name an answer and a model."""
    import pyarrow as pa

    contexts = [job.contexts[row] for row in rows]
    return {
        "problem_id": pa.array([context.problem_id for context in contexts]),
        "sample_index": pa.array([context.sample_index for context in contexts], pa.int32()),
        "domain": pa.array([job.domains[row] for row in rows]),
        "model": pa.array([model] * len(rows), pa.string()),
    }


def _positions(job: Job, places: _Places, model: str, measures: Measures) -> pa.Table:
    import pyarrow as pa

    kinds = {row: job.kinds(job.contexts[row]) for row in np.unique(places.rows).tolist()}
    columns = _keys(job, places.rows, model)
    columns |= {
        "position": pa.array(places.offsets, pa.int32()),
        "token_id": pa.array(places.tokens, pa.int32()),
        "token_kind": pa.array(
            [
                kinds[row][offset]
                for row, offset in zip(places.rows.tolist(), places.offsets.tolist(), strict=True)
            ]
        ),
    }
    columns |= {
        name: _array(tensor)
        for name, tensor in vars(measures).items()
        if name not in (*_HEADS, "progress")
    }
    columns["top_ids"] = _array(measures.head_ids[:, :NUM_TOP])
    columns["top_log_probabilities"] = _array(measures.head_log_probabilities[:, :NUM_TOP])
    return pa.table(columns)


def _heads(job: Job, places: _Places, sampled: Bools, model: str, measures: Measures) -> pa.Table:
    import pyarrow as pa

    shown = np.isin(places.rows, sorted(job.shown))
    kept = sampled | shown
    chosen = torch.from_numpy(kept)
    columns = _keys(job, places.rows[kept], model)
    columns |= {
        "position": pa.array(places.offsets[kept], pa.int32()),
        "token_id": pa.array(places.tokens[kept], pa.int32()),
        "is_sampled": pa.array(sampled[kept]),
        "is_shown": pa.array(shown[kept]),
    }
    columns |= {
        name: _array(getattr(measures, name)[chosen])
        for name in ("support_size", "entropy", "log_probability", *_HEADS)
    }
    return pa.table(columns)


def _answers(job: Job, places: _Places, model: str, measures: Measures) -> pa.Table:
    """Return the sums over the positions of each answer."""
    import pyarrow as pa

    rows, inverse = np.unique(places.rows, return_inverse=True)
    sums = torch.zeros((len(rows), measures.progress.shape[1]), dtype=torch.float64)
    sums.index_add_(0, torch.from_numpy(inverse), measures.progress)
    columns = _keys(job, rows, model)
    columns |= {
        "positions": pa.array(np.bincount(inverse), pa.int32()),
        "progress": _array(sums, pa.float64()),
    }
    return pa.table(columns)


def _array(tensor: Tensor, kind: pa.DataType | None = None) -> pa.Array:
    """Return a column: numbers, or lists of them for a tensor of two dimensions."""
    import pyarrow as pa

    kind = kind or (pa.float32() if tensor.is_floating_point() else pa.int32())
    values = pa.array(tensor.flatten().numpy()).cast(kind)
    if tensor.dim() == 1:
        return values
    # Lists of one length need no offsets.
    return pa.FixedSizeListArray.from_arrays(values, tensor.shape[1])
