"""Keep one copy of a model on a disk of this node, for all its processes.

    DIRECTORY on shared storage ─copy, SHA-256─> DISK/ssd-ray-weights-UID/NAME-KEY/

- The first process copies, under a lock of the node. All others wait for it, so a node reads the
  shared storage once.
- The key follows from path, size and time of change of each file. Another model at the same path
  has another key.
- A copy appears by rename. Before that its bytes are flushed, read back and compared by SHA-256.
- Later processes compare size and time of change of each file with the record of the copy. They
  replace a damaged copy.
- Each process holds a shared lock on its copy until it ends. Copies without such a lock are removed
  before another one is made.

Reads a model directory; writes the disk.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from ssd_ray.artifacts import files
from ssd_ray.errors import OutsideError, system_reason
from ssd_ray.models import model_files, templates

_FILES = (
    model_files.WEIGHTS,
    *model_files.TOKENIZER_FILES,
    "*.index.json",
    "*config.json",
    templates.PROCESSOR,
    templates.NAMED,
)
_RECORD = ".copy.json"
_THREADS = 8
"""Files copied at a time: one stream does not fill the network of a node."""
_GIB = 1 << 30
_SHA256 = re.compile(r"[0-9a-f]{64}")
_REMEDY = "set cluster.local_weights to a directory on another disk of every node, or to off"
_held: list[TextIO] = []
"""Locks of the copies in use; the kernel drops them with the process."""


def local_copy(directory: Path, disk: Path) -> Path:
    """Return the copy of a model directory on a disk of this node, made if it is missing.

    Raises:
        OutsideError: the disk is full or cannot be written, or the model changes or is damaged.
    """
    try:
        place = _place(disk)
        sources = _sources(directory)
        copy = place / f"{directory.name[:100]}-{_key(directory, sources)}"
        with _locked(_lock_of(copy)):
            if not _is_intact(copy):
                _make(directory, sources, copy)
            _hold(copy)
    except OSError as error:
        raise OutsideError(
            f"copying the model {directory} to {disk} on node {socket.gethostname()} failed: "
            f"{system_reason(error)}; {_REMEDY}"
        ) from error
    return copy


def _place(disk: Path) -> Path:
    """Return the directory of this user's copies on a disk, made if it is missing."""
    place = disk / f"ssd-ray-weights-{os.getuid()}"
    disk.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        place.mkdir(mode=0o700)
    # On a disk open to all users, another one could offer weights under this name.
    if place.is_symlink() or place.stat().st_uid != os.getuid():
        raise OutsideError(f"{place} belongs to another user: {_REMEDY}")
    return place


def _sources(directory: Path) -> dict[str, os.stat_result]:
    """Return the files of a model that are loaded, by their path in the directory."""
    loaded = {path for pattern in _FILES for path in directory.glob(pattern) if path.is_file()}
    return {str(path.relative_to(directory)): path.stat() for path in sorted(loaded)}


def _key(directory: Path, sources: Mapping[str, os.stat_result]) -> str:
    # Contents are not read: each process of the node would read the shared storage.
    facts = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in sources.items()]
    return hashlib.sha256(json.dumps([str(directory.resolve()), facts]).encode()).hexdigest()[:16]


def _lock_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.lock")


def _use_of(copy: Path) -> Path:
    return copy.with_name(f"{copy.name}.used")


