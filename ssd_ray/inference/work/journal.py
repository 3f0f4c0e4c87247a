"""Journal the finished answers of unfinished units, for another engine to take over.

- A journal belongs to one engine and one unit. It is removed once the shard is on record.
- A line is the CRC-32 of its JSON, and the JSON. A torn last line fails the check.

Reads and writes `.journal/` of the artifact.
"""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path

from ssd_ray.artifacts.files import names
from ssd_ray.artifacts.ledger import Span, append_to, open_to_append
from ssd_ray.inference.vllm.engine import Answer


def encode(position: int, answer: Answer) -> bytes:
    """Encode one line, without its end."""
    text = json.dumps([position, vars(answer)], separators=(",", ":")).encode()
    return b"%08x %s" % (zlib.crc32(text), text)


def decode(line: bytes) -> tuple[int, Answer] | None:
    """Decode a line into position and answer; None if its checksum differs."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    position, fields = json.loads(text)
    fields["output_token_ids"] = tuple(fields["output_token_ids"])
    return position, Answer(**fields)


class Journal:
    """Answers of one unit, finished by this engine.

    The file is opened by the first answer and stays open: on network storage, opening and closing
    take most of the time.
    """

    def __init__(self, out: Path, span: Span, engine: str) -> None:
        self._path = out / ".journal" / f"{span.name}.{engine}.jsonl"
        self._lock = threading.Lock()
        self._handle: int | None = None

    def append(self, position: int, answer: Answer) -> None:
        """Append an answer; it then survives a crash of this process.

        Raises:
            UserError: the disk is full or the directory cannot be written.
        """
        line = encode(position, answer)
        with self._lock:
            if self._handle is None:
                self._handle = open_to_append(self._path)
            append_to(self._handle, self._path, line)

    def close(self) -> None:
        """Close the file; another answer opens it again."""
        with self._lock:
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    def remove(self) -> None:
        """Close and remove the journal of a unit on record."""
        self.close()
        self._path.unlink(missing_ok=True)


def recover(out: Path, span: Span) -> dict[int, Answer]:
    """Return the journaled answers to the positions of a span, of any engine, by position."""
    answers = {}
    for path in _paths(out):
        if span_of(path).overlaps(span):
            for line in path.read_bytes().splitlines():
                # A torn line belongs to an answer that was not finished.
                entry = decode(line)
                if entry is not None and span.start <= entry[0] < span.stop:
                    answers[entry[0]] = entry[1]
    return answers


def span_of(path: Path) -> Span:
    """Return the unit of a journal, from its name."""
    source, positions, _, _ = path.name.rsplit(".", 3)
    start, _, stop = positions.partition("-")
    return Span(source, int(start), int(stop))


def spans(out: Path) -> set[Span]:
    """Return the units with a journal."""
    return {span_of(path) for path in _paths(out)}


def _paths(out: Path) -> list[Path]:
    directory = out / ".journal"
    return [directory / name for name in names(directory) if name.endswith(".jsonl")]
