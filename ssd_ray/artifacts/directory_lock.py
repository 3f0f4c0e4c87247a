"""Lock of an output directory, for one process at a time. Writes `.lock`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_ray.artifacts.files import make_directory
from ssd_ray.errors import UserError


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock a directory against other processes for the length of a block.

    Raises:
        UserError: another process holds the lock, or the storage has no file locks.
    """
    make_directory(out)
    # The kernel drops the lock with the process, however that ends: no stale lock is possible.
    with (out / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is using {out}: wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"{out} is on storage without file locks ({error.strerror}), "
                "so two runs could write it at once: choose another --out"
            ) from error
        yield