def _partial_of(copy: Path) -> Path:
    # One name is enough: only the holder of the lock makes the copy.
    return copy.with_name(f".{copy.name}.partial")


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the exclusive lock of a file; yield False if it is taken and `wait` is False."""
    while True:
        with path.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            if _is_file_of(handle, path):
                yield True
                return


def _is_file_of(handle: TextIO, path: Path) -> bool:
    """Return False if the file was removed, as with a copy: then another one counts."""
    try:
        return os.fstat(handle.fileno()).st_ino == path.stat().st_ino
    except FileNotFoundError:
        return False


def _hold(copy: Path) -> None:
    """Mark a copy as in use by this process; the caller holds its lock."""
    handle = _use_of(copy).open("a")
    fcntl.flock(handle, fcntl.LOCK_SH)
    _held.append(handle)


def _is_intact(copy: Path) -> bool:
    """Return True if all files of a copy are as its record has them."""
    try:
        record = json.loads((copy / _RECORD).read_text())["files"]
        stats = {name: (copy / name).stat() for name in record}
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError):
        return False
    return all(
        (stat.st_size, stat.st_mtime_ns) == (record[name]["bytes"], record[name]["mtime_ns"])
        for name, stat in stats.items()
    )


def _make(directory: Path, sources: Mapping[str, os.stat_result], copy: Path) -> None:
    """Make the copy under a temporary name, check it, and rename it."""
    began = time.monotonic()
    partial = _partial_of(copy)
    shutil.rmtree(partial, ignore_errors=True)
    if copy.exists():
        # Damaged. A process that loads from it keeps the files that it has open.
        shutil.rmtree(copy)
    _remove_unused(copy)
    size = sum(stat.st_size for stat in sources.values())
    _check_room(directory, copy.parent, size)
    partial.mkdir()
    try:
        record = _fill(directory, sources, partial)
        (partial / _RECORD).write_text(json.dumps({"model": str(directory), "files": record}))
        files.sync([partial / _RECORD, partial])
        files.publish_directory(partial, copy)
        files.sync([copy.parent])
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - began
    print(
        f"weights: {size / _GIB:.1f} GiB of {directory} copied to {copy} in {seconds:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _remove_unused(kept: Path) -> None:
    """Remove all other copies that no process uses, with what killed processes left of them."""
    for path in kept.parent.glob("*.lock"):
        copy = path.with_suffix("")
        if copy == kept:
            continue
        with _locked(path, wait=False) as is_mine, _locked(_use_of(copy), wait=False) as is_unused:
            if is_mine and is_unused:
                # The copy goes first: without it, its locks mean nothing.
                for each in (copy, _partial_of(copy)):
                    shutil.rmtree(each, ignore_errors=True)
                _use_of(copy).unlink()
                path.unlink()


def _check_room(directory: Path, place: Path, size: int) -> None:
    free = shutil.disk_usage(place).free
    if free < size:
        raise OutsideError(
            f"{place} has {free / _GIB:,.1f} GiB left on node {socket.gethostname()}, and the copy "
            f"of the model {directory} needs {size / _GIB:,.1f} GiB: free some, or {_REMEDY}"
        )


def _fill(
    directory: Path, sources: Mapping[str, os.stat_result], partial: Path
) -> dict[str, files.Json]:
    """Copy all files and return their records.

    Raises:
        OutsideError: a file is damaged, or changes while it is copied.
    """

    def copied(name: str) -> files.Json:
        target = partial / name
        target.parent.mkdir(exist_ok=True)
        sha256 = files.copy_file(directory / name, target)
        _check_digest(directory / name, target, sha256)
        stat = target.stat()
        return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256}

    with ThreadPoolExecutor(_THREADS) as threads:
        records = dict(zip(sources, threads.map(copied, sources), strict=True))
    if _key(directory, _sources(directory)) != _key(directory, sources):
        raise OutsideError(f"the model {directory} changed while it was copied: run again")
    return records


def _check_digest(source: Path, target: Path, sha256: str) -> None:
    """Compare the bytes read with those on the disk, and with the digest that the hub states."""
    # In the hub's cache, the name of a large file is the SHA-256 of its contents.
    stated = source.resolve().name
    if _SHA256.fullmatch(stated) and stated != sha256:
        raise OutsideError(
            f"{source} is damaged: its bytes have another SHA-256 than the hub states; delete "
            f"{source.resolve()} and run again, which downloads it again"
        )
    with target.open("rb") as handle:
        # Without this, the bytes would come from memory and not from the disk.
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if hashlib.file_digest(handle, "sha256").hexdigest() != sha256:
            raise OutsideError(
                f"the disk of {target} on node {socket.gethostname()} returns other bytes than "
                f"were written: {_REMEDY}"
            )
