"""Write files and directories so that they are complete or absent after a crash at any instant.

Each appears by rename. `read_json` reads the JSON files that this package wrote.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from ssd_ray.errors import UserError, one_line, system_reason
from ssd_ray.file_kinds import refuse_pointer

_COMPLETE_BYTES = 64 << 20
_PROBE_BYTES = 1 << 20


def digest(files: Iterable[Path], *, entirely: bool = False, names: bool = True) -> str:
    """Sixteen hex digits over the names, sizes and bytes of files; of one above 64 MiB, its first and last MiB stand for it,
    unless they are to be read `entirely`. Without `names`, a file may be moved and renamed.
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
                sha.update(handle.read(_PROBE_BYTES))
                handle.seek(size - _PROBE_BYTES)
                sha.update(handle.read(_PROBE_BYTES))
    return sha.hexdigest()[:16]


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write a file so that it is either absent or complete, also after a power cut.

    Raises:
        UserError: the directory is not writable or the disk is full.
    """
    make_directory(path.parent)
    aside = path.with_name(
        f".{path.name}.{uuid.uuid4().hex}.partial"
    )  # containers share numbers of processes
    try:
        with aside.open("wb") as handle:
            handle.write(data.encode() if isinstance(data, str) else data)
            handle.flush()
            os.fsync(handle.fileno())
        aside.replace(path)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


def publish_directory(aside: Path, target: Path) -> None:
    """Give a finished directory its name; if another process was first, its directory stays and `aside` too.

    Raises:
        UserError: something else has that name, or the storage refuses.
    """
    try:
        aside.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise UserError(
                f"cannot give {aside} the name {target}: {system_reason(error)}; "
                f"move away what has it"
            ) from error


def replace_directory(aside: Path, target: Path) -> None:
    """Give a finished directory its name, in the place of whatever has it.

    What had the name is moved first: on network storage a directory in use cannot be emptied, but it can be renamed.
    """
    old = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    if target.exists():
        target.rename(old)
    aside.rename(target)
    if old.is_dir():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def make_directory(path: Path) -> None:
    """Make a directory and its parents, and see that it can be written.

    Raises:
        UserError: it cannot.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied")
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> UserError:
    remedy = "choose another --out or make room and run again"
    return UserError(f"cannot write {path}: {system_reason(error)}; {remedy}")


def read_complete_lines(handle: BinaryIO) -> list[bytes]:
    """Read lines of a growing file from the handle's position on, and leave it after the last.

    A last line without its newline is being written, or was torn by a kill; it is left out.
    """
    start = handle.tell()
    data = handle.read()
    size = data.rfind(b"\n") + 1
    handle.seek(start + size)
    return data[:size].splitlines()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Read the complete lines of a growing file, one JSON object each; none if it is missing."""
    if not path.exists():
        return []
    with path.open("rb") as handle:
        return [json.loads(line) for line in read_complete_lines(handle)]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that this package wrote."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        refuse_pointer(path, "a file of this program")
        raise UserError(
            f"cannot read {path}: {one_line(error)}; delete its directory to make it anew"
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object; delete its directory to make it anew")
    return value


def sync(paths: Iterable[Path]) -> None:
    """Flush files and directories to the disk."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
