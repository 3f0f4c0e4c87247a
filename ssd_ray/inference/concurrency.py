"""Who may use an engine when: calls take turns, units share it, and suspects have it alone. Threads only."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ConcurrencyLimiter:
    """ConcurrencyLimiter that are inside, of which `most` have their turn at a time."""

    def __init__(self, most: int) -> None:
        self._changed = threading.Condition()
        self._inside, self._at_work, self._most, self._closed = 0, 0, most, False

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Count a call and wait for its turn; yields whether it came, which it does not any more once this is closed."""
        with self._changed:
            self._inside += 1
            self._changed.wait_for(lambda: self._closed or self._at_work < self._most)
            came = not self._closed
            self._at_work += came
        try:
            yield came
        finally:
            with self._changed:
                self._inside -= 1
                self._at_work -= came
                self._changed.notify_all()

    def close(self) -> None:
        """Give no more turns: who waits is told so."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for_work(self) -> None:
        """Return when no call is at work."""
        with self._changed:
            self._changed.wait_for(lambda: not self._at_work)

    def wait_for_all(self) -> None:
        """Return when no call is inside."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)


class SharedExclusiveLock:
    """Units share an engine, or one has it alone; who wants it alone is not kept waiting by those who come after."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside, self._waiting, self._taken = 0, 0, False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use the engine beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._taken and not self._waiting)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Use the engine when nobody else does."""
        with self._changed:
            self._waiting += 1
            self._changed.wait_for(lambda: not self._taken and not self._inside)
            self._waiting -= 1
            self._taken = True
        try:
            yield
        finally:
            with self._changed:
                self._taken = False
                self._changed.notify_all()
