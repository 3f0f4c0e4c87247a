"""Show how far long work is: a bar per stage on a terminal, lines elsewhere.

- A stage opens a task, updates it with totals, and names the reason of a wait.
- Rates and time left count working time only. Waiting, such as for an engine to start, is counted
  apart and named in the last line.
- All output goes to standard error; standard output holds results alone.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from ssd_ray.quantities import clock, rate
from ssd_ray.throughput import Remaining, Throughput

_FIRST_LINE_S = 5.0
_QUICK_S = 3.0
"""Shorter steps without engines show no task."""
T = TypeVar("T")
_TICK_S = 1.0
_NAMED_WAIT_S = 1.0
"""Shorter waits are not named in the last line."""


class Task(Protocol):
    """One stage at work."""

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        """Record the state of the work.

        - `done` counts units of all attempts.
        - `tokens` counts those handled since the task began, also of units in progress.
        - `total` replaces the earlier total.
        - `remaining` is a better estimate than units left times their mean length, if there is one.
        """

    def wait(self, reason: str) -> None:
        """Show the reason of a wait; until the next update, time does not count as working."""


class Progress(Protocol):
    """The place where stages show how far they are."""

    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Any:
        """Return a context manager of a Task; `done` units were complete before."""

    def say(self, text: str) -> None:
        """Print a line for the reader."""


class Display:
    """State of one task, and its text for a screen."""

    def __init__(self, stage: str, total: int, unit: str, done: int) -> None:
        self.total = total
        self.done = done
        self._stage = stage
        self._unit = unit
        self._before = done
        self._tokens = 0
        self._note = ""
        self._remaining: Remaining | None = None
        self._throughput = Throughput(done)
        self._began = time.monotonic()
        self._waits: dict[str, float] = {}
        self._reason = ""
        self._waiting_since = self._began

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        """Record the state of the work; see `Task.update`."""
        self._end_wait()
        self.done = done
        self.total = self.total if total is None else total
        self._tokens = tokens
        self._note = note
        self._remaining = remaining
        self._throughput.mark(done, tokens)

    def wait(self, reason: str) -> None:
        """Begin or continue to wait for something."""
        if reason != self._reason:
            self._end_wait()
            self._reason = reason
            self._waiting_since = time.monotonic()
            self._throughput.pause()

    def _end_wait(self) -> None:
        if self._reason:
            waited_s = time.monotonic() - self._waiting_since
            self._waits[self._reason] = self._waits.get(self._reason, 0.0) + waited_s
            self._reason = ""

    @property
    def figures(self) -> str:
        """Rate, time left and note; during a wait, its reason."""
        if self._reason:
            return self._reason
        return ", ".join(
            part
            for part in (self._rate(*self._throughput.rates), self._time_left(), self._note)
            if part
        )

    @property
    def line(self) -> str:
        """One line of a log; the time in it keeps two lines from being equal."""
        parts = (
            f"{self._stage}: {self._count} {self._unit}",
            clock(time.monotonic() - self._began),
            self.figures,
        )
        return ", ".join(part for part in parts if part)

    @property
    def summary(self) -> str:
        """Time of the task, the waits in it, and the mean rate over its working time."""
        self._end_wait()
        named = [
            f"{clock(seconds)} {reason}"
            for reason, seconds in self._waits.items()
            if seconds >= _NAMED_WAIT_S
        ]
        waits = f" ({', '.join(named)})" if named else ""
        working_s = self._throughput.working_s
        mean = ""
        if working_s > 0 and self.done > self._before:
            mean = self._rate((self.done - self._before) / working_s, self._tokens / working_s)
        return f"in {clock(time.monotonic() - self._began)}{waits}" + (
            f", mean {mean}" if mean else ""
        )

    @property
    def last_line(self) -> str:
        """Last line of a log."""
        return f"{self._stage}: done, {self._count} {self._unit} {self.summary}"

    @property
    def _count(self) -> str:
        return f"{self.done:,}/{self.total:,}" if self.total else f"{self.done:,}"

    def _rate(self, units_per_s: float, tokens_per_s: float) -> str:
        if tokens_per_s > 0:
            return f"{rate(tokens_per_s)} tok/s"
        return f"{rate(units_per_s)} {self._unit}/s" if units_per_s > 0 else ""

    def _time_left(self) -> str:
        units_per_s, tokens_per_s = self._throughput.rates
        units_left = self.total - self.done
        if units_left <= 0:
            return ""
        if self._remaining is not None and tokens_per_s > 0:
            seconds = self._remaining.tokens / tokens_per_s
            return f"{'at most ' if self._remaining.at_most else ''}{clock(seconds)} left"
        return f"{clock(units_left / units_per_s)} left" if units_per_s > 0 else ""


class LiveProgress:
    """Bars on a terminal, several at a time where stages overlap."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._lock = threading.Lock()
        self._bars: RichProgress | None = None
        self._num_open = 0

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Show one bar; it stays on the screen until the last overlapping stage ends."""
        bars = self._open()
        bar = bars.add_task(stage, total=total or None, completed=done, unit=unit, figures="")
        task = _Bar(Display(stage, total, unit, done), bars, bar)
        try:
            yield task
            task.end()
        finally:
            self._close(bars)

    def _open(self) -> RichProgress:
        with self._lock:
            if self._bars is None:
                columns = (
                    TextColumn("{task.description:<22}", markup=False),
                    BarColumn(bar_width=28),
                    MofNCompleteColumn(),
                    TextColumn("{task.fields[unit]}", markup=False),
                    TimeElapsedColumn(),
                    TextColumn("{task.fields[figures]}", markup=False),
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


class _Bar:
    """One task of `LiveProgress`."""

    def __init__(self, display: Display, bars: RichProgress, bar: Any) -> None:
        self._display = display
        self._bars = bars
        self._bar = bar

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        self._display.update(done, tokens, note, total, remaining)
        self._show(self._display.figures)

    def wait(self, reason: str) -> None:
        self._display.wait(reason)
        self._show(self._display.figures)

    def end(self) -> None:
        self._show(self._display.summary)

    def _show(self, figures: str) -> None:
        display = self._display
        self._bars.update(
            self._bar, completed=display.done, total=display.total or None, figures=figures
        )


class LineProgress:
    """Lines for logs and pipes: when a stage starts, once each period, and when it ends."""

    def __init__(self, period_s: float = 30.0) -> None:
        self._period_s = period_s

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
        print(text, file=sys.stderr, flush=True)


class _Lines:
    """One task of `LineProgress`; a thread prints also where no update comes."""

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


def counted(
    rows: Iterable[T], progress: Progress | None, stage: str, unit: str, total: int = 0
) -> Iterator[T]:
    """Yield rows, and show their count after the first few seconds.

    Short stages of a small run print no line then.
    """
    began = time.monotonic()
    with ExitStack() as stack:
        task: Task | None = None
        for number, row in enumerate(rows):
            if task is not None:
                task.update(number)
            elif progress is not None and time.monotonic() - began >= _QUICK_S:
                task = stack.enter_context(progress.task(stage, total, unit, number))
            yield row
        if task is not None:
            task.update(number + 1)


def progress(quiet: bool) -> Progress:
    """Return bars on a terminal, lines elsewhere and with `quiet`."""
    return LineProgress() if quiet or not sys.stderr.isatty() else LiveProgress()
