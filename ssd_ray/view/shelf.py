"""The indexes in use: each is read once, and again when its run has new shards."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict

from ssd_ray.errors import UserError
from ssd_ray.view.index import Index, stamp
from ssd_ray.view.runs import Run

_MAX_ROWS = 2_500_000
_RECHECK_S = 5.0


class Shelf:
    """Indexes by name of the run, the latest ones within a bound of rows."""

    def __init__(self) -> None:
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: Run) -> Index:
        """Return the index of a run; new shards are read after a few seconds.

        Raises:
            UserError: the run has no answers.
        """
        with self._lock:
            index = self._indexes.get(run.name)
            # A running run gets new shards. Its directories are listed every few seconds at most.
            if index is not None and time.monotonic() - index.checked_at > _RECHECK_S:
                index.checked_at = time.monotonic()
                if stamp(run) != index.stamp:
                    self._drop(run.name)
                    index = None
            if index is None:
                index = Index(run)
                self._indexes[run.name] = index
            self._indexes.move_to_end(run.name)
            while len(self._indexes) > 1 and self._num_rows > _MAX_ROWS:
                self._drop(next(iter(self._indexes)))
        if not index.rows:
            note = f" ({index.notes[0]})" if index.notes else ""
            raise UserError(f"{run.name} has no answers yet{note}: open it again later")
        return index

    @property
    def _num_rows(self) -> int:
        return sum(index.rows for index in self._indexes.values())

    def _drop(self, name: str) -> None:
        # A page in another thread may still read: its cursor keeps the database.
        self._indexes.pop(name)
