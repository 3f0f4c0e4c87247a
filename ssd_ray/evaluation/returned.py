"""Verdicts of graders apart from Ray, checked before a run takes them over.

These graders run the programs of a model, so theirs is the least trusted place of a run. The run
reads what they wrote and copies the rows after these checks:

- No link is followed, at any level of the path. A file is regular, of bounded size, and a Parquet
  file of exactly the columns of a Verdict.
- Its rows answer exactly one slice of the completions, in order: each key once, no other key.
- Source, difficulty and number of tests are those of the completion and its problem.
- Values are possible: known outcomes, counts within the tests, a level at or above the floor.

A wrong verdict in a right form cannot be recognized without grading again.

Reads and deletes files under `graded/` of a run. Reads keys of Completion and Problem shards.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.shards import ForeignShardError, read_columns, read_foreign, read_table
from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import OutsideError
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.verdicts import SLICE_ROWS
from ssd_ray.reasoning import State
from ssd_ray.schema import Outcome, Record, Verdict

_MOST_BYTES = 256 << 20
"""Bytes of a shard, compressed or not. The programs of a slice are far smaller."""
_MOST_DETAIL = 4096
"""Characters of a detail. Errors of the machine are not cut to `MAX_DETAIL`."""
_SUFFIX = ".parquet"
_VERDICT = TypeAdapter(Verdict)


class RefusedShardError(Exception):
    """A shard that fails a check; the message is the reason."""


class Inbox:
    """The directory of one order in `graded/`, opened again for each look, without links."""

    def __init__(self, run: Path, place: Path) -> None:
        self.path = run / place
        self._run = run
        self._parts = place.parts

    def names(self) -> set[str]:
        """Return the names of shards without their suffix; none if the directory is missing.

        Raises:
            OutsideError: a part of its path is a link or not a directory.
        """
        with self._opened() as directory:
            entries = [] if directory is None else os.listdir(directory)
        return {
            name.removesuffix(_SUFFIX)
            for name in entries
            if name.endswith(_SUFFIX) and not name.startswith(".")
        }

    def read(self, name: str) -> bytes:
        """Return the bytes of a shard.

        Raises:
            RefusedShardError: it is not a regular file, or too large.
        """
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        with self._opened() as directory:
            if directory is None:
                raise RefusedShardError("is gone")
            try:
                handle = os.open(f"{name}{_SUFFIX}", flags, dir_fd=directory)
            except OSError as error:
                raise RefusedShardError(f"cannot be opened ({error.strerror})") from error
        with open(handle, "rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise RefusedShardError("is not a regular file")
            if state.st_size > _MOST_BYTES:
                raise RefusedShardError(f"has {state.st_size:,} bytes")
            data = file.read(_MOST_BYTES + 1)
        if len(data) > _MOST_BYTES:
            raise RefusedShardError("grows while it is read")
        return data

    def delete(self, name: str) -> None:
        """Delete a shard, for graders to make it again."""
        with self._opened() as directory, contextlib.suppress(FileNotFoundError):
            if directory is not None:
                os.unlink(f"{name}{_SUFFIX}", dir_fd=directory)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int | None]:
        """Open the directory part by part; None if a part is missing."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
        with contextlib.ExitStack() as stack:
            place = os.open(self._run, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, place)
            for part in self._parts:
                try:
                    place = os.open(part, flags, dir_fd=place)
                except FileNotFoundError:
                    yield None
                    return
                except OSError as error:
                    raise OutsideError(
                        f"{self.path} is not reached by directories alone ({part!r}: "
                        f"{error.strerror}), and links of graders are never followed: "
                        f"delete {self._run / self._parts[0]} and start the graders again"
                    ) from error
                stack.callback(os.close, place)
            yield place


@dataclass(frozen=True, kw_only=True)
class Expected:
    """The rows that a shard of verdicts has to hold, known without the graders."""

    piece: Slice
    """The completions."""
    num_tests: Mapping[str, int]
    """Number of tests by problem."""
    floor: str
    """The weakest sandbox level allowed."""


def num_tests_of(problems: Path) -> dict[str, int]:
    """Return the number of tests of each problem of an artifact, by id."""
    return dict(read_columns(problems, "problem_id", "num_tests"))


def checked(data: bytes, expected: Expected) -> list[Verdict]:
    """Return the verdicts of a shard that passes all checks.

    Raises:
        RefusedShardError: the first fault.
    """
    try:
        table = read_foreign(data, Verdict, most_rows=SLICE_ROWS, most_bytes=_MOST_BYTES)
    except ForeignShardError as error:
        raise RefusedShardError(str(error)) from error
    if table.num_rows != len(expected.piece.rows):
        raise RefusedShardError(f"has {table.num_rows} rows and not {len(expected.piece.rows)}")
    rows = [_row(record) for record in table.to_pylist()]
    columns = ["prompt_id", "sample_index", "source", "difficulty"]
    answers = read_table(expected.piece.file, columns).take([*expected.piece.rows]).to_pylist()
    for row, answer in zip(rows, answers, strict=True):
        for name, value in answer.items():
            if getattr(row, name) != value:
                raise RefusedShardError(
                    f"holds {name} {getattr(row, name)!r:.60} in place of {value!r:.60}"
                )
        _require_possible(row, expected)
    return rows


def _row(record: Record) -> Verdict:
    try:
        # The columns have fixed the types. Nulls and unknown outcomes are left to find.
        return _VERDICT.validate_python(record)
    except ValidationError as error:
        first = error.errors()[0]
        raise RefusedShardError(
            f"has {first['loc'][0]} {first['input']!r:.60}, which no verdict has"
        ) from error


def _require_possible(row: Verdict, expected: Expected) -> None:
    """Refuse values that no grader of this package writes.

    Raises:
        RefusedShardError: names the first.
    """
    total = expected.num_tests.get(row.prompt_id)
    is_accepted = row.outcome == "accepted"
    rules = {
        "num_tests": row.num_tests == total,
        "num_passed": 0 <= row.num_passed <= row.num_tests
        and (not is_accepted or row.num_passed == row.num_tests),
        "failed_test": -1 <= row.failed_test < row.num_tests
        and (not is_accepted or row.failed_test == -1),
        "time_s": math.isfinite(row.time_s) and row.time_s >= 0,
        "peak_bytes": row.peak_bytes >= 0,
        "detail": len(row.detail) <= _MOST_DETAIL,
        "outcome_base": row.outcome_base in ("", *get_args(Outcome)),
        "reasoning": row.reasoning in ("", *get_args(State)),
        "sandbox_level": _reaches(row.sandbox_level, expected.floor),
    }
    for name, holds in rules.items():
        if not holds:
            raise RefusedShardError(f"has {name} {getattr(row, name)!r:.60}, which no verdict has")


def _reaches(level: str, floor: str) -> bool:
    return level in levels.LEVELS and levels.rank(level) >= levels.rank(floor)
