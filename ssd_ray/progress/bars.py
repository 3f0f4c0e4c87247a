"""Progress as bars on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from ssd_ray.progress.display import Display
from ssd_ray.progress.tasks import Task
from ssd_ray.throughput import Remaining


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
