"""Slices of rows for grading: a worker reads one slice from Parquet and writes one shard.

- The driver knows keys alone, (`prompt_id`, `sample_index`), and cuts the missing ones into slices.
- A worker reads the rows of a slice and writes its results as one shard, named after its keys.
- No row passes through the driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts import shards
from ssd_ray.artifacts.files import require_regular
from ssd_ray.artifacts.shards import read_table, read_table_of
from ssd_ray.schema import Completion

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, int]


def keys_on_disk(out: Path) -> set[Key]:
    """Return the keys of all rows in complete shards."""
    return set(shards.read_columns(out, "prompt_id", "sample_index"))


def shard_name(keys: list[Key]) -> str:
    """Return the name of the shard with exactly these keys.

    A slice that is graded again replaces its own shard, and no other.
    """
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=10).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Rows of one file, read by one worker. Their results become one shard."""

    file: Path
    rows: tuple[int, ...]
    """Numbers of the rows in the file."""


def cut(path: Path, shard_rows: int) -> Iterator[tuple[list[Key], Slice]]:
    """Yield all slices of one file, with their keys.

    The cut depends on the file alone. So graders that start again, and graders of other machines,
    come to the same shards.
    """
    table = read_table(path, ["prompt_id", "sample_index"])
    keys = list(zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    for start in range(0, len(keys), shard_rows):
        rows = range(start, min(start + shard_rows, len(keys)))
        yield keys[start : rows.stop], Slice(file=path.resolve(), rows=tuple(rows))


def slices_of(path: Path, done: set[Key], shard_rows: int) -> Iterator[Slice]:
    """Yield the work left in one file, a slice per shard."""
    for keys, piece in cut(path, shard_rows):
        rows = tuple(row for key, row in zip(keys, piece.rows, strict=True) if key not in done)
        if rows:
            yield Slice(file=piece.file, rows=rows)


def read_slice(piece: Slice) -> pa.Table:
    """Read the completions of one slice. Runs in workers."""
    import pyarrow as pa

    # Looked at here too: the file may have been replaced since it was cut.
    require_regular(piece.file)
    rows = pa.array(piece.rows, type=pa.int64())
    return read_table_of(piece.file, Completion).take(rows)


def log_to_file(directory: Path, name: str) -> None:
    """Send standard output and error of this process to a file of its own in the run's logs."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{socket.gethostname()}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    # Redirects the descriptors, not sys.stdout: C++ libraries write to the descriptors.
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
