"""Journal the finished answers of unfinished units, for another engine to take over.

- A journal belongs to one engine and one unit. It is removed once the shard is on record.
- A line is the CRC-32 of its JSON, and the JSON. A torn last line fails the check.

Reads and writes `.journal/` of the artifact.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from ssd_ray.artifacts.ledger import Span, append_line
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
    """Answers of one unit, finished by this engine."""

    def __init__(self, out: Path, span: Span, engine: str) -> None:
        directory = out / ".journal"
        directory.mkdir(exist_ok=True)
        self._path = directory / f"{span.name}.{engine}.jsonl"

    def append(self, position: int, answer: Answer) -> None:
        """Append an answer; it then survives a crash of this process."""
        append_line(self._path, encode(position, answer), durable=False)

    def remove(self) -> None:
        """Remove the journal of a unit on record."""
        self._path.unlink(missing_ok=True)


def recover(out: Path, span: Span) -> dict[int, Answer]:
    """Return finished answers by position, of any engine, missing in all shards."""
    answers = {}
    for path in (out / ".journal").glob(f"{span.source}.*.jsonl"):
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
    return {span_of(path) for path in (out / ".journal").glob("*.jsonl")}
