"""Audit of a directory with a ledger: records against the files on disk.

- Resuming reads the records, and the sizes and ends of files. It reads no rows.
- A file without a matching record is moved away, never deleted.

Reads `ledger/*.jsonl` and shards; files without a record move to a folder for replaced ones.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts.ledger import Failure, Record, fingerprint_of, tail
from ssd_ray.artifacts.shards import ShardFile

_MAGIC = b"PAR1"
_NUM_READERS = 16
"""Threads, because a file's size takes a round trip on network storage."""


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

    The size of each shard is compared, and its first and last bytes. With `digests`, its SHA-256 is
    compared instead of these bytes.
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
        # An engine that outlives its driver may draw rows that engines of the next driver draw too,
        # in shards with other cuts. The first shard is kept.
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
    fingerprint = fingerprint_of(out)
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
    # A shard drawn again has several records, in ledger files of unknown order. The file on disk
    # has to match any one of them.
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
            return None if head == handle.read() == _MAGIC else "is not a Parquet file"
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
