"""Ledger of a directory whose shards several processes write: one line per shard.

- A row's position in its source shard is `row * samples + sample_index`; a span is a run of them.
- Each process appends lines of its own shards to a file of its own.
- A shard counts once its line is in `ledger/` and its file is complete.
- Resuming reads the lines, and the sizes and ends of files. It reads no rows.

Reads and writes `ledger/*.jsonl`, reads `fingerprint.json`, moves foreign files to `set-aside/`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.files import read_complete_lines
from ssd_ray.artifacts.shards import ShardFile
from ssd_ray.errors import UserError, system_reason

_MAGIC = b"PAR1"
_NUM_READERS = 16
"""Threads, because a file's size takes a round trip on network storage."""
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


def append_line(path: Path, line: bytes, *, durable: bool) -> None:
    """Append one line to a file of this process alone.

    It is one system call, so a kill tears at most the last line. With `durable`, the line is
    flushed to the disk before the return.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            # A short write means a full disk; the torn line is skipped by readers.
            if os.write(handle, line + b"\n") != len(line) + 1:
                raise OSError(28, "No space left on device")
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {system_reason(error)}; make room and run again"
        ) from error


def append(out: Path, writer: str, record: Record) -> None:
    """Record a shard in the file of the process `writer`; the shard counts from here on."""
    (out / "ledger").mkdir(exist_ok=True)
    claimed = dataclasses.replace(record, artifact=_fingerprint(out))
    text = json.dumps(dataclasses.asdict(claimed), separators=(",", ":"))
    append_line(out / "ledger" / f"{writer}.jsonl", text.encode(), durable=True)


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
        for path in sorted(self._directory.glob("*.jsonl")):
            # Most writers are idle between two calls: their files are not opened.
            if path.stat().st_size == self._offsets[path.name]:
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


def _fingerprint(out: Path) -> str:
    """Return the fingerprint of a directory, "" if it is not claimed."""
    try:
        return str(json.loads((out / "fingerprint.json").read_text())["fingerprint"])
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Records with a matching file, and each file moved away, with the reason."""

    records: tuple[Record, ...]
    moved: tuple[str, ...]

    @property
    def coverage(self) -> dict[str, list[tuple[int, int]]]:
        """Covered positions by source shard, as sorted runs with gaps in between."""
        runs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for record in sorted(self.records, key=lambda record: record.span):
            covered = runs[record.span.source]
            if covered and covered[-1][1] == record.span.start:
                covered[-1] = (covered[-1][0], record.span.stop)
            else:
                covered.append((record.span.start, record.span.stop))
        return dict(runs)

    @property
    def positions(self) -> int:
        """Number of covered positions: rows on disk and answers recorded as failed."""
        return sum(record.span.rows for record in self.records)

    @property
    def shards(self) -> tuple[ShardFile, ...]:
        """All shards, for a manifest."""
        return tuple(
            ShardFile(name=record.file, bytes=record.bytes, sha256=record.sha256)
            for record in self.records
        )

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Answers without a row."""
        return tuple(failure for record in self.records for failure in record.failed)

    @property
    def finish_reasons(self) -> dict[str, int]:
        """Rows by finish reason, in the order of their names."""
        reasons: Counter[str] = Counter()
        for record in self.records:
            reasons.update(record.finish_reasons)
        return dict(sorted(reasons.items()))


def audit(out: Path, *, digests: bool = False) -> Audit:
    """Compare the ledger with the files, and move files without a match to `set-aside/`.

    Size and first and last bytes of each shard are compared, with `digests` its SHA-256 instead.
    """
    with os.scandir(out) as entries:
        files = {
            entry.name
            for entry in entries
            if entry.name.endswith(".parquet") and not entry.name.startswith(".")
        }
    matching, problems = _compare(out, digests)
    kept: list[Record] = []
    for record in sorted(matching, key=lambda record: record.span):
        # An engine may outlive its driver and draw rows again, in other shards: the first wins.
        if kept and kept[-1].span.overlaps(record.span):
            problems[record.file] = f"holds rows that {kept[-1].file} holds"
        else:
            kept.append(record)
    moved = []
    for name in sorted(files - {record.file for record in kept}):
        moved.append(f"{name} {problems.get(name, 'is in no ledger')}")
        _move_away(out / name)
    return Audit(records=tuple(kept), moved=tuple(moved))


class Arrivals:
    """Reader of the shards of a growing directory, each shard once.

    With a ledger, a shard arrives when its file matches its record; without one, when it appears.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._tail = tail(out)
        self._waiting: list[Record] = []
        self._seen: set[str] = set()

    def new(self) -> list[Path]:
        """Return new arrivals since the last call, in the order of their names."""
        if (self._out / "ledger").is_dir():
            arrived = self._matching()
        else:
            arrived = {path.name for path in self._out.glob("[!.]*.parquet")} - self._seen
        self._seen |= arrived
        return [self._out / name for name in sorted(arrived)]

    def _matching(self) -> set[str]:
        """Return files equal to their record; other records wait for the next call."""
        # Network storage may show a record before its file.
        candidates = (*self._waiting, *self._tail.new())
        records = [record for record in candidates if record.file not in self._seen]
        problems = _problems(self._out, records, digests=False)
        checked = list(zip(records, problems, strict=True))
        self._waiting = [record for record, problem in checked if problem is not None]
        return {record.file for record, problem in checked if problem is None}


