"""What a directory of shards holds, by position: one line a shard, appended by the process that wrote it.

A row's position in its source shard is `row * samples + sample_index`; a span is a run of positions. A shard counts once its
line stands in `ledger/` and its file is there in full. Resuming reads these lines and looks at files' sizes and ends; rows are
not read. Reads and writes `ledger/*.jsonl`, reads `fingerprint.json`, moves what does not belong to `set-aside/`.
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
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter, ValidationError

from ssd_ray.artifacts.files import read_complete_lines
from ssd_ray.errors import UserError

_MAGIC = b"PAR1"
_LOOKERS = 16
T = TypeVar("T")


@dataclass(frozen=True, order=True)
class Span:
    """Positions `start` to `stop` (exclusive) of the source shard whose file is `source`.parquet."""

    source: str
    start: int
    stop: int

    @property
    def name(self) -> str:
        """The name of the shard that holds this span."""
        return f"{self.source}.{self.start:08}-{self.stop:08}"

    @property
    def rows(self) -> int:
        """How many positions."""
        return self.stop - self.start

    def meets(self, other: Span) -> bool:
        """Whether the two have a position in common."""
        return self.source == other.source and self.start < other.stop and other.start < self.stop


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer that could not be drawn, and why."""

    prompt_id: str
    sample_index: int
    reason: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One shard: its file and digest, the span it covers, the sums that the manifest wants, and whose shard it is.

    `artifact` is the fingerprint of the directory that it was written for.
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
    def adds_up(self) -> bool:
        """Whether file, span and number of rows go together."""
        span = self.span
        return (
            0 <= span.start < span.stop
            and self.file == f"{span.name}.parquet"
            and self.rows + len(self.failed) == span.rows
        )


_RECORD = TypeAdapter(Record)


def append_line(path: Path, line: bytes, *, durable: bool) -> None:
    """Append one line to a file that only this process writes, in one write, so that a kill tears at most the last line.

    Raises:
        UserError: the disk is full or the directory cannot be written.
    """
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            if os.write(handle, line + b"\n") != len(line) + 1:
                raise OSError(28, "No space left on device")
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise UserError(
            f"cannot write {path}: {error.strerror}; make room and run again"
        ) from error


def append(out: Path, writer: str, record: Record) -> None:
    """Put a shard on record, in the file of the process `writer`; it counts from here on."""
    (out / "ledger").mkdir(exist_ok=True)
    text = json.dumps(
        dataclasses.asdict(dataclasses.replace(record, artifact=_fingerprint(out))),
        separators=(",", ":"),
    )
    append_line(out / "ledger" / f"{writer}.jsonl", text.encode(), durable=True)


class Tail(Generic[T]):
    """Reads the lines that were added to a directory of `*.jsonl` since the last look; one that is being written waits."""

    def __init__(self, directory: Path, parse: Callable[[bytes], T | None]) -> None:
        self._directory, self._parse = directory, parse
        self._offsets: dict[str, int] = defaultdict(int)

    def new(self) -> Iterator[T]:
        """What `parse` makes of each line since the last call, of each writer in its order, without lines that it refuses."""
        for path in sorted(self._directory.glob("*.jsonl")):
            if path.stat().st_size == self._offsets[path.name]:
                continue
            with path.open("rb") as handle:
                handle.seek(self._offsets[path.name])
                lines = read_complete_lines(handle)
                self._offsets[path.name] = handle.tell()
            yield from (parsed for line in lines if (parsed := self._parse(line)) is not None)


def tail(out: Path) -> Tail[Record]:
    """The ledger of a directory, record by record as they are added."""
    return Tail(out / "ledger", _parse)


def _parse(line: bytes) -> Record | None:
    """A record from its line; None where the line is torn or somebody else's."""
    try:
        record = _RECORD.validate_json(line)
    except ValidationError:
        return None
    return record if record.adds_up else None


def _fingerprint(out: Path) -> str:
    """What a directory is claimed for; empty where it is not claimed."""
    try:
        return str(json.loads((out / "fingerprint.json").read_text())["fingerprint"])
    except FileNotFoundError:
        return ""


@dataclass(frozen=True, kw_only=True)
class Audit:
    """What is there: the records that hold, and every file or record that does not, with why."""

    records: tuple[Record, ...]
    set_aside: tuple[str, ...]

    @property
    def coverage(self) -> dict[str, list[tuple[int, int]]]:
        """For each source shard the covered positions, as sorted runs that do not touch."""
        runs: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for record in sorted(self.records, key=lambda record: record.span):
            own = runs[record.span.source]
            if own and own[-1][1] == record.span.start:
                own[-1] = (own[-1][0], record.span.stop)
            else:
                own.append((record.span.start, record.span.stop))
        return dict(runs)

    @property
    def positions(self) -> int:
        """Positions that are covered: rows on disk and answers on record as failed."""
        return sum(record.span.rows for record in self.records)

    @property
    def shards(self) -> list[dict[str, Any]]:
        """Every shard as a manifest names it."""
        return [
            {"name": record.file, "bytes": record.bytes, "sha256": record.sha256}
            for record in self.records
        ]

    def facts(self) -> dict[str, Any]:
        """Sums over the records: rows, tokens, finish reasons, failed answers."""
        reasons: Counter[str] = Counter()
        for record in self.records:
            reasons.update(record.finish_reasons)
        failed = [
            dataclasses.asdict(failure) for record in self.records for failure in record.failed
        ]
        return {
            "rows": sum(record.rows for record in self.records),
            "prompt_tokens": sum(record.prompt_tokens for record in self.records),
            "output_tokens": sum(record.output_tokens for record in self.records),
            "finish_reasons": dict(sorted(reasons.items())),
            "failed": failed,
        }


