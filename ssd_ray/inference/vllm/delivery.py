"""Hand finished answers on, in threads apart from the one that steps the engine.

- The queue is bounded. While it is full, steps wait for storage.
- There are several threads: a line of a journal takes a round trip on network storage, and the
  order of answers has no meaning.
- A failure ends the process, because no caller waits for these threads.
"""

from __future__ import annotations

import queue
import threading
import time
import traceback
from collections.abc import Callable
from typing import Generic, TypeVar

from ssd_ray.errors import one_line
from ssd_ray.inference.crashes.ending import end_process

T = TypeVar("T")
_MOST_WAITING = 256
_NUM_THREADS = 8


class Delivery(Generic[T]):
    """A bounded queue and the threads that call `deliver` with its items, several at a time."""

    def __init__(self, deliver: Callable[[T], None]) -> None:
        self.moved = time.monotonic()
        """Time of the last delivery."""
        self._deliver = deliver
        self._waiting: queue.Queue[T | None] = queue.Queue(_MOST_WAITING)
        self._threads = [
            threading.Thread(target=self._loop, name="answers", daemon=True)
            for _ in range(_NUM_THREADS)
        ]
        for thread in self._threads:
            thread.start()

    def put(self, item: T) -> None:
        """Queue an item; wait while the queue is full."""
        self._waiting.put(item)

    @property
    def is_idle(self) -> bool:
        """True if every item is delivered."""
        return not self._waiting.unfinished_tasks

    def close(self) -> None:
        """Deliver what is queued, and end the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        try:
            while (item := self._waiting.get()) is not None:
                self._deliver(item)
                self.moved = time.monotonic()
                self._waiting.task_done()
        # These threads have no caller. Without them no answer would ever arrive.
        except Exception as error:
            traceback.print_exc()
            end_process(one_line(error))
