"""One process at a time in an output directory. Writes `.lock`."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ssd_ray.artifacts.files import make_directory
from ssd_ray.errors import UserError


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold a directory against other processes; the lock goes when the process does.

    Raises:
        UserError: another process holds it, or its storage has no file locks.
    """
    make_directory(out)
    with (out / ".lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"another process is at work in {out}: wait for it, or choose another --out"
            ) from error
        except OSError as error:
            raise UserError(
                f"{out} is on storage without file locks ({error.strerror}), so nothing would keep two runs apart: "
                "choose another --out"
            ) from error
        yield
