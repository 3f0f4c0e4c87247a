"""Interface of stages for their progress: a place to show it, and a task to update."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Protocol, TypeVar

from ssd_ray.throughput import Remaining

_QUICK_S = 3.0
"""Shorter steps without engines show no task."""
T = TypeVar("T")


class Task(Protocol):
    """One stage in progress."""

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
        """Show the reason of a wait; the time until the next update is not working time."""


class Progress(Protocol):
    """The place where stages show how far they are."""

    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Any:
        """Return a context manager of a Task; `done` units were complete before."""

    def say(self, text: str) -> None:
        """Print a line for the reader."""


def counted(
    rows: Iterable[T], progress: Progress | None, stage: str, unit: str, total: int = 0
) -> Iterator[T]:
    """Yield rows, and show their count after the first few seconds.

    So the short stages of a small run print no line.
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
