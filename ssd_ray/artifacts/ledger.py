"""Ledger of a directory whose shards several processes write: one line per shard.

- A row's position in its source shard is `row * samples + sample_index`; a span is a run of them.
- Each process appends lines of its own shards to a file of its own.
- A shard counts once its line is in `ledger/` and its file is complete.

Reads and writes `ledger/*.jsonl`, reads `fingerprint.json`. `audit.py` compares the records with
the files.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.files import names, read_complete_lines
from ssd_ray.errors import OutsideError, system_reason

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Span:
    """Positions `start` to `stop` (exclusive) of the source shard `source`.parquet."""

    source: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Name of this span's shard."""
        return f"{self.source}.{self.start:08}-{self.stop:08}"

    @property
    def rows(self) -> int:
        """Number of positions."""
        return self.stop - self.start

    def overlaps(self, other: Span) -> bool:
        """Return True if the two have a position in common."""
        return self.source == other.source and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer without a row, with the reason."""

    prompt_id: str
    sample_index: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One shard: its file, its span, and sums over its rows for the manifest.

    `artifact` is the fingerprint of the directory at the time of writing.
    """

    file: str
    span: Span
    rows: int
    bytes: int
    sha256: str
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reasons: dict[str, int] = field(default_factory=dict)
    failed: tuple[Failure, ...] = ()
    artifact: str = ""

    @property
    def is_consistent(self) -> bool:
        """True if file name, span and number of rows agree."""
        span = self.span
        return (
            0 <= span.start < span.stop
            and self.file == f"{span.name}.parquet"
            and self.rows + len(self.failed) == span.rows
        )


_RECORD = TypeAdapter(Record)


def append_line(path: Path, line: bytes) -> None:
    """Append one line to a file written by this process alone.

    Raises:
        OutsideError: the disk is full or the directory cannot be written.
    """
    with _refusing(path):
        handle = open_to_append(path)
        try:
            append_to(handle, path, line)
        finally:
            os.close(handle)


def open_to_append(path: Path) -> int:
    """Open a file written by this process alone for `append_to`, and return its descriptor.

    Its directory is made if it is missing.

    Raises:
        OutsideError: the disk is full or the directory cannot be written.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    with _refusing(path):
        try:
            return os.open(path, flags, 0o644)
        except FileNotFoundError:
            path.parent.mkdir(exist_ok=True)
            return os.open(path, flags, 0o644)


def append_to(handle: int, path: Path, line: bytes) -> None:
    """Append one line by a descriptor of `path`.

    It is one system call, so a kill tears at most the last line.

    Raises:
        OutsideError: the disk is full.
    """
    with _refusing(path):
        # A short write means a full disk; the torn line is skipped by readers.
        if os.write(handle, line + b"\n") != len(line) + 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutsideError(
            f"cannot write {path}: {system_reason(error)}; make room and run again"
        ) from error


class Ledger:
    """The file of one process in the ledger of `out`; safe to use from threads.

    The first record opens it, and it stays open: a record then takes two operations of storage.
    """

    def __init__(self, out: Path, writer: str) -> None:
        self.out = out
        self._path = out / "ledger" / f"{writer}.jsonl"
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._fingerprint = ""

    def append(self, record: Record) -> None:
        """Record a shard; it counts from the return on, also after a power cut.

        Raises:
            OutsideError: the disk is full or the directory cannot be written.
        """
        handle = self._open()
        claimed = dataclasses.replace(record, artifact=self._fingerprint)
        text = json.dumps(dataclasses.asdict(claimed), separators=(",", ":"))
        append_to(handle, self._path, text.encode())
        with _refusing(self._path):
            os.fsync(handle)

    def _open(self) -> int:
        with self._lock:
            if self._handle is None:
                self._fingerprint = fingerprint_of(self.out)
                self._handle = open_to_append(self._path)
            return self._handle

    def close(self) -> None:
        """Close the file; another record opens it again."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None


class Tail(Generic[T]):
    """Reader of lines added to a directory of `*.jsonl` since the last call.

    A line in the middle of being written is read by a later call.
    """

    def __init__(self, directory: Path, parse: Callable[[bytes], T | None]) -> None:
        self._directory = directory
        self._parse = parse
        self._offsets: dict[str, int] = defaultdict(int)

    def new(self) -> Iterator[T]:
        """Yield each new line as parsed, in order per writer.

        Lines parsed as None are left out.
        """
        for name in sorted(names(self._directory)):
            path = self._directory / name
            # Most writers are idle between two calls: their files are not opened.
            if path.suffix != ".jsonl" or path.stat().st_size == self._offsets[path.name]:
                continue
            with path.open("rb") as handle:
                handle.seek(self._offsets[path.name])
                lines = read_complete_lines(handle)
                self._offsets[path.name] = handle.tell()
            yield from (parsed for line in lines if (parsed := self._parse(line)) is not None)


def tail(out: Path) -> Tail[Record]:
    """Return a reader of new records in a directory's ledger."""
    return Tail(out / "ledger", _parse)


def _parse(line: bytes) -> Record | None:
    """Parse a record; None if the line is torn or of another program."""
    try:
        record = _RECORD.validate_json(line)
    except ValidationError:
        return None
    return record if record.is_consistent else None


def fingerprint_of(out: Path) -> str:
    """Return the fingerprint of a directory, "" if it is not claimed."""
    try:
        return str(json.loads((out / "fingerprint.json").read_text())["fingerprint"])
    except FileNotFoundError:
        return ""


def uncovered(span: Span, covered: Iterable[tuple[int, int]], rows: int) -> Iterator[Span]:
    """Yield the parts of a span outside the sorted runs `covered`.

    Each gap is cut into pieces of nearly equal size, of at most `rows` positions.
    """
    start = span.start
    # An empty run at the end closes the last gap.
    for begin, end in [*covered, (span.stop, span.stop)]:
        gap = min(begin, span.stop) - start
        if gap > 0:
            size = ceil(gap / ceil(gap / rows))
            for cut in range(start, start + gap, size):
                yield Span(span.source, cut, min(cut + size, start + gap))
        start = max(start, end)