def audit(out: Path, *, digests: bool = False) -> Audit:
    """Hold the ledger against the files, and move files that do not belong to `set-aside/`.

    With `digests` every shard is read and its SHA-256 compared; otherwise its size and its first and last bytes are.
    """
    with os.scandir(out) as entries:
        files = {
            entry.name
            for entry in entries
            if entry.name.endswith(".parquet") and not entry.name.startswith(".")
        }
    held, complaints = _held(out, digests)
    kept: list[Record] = []
    for record in sorted(held, key=lambda record: record.span):
        if kept and kept[-1].span.meets(record.span):
            complaints[record.file] = f"holds rows that {kept[-1].file} holds"
        else:
            kept.append(record)
    told = []
    for name in sorted(files - {record.file for record in kept}):
        told.append(f"{name} {complaints.get(name, 'is in no ledger')}")
        _set_aside(out / name)
    return Audit(records=tuple(kept), set_aside=tuple(told))


class Arrivals:
    """The shards of a directory that are as recorded, each once, as they come; all of them where nothing keeps a ledger."""

    def __init__(self, out: Path) -> None:
        self._out, self._tail = out, tail(out)
        self._waiting: list[Record] = []
        self._given: set[str] = set()

    def new(self) -> list[Path]:
        """What came since the last call, in the order of names; only records that are new, or did not hold yet, are looked at."""
        if (self._out / "ledger").is_dir():
            records = [
                record
                for record in (*self._waiting, *self._tail.new())
                if record.file not in self._given
            ]
            problems = _complaints(self._out, records, digests=False)
            self._waiting = [
                record
                for record, problem in zip(records, problems, strict=True)
                if problem is not None
            ]
            there = {
                record.file
                for record, problem in zip(records, problems, strict=True)
                if problem is None
            }
        else:
            there = {path.name for path in self._out.glob("[!.]*.parquet")} - self._given
        self._given |= there
        return [self._out / name for name in sorted(there)]


def _complaints(out: Path, records: list[Record], *, digests: bool) -> list[str | None]:
    """Of each record what is wrong with its file; None where nothing is."""
    if not records:
        return []
    own = _fingerprint(out)
    with ThreadPoolExecutor(_LOOKERS) as lookers:
        return list(
            lookers.map(lambda record: _complaint(out / record.file, record, own, digests), records)
        )


def _held(out: Path, digests: bool) -> tuple[list[Record], dict[str, str]]:
    """The records that their files are as, and of every other file on record what is wrong with it.

    A file that was drawn again has several records, in ledgers whose names say nothing of their order; one has to hold.
    """
    records = list(tail(out).new())
    problems = _complaints(out, records, digests=digests)
    held = {
        record.file: record
        for record, problem in zip(records, problems, strict=True)
        if problem is None
    }
    wrong = {
        record.file: problem
        for record, problem in zip(records, problems, strict=True)
        if problem is not None
    }
    return list(held.values()), {
        name: problem for name, problem in wrong.items() if name not in held
    }


def _complaint(path: Path, record: Record, own: str, digests: bool) -> str | None:
    """What is wrong with a shard; None where it is as recorded, for the artifact `own`."""
    if record.artifact != own:
        return "was drawn for another run"
    try:
        with path.open("rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size != record.bytes:
                return f"has {size} bytes and was written with {record.bytes}"
            if digests:
                same = hashlib.file_digest(handle, "sha256").hexdigest() == record.sha256
                return None if same else "has other bytes than were written"
            head = handle.read(len(_MAGIC))
            handle.seek(max(0, size - len(_MAGIC)))
            return None if head == handle.read() == _MAGIC else "is no Parquet file"
    except FileNotFoundError:
        return "is missing"
    except IsADirectoryError:
        return "is a directory"


def _set_aside(path: Path) -> None:
    """Move a file out of the artifact, beside earlier ones of its name."""
    aside = path.parent / "set-aside"
    aside.mkdir(exist_ok=True)
    number = next(
        number for number in itertools.count() if not (aside / f"{path.name}.{number}").exists()
    )
    path.rename(aside / f"{path.name}.{number}")


def uncovered(span: Span, covered: Iterable[tuple[int, int]], rows: int) -> Iterator[Span]:
    """The parts of a span that no run of `covered` (sorted) holds, cut into even pieces of at most `rows`."""
    start = span.start
    for begin, end in [*covered, (span.stop, span.stop)]:
        gap = min(begin, span.stop) - start
        if gap > 0:
            size = ceil(gap / ceil(gap / rows))
            for cut in range(start, start + gap, size):
                yield Span(span.source, cut, min(cut + size, start + gap))
        start = max(start, end)
