"""The indexes in use: each is read once, and again when its run has new shards.

A large run is read in a thread. A page for it waits a moment at most and then says so; while a
running run is read again, its earlier index answers.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

from ssd_ray.errors import UserError
from ssd_ray.view.index import Index, stamp
from ssd_ray.view.runs import Run

_MAX_ROWS = 2_500_000
_RECHECK_S = 5.0
_LARGE_BYTES = 50 << 20
_LARGE_FILES = 1000
"""Bytes and number of shards above which a page does not wait for the index."""
_PATIENCE_S = 0.15
_LONGEST_S = 120.0


class StillReadingError(Exception):
    """The index of a large run is being read; the page has to be asked for again."""


class Shelf:
    """Indexes by name of the run, the latest ones within a bound of rows."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._reading: dict[str, Future[Index]] = {}
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="index")
        self._lock = threading.Lock()

    def get(self, run: Run) -> Index:
        """Return the index of a run; new shards are read after a few seconds.

        Raises:
            StillReadingError: the run is large, and its index is not complete yet.
            UserError: the run has no answers.
        """
        with self._lock:
            self._take_in(run.name)
            index = self._indexes.get(run.name)
            reading = self._reading.get(run.name)
            if reading is None and (index is None or _is_outdated(index)):
                reading = self._readers.submit(Index, run)
                self._reading[run.name] = reading
        if reading is not None:
            index = _waited_for(reading, run, index)
        if index is None:
            raise StillReadingError(run.name)
        if not index.rows:
            note = f" ({index.notes[0]})" if index.notes else ""
            raise UserError(f"{run.name} has no answers yet{note}: open it again later")
        return index

    def _take_in(self, name: str) -> None:
        """Put complete indexes on the shelf, and take off the oldest above the bound."""
        reading = self._reading.get(name)
        if reading is not None and reading.done():
            del self._reading[name]
            self._indexes[name] = reading.result()
        if name in self._indexes:
            self._indexes.move_to_end(name)
        # A page in another thread may still read one: its cursor keeps the database.
        while len(self._indexes) > 1 and self._num_rows > _MAX_ROWS:
            self._indexes.popitem(last=False)

    @property
    def _num_rows(self) -> int:
        return sum(index.rows for index in self._indexes.values())


def _is_outdated(index: Index) -> bool:
    # A running run gets new shards. Its directories are listed every few seconds at most.
    if time.monotonic() - index.checked_at < _RECHECK_S:
        return False
    index.checked_at = time.monotonic()
    return stamp(index.run) != index.stamp


def _waited_for(reading: Future[Index], run: Run, earlier: Index | None) -> Index | None:
    """Wait for an index: to its end for a small run, else a moment."""
    try:
        return reading.result(_PATIENCE_S if _is_large(run) else _LONGEST_S)
    except TimeoutError:
        return earlier


def _is_large(run: Run) -> bool:
    num_files = num_bytes = 0
    for source in run.sources():
        for path in source.answers.glob("[!.]*.parquet"):
            num_files += 1
            num_bytes += path.stat().st_size if path.exists() else 0
            # Not to the end: a large run may have a hundred thousand shards.
            if num_bytes > _LARGE_BYTES or num_files > _LARGE_FILES:
                return True
    return False
