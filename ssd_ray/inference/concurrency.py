"""Locks of an engine: limited calls, shared use by work units, exclusive use by suspects.

For threads of one process.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class ConcurrencyLimiter:
    """A limit on calls at work; further calls wait for a place until one has done its work."""

    def __init__(self, limit: int) -> None:
        self._changed = threading.Condition()
        self._limit = limit
        self._inside = 0
        self._at_work = 0
        self._closed = False

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Count a call from its beginning to its end, work and the time around it."""
        with self._changed:
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._changed.notify_all()

    @contextmanager
    def one(self) -> Iterator[bool]:
        """Wait for a place and yield True; yield False if the limiter was closed while waiting."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._at_work < self._limit)
            admitted = not self._closed
            self._at_work += admitted
        try:
            yield admitted
        finally:
            with self._changed:
                self._at_work -= admitted
                self._changed.notify_all()

    def close(self) -> None:
        """Admit no further call; waiting calls return."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_for_work(self) -> None:
        """Return once no call is at work."""
        with self._changed:
            self._changed.wait_for(lambda: not self._at_work)

    def wait_for_all(self) -> None:
        """Return once no call is in progress at all, admitted or not."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside)


class SharedExclusiveLock:
    """A reader-writer lock; a waiting writer goes before later readers."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._readers = 0
        self._waiting_writers = 0
        self._written = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Hold the lock together with other shared holders."""
        with self._changed:
            self._changed.wait_for(lambda: not self._written and not self._waiting_writers)
            self._readers += 1
        try:
            yield
        finally:
            with self._changed:
                self._readers -= 1
                self._changed.notify_all()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the lock alone."""
        with self._changed:
            self._waiting_writers += 1
            self._changed.wait_for(lambda: not self._written and not self._readers)
            self._waiting_writers -= 1
            self._written = True
        try:
            yield
        finally:
            with self._changed:
                self._written = False
                self._changed.notify_all()
