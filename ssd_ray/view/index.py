"""Columns of a run's answers in DuckDB, read once from Parquet; texts stay on disk.

- A row's `position` is the number of its file and its row there: it names the row, and sorts.
- A shard that cannot be read is left out and named in `notes`.

Reads shards of answers and verdicts; writes nothing but the temporary files of `parquet`.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray.artifacts.files import names
from ssd_ray.view.parquet import (
    FILE_BITS,
    MANY_FILES,
    OPTIONS,
    Gathered,
    Value,
    batches,
    columns_of,
    connect,
    has_both_ends,
    literal,
)
from ssd_ray.view.runs import Run, Source, contained

if TYPE_CHECKING:
    import duckdb
    import pyarrow as pa

_VERDICT_COLUMNS = {
    "outcome": "''",
    "num_tests": "0",
    "num_passed": "0",
    "time_s": "0.0",
    "peak_bytes": "0",
}
"""Columns of a verdict, and their values where an earlier version wrote none."""


class Index:
    """The answers of a run as a table `answers` of a database."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.sources = run.sources()
        self.files: list[Path] = []
        self.damaged: set[Path] = set()
        self.notes: list[str] = []
        self.rows = 0
        self.has_health = False
        self.is_classifying = False
        self.num_classified = 0
        self.stamp = stamp(run)
        self.checked_at = time.monotonic()
        self.lock = threading.Lock()
        self._database = connect()
        self._searches: OrderedDict[str, str] = OrderedDict()
        self._gathered = Gathered()
        self._build()

    @contextmanager
    def cursor(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a cursor for one thread."""
        cursor = self._database.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def close(self) -> None:
        """Free the memory."""
        self._database.close()
        self._gathered.close()

    def _build(self) -> None:
        with self.cursor() as cursor:
            cursor.execute(_TABLE)
            cursor.execute("CREATE TABLE files (number INTEGER, path VARCHAR)")
            for number, source in enumerate(self.sources):
                self._add(cursor, number, source)
            (self.rows,) = cursor.execute("SELECT count(*) FROM answers").fetchall()[0]

    def _add(self, cursor: duckdb.DuckDBPyConnection, number: int, source: Source) -> None:
        """Add the rows of one source, file by file where one of them cannot be read."""
        import duckdb

        answers = self._readable(source.answers)
        if not answers:
            return
        verdicts = self._readable(source.verdicts) if source.verdicts else []
        self._number(cursor, answers)
        self._number(cursor, verdicts)
        try:
            self._verdicts(cursor, verdicts)
        except duckdb.Error as error:
            self.notes.append(f"verdicts of {source.name} cannot be read: {_first_line(error)}")
            self._verdicts(cursor, [])
        # The files of a batch are read in parallel. A damaged one fails them all, so then each is
        # read by itself, and the damaged one is named.
        is_gathered = len(answers) > MANY_FILES
        for batch in batches(answers):
            try:
                self._insert(cursor, number, source, batch, is_gathered)
            except duckdb.Error:
                for path in batch:
                    try:
                        self._insert(cursor, number, source, [path], is_gathered)
                    except duckdb.Error as error:
                        self.damaged.add(path)
                        self._note_unreadable(path, _first_line(error))
        cursor.execute("DROP TABLE verdicts")

    def shards(self, directory: Path | None) -> list[tuple[int, Path]]:
        """Return number and path of the readable shards of a directory."""
        return [
            (number, path)
            for number, path in enumerate(self.files)
            if path.parent == directory and path not in self.damaged
        ]

    def _number(self, cursor: duckdb.DuckDBPyConnection, paths: list[Path]) -> None:
        first = len(self.files)
        cursor.execute(
            "INSERT INTO files SELECT unnest(range(?, ?)), unnest(?::VARCHAR[])",
            [first, first + len(paths), [str(path) for path in paths]],
        )
        self.files += paths

    def _readable(self, directory: Path) -> list[Path]:
        """Return shards with both ends of a Parquet file; note the others."""
        kept = []
        for name in sorted(names(directory)):
            path = directory / name
            if not name.endswith(".parquet") or name.startswith("."):
                continue
            if path.is_symlink() and not contained(path, self.run.root):
                self._note_unreadable(path, "it is a link out of the directories")
            elif has_both_ends(path):
                kept.append(path)
            else:
                self._note_unreadable(path, "it is half-written or no Parquet file")
        return kept

    def _note_unreadable(self, path: Path, reason: str) -> None:
        place = path.relative_to(self.run.path)
        self.notes.append(f"{place} is left out: {reason}")

    def _verdicts(self, cursor: duckdb.DuckDBPyConnection, paths: list[Path]) -> None:
        cursor.execute("DROP TABLE IF EXISTS verdicts")
        if not paths:
            cursor.execute(
                "CREATE TEMP TABLE verdicts (prompt_id VARCHAR, sample_index BIGINT, "
                "outcome VARCHAR, num_tests INTEGER, num_passed INTEGER, time_s FLOAT, "
                "peak_bytes BIGINT, verdict BIGINT)"
            )
            return
        columns = columns_of(cursor, paths[0])
        chosen = ", ".join(
            f"{name if name in columns else default} AS {name}"
            for name, default in _VERDICT_COLUMNS.items()
        )
        is_gathered = len(paths) > MANY_FILES and "detail" in columns
        detail = ", detail" if is_gathered else ""
        for number, batch in enumerate(batches(paths)):
            cursor.execute(
                f"CREATE OR REPLACE TEMP TABLE batch AS SELECT prompt_id, sample_index, {chosen}, "
                f"(f.number::BIGINT << {FILE_BITS}) | file_row_number AS verdict{detail} "
                f"FROM read_parquet(?, filename=true, file_row_number=true, {OPTIONS}) v "
                "JOIN files f ON f.path = v.filename",
                [[literal(path) for path in batch]],
            )
            rows = "SELECT * EXCLUDE (detail) FROM batch" if is_gathered else "SELECT * FROM batch"
            verb = "INSERT INTO verdicts" if number else "CREATE TEMP TABLE verdicts AS"
            cursor.execute(f"{verb} {rows}")
            if is_gathered:
                select = "SELECT verdict AS position, detail AS text FROM batch"
                self._gathered.add(cursor, batch[0].parent, select)
        cursor.execute("DROP TABLE batch")

    def _insert(
        self,
        cursor: duckdb.DuckDBPyConnection,
        number: int,
        source: Source,
        paths: Sequence[Path],
        is_gathered: bool,
    ) -> None:
        text = ", a.text" if is_gathered else ""
        cursor.execute(
            f"""CREATE OR REPLACE TEMP TABLE batch AS SELECT
              (f.number::BIGINT << {FILE_BITS}) | a.file_row_number AS position, {number},
              ?, ?, a.prompt_id, a.sample_index, a.source, a.difficulty, a.finish_reason,
              coalesce(len(a.output_token_ids), 0), coalesce(v.outcome, 'not graded'),
              coalesce(v.num_passed, 0), coalesce(v.num_tests, 0), coalesce(v.time_s, 0),
              coalesce(v.peak_bytes, 0), NULL, v.verdict{text}
            FROM read_parquet(?, filename=true, file_row_number=true, {OPTIONS}) a
            JOIN files f ON f.path = a.filename
            LEFT JOIN verdicts v USING (prompt_id, sample_index)""",
            [source.stage, source.arm, [literal(path) for path in paths]],
        )
        if is_gathered:
            self._gathered.add(cursor, source.answers, "SELECT position, text FROM batch")
            cursor.execute("INSERT INTO answers SELECT * EXCLUDE (text) FROM batch")
        else:
            cursor.execute("INSERT INTO answers SELECT * FROM batch")
        cursor.execute("DROP TABLE batch")

    def set_health(self, classes: pa.Table) -> None:
        """Take a table of `position` and `classes`, the classes of health as bits."""
        with self.cursor() as cursor:
            cursor.register("classified", classes)
            cursor.execute(
                """CREATE OR REPLACE TABLE answers AS SELECT a.* REPLACE (
                  c.classes::UTINYINT AS health)
                FROM answers a LEFT JOIN classified c USING (position)"""
            )
        self.has_health = True

    def search(self, text: str) -> str:
        """Return the table with the positions of answers and details that hold a text.

        Case makes no difference. The latest searches are kept.
        """
        # A lock: two pages with the same search should read the texts once.
        with self.lock:
            if text in self._searches:
                self._searches.move_to_end(text)
                return self._searches[text]
            table = f"search_{time.monotonic_ns()}"
            with self.cursor() as cursor:
                self._find(cursor, table, text)
                self._searches[text] = table
                while len(self._searches) > 8:
                    cursor.execute(f"DROP TABLE {self._searches.popitem(last=False)[1]}")
            return table

    def _find(self, cursor: duckdb.DuckDBPyConnection, table: str, text: str) -> None:
        cursor.execute(f"CREATE TABLE {table} (position BIGINT)")
        for source in self.sources:
            for positions, values in self._matches(cursor, source.answers, "text", text):
                cursor.execute(f"INSERT INTO {table} {positions}", values)
            for positions, values in self._matches(cursor, source.verdicts, "detail", text):
                cursor.execute(
                    f"INSERT INTO {table} SELECT position FROM answers "
                    f"WHERE verdict IN ({positions})",
                    values,
                )

    def _matches(
        self,
        cursor: duckdb.DuckDBPyConnection,
        directory: Path | None,
        column: str,
        text: str,
    ) -> Iterator[tuple[str, list[Value]]]:
        """Yield statements with their values for the positions of rows with a text."""
        if gathered := self._gathered.of(directory):
            yield (
                "SELECT position FROM read_parquet(?) WHERE contains(lower(text), lower(?))",
                [gathered, text],
            )
            return
        paths = [path for _, path in self.shards(directory)]
        if not paths or column not in columns_of(cursor, paths[0]):
            return
        for batch in batches(paths):
            yield (
                f"""SELECT (f.number::BIGINT << {FILE_BITS}) | r.file_row_number
                FROM read_parquet(?, filename=true, file_row_number=true, {OPTIONS}) r
                JOIN files f ON f.path = r.filename
                WHERE contains(lower(r.{column}), lower(?))""",
                [[literal(path) for path in batch], text],
            )

    def place(self, position: int) -> tuple[Path, int]:
        """Return the file of a position, and its row there."""
        return self.files[position >> FILE_BITS], position & ((1 << FILE_BITS) - 1)


_TABLE = """CREATE TABLE answers (
  position BIGINT, place UTINYINT, stage VARCHAR, arm VARCHAR, prompt_id VARCHAR,
  sample_index INTEGER, benchmark VARCHAR, difficulty VARCHAR, finish VARCHAR, tokens INTEGER,
  outcome VARCHAR, num_passed INTEGER, num_tests INTEGER, time_s FLOAT, peak_bytes BIGINT,
  health UTINYINT, verdict BIGINT)"""


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:200]


def stamp(run: Run) -> tuple[tuple[str, int], ...]:
    """Return the number of shards of each directory with answers or verdicts."""
    directories = [
        directory
        for source in run.sources()
        for directory in (source.answers, source.verdicts)
        if directory is not None
    ]
    return tuple((str(directory), len(names(directory))) for directory in directories)
