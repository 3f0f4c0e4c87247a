"""Read, cut and append the loss log, one JSON line a step, in step with the resume state."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import read_complete_lines, read_json_lines, write_atomic

LOSS_LOG = "loss.jsonl"


def read_log(out: Path) -> list[dict[str, Any]]:
    """The whole lines of the loss log, one a step."""
    return read_json_lines(out / LOSS_LOG)


class GrowingLog:
    """The loss log as another process sees it grow: read once, and from its beginning again where it was cut."""

    def __init__(self, out: Path) -> None:
        self._path = out / LOSS_LOG
        self._file, self._at = 0, 0
        self.tokens: list[int] = []
        """Of each step so far."""
        self.loss = math.nan
        """Of the last one."""

    def read(self) -> None:
        """Take in the whole lines that are new."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            now = os.fstat(handle.fileno())
            if (now.st_ino, now.st_size < self._at) != (self._file, False):
                self._file, self._at, self.tokens = now.st_ino, 0, []
            handle.seek(self._at)
            lines = read_complete_lines(handle)
            self._at = handle.tell()
        for line in map(json.loads, lines):
            self.tokens.append(line["tokens"])
            self.loss = line["loss"]


def cut_log(out: Path, steps: int) -> None:
    """Keep the first `steps` lines of the loss log: those that the resume state has seen."""
    lines = [json.dumps(line) + "\n" for line in read_log(out)[:steps]]
    write_atomic(out / LOSS_LOG, "".join(lines))


def append_log(out: Path, line: dict[str, Any]) -> None:
    """Add one step's line to the loss log."""
    with (out / LOSS_LOG).open("a") as handle:
        handle.write(json.dumps(line) + "\n")
