"""Read and write the Parquet shards of artifacts.

- A shard appears by rename, so it is complete or absent.
- Each page has a checksum: changed bytes are found while reading, and reported with the remedy.

No other module touches the package's own Parquet files.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts.files import write_atomic
from ssd_ray.errors import UserError, one_line
from ssd_ray.file_kinds import refuse_pointer
from ssd_ray.schema import Row, RowT, from_table, to_table

if TYPE_CHECKING:
    import pyarrow as pa


def read_table(
    path: Path, columns: list[str] | None = None, *, memory_map: bool = False
) -> pa.Table:
    """Read a shard, or some of its columns.

    Raises:
        UserError: its bytes are not as they were written, or it has no such column.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        table = pq.read_table(
            path, columns=columns, memory_map=memory_map, page_checksum_verification=True
        )
        table.validate(full=True)
        return table


def read_table_of(path: Path, row_type: type[Row], *, memory_map: bool = False) -> pa.Table:
    """Read a shard of a row type; columns that have a default may be missing.

    Raises:
        UserError: as for `read_table`, or it has other columns.
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
            wrong = f"lacks {columns}" if lacking else f"holds {columns}"
            raise pa.ArrowInvalid(f"as a table of {row_type.__name__} it {wrong}")
        return table


def read_row_group(path: Path, number: int, column: str) -> pa.ChunkedArray:
    """Read one column of one row group of a shard.

    Raises:
        UserError: as for `read_table`.
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
        UserError: the footer is not as it was written.
    """
    import pyarrow.parquet as pq

    with _readable(path):
        footer = pq.read_metadata(path)
        return [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]


def column_digests(paths: Iterable[Path]) -> dict[str, str]:
    """Digest each column over the rows of shards in their order: sixteen hex digits by column name.

    The digests follow the values alone, and neither how rows are cut into shards nor how a version of Parquet writes them.

    Raises:
        UserError: as for `read_table`.
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
    """Add an array to the digests of its lengths and its values; token ids are taken as bytes, all else as JSON."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if (
        pa.types.is_list(values.type)
        and pa.types.is_integer(values.type.value_type)
        and not values.null_count
    ):
        lengths.update(pc.list_value_length(values).to_numpy(zero_copy_only=False).tobytes())
        digest.update(values.flatten().to_numpy(zero_copy_only=False).tobytes())
    else:
        for value in values.to_pylist():
            digest.update(json.dumps(value).encode() + b"\n")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn what pyarrow says of a damaged shard into one sentence with the remedy."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        refuse_pointer(path, "a shard of this program")
        raise UserError(
            f"{path} cannot be read ({one_line(error, 200)}): delete that file and run the same command again"
        ) from error


def shard_paths(out: Path) -> list[Path]:
    """The whole Parquet shards of an artifact, in the order of their names."""
    return sorted(path for path in out.glob("*.parquet") if not path.name.startswith("."))


def write_shard(out: Path, name: str, rows: Iterable[RowT], row_type: type[RowT]) -> Path:
    """Write rows as one Parquet shard that appears whole or not at all.

    Raises:
        UserError: the directory is not writable or the disk is full.
    """
    return write_table(out, name, to_table(rows, row_type))[0]


def write_table(out: Path, name: str, table: pa.Table) -> tuple[Path, bytes]:
    """As `write_shard`, of a table that is in the row type's schema; also returns the bytes of the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    path, data = out / f"{name}.parquet", sink.getvalue().to_pybytes()
    write_atomic(path, data)
    return path, data


def read_rows(out: Path, row_type: type[RowT]) -> Iterator[RowT]:
    """Every row of an artifact, shard by shard; one shard is in memory at a time."""
    for path in shard_paths(out):
        yield from from_table(read_table_of(path, row_type), row_type)


def read_columns(out: Path, *columns: str) -> Iterator[tuple[Any, ...]]:
    """The named columns of every row, for keys and counts without the text."""
    for path in shard_paths(out):
        table = read_table(path, list(columns))
        yield from zip(*(table.column(name).to_pylist() for name in columns), strict=True)
