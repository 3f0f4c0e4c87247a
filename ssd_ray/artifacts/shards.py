"""Read and write the Parquet shards of artifacts.

- A shard appears by rename, so it is complete or absent.
- Each page has a checksum: changed bytes are found while reading, and reported with the remedy.

No other module touches the package's own Parquet files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts.files import names, write_atomic
from ssd_ray.errors import LastingError, OutsideError, one_line, system_reason
from ssd_ray.file_kinds import refuse_pointer
from ssd_ray.schema import Row, RowT, arrow_schema, from_table, to_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """A file of an artifact as its manifest lists it."""

    name: str
    bytes: int
    sha256: str | None = None
    """None for weights: they are many GiB, and only their sizes are recorded."""


def read_table(
    path: Path, columns: list[str] | None = None, *, memory_map: bool = False
) -> pa.Table:
    """Read a shard, or some of its columns.

    Raises:
        LastingError: the shard is damaged or has no such column.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # `pq.read_table` would load pandas and the reader of datasets, a quarter of a second.
    with (
        _readable(path),
        pq.ParquetFile(
            path,
            memory_map=memory_map,
            pre_buffer=not memory_map,
            page_checksum_verification=True,
        ) as file,
    ):
        lacking = set(columns or ()).difference(file.schema_arrow.names)
        if lacking:
            raise pa.ArrowInvalid(f"it lacks {', '.join(sorted(lacking))}")
        table = file.read(columns)
        table.validate(full=True)
        return table if columns is None else table.select(columns)


def read_table_of(path: Path, row_type: type[Row], *, memory_map: bool = False) -> pa.Table:
    """Read a shard of a row type; columns with a default may be missing.

    Raises:
        LastingError: the shard is damaged, lacks a column without a default, or has unknown
            columns.
    """
    import pyarrow as pa

    table = read_table(path, memory_map=memory_map)
    fields = dataclasses.fields(row_type)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    lacking = required - set(table.column_names)
    unknown = set(table.column_names) - {field.name for field in fields}
    with _readable(path):
        if lacking or unknown:
            columns = ", ".join(sorted(lacking or unknown))
            fault = f"lacks the columns {columns}" if lacking else f"has other columns: {columns}"
            raise pa.ArrowInvalid(f"as rows of {row_type.__name__} it {fault}")
        return table


class ForeignShardError(Exception):
    """A shard of a process without trust that cannot be used; the message is the reason."""


def read_foreign(data: bytes, row_type: type[Row], *, most_rows: int, most_bytes: int) -> pa.Table:
    """Read a shard of a process without trust, of exactly the columns of a row type.

    Sizes are checked before anything is decompressed.

    Raises:
        ForeignShardError: other columns, too many rows or bytes, or a damaged file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
            footer = file.metadata
            if not file.schema_arrow.equals(arrow_schema(row_type)):
                raise ForeignShardError(f"does not have the columns of a {row_type.__name__}")
            if footer.num_rows > most_rows:
                raise ForeignShardError(f"has {footer.num_rows:,} rows")
            groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
            if (size := sum(group.total_byte_size for group in groups)) > most_bytes:
                raise ForeignShardError(f"has {size:,} bytes uncompressed")
            table = file.read()
        table.validate(full=True)
    except (OSError, pa.ArrowException) as error:
        raise ForeignShardError(f"cannot be read ({one_line(error, 200)})") from error
    return table


def read_row_group(path: Path, number: int, column: str) -> pa.ChunkedArray:
    """Read one column of one row group of a shard.

    Raises:
        LastingError: as for `read_table`.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        table = shard.read_row_group(number, columns=[column])
        if column not in table.column_names:
            raise pa.ArrowInvalid(f"it lacks {column}")
        table.validate(full=True)
        return table.column(column)


