"""Progress as bars on a terminal."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as RichProgress
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

from ssd_ray.progress.display import Display
from ssd_ray.progress.tasks import Task
from ssd_ray.throughput import Remaining

_WIDE = 120
"""Columns of a terminal from which on bars and names get more room."""


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
        bar = bars.add_task(stage, total=total or None, completed=done, unit=unit, figures=())
        task = _Bar(Display(stage, total, unit, done), bars, bar)
        try:
            yield task
            task.end()
        finally:
            self._close(bars)

    def _open(self) -> RichProgress:
        with self._lock:
            if self._bars is None:
                self._bars = RichProgress(
                    *_columns(is_wide=self._console.width >= _WIDE),
                    console=self._console,
                    refresh_per_second=4,
                )
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

    def _show(self, figures: tuple[str, ...]) -> None:
        display = self._display
        self._bars.update(
            self._bar, completed=display.done, total=display.total or None, figures=figures
        )


def _columns(*, is_wide: bool) -> tuple[ProgressColumn, ...]:
    """Return the columns of a bar; the last one gets the room left by the others."""
    name_width, bar_width = (22, 28) if is_wide else (16, 10)
    return (
        TextColumn(f"{{task.description:<{name_width}}}", markup=False),
        BarColumn(bar_width=bar_width, table_column=Column(no_wrap=True)),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[unit]}", markup=False),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        _Figures(),
    )


class _Figures(ProgressColumn):
    """Column of the figures of a task, in the longest form that fits."""

    def render(self, task: RichTask) -> _Fitting:
        return _Fitting(task.fields["figures"])


class _Fitting:
    """The first of several texts that fits, or the last one."""

    def __init__(self, forms: tuple[str, ...]) -> None:
        self._forms = forms or ("",)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        fitting = (form for form in self._forms if len(form) <= options.max_width)
        text = next(fitting, self._forms[-1])
        yield Text(text, no_wrap=True, overflow="ellipsis")

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(len, self._forms))
        return Measurement(min(1, longest), longest).with_maximum(options.max_width)
