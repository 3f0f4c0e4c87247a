"""Plain rows from JSONL, JSONL.gz and Parquet files, one at a time, and typed access to their fields.

A line that is no row does not end the file: it arrives as a `RowError` in its place, so that the reader can refuse it or
count it. Reads the files that it is given.
"""

from __future__ import annotations

import gzip
import json
import keyword
import os
import zlib
from collections.abc import Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from ssd_ray.errors import UserError, one_line, system_reason
from ssd_ray.file_kinds import refuse_pointer

Row = Mapping[str, Any]
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_MARK = "\ufeff"
"""The byte order mark, which editors put before a file and spreadsheets before the name of the first column."""
MAX_INTEGER_DIGITS = 50_000
"""Longest integer in a test; LiveCodeBench's grader sets the same figure for its own conversions."""


class RowError(ValueError):
    """What is wrong with one row, naming the field; the file and the row's number are added by the reader."""


def list_files(source: str | Path, where: str) -> list[Path]:
    """The JSONL, JSONL.gz or Parquet file at a path, or every such file of a directory in the order of their names.

    Raises:
        UserError: nothing of the kind is there; `where` says who asked.
    """
    try:
        path = Path(source).expanduser()
        files = (
            sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
            if path.is_dir()
            else [path]
        )
        there = bool(files) and all(file.is_file() for file in files)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{where} {str(source)[:200]!r} is no path that can be looked at ({one_line(error)})"
        ) from error
    if not there:
        raise UserError(
            f"{where} {str(source)!r}: no JSONL or Parquet file there; give such a file or a directory of them"
        )
    if closed := [file for file in files if not os.access(file, os.R_OK)]:
        raise UserError(f"{where}: {closed[0]} cannot be read by this user: change its permissions")
    for file in files:
        refuse_pointer(file, where)
    return files


def read_rows(file: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Each row of a file with its number: the line of a JSONL file, the ordinal of a Parquet file, both from 1.

    Raises:
        UserError: the file as a whole cannot be read.
    """
    return _parquet_rows(file) if file.suffix == ".parquet" else _jsonl_rows(file)


def _parquet_rows(file: Path) -> Iterator[tuple[int, Row | RowError]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        # A LiveCodeBench row is megabytes of tests, so batches are small.
        parquet = pq.ParquetFile(file)
        names = [name.removeprefix(_MARK) for name in parquet.schema_arrow.names]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{file} has two columns named {twice[0]!r}: rename one")
        for batch in parquet.iter_batches(batch_size=16):
            for row in _batch_rows(batch.rename_columns(names)):
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is not a readable Parquet file: {one_line(error)}") from error


def _batch_rows(batch: Any) -> list[Row | RowError]:
    try:
        rows: list[Row | RowError] = batch.to_pylist()
    except (ValueError, OverflowError):
        if batch.num_rows > 1:
            return [
                row for place in range(batch.num_rows) for row in _batch_rows(batch.slice(place, 1))
            ]
        return [_unreadable(batch)]
    return rows


def _unreadable(batch: Any) -> RowError:
    """What is wrong with the first column of a one-row batch that Python cannot hold."""
    for name in batch.schema.names:
        try:
            batch.column(name).to_pylist()
        except UnicodeDecodeError:
            return RowError(f"field {name!r} holds text that is not UTF-8")
        except (ValueError, OverflowError) as error:
            return RowError(
                f"field {name!r} holds a value that Python cannot ({error}): leave the column out"
            )
    raise AssertionError("every column can be read")


def _jsonl_rows(file: Path) -> Iterator[tuple[int, Row | RowError]]:
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                row = line.removeprefix(
                    _MARK.encode()
                )  # also where files with such marks were joined
                if row.strip():
                    yield number, _jsonl_row(row)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{file} cannot be read: {system_reason(error)}") from error


def _jsonl_row(line: bytes) -> Row | RowError:
    try:
        row = parse_json(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        return RowError(f"not JSONL in UTF-8 ({error}); each line must be one JSON object")
    if not isinstance(row, dict):
        return RowError("not a JSON object; each line must be one")
    if next(iter(row), "").startswith(_MARK):
        return {name.removeprefix(_MARK): value for name, value in row.items()}
    return row


def parse_json(document: str) -> Any:
    """A JSON document with exact integers of up to MAX_INTEGER_DIGITS digits.

    Raises:
        ValueError: not JSON, or a longer integer.
    """
    return json.loads(document, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) <= 4000:
        return int(digits)
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, more than {MAX_INTEGER_DIGITS}")
    # Python's own limit on int(text) is below this and belongs to the whole process; Decimal has none.
    return int(Decimal(digits))


def text(row: Row, field: str) -> str:
    """A field that must hold text with something in it."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"field {field!r} must hold text, not {shown(value)}")
    return value


def optional_text(row: Row, field: str) -> str | None:
    """A field that holds text or nothing; blank text is nothing."""
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text(row, field)


def identifier(row: Row, field: str) -> str:
    """A field that holds an id: text, or an integer, which becomes text."""
    value = row.get(field)
    return (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else text(row, field)
    )


def entry_point(row: Row, field: str) -> str:
    """Return a field that names a function, or a method as `Solution().name`, where an instance is made first."""
    name = row.get(field)
    owner, is_method, method = name.partition("().") if isinstance(name, str) else ("", "", "")
    if not all(
        part.isidentifier() and not keyword.iskeyword(part)
        for part in ([owner, method] if is_method else [owner])
    ):
        raise RowError(
            f"field {field!r} must name a function, or a method as Solution().name, not {shown(name)}"
        )
    return owner + is_method + method


def json_field(row: Row, field: str, kind: type[list[Any]] | type[dict[str, Any]]) -> Any:
    """A field that holds a list or an object, or the JSON text of one, as Parquet files often do."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"field {field!r} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise RowError(
            f"field {field!r} must hold a {'list' if kind is list else 'JSON object'}, not {shown(value)}"
        )
    return value


def shown(value: object) -> str:
    """A value for an error message, short."""
    return "nothing" if value is None else "empty text" if value == "" else ascii(value)[:80]