def row_groups(path: Path) -> list[int]:
    """Count the rows of each row group of a shard, from its footer.

    Raises:
        LastingError: the footer is damaged.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        footer = pq.read_metadata(path)
        return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def row_group_tables(path: Path, columns: Iterable[str]) -> Iterator[pa.Table]:
    """Yield some columns of a shard, a row group at a time.

    Raises:
        LastingError: as for `read_table`.
    """
    import pyarrow.parquet as pq

    chosen = list(dict.fromkeys(columns))
    with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        for number in range(shard.num_row_groups):
            yield shard.read_row_group(number, columns=chosen)


def batches(path: Path, columns: Iterable[str], rows: int) -> Iterator[pa.RecordBatch]:
    """Yield some columns of a shard, at most `rows` rows at a time.

    Raises:
        LastingError: as for `read_table`.
    """
    import pyarrow.parquet as pq

    chosen = list(dict.fromkeys(columns))
    with _readable(path), pq.ParquetFile(path, page_checksum_verification=True) as shard:
        yield from shard.iter_batches(rows, columns=chosen)


def column_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digest each column over the rows of shards, in order: sixteen hex digits by column name.

    A digest follows from the values alone. The cuts between shards and the bytes
    written by a version of Parquet make no difference.

    Raises:
        LastingError: as for `read_table`.
    """
    digests: dict[str, tuple[Any, Any]] = {}
    for path in paths:
        table = read_table(path)
        for name in table.column_names:
            lengths, values = digests.setdefault(name, (hashlib.sha256(), hashlib.sha256()))
            for chunk in table.column(name).chunks:
                _feed(chunk, lengths, values)
    return {
        name: hashlib.sha256(lengths.digest() + values.digest()).hexdigest()[:16]
        for name, (lengths, values) in digests.items()
    }


def _feed(values: pa.Array, lengths: Any, digest: Any) -> None:
    """Add an array to the digests of lengths and values: token ids as bytes, the rest as JSON."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if (
        pa.types.is_list(values.type)
        and pa.types.is_integer(values.type.value_type)
        and not values.null_count
    ):
        # Lengths apart from values: [[1], [2, 3]] must differ from [[1, 2], [3]].
        lengths.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
        digest.update(values.flatten().to_numpy(zero_copy_only=False).tobytes())
    else:
        for value in values.to_pylist():
            digest.update(json.dumps(value).encode() + b"\n")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn an error of pyarrow about a damaged shard into one sentence with the remedy."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        # A shard in git-lfs is refused with its own remedy.
        refuse_pointer(path, "a shard of this program")
        raise LastingError(
            f"{path} cannot be read ({one_line(error, 200)}): "
            "delete that file and run the same command again"
        ) from error


def shard_paths(out: Path) -> list[Path]:
    """Return the complete Parquet shards of an artifact in the order of their names."""
    return sorted(
        out / name for name in names(out) if name.endswith(".parquet") and not name.startswith(".")
    )


def write_shard(out: Path, name: str, rows: Iterable[RowT], row_type: type[RowT]) -> Path:
    """Write rows as one Parquet shard, which appears by rename, and return its path.

    Raises:
        OutsideError: the directory is not writable or the disk is full.
    """
    return write_table(out, name, to_table(rows, row_type))[0]


def write_table(out: Path, name: str, table: pa.Table) -> tuple[Path, bytes]:
    """Write a table in a row type's schema as one shard; return its path and the file's bytes.

    Raises:
        OutsideError: the directory is not writable or the disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # In memory first, so that the caller can digest exactly the bytes on disk.
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    path = out / f"{name}.parquet"
    data = sink.getvalue().to_pybytes()
    write_atomic(path, data)
    return path, data


def read_rows(out: Path, row_type: type[RowT]) -> Iterator[RowT]:
    """Yield every row of an artifact, with one shard in memory at a time."""
    for path in shard_paths(out):
        yield from from_table(read_table_of(path, row_type), row_type)


def read_columns(out: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """Yield the named columns of every row, for keys and counts without the text."""
    for path in shard_paths(out):
        table = read_table(path, list(columns))
        yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)


def join_shards(groups: Sequence[Sequence[Path]], target: Path) -> None:
    """Write groups of shards as one file, a row group each, without all of them in memory.

    The file appears by rename. After a kill the shards can be joined again.

    Raises:
        OutsideError: the disk is full, or the directory not writable.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = target.with_name(f".{target.name}.partial")
    try:
        with pq.ParquetWriter(
            temporary, pq.read_schema(groups[0][0]), compression="zstd", write_page_checksum=True
        ) as writer:
            for paths in groups:
                writer.write_table(pa.concat_tables([read_table(path) for path in paths]))
        temporary.replace(target)
    except OSError as error:
        # Storage that became read-only refuses this too.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OutsideError(
            f"cannot write {target} ({system_reason(error)}): make room and run again"
        ) from error
