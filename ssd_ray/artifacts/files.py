"""Write files and directories atomically: complete or absent after a crash at any instant.

Each appears by rename. `read_json` and `read_json_lines` read this package's own JSON.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

from ssd_ray.errors import LastingError, OutsideError, one_line, system_reason
from ssd_ray.file_kinds import kind_of, refuse_pointer

Json: TypeAlias = dict[str, Any]
"""A JSON object as read, or as about to be written."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of storage without room."""
_COMPLETE_BYTES = 64 << 20
_PROBE_BYTES = 1 << 20
_BLOCK_BYTES = 16 << 20
_FILL_BYTES = 1 << 16


def digest(files: Iterable[Path], *, entirely: bool = False, names: bool = True) -> str:
    """Digest names, sizes and bytes of files into sixteen hex digits.

    Of a file above 64 MiB only the first and the last MiB are read, unless `entirely` is set.
    Without `names`, the digest stays the same if a file is renamed.
    """
    sha = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        sha.update(f"{path.name if names else ''} {size} ".encode())
        with path.open("rb") as handle:
            if size <= _COMPLETE_BYTES:
                sha.update(handle.read())
            elif entirely:
                sha.update(hashlib.file_digest(handle, "sha256").digest())
            else:
                # Weights are many GiB. Other weights in a file of the same size are expected to
                # differ in its first or last MiB.
                sha.update(handle.read(_PROBE_BYTES))
                handle.seek(size - _PROBE_BYTES)
                sha.update(handle.read(_PROBE_BYTES))
    return sha.hexdigest()[:16]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file atomically: absent or complete at any instant, also after a power cut.

    Raises:
        OutsideError: the directory is not writable or the disk is full.
    """
    # A random name: processes in different containers may have the same id.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.partial")
    try:
        handle = _create(temporary)
    except OSError as error:
        raise _unwritable(path, error) from error
    try:
        with handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            # Without a sync, a power cut may leave the new name without the bytes.
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except OSError as error:
        # Storage that became read-only refuses this too.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def check_disk(out: Path) -> None:
    """Write a probe, because an engine with a full disk cannot record its reason.

    Raises:
        OutsideError: the disk is full or the directory is not writable.
    """
    probe = out / ".probe"
    write_atomic(probe, bytes(_FILL_BYTES))
    probe.unlink()


def _create(path: Path) -> BinaryIO:
    """Create a file, and its directory if that is missing."""
    try:
        return path.open("wb")
    except FileNotFoundError:
        # Not looked for in advance: that takes three operations on network storage.
        make_directory(path.parent)
        return path.open("wb")


def publish_directory(temporary: Path, target: Path) -> None:
    """Rename a finished directory to `target`.

    If another process was first, its directory stays, and `temporary` stays too.

    Raises:
        LastingError: `target` is a file, or the storage refuses.
    """
    try:
        temporary.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise LastingError(
                f"cannot rename {temporary} to {target}: {system_reason(error)}; "
                f"move {target} away and run again"
            ) from error


def replace_directory(temporary: Path, target: Path) -> None:
    """Rename a finished directory to `target`, in place of an existing directory or file."""
    # On network storage a directory in use cannot be emptied, but it can be renamed.
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> str:
    """Copy a file, flush it to the disk, and return the SHA-256 of its contents."""
    sha = hashlib.sha256()
    with source.open("rb") as reading, target.open("wb") as writing:
        while block := reading.read(_BLOCK_BYTES):
            sha.update(block)
            writing.write(block)
        writing.flush()
        os.fsync(writing.fileno())
    return sha.hexdigest()


def names(directory: Path) -> list[str]:
    """Return the names in a directory, none if it is missing.

    This takes one operation of network storage. `Path.glob` takes two.
    """
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []


def require_regular(path: Path) -> None:
    """Refuse a file that is a link, a pipe or a device: its name may lead anywhere.

    Raises:
        OutsideError: names the file and its kind.
    """
    if not stat.S_ISREG(os.lstat(path).st_mode):
        kind = "a symbolic link" if path.is_symlink() else kind_of(path)
        raise OutsideError(
            f"{path} is {kind}, and graders read regular files alone: delete it and run again"
        )


def make_directory(path: Path) -> None:
    """Make a writable directory and its parents.

    Raises:
        OutsideError: it cannot be made or written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in _FULL:
            raise _unwritable(path, error) from error
        raise OutsideError(
            f"the directory {path} cannot be made ({_reason(path, error)}): choose another --out"
        ) from error
    # An existing directory may belong to another user.
    if not os.access(path, os.W_OK | os.X_OK):
        raise _unwritable(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _unwritable(path: Path, error: OSError) -> OutsideError:
    remedy = "make room and run again, or choose" if error.errno in _FULL else "choose"
    return OutsideError(f"cannot write {path}: {system_reason(error)}; {remedy} another --out")


def _reason(path: Path, error: OSError) -> str:
    """Return the reason why a directory cannot be made, with the entry above it that refuses."""
    # Unlike `Path.exists`, this is False for a name that is too long.
    above = next(each for each in (path, *path.parents) if os.path.exists(each))
    if not above.is_dir():
        return f"{above} is no directory"
    # A pseudo file system such as /proc answers that a file is missing.
    return f"{above} takes no directory" if error.errno == errno.ENOENT else system_reason(error)


def read_complete_lines(handle: BinaryIO) -> list[bytes]:
    """Read the lines of a growing file from the handle's position on.

    A last line without its newline is still being written, or was torn by a kill. It is left out,
    and the position stays before it.
    """
    start = handle.tell()
    data = handle.read()
    size = data.rfind(b"\n") + 1
    handle.seek(start + size)
    return data[:size].splitlines()


def read_json_lines(path: Path) -> list[Json]:
    """Read the complete lines of a growing file, one JSON object each; none if it is missing."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        return [json.loads(line) for line in read_complete_lines(handle)]


def read_json(path: Path) -> Json:
    """Read the JSON object of a file of this package.

    Raises:
        LastingError: the file cannot be read or holds no JSON object.
    """
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        # A run directory in git-lfs is refused with its own remedy.
        refuse_pointer(path, "a file of this program")
        raise LastingError(
            f"cannot read {path}: {one_line(error)}; delete its directory and run again"
        ) from error
    if not isinstance(value, dict):
        raise LastingError(f"{path} holds no JSON object; delete its directory and run again")
    return value


def sync(paths: Iterable[Path]) -> None:
    """Flush files and directories to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
