"""DuckDB over Parquet: a bounded database, batches of files, and gathered texts.

- Files are read in batches: DuckDB keeps the footers of a statement's files in memory.
- An open file costs more than its rows where shards are small. So texts of many shards are
  gathered in a few temporary files, which a search reads.

Writes nothing but temporary files outside of the runs.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import duckdb

Value: TypeAlias = Any
"""A cell, as DuckDB gives it."""
MEMORY = "320MB"
THREADS = 2
_MAGIC = b"PAR1"
FILE_BITS = 32
"""Bits of a position for the row; the others are the number of the file."""
BATCH_FILES = 2000
"""Files of one statement."""
MANY_FILES = 1000
"""Shards of a directory above which its texts are gathered."""
OPTIONS = "union_by_name=true, hive_partitioning=false"


def connect() -> duckdb.DuckDBPyConnection:
    """Return a database in memory without extensions, bounded in memory and threads."""
    import duckdb

    # In memory, DuckDB would spill into the working directory, and that may be a run.
    folder = tempfile.gettempdir()
    return duckdb.connect(
        ":memory:",
        config={
            "memory_limit": MEMORY,
            "threads": THREADS,
            "temp_directory": folder,
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "preserve_insertion_order": False,
        },
    )


def literal(path: Path) -> str:
    """Return a path without meaning as a pattern, for `read_parquet`."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in str(path))


def batches(paths: Sequence[Path]) -> Iterator[Sequence[Path]]:
    """Yield the files of each statement."""
    for start in range(0, len(paths), BATCH_FILES):
        yield paths[start : start + BATCH_FILES]


def columns_of(cursor: duckdb.DuckDBPyConnection, path: Path) -> set[str]:
    """Return the names of the columns of a file."""
    described = cursor.execute("DESCRIBE SELECT * FROM read_parquet(?)", [[literal(path)]])
    return {row[0] for row in described.fetchall()}


def has_both_ends(path: Path) -> bool:
    """Return True for a file that begins and ends as Parquet does."""
    try:
        with path.open("rb") as handle:
            head = handle.read(len(_MAGIC))
            handle.seek(-len(_MAGIC), 2)
            return head == handle.read() == _MAGIC
    except OSError:
        return False


class Gathered:
    """Positions and texts of directories with many shards, in temporary files."""

    def __init__(self) -> None:
        self._files: dict[Path, list[str]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def add(self, cursor: duckdb.DuckDBPyConnection, directory: Path, select: str) -> None:
        """Write the rows of a statement, `position` and `text`, for some shards of a directory."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ssd-ray-view-")
        files = self._files.setdefault(directory, [])
        number = sum(map(len, self._files.values()))
        # The folder has a name of this process, without a quote.
        file = str(Path(self._folder.name) / f"{number}.parquet")
        cursor.execute(f"COPY ({select}) TO '{file}' (FORMAT parquet, COMPRESSION lz4)")
        files.append(file)

    def of(self, directory: Path | None) -> list[str]:
        """Return the files with the texts of a directory, none if its shards are few."""
        return self._files.get(directory, []) if directory is not None else []

    def close(self) -> None:
        """Remove the files."""
        if self._folder is not None:
            self._folder.cleanup()
