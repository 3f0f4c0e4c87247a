"""Long work shows itself: a bar per stage on a terminal, one line per stage and period elsewhere.

A stage opens a task with its total and reports how much is done in all, so a resumed stage starts where it stood; tokens/s
and time left count only what this process did. Writes to standard error, so that standard output stays the result's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress


class Task(Protocol):
    """One stage at work."""

    def update(self, done: int, tokens: int = 0, note: str = "") -> None:
        """Say how many units are done in all and how many tokens this process has handled so far."""


class Progress(Protocol):
    """Where stages show how far they are."""

    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Any:
        """A context manager that yields a Task; `done` units stood there before."""

    def say(self, text: str) -> None:
        """A line for the reader."""


@dataclass
class Pace:
    """Speed of one task since it began: tokens a second, and the seconds left at the present speed."""

    total: int
    before: int
    began: float = field(default_factory=time.monotonic)
    done: int = 0
    tokens: int = 0
    skipped_tokens: int = 0
    moving: bool = False

    def update(self, done: int, tokens: int) -> None:
        """Take the totals; the clock starts with the first progress, so that an engine's start does not count as slowness."""
        self.done, self.tokens = done, tokens
        if not self.moving and done > self.before:
            self.moving, self.before, self.skipped_tokens, self.began = True, done, tokens, time.monotonic()

    def figures(self) -> str:
        """Tokens a second and time left, where they are known."""
        seconds = time.monotonic() - self.began
        fresh = self.done - self.before
        tokens = self.tokens - self.skipped_tokens
        rate = f"{tokens / seconds:,.0f} tok/s" if tokens > 0 and seconds > 0 else ""
        left = f"{clock(seconds / fresh * (self.total - self.done))} left" if fresh > 0 and self.done < self.total else ""
        return ", ".join(part for part in (rate, left) if part)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


class LiveProgress:
    """Bars on a terminal, several at a time where stages overlap."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None
        self._num_open = 0

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """One bar; it stays on the screen when the last stage that overlaps it ends."""
        pace = Pace(total=total, before=done, done=done)
        bars = self._open()
        bar = bars.add_task(stage, total=total, completed=done, unit=unit, figures="", note="")

        class _Task:
            def update(self, done: int, tokens: int = 0, note: str = "") -> None:
                pace.update(done, tokens)
                bars.update(bar, completed=done, figures=pace.figures(), note=note)

        try:
            yield _Task()
        finally:
            self._close(bars)

    def _open(self) -> RichProgress:
        with self._lock:
            if self._bars is None:
                columns = (
                    TextColumn("{task.description:<22}"),
                    BarColumn(bar_width=28),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}"),
                    TimeElapsedColumn(),
                    TextColumn("{task.fields[figures]} {task.fields[note]}"),
                )
                self._bars = RichProgress(*columns, console=self._console, refresh_per_second=4)
                self._bars.start()
            self._num_open += 1
            return self._bars

    def _close(self, bars: RichProgress) -> None:
        with self._lock:
            self._num_open -= 1
            if self._num_open == 0:
                bars.stop()
                self._bars = None

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)


class LineProgress:
    """One line when a stage starts, one each period, one when it ends: for logs and pipes."""

    def __init__(self, period_s: float = 30.0) -> None:
        self._period_s = period_s

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Lines of one stage."""
        pace = Pace(total=total, before=done, done=done)
        period_s, say = self._period_s, self.say
        say(f"{stage}: {done}/{total} {unit}")
        began = time.monotonic()

        class _Task:
            last = time.monotonic()

            def update(self, done: int, tokens: int = 0, note: str = "") -> None:
                pace.update(done, tokens)
                if time.monotonic() - self.last >= period_s:
                    self.last = time.monotonic()
                    say(" ".join(part for part in (f"{stage}: {done}/{total} {unit}", pace.figures(), note) if part))

        yield _Task()
        say(f"{stage}: done, {pace.done}/{total} {unit} in {clock(time.monotonic() - began)} {pace.figures()}".rstrip())

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


def progress(quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere and with `quiet`."""
    return LineProgress() if quiet or not sys.stderr.isatty() else LiveProgress()
