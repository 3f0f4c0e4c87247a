"""Progress on the screen, and as lines in a file for whoever watches from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from io import RawIOBase
from pathlib import Path

from ssd_ray.progress.lines import LineProgress
from ssd_ray.progress.tasks import Progress, Task
from ssd_ray.throughput import Remaining


class RecordedProgress:
    """Another progress, whose lines also go to a file while it is open."""

    def __init__(self, shown: Progress) -> None:
        self._shown = shown
        self._file: RawIOBase | None = None
        self._recorded = LineProgress(write=self._write)

    @contextmanager
    def kept_in(self, path: Path) -> Iterator[int]:
        """Append lines to a file for the length of a block; yield its size before.

        A full disk costs lines and no error: the run ends where rows would be lost.
        """
        with suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            # Without a buffer, no line is left to be written when the file is closed.
            self._file = path.open("ab", buffering=0)
        try:
            yield self._file.tell() if self._file is not None else 0
        finally:
            if self._file is not None:
                with suppress(OSError):
                    self._file.close()
                self._file = None

    @contextmanager
    def task(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Task]:
        """Show one task, and record it if the file is open."""
        with ExitStack() as stack:
            tasks = [stack.enter_context(self._shown.task(stage, total, unit, done))]
            if self._file is not None:
                tasks.append(stack.enter_context(self._recorded.task(stage, total, unit, done)))
            yield _Tasks(tasks)

    def say(self, text: str) -> None:
        """Print and record a line."""
        self._shown.say(text)
        self._recorded.say(text)

    def _write(self, text: str) -> None:
        handle = self._file
        if handle is None:
            return
        # ValueError: the file was closed in between.
        with suppress(OSError, ValueError):
            handle.write(text.encode())


class _Tasks:
    """One task, shown in several places."""

    def __init__(self, tasks: list[Task]) -> None:
        self._tasks = tasks

    def update(
        self,
        done: int,
        tokens: int = 0,
        note: str = "",
        total: int | None = None,
        remaining: Remaining | None = None,
    ) -> None:
        for task in self._tasks:
            task.update(done, tokens, note, total, remaining)

    def wait(self, reason: str) -> None:
        for task in self._tasks:
            task.wait(reason)
