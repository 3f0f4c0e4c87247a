"""The file system of a gVisor sandbox: this interpreter, what programs may import, and the modules that walk in with them.

One tar a state of those files, kept in the user's cache directory (`SSD_RAY_CACHE`, else `~/.cache/ssd_ray`) and made
without any registry. Reads the interpreter's files and this package's sources.
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
"""Where the sandbox's own modules lie within."""
_WHOLE_SYSTEM = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
"""Of these, a sandbox of its own gets the libraries that its files name, and no more."""
_LINKER_CACHE = "/etc/ld.so.cache"
"""Made anew when a library of the system is."""
_LEFT_OUT = ("__pycache__", "test", "tests", "idlelib", "ensurepip", "lib2to3", "turtledemo")


def interpreter() -> str:
    """The interpreter's own path, the same within."""
    return os.path.realpath(sys.executable)


def tar_file() -> Path:
    """The image of this interpreter as it is now, made if it is not there yet.

    Raises:
        InfrastructureError: a file of it cannot be read, or the cache cannot be written.
    """
    try:
        entries = dict(_own_entries())
        place = (
            cache_directory()
            / "sandbox"
            / f"ssd-ray-{_digest([*entries.values(), _LINKER_CACHE])}.tar"
        )
        if not place.exists():
            libraries = _libraries(list(entries.values()))
            _write(place, entries | {name: path for path in libraries for name in _names(path)})
    except OSError as error:
        raise InfrastructureError(f"cannot make the image of a gVisor sandbox: {error}") from error
    return place


def _own_entries() -> Iterator[tuple[str, str]]:
    """Paths within the image and the files or directories outside that they hold, all but the system's libraries."""
    sleep = shutil.which("sleep") or "/bin/sleep"  # what Ray has the sandbox's first process be
    for path in [*bootstrap.readable_paths(), interpreter(), sleep]:
        if path not in _WHOLE_SYSTEM:
            yield from ((name, path) for name in _names(path))
    package = Path(__file__).parents[3]
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
    """Where in the image a path lies, as its own directory and the last of its links are called without links."""
    return {
        os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path)),
        os.path.realpath(path),
    }


def _libraries(sources: list[str]) -> set[str]:
    """The system's libraries that the interpreter, `sleep` and every extension module are linked with."""
    modules = [str(file) for source in sources for file in Path(source).rglob("*.so*")]
    linked = [
        interpreter(),
        *(source for source in sources if os.path.basename(source) == "sleep"),
        *modules,
    ]
    said = subprocess.run(["ldd", *linked], capture_output=True, text=True, check=False).stdout
    return {
        word
        for line in said.splitlines()
        if not line.endswith(":")
        for word in line.split()
        if os.path.isabs(word)
    }


def _digest(sources: list[str]) -> str:
    """What tells this state of the files from another: names, sizes and times of all of them."""
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
    """Each source under its name, after the links that stand for whole directories of the system, such as /lib."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as file:
        try:
            with tarfile.open(fileobj=file, mode="w") as tar:
                for name in filter(os.path.islink, (*_WHOLE_SYSTEM, "/bin")):
                    tar.add(name)
                for name, source in sorted(entries.items()):
                    tar.add(
                        source if name != os.path.realpath(source) else name,
                        arcname=name,
                        filter=_readable,
                    )
            file.flush()
            os.replace(file.name, place)
        except BaseException:
            os.unlink(file.name)
            raise


def _readable(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """A member as root's, readable by all; nothing for what programs are not to find, or need not."""
    if os.path.basename(member.name) in _LEFT_OUT and member.isdir():
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode |= 0o555 if member.isdir() or member.mode & 0o100 else 0o444
    return member
