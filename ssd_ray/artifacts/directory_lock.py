"""Lock of an output directory, for one process at a time. Writes `.lock`."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from ssd_ray.artifacts.files import make_directory
from ssd_ray.errors import LastingError, OutsideError, UserError, system_reason


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a directory against other processes for the length of a block.

    Raises:
        UserError: another process holds the lock, or the storage has no file locks.
    """
    handle = try_lock(out)
    if handle is None:
        raise UserError(in_use(out))
    with handle:
        yield


def try_lock(out: Path) -> TextIO | None:
    """Return the open file that locks a directory until it is closed, None if another does.

    The kernel drops the lock with the process, however that ends. On network storage the server
    drops it, once the lease of a lost machine has run out.

    Raises:
        UserError: the directory cannot be written, or the storage has no file locks.
    """
    make_directory(out)
    path = out / ".lock"
    try:
        handle = path.open("a")
    except OSError as error:
        # A refused command removes the directory that it made.
        if isinstance(error, FileNotFoundError) and not out.exists():
            return None
        raise OutsideError(
            f"cannot write {path}: {system_reason(error)}; choose another --out"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # A user may delete the file of a lock that is never dropped: then another file counts.
        if os.fstat(handle.fileno()).st_ino == path.stat().st_ino:
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError as error:
        handle.close()
        raise LastingError(
            f"{out} is on storage without file locks ({error.strerror}), "
            "so two runs could write it at once: choose another --out"
        ) from error
    handle.close()
    return None


def in_use(out: Path) -> str:
    """Return the sentence about a directory locked by an unknown process."""
    return f"another process is using {out}: wait for it, or choose another --out"
