"""Finished answers of unfinished units, one line each, so that a killed engine's work is taken over and not drawn again.

A journal belongs to one engine and one unit, and goes when the unit's shard is on record. A line is the CRC-32 of its JSON
and the JSON; what does not check (a torn last line) was not finished. Reads and writes `.journal/` of the artifact.
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path

from ssd_ray.artifacts.ledger import Span, append_line
from ssd_ray.inference.vllm.engine import Answer


def encode(position: int, answer: Answer) -> bytes:
    """One line, without its end."""
    text = json.dumps([position, vars(answer)], separators=(",", ":")).encode()
    return b"%08x %s" % (zlib.crc32(text), text)


def decode(line: bytes) -> tuple[int, Answer] | None:
    """Position and answer; None where the line is not what was written."""
    checksum, _, text = line.partition(b" ")
    if checksum != b"%08x" % zlib.crc32(text):
        return None
    position, fields = json.loads(text)
    fields["output_token_ids"] = tuple(fields["output_token_ids"])
    return position, Answer(**fields)


class Journal:
    """The answers of one unit that this engine has finished."""

    def __init__(self, out: Path, span: Span, engine: str) -> None:
        directory = out / ".journal"
        directory.mkdir(exist_ok=True)
        self._path = directory / f"{span.name}.{engine}.jsonl"

    def append(self, position: int, answer: Answer) -> None:
        """Keep an answer; what is appended survives the death of this process."""
        append_line(self._path, encode(position, answer), durable=False)

    def remove(self) -> None:
        """The unit is on record."""
        self._path.unlink(missing_ok=True)


def recover(out: Path, span: Span) -> dict[int, Answer]:
    """The answers at positions of `span` that any engine finished and that no shard has, by position."""
    found = {}
    for path in (out / ".journal").glob(f"{span.source}.*.jsonl"):
        if span_of(path).overlaps(span):
            for line in path.read_bytes().splitlines():
                entry = decode(line)
                if entry is not None and span.start <= entry[0] < span.stop:
                    found[entry[0]] = entry[1]
    return found


def span_of(path: Path) -> Span:
    """The unit that a journal belongs to, from its name."""
    source, positions, _, _ = path.name.rsplit(".", 3)
    start, _, stop = positions.partition("-")
    return Span(source, int(start), int(stop))


def spans(out: Path) -> set[Span]:
    """Units that have a journal."""
    return {span_of(path) for path in (out / ".journal").glob("*.jsonl")}
