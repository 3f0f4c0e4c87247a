"""Storage of a run, tried out: writing, renaming, locking, and the space left.

A probe makes one directory of its own and deletes it. It runs on one machine, so it cannot prove
that other nodes see its locks and renames.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.errors import system_reason

LOCAL = "SSD_RAY_LOCAL"
"""Variable of a node with a directory on a disk of its own, for copies of models."""
_SHARED = ("nfs", "cifs", "smb", "ceph", "lustre", "gpfs", "beegfs", "gluster", "9p", "virtiofs")
"""First letters of file systems on other machines; those of `fuse` count too, as buckets do."""


@dataclass(frozen=True, kw_only=True)
class Storage:
    """Storage of a directory, or of the nearest existing one above it."""

    path: Path
    kind: str
    """Type of the file system, such as nfs4 or ext4."""
    free: int
    """Bytes left for this user."""
    failure: str
    """The failed operation with the system's reason; empty if all work."""


def read_storage(path: Path) -> Storage:
    """Try out the storage of a directory, which may not exist yet."""
    place = nearest(path)
    absolute = path.expanduser().absolute()
    for each in (absolute, *absolute.parents):
        if each.exists() and not each.is_dir():
            failure = f"{each} is not a directory"
            return Storage(path=place, kind=_kind(place), free=free_bytes(place), failure=failure)
    try:
        with tempfile.TemporaryDirectory(prefix=".ssd-ray-", dir=place) as folder:
            failure = _failure(Path(folder))
    except OSError as error:
        failure = f"writing fails there ({system_reason(error)})"
    return Storage(path=place, kind=_kind(place), free=free_bytes(place), failure=failure)


def _failure(folder: Path) -> str:
    """Return the first operation that fails in an empty folder, with the reason."""
    for name, attempt in _OPERATIONS.items():
        try:
            attempt(folder)
        except OSError as error:
            return f"{name} fails there ({system_reason(error)})"
    return ""


def nearest(path: Path) -> Path:
    """Return the directory, or the nearest existing one above it."""
    absolute = path.expanduser().absolute()
    return next(each for each in (absolute, *absolute.parents) if each.is_dir())


def free_bytes(path: Path) -> int:
    """Return the bytes left on the storage of a directory, which may not exist yet."""
    return shutil.disk_usage(nearest(path)).free


def disk_for_copies(choice: str, directory: Path) -> Path | None:
    """Return the directory for a copy of a model on this node, None for no copy.

    `choice` is `cluster.local_weights`. With `auto`, a model is copied if it lies on storage of
    another machine, and if the node names a disk in `SSD_RAY_LOCAL`.
    """
    if choice == "off":
        return None
    if choice != "auto":
        return Path(choice)
    disk = os.environ.get(LOCAL)
    return Path(disk) if disk and _is_shared(directory) and not _is_shared(Path(disk)) else None


def _is_shared(path: Path) -> bool:
    """Return True if a path lies on storage that other machines see too."""
    return _kind(nearest(path).resolve()).startswith((*_SHARED, "fuse"))


def _write(folder: Path) -> None:
    for name in ("old", "new"):
        with (folder / name).open("w") as handle:
            handle.write(name)
            handle.flush()
            os.fsync(handle.fileno())


def _replace(folder: Path) -> None:
    (folder / "new").replace(folder / "old")
    if (folder / "old").read_text() != "new":
        raise OSError("the old contents are still there")


def _rename_directory(folder: Path) -> None:
    (folder / "partial").mkdir()
    (folder / "partial").rename(folder / "complete")


def _lock(folder: Path) -> None:
    # Locks of flock belong to open files, so a second one of this process is refused too.
    with (folder / "lock").open("w") as first, (folder / "lock").open("w") as second:
        fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
    raise OSError("a second lock was granted")


_OPERATIONS = {
    "writing": _write,
    "renaming over a file": _replace,
    "renaming a directory": _rename_directory,
    "locking": _lock,
}


def _kind(path: Path) -> str:
    """Return the type of the file system of a path; empty if /proc/mounts does not have it."""
    mounts = (line.split() for line in Path("/proc/mounts").read_text().splitlines())
    # A mount over another one comes later, and the longest point is the nearest.
    points = [
        (len(fields[1]), number, fields[2])
        for number, fields in enumerate(mounts)
        if path.is_relative_to(fields[1].replace("\\040", " "))
    ]
    return max(points)[2] if points else ""
