"""Rows of JSONL, JSONL.gz and Parquet files, read one by one, with typed access to fields.

An unreadable line does not end the file: it arrives as a `RowError` in its place. The caller
refuses or counts it.
"""

from __future__ import annotations

import gzip
import json
import keyword
import os
import zlib
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import Json
from ssd_ray.errors import UserError, one_line, system_reason
from ssd_ray.file_kinds import refuse_pointer

Row = Json
SUFFIXES = (".jsonl", ".jsonl.gz", ".parquet")
_MARK = "\ufeff"
"""Byte order mark: editors write it at the start of a file, spreadsheets before the first column's
name.
"""
MAX_INTEGER_DIGITS = 50_000
"""Maximum number of digits of an integer in a test, as in LiveCodeBench's grader."""


class RowError(ValueError):
    """Mistake in a row, with its field. The caller adds the file and the row's number."""


def list_files(source: str | Path, where: str) -> list[Path]:
    """Return the JSONL, JSONL.gz or Parquet file at a path, or those of a directory by name.

    `where` is the recipe field or argument with the path, for error messages.

    Raises:
        UserError: There is no such file, or it cannot be read.
    """
    try:
        path = Path(source).expanduser()
        files = [path]
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.name.endswith(SUFFIXES))
        are_files = bool(files) and all(file.is_file() for file in files)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{where} {str(source)[:200]!r} is not a usable path ({one_line(error)})"
        ) from error
    if not are_files:
        raise UserError(
            f"{where} {str(source)!r}: no JSONL or Parquet file there; "
            "give such a file or a directory of them"
        )
    if unreadable := [file for file in files if not os.access(file, os.R_OK)]:
        raise UserError(
            f"{where}: {unreadable[0]} cannot be read by this user: change its permissions"
        )
    for file in files:
        refuse_pointer(file, where)
    return files


def read_rows(file: Path) -> Iterator[tuple[int, Row | RowError]]:
    """Yield each row of a file with its number from 1: a line of JSONL, a row of Parquet.

    Raises:
        UserError: The file itself cannot be read.
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
        if repeated := [name for name in names if names.count(name) > 1]:
            raise UserError(f"{file} has two columns named {repeated[0]!r}: rename one")
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
        # One bad value fails its complete batch, so the batch is read again row by row.
        if batch.num_rows > 1:
            return [
                row for place in range(batch.num_rows) for row in _batch_rows(batch.slice(place, 1))
            ]
        return [_unreadable(batch)]
    return rows


def _unreadable(batch: Any) -> RowError:
    """Return the error of a one-row batch, for its first column with a value unknown to Python."""
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
                # On any line: files with such marks may have been concatenated.
                row = line.removeprefix(_MARK.encode())
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
    """Return a JSON document with exact integers of up to MAX_INTEGER_DIGITS digits.

    Raises:
        ValueError: The text is not JSON, or an integer is longer.
    """
    return json.loads(document, parse_int=_integer)


def _integer(digits: str) -> int:
    if len(digits) <= 4000:
        return int(digits)
    if len(digits) > MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer of {len(digits)} digits, more than {MAX_INTEGER_DIGITS}")
    # Python's own limit on int(text) is lower, and applies to all of the process. Decimal has none.
    return int(Decimal(digits))


def text(row: Row, field: str) -> str:
    """Return a field with text other than blanks."""
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"field {field!r} must hold text, not {shown(value)}")
    return value


def optional_text(row: Row, field: str) -> str | None:
    """Return an optional field with text; blank text is None."""
    value = row.get(field)
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    return text(row, field)


def identifier(row: Row, field: str) -> str:
    """Return a field with an id: text, or an integer as text."""
    value = row.get(field)
    return (
        str(value) if isinstance(value, int) and not isinstance(value, bool) else text(row, field)
    )


def entry_point(row: Row, field: str) -> str:
    """Return a field with the name of a function, or of a method as `Solution().name`.

    A method is called on a new instance.
    """
    name = row.get(field)
    owner, is_method, method = name.partition("().") if isinstance(name, str) else ("", "", "")
    if not all(
        part.isidentifier() and not keyword.iskeyword(part)
        for part in ([owner, method] if is_method else [owner])
    ):
        raise RowError(
            f"field {field!r} must name a function, or a method as Solution().name, not "
            f"{shown(name)}"
        )
    return owner + is_method + method


def json_field(row: Row, field: str, kind: type[list[Any]] | type[Json]) -> Any:
    """Return a field with a list or an object, or with the JSON text of one."""
    value = row.get(field)
    if isinstance(value, str):
        try:
            value = parse_json(value)
        except (ValueError, RecursionError) as error:
            raise RowError(f"field {field!r} is not JSON: {error}") from error
    if not isinstance(value, kind):
        raise RowError(
            f"field {field!r} must hold a {'list' if kind is list else 'JSON object'}, not "
            f"{shown(value)}"
        )
    return value


def shown(value: object) -> str:
    """Return a value in short form, for an error message."""
    if value is None:
        return "nothing"
    return "empty text" if value == "" else ascii(value)[:80]
