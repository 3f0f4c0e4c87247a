"""Progress as lines for logs and pipes."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ssd_ray.progress.display import Display
from ssd_ray.progress.tasks import Task
from ssd_ray.throughput import Remaining

_FIRST_LINE_S = 5.0
_TICK_S = 1.0


class LineProgress:
    """Lines for logs and pipes: when a stage starts, once each period, and when it ends.

    `write` gets each line with its line end; standard error by default.
    """

    def __init__(
        self, period_s: float = 30.0, write: Callable[[str], object] | None = None
    ) -> None:
        self._period_s = period_s
        self._write = write or _to_standard_error
        self._lock = threading.Lock()

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Print lines of one stage."""
        display = Display(stage, total, unit, done)
        self.say(
            f"{stage}: {done:,}/{total:,} {unit}" if total else f"{stage}: {done:,} {unit} so far"
        )
        task = _Lines(display, self._period_s, self.say)
        try:
            yield task
        finally:
            task.close()
        self.say(display.last_line)

    def say(self, text: str) -> None:
        """Print a line."""
        # One write with its line end: stages in several threads never share a line.
        with self._lock:
            self._write(f"{text}\n")


def _to_standard_error(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


class _Lines:
    """One task of `LineProgress`; a thread prints even without updates."""

    def __init__(self, display: Display, period_s: float, say: Any) -> None:
        self._display = display
        self._period_s = period_s
        self._say = say
        self._interval_s = min(period_s, _FIRST_LINE_S)
        self._printed = time.monotonic()
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._ticker = threading.Thread(target=self._tick, name="progress", daemon=True)
        self._ticker.start()

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        with self._lock:
            self._display.update(done, tokens, note, total, remaining)
            self._print_if_due()

    def wait(self, reason: str) -> None:
        with self._lock:
            self._display.wait(reason)
            self._print_if_due()

    def close(self) -> None:
        self._closed.set()
        self._ticker.join()

    def _tick(self) -> None:
        while not self._closed.wait(_TICK_S):
            with self._lock:
                self._print_if_due()

    def _print_if_due(self) -> None:
        now = time.monotonic()
        if now - self._printed >= self._interval_s:
            self._printed = now
            self._interval_s = min(2 * self._interval_s, self._period_s)
            self._say(self._display.line)
