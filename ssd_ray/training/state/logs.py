"""Loss log of a training: one JSON line a step, cut to the resume state after a crash."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

from ssd_ray.artifacts.files import Json, read_complete_lines, read_json_lines, write_atomic

LOSS_LOG = "loss.jsonl"


def read_log(out: Path) -> list[Json]:
    """Return the complete lines of the loss log, one a step."""
    return read_json_lines(out / LOSS_LOG)


class GrowingLog:
    """Reader of a loss log that another process appends to and cuts."""

    def __init__(self, out: Path) -> None:
        self._path = out / LOSS_LOG
        self._inode = 0
        self._offset = 0
        self.tokens: list[int] = []
        """Tokens of each step so far."""
        self.seconds: list[float] = []
        """Seconds of each step so far."""
        self.loss = math.nan
        """Loss of the last step."""

    def read(self) -> None:
        """Read the new complete lines, or all lines after a cut."""
        if not self._path.exists():
            return
        with self._path.open("rb") as handle:
            status = os.fstat(handle.fileno())
            # `cut_log` replaces the file. The check of the size covers an inode used again.
            rotated = status.st_ino != self._inode
            truncated = status.st_size < self._offset
            if rotated or truncated:
                self._inode = status.st_ino
                self._offset = 0
                self.tokens = []
                self.seconds = []
            handle.seek(self._offset)
            lines = read_complete_lines(handle)
            self._offset = handle.tell()
        for line in map(json.loads, lines):
            self.tokens.append(line["tokens"])
            self.seconds.append(line.get("seconds", 0.0))
            self.loss = line["loss"]


def cut_log(out: Path, steps: int) -> None:
    """Cut the loss log to its first `steps` lines, the steps of the resume state."""
    lines = [json.dumps(line) + "\n" for line in read_log(out)[:steps]]
    write_atomic(out / LOSS_LOG, "".join(lines))


def append_log(out: Path, line: Json) -> None:
    """Append one step's line to the loss log."""
    with (out / LOSS_LOG).open("a") as handle:
        handle.write(json.dumps(line) + "\n")
