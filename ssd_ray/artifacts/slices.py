"""Slices of rows by their keys, for workers that read what they are told from Parquet and write one shard: grading's way.

The driver knows only keys, (`prompt_id`, `sample_index`), and cuts those that are not on disk yet into slices; a worker reads the
rows of a slice and writes its results as one shard, named after its keys. No row reaches the driver.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts import shards
from ssd_ray.artifacts.shards import read_table, read_table_of
from ssd_ray.schema import Completion

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, int]


def keys_on_disk(out: Path) -> set[Key]:
    """The keys of every row in whole shards."""
    return set(shards.read_columns(out, "prompt_id", "sample_index"))


def shard_name(keys: list[Key]) -> str:
    """The name of the shard that holds exactly these keys: a redone batch replaces its own shard and no other."""
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=10).hexdigest()


def slices_of(path: Path, done: set[Key], shard_rows: int) -> Iterator[dict[str, Any]]:
    """The work that is left in one file, one record a shard: the file, and the rows of it to read."""
    table = read_table(path, ["prompt_id", "sample_index"])
    keys = zip(table["prompt_id"].to_pylist(), table["sample_index"].to_pylist(), strict=True)
    left = [row for row, key in enumerate(keys) if key not in done]
    for start in range(0, len(left), shard_rows):
        yield {"file": str(path.resolve()), "rows": left[start : start + shard_rows]}


def read_slice(record: Mapping[str, Any]) -> pa.Table:
    """The completions of one slice; for workers."""
    import pyarrow as pa

    return read_table_of(Path(record["file"]), Completion).take(
        pa.array(record["rows"], type=pa.int64())
    )


def log_to_file(directory: Path, name: str) -> None:
    """Send this worker process's standard output and error to a file of its own in the run's logs."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{name}-{socket.gethostname()}-{os.getpid()}.log"
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
