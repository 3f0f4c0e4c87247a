"""Recognize the kind of a file by its first bytes, independent of its name.

A git-lfs pointer, a link without its target and a saved error page all have the name of the file
that they replace. Readers report the kind, which helps more than a parser's error.
"""

from __future__ import annotations

import os
from pathlib import Path

from ssd_ray.errors import UserError

_FIRST_BYTES = 512
_TAR_MAGIC_AT = 257
_POINTER_BYTES = 1024
_POINTERS = (
    b"version https://git-lfs.github.com/spec/",
    b"version https://hawser.github.com/spec/",
)
_OLD_POINTER = b"version http://git-media.io/v/"
_STARTS = (
    (b"GGUF", "a GGUF file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"PAR1", "a Parquet file"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x80", "a pickle"),
)
_TEXT_STARTS = (
    (b"<!doctype html", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML document"),
    (b"<error", "an XML document"),
    (b"/annex/objects/", "a git-annex pointer"),
    (b"# xet version", "a git-xet pointer"),
)


def is_lfs_pointer(path: Path) -> bool:
    """Return True if a file is a git-lfs pointer, a short text in place of the content."""
    try:
        if path.stat().st_size > _POINTER_BYTES:
            return False
    except OSError:
        return False
    return _first_bytes(path).lstrip(b"\xef\xbb\xbf").startswith((*_POINTERS, _OLD_POINTER))


def refuse_pointer(path: Path, field: str) -> None:
    """Refuse a git-lfs pointer in place of the file of `field`.

    Raises:
        UserError: the file is a pointer; the message has the command to fetch the content.
    """
    if is_lfs_pointer(path):
        raise UserError(f"{field}: {path} is {POINTER}: {fetch_command(path)}")


POINTER = "a git-lfs pointer and not the file itself"


def fetch_command(path: Path) -> str:
    """Return the remedy for a git-lfs pointer at `path`."""
    return f"run `git lfs pull` in {path.parent}, or download the file itself"


def kind_of(path: Path) -> str:
    """Return the kind of a file with its article, "" if it is unknown.

    - Not a file: missing links, directories, pipes, devices.
    - In place of a file: empty files, pointers of git-lfs, git-annex and git-xet, HTML, XML.
    - Formats: archives, pickles, GGUF, Parquet, HDF5, NumPy.
    """
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    if not path.exists():
        return "missing"
    if path.is_dir():
        return "a directory"
    if not path.is_file():
        return "not a regular file"
    if is_lfs_pointer(path):
        return POINTER
    start = _first_bytes(path)
    if not start:
        return "empty"
    if start[_TAR_MAGIC_AT : _TAR_MAGIC_AT + 5] == b"ustar":
        return "a tar archive"
    # A byte order mark and blank lines may come before a text's first tag.
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    matches = [kind for magic, kind in _STARTS if start.startswith(magic)]
    matches += [kind for magic, kind in _TEXT_STARTS if text.startswith(magic)]
    return matches[0] if matches else ""


def _first_bytes(path: Path) -> bytes:
    """Return the first bytes of a regular file, none if it cannot be read."""
    # Reading a pipe would block.
    try:
        if not path.is_file():
            return b""
        with path.open("rb") as handle:
            return handle.read(_FIRST_BYTES)
    except OSError:
        return b""
