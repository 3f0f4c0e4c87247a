"""Records of a command in its run directory, removed if it is refused before its work.

- Nothing is removed that was there before the command.
- Nothing is removed once the directory has an entry of another kind: the records then belong to
  artifacts.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from ssd_ray.artifacts import files
from ssd_ray.submissions import owner

LOCK = ".lock"
LOGS = "logs"
_LOG_FILES = frozenset({"progress.log", "ray.log"})
_RECORDS = frozenset({LOCK, owner.FILE, LOGS})


class Traces:
    """Entries of a run directory before a command, and directories above it that were missing."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._missing = [path for path in (out, *out.parents) if not os.path.exists(path)]
        self._before = _names(out)
        self._logs_before = _names(out / LOGS)

    def remove(self) -> None:
        """Remove the records of a command that made nothing else; it still holds the lock."""
        new = _names(self._out) - self._before
        new_logs = _names(self._out / LOGS) - self._logs_before
        if not (new <= _RECORDS and new_logs <= _LOG_FILES):
            return
        # A full or lost storage refuses, and the sentence of the command matters more.
        with suppress(OSError):
            for name in new_logs:
                (self._out / LOGS / name).unlink()
            if LOGS in new:
                (self._out / LOGS).rmdir()
            # The lock goes last: another command may begin as soon as it has gone.
            for name in sorted(new - {LOGS}, reverse=True):
                (self._out / name).unlink()
            # A directory with an entry of another command stays.
            for path in self._missing:
                path.rmdir()


def _names(directory: Path) -> frozenset[str]:
    """Return the names in a directory; none if it is missing or of another user.

    The lock of a directory of another user is refused, so nothing is removed there.
    """
    try:
        return frozenset(files.names(directory))
    except OSError:
        return frozenset()
