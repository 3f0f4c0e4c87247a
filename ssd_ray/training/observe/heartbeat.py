"""Heartbeat of a training: progress between lines of the loss log, for the driver's screen.

- The first worker replaces one small JSON file in the logs; the driver reads it for the screen.
- Nothing else depends on it: a lost or outdated file costs a line on the screen.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

_FILE = "train-heartbeat.json"
_PERIOD_S = 0.5
LOADING = "loading the model"
"""Phase at each start of the workers."""


@dataclass(frozen=True, kw_only=True)
class Beat:
    """One moment of training."""

    phase: str = ""
    """Work other than steps, such as "loading the model"; empty while a step is computed."""
    steps_done: int = 0
    tokens: int = 0
    """Tokens of the current global batch that have been computed, of all workers."""
    batch_tokens: int = 0
    """Tokens of the current global batch."""
    notice: str = ""
    """The last sentence for the screen."""
    workers: int = 0
    """Number of workers; 0 if it is unknown."""


class Heartbeat:
    """Writer of the file; silent on all workers but the first."""

    def __init__(self, logs: Path, rank: int, workers: int = 0) -> None:
        self._path = logs / _FILE if rank == 0 else None
        self._beat = Beat(workers=workers)
        self._written = 0.0

    def say(self, sentence: str) -> None:
        """Print a sentence to the log, and have the driver show it."""
        print(sentence, flush=True)
        self._beat = replace(self._beat, notice=sentence)
        self._write()

    def phase(self, text: str) -> None:
        """Begin a phase without steps, ended by the next step."""
        beat = self._beat
        self._beat = Beat(phase=text, notice=beat.notice, workers=beat.workers)
        self._write()

    def begin_step(self, steps_done: int, batch_tokens: int) -> None:
        """Begin the step after `steps_done` ones."""
        self._beat = Beat(
            steps_done=steps_done,
            batch_tokens=batch_tokens,
            notice=self._beat.notice,
            workers=self._beat.workers,
        )
        self._write()

    def advance(self, share: float) -> None:
        """Record the share of this worker's tokens computed in the current step."""
        # All workers compute sequences of similar length at a time, so the first one is typical.
        self._beat = replace(self._beat, tokens=round(share * self._beat.batch_tokens), phase="")
        if time.monotonic() - self._written >= _PERIOD_S:
            self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        self._written = time.monotonic()
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self._beat)))
        partial.replace(self._path)


SILENT = Heartbeat(Path(), rank=-1)
"""Heartbeat without a file, for workers without a driver."""


def forget(logs: Path) -> None:
    """Remove the file of an earlier training."""
    (logs / _FILE).unlink(missing_ok=True)


def read(logs: Path) -> Beat | None:
    """Read the latest beat; None before the first."""
    try:
        return Beat(**json.loads((logs / _FILE).read_text()))
    except (OSError, ValueError):
        # On NFS, a file may be replaced while it is read.
        return None
