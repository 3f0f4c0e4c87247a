"""Long work shows itself: a bar per stage on a terminal, one line per stage and period elsewhere.

A stage opens a task with its total and reports how much is done in all, so a resumed stage starts where it stood; tokens/s
and time left count only what this process did. Writes to standard error, so that standard output stays the result's.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

_RECENT_S = 60.0


class Task(Protocol):
    """One stage at work."""

    def update(self, done: int, tokens: int = 0, note: str = "", total: int | None = None) -> None:
        """Say how many units are done in all, how many tokens were handled since the task began, and a total that has grown."""


class Progress(Protocol):
    """Where stages show how far they are."""

    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Any:
        """A context manager that yields a Task; `done` units stood there before."""

    def say(self, text: str) -> None:
        """A line for the reader."""


@dataclass
class Pace:
    """Speed of one task: tokens a second over the last minute, and the seconds left at that speed.

    What is left is counted in tokens where there are any: units left, times their mean length so far.
    """

    total: int
    before: int
    done: int = 0
    marks: deque[tuple[float, int, int]] = field(default_factory=deque)
    start: tuple[int, int] | None = None

    def update(self, done: int, tokens: int, total: int | None = None) -> None:
        """Take the totals; the clock starts with the first progress, so that an engine's start does not count as slowness."""
        self.done, self.total = done, self.total if total is None else total
        if done <= self.before:
            return
        if self.start is None:
            self.start = (done, tokens)
        self.marks.append((time.monotonic(), done, tokens))
        while len(self.marks) > 2 and self.marks[-1][0] - self.marks[0][0] > _RECENT_S:
            self.marks.popleft()

    def figures(self) -> str:
        """Tokens a second and time left, where they are known."""
        if len(self.marks) < 2 or self.start is None:
            return ""
        (began, done_then, tokens_then), (now, done, tokens) = self.marks[0], self.marks[-1]
        seconds, rate = now - began, (tokens - tokens_then) / max(now - began, 1e-9)
        units = done - self.start[0]
        left = self.total - done
        if rate > 0 and units > 0:
            seconds_left = left * (tokens - self.start[1]) / units / rate
        elif done > done_then:
            seconds_left = left * seconds / (done - done_then)
        else:
            return ""
        shown = [f"{rate:,.0f} tok/s"] if rate > 0 else []
        return ", ".join([*shown, *([f"{clock(seconds_left)} left"] if left > 0 else [])])


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
            def update(self, done: int, tokens: int = 0, note: str = "", total: int | None = None) -> None:
                pace.update(done, tokens, total)
                bars.update(bar, completed=done, total=pace.total, figures=pace.figures(), note=note)

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
        say(f"{stage}: {done}/{total} {unit}" if total else f"{stage}: {done} {unit} are there")
        began = time.monotonic()

        class _Task:
            last = time.monotonic()

            def update(self, done: int, tokens: int = 0, note: str = "", total: int | None = None) -> None:
                pace.update(done, tokens, total)
                if time.monotonic() - self.last >= period_s:
                    self.last = time.monotonic()
                    say(" ".join(part for part in (f"{stage}: {done}/{pace.total} {unit}", pace.figures(), note) if part))

        yield _Task()
        say(f"{stage}: done, {pace.done}/{pace.total} {unit} in {clock(time.monotonic() - began)} {pace.figures()}".rstrip())

    def say(self, text: str) -> None:
        """Print a line."""
        print(text, file=sys.stderr, flush=True)


def progress(quiet: bool) -> Progress:
    """Bars on a terminal, lines elsewhere and with `quiet`."""
    return LineProgress() if quiet or not sys.stderr.isatty() else LiveProgress()