def _problems(out: Path, records: list[Record], *, digests: bool) -> list[str | None]:
    """Return for each record how its file differs, None if it matches."""
    if not records:
        return []
    fingerprint = _fingerprint(out)
    with ThreadPoolExecutor(_NUM_READERS) as readers:
        return list(
            readers.map(
                lambda record: _problem(out / record.file, record, fingerprint, digests), records
            )
        )


def _compare(out: Path, digests: bool) -> tuple[list[Record], dict[str, str]]:
    """Split ledger records into those whose file matches and the reasons why the others do not."""
    records = list(tail(out).new())
    problems = _problems(out, records, digests=digests)
    checked = list(zip(records, problems, strict=True))
    # A shard that was drawn again has several records, in files of unknown order: one must match.
    matching = {record.file: record for record, problem in checked if problem is None}
    reasons = {
        record.file: problem
        for record, problem in checked
        if problem is not None and record.file not in matching
    }
    return list(matching.values()), reasons


def _problem(path: Path, record: Record, fingerprint: str, digests: bool) -> str | None:
    """Return how a shard differs from its record, None if it matches."""
    if record.artifact != fingerprint:
        return "was drawn for another run"
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size != record.bytes:
                return f"has {size} bytes and was written with {record.bytes}"
            if digests:
                is_same = hashlib.file_digest(handle, "sha256").hexdigest() == record.sha256
                return None if is_same else "has other bytes than were written"
            # A Parquet file begins and ends with these bytes; a torn one has no end.
            head = handle.read(len(_MAGIC))
            handle.seek(max(0, size - len(_MAGIC)))
            return None if head == handle.read() == _MAGIC else "is no Parquet file"
    except FileNotFoundError:
        return "is missing"
    except IsADirectoryError:
        return "is a directory"


def _move_away(path: Path) -> None:
    """Move a file out of the artifact, next to earlier ones of its name."""
    folder = path.parent / "set-aside"
    folder.mkdir(exist_ok=True)
    targets = (folder / f"{path.name}.{number}" for number in itertools.count())
    path.rename(next(target for target in targets if not target.exists()))


def uncovered(span: Span, covered: Iterable[tuple[int, int]], rows: int) -> Iterator[Span]:
    """Yield the parts of a span outside the sorted runs `covered`.

    Each gap is cut into pieces of even size, of at most `rows` positions.
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
