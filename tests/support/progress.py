"""A progress display that records its lines for a test."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Lines:
    """Progress that keeps its lines, and the reasons and counts of its tasks."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.waits: list[str] = []
        self.done: list[int] = []

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Lines]:
        """Return itself as the task."""
        yield self

    def say(self, text: str) -> None:
        """Keep a line."""
        self.lines.append(text)

    def wait(self, reason: str) -> None:
        """Keep the reason of a wait."""
        self.waits.append(reason)

    def update(self, done: int, *_: Any, **__: Any) -> None:
        """Keep a count."""
        self.done.append(done)
