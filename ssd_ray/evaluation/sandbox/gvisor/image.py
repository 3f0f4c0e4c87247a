"""The file system of a gVisor sandbox, as a tar file made without a registry.

- It holds this interpreter, the modules that programs may import, and the sandbox's own modules.
- Each state of those files has a tar of its own, named by a digest.

Reads the interpreter's files and this package's sources. Writes to the user's cache directory
(`SSD_RAY_CACHE`, else `~/.cache/ssd_ray`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox import bootstrap
from ssd_ray.models import cache_directory

SOURCES = "/opt/ssd-ray"
"""Directory of the sandbox's own modules in the image."""
_SYSTEM_DIRECTORIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
"""Directories of the system's libraries. The image gets those linked with its files only."""
_LINKER_CACHE = "/etc/ld.so.cache"
"""Rewritten when a library of the system changes, so the digest covers it instead of them."""
_LEFT_OUT = ("__pycache__", "test", "tests", "idlelib", "ensurepip", "lib2to3", "turtledemo")


def interpreter() -> str:
    """Return the path of the interpreter, the same outside and inside the sandbox."""
    return os.path.realpath(sys.executable)


def tar_file() -> Path:
    """Return the path of the image of this interpreter as it is now, made if missing.

    Raises:
        InfrastructureError: A file of it cannot be read, or the cache cannot be written.
    """
    try:
        entries = dict(_own_entries())
        digest = _digest([*entries.values(), _LINKER_CACHE])
        place = cache_directory() / "sandbox" / f"ssd-ray-{digest}.tar"
        if not place.exists():
            libraries = _libraries(list(entries.values()))
            _write(place, entries | {name: path for path in libraries for name in _names(path)})
    except OSError as error:
        raise InfrastructureError(f"cannot make the image of a gVisor sandbox: {error}") from error
    return place


def _own_entries() -> Iterator[tuple[str, str]]:
    """Yield paths in the image and their sources here, for all but the system's libraries."""
    # Ray runs `sleep` as the first process of a sandbox.
    sleep = shutil.which("sleep") or "/bin/sleep"
    for path in [*bootstrap.readable_paths(), interpreter(), sleep]:
        if path not in _SYSTEM_DIRECTORIES:
            yield from ((name, path) for name in _names(path))
    package = Path(__file__).parents[3]
    # The sandbox and its imports, with the __init__ files of their packages.
    for pattern in (
        "__init__.py",
        "errors.py",
        "evaluation/__init__.py",
        "evaluation/sandbox/**/*.py",
        "wire/*.py",
    ):
        for file in package.glob(pattern):
            yield f"{SOURCES}/ssd_ray/{file.relative_to(package)}", str(file)


def _names(path: str) -> set[str]:
    """Return a path's names in the image: with links resolved in its directory, or everywhere."""
    return {
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)),
        os.path.realpath(path),
    }


def _libraries(sources: list[str]) -> set[str]:
    """Return the system's libraries of the interpreter, `sleep` and every extension module."""
    modules = [str(file) for source in sources for file in Path(source).rglob("*.so*")]
    linked = [
        interpreter(),
        *(source for source in sources if os.path.basename(source) == "sleep"),
        *modules,
    ]
    listing = subprocess.run(["ldd", *linked], capture_output=True, text=True, check=False).stdout
    # A line is "/path/of/file:" or "libname => /path/of/library (address)".
    return {
        word
        for line in listing.splitlines()
        if not line.endswith(":")
        for word in line.split()
        if os.path.isabs(word)
    }


def _digest(sources: list[str]) -> str:
    """Return a digest of the state of all files: names, sizes, times and modes."""
    digest = hashlib.sha256()
    files = {
        file
        for source in sources
        for file in [Path(source), *Path(source).rglob("*")]
        if file.exists()
    }
    for file in sorted(
        file for file in files if "__pycache__" not in file.parts and not file.is_dir()
    ):
        status = file.stat()
        digest.update(
            f"{file}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_mode}\n".encode()
        )
    return digest.hexdigest()[:20]


def _write(place: Path, entries: dict[str, str]) -> None:
    """Write the tar file: links for directories of the system such as /lib, then every source."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name in filter(os.path.islink, (*_SYSTEM_DIRECTORIES, "/bin")):
                    tar.add(name)
                for name, source in sorted(entries.items()):
                    tar.add(
                        source if name != os.path.realpath(source) else name,
                        arcname=name,
                        filter=_readable,
                    )
            file.flush()
            # By rename, so that other graders see a complete image or none.
            os.replace(file.name, place)
        # Also at Ctrl-C: no half image is left in the cache.
        except BaseException:
            os.unlink(file.name)
            raise


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Return a member as root's file, readable by all; None to leave it out."""
    if os.path.basename(member.name) in _LEFT_OUT and member.isdir():
        return None
    # Owned by root within, and programs run under another user id.
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode |= 0o555 if member.isdir() or member.mode & 0o100 else 0o444
    return member
