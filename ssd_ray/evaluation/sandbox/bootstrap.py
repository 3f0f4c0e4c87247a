"""The command that execs a zygote: a bare interpreter and, by a descriptor, its modules, compiled, and what it may read.

Reads the sources of those modules and the places of the interpreter's files.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import os
import sys
import sysconfig
from pathlib import Path
from typing import Any

PACKAGES = ("numpy", "sortedcontainers")
"""What programs may import beside the standard library, where it is installed: what contest judges have."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
"""Like -I, but heeding PYTHONHASHSEED: the environment is ours. Without site, no package of this environment is on the path."""
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
PRELOADED = (
    *(
        "array",
        "ast",
        "bisect",
        "collections",
        "copy",
        "datetime",
        "decimal",
        "fractions",
        "functools",
        "heapq",
        "io",
        "itertools",
    ),
    *(
        "math",
        "operator",
        "queue",
        "random",
        "re",
        "statistics",
        "string",
        "threading",
        "traceback",
        "typing",
        "warnings",
    ),
)
"""What programs import most; a module that is loaded in the zygote costs each of them nothing."""
_BOOTSTRAP = """
import marshal, os, sys
with open(int(sys.argv[1]), "rb") as file:
    config, codes, preloaded = marshal.load(file)
os.environ.clear()
# What threading and random would have every forked child do is half of a fork's cost. The zygote has one thread, so no lock
# needs to be made anew, and roles.py seeds random where a program names it.
register, os.register_at_fork = os.register_at_fork, lambda **_: None
for name in preloaded:
    __import__(name)
for name, code in codes.items():
    sys.modules[name] = type(sys)(name)
    exec(code, sys.modules[name].__dict__)
os.register_at_fork = register
sys.modules["zygote"].main(config)
"""
_SANDBOX = Path(__file__).parent
_MODULES = (
    _SANDBOX / "inside/walls.py",
    *(
        _SANDBOX.parent.parent / "wire" / name
        for name in ("restored.py", "foreign.py", "__init__.py")
    ),
    *(
        _SANDBOX / f"inside/{name}.py"
        for name in ("kinds", "objects", "shortage", "definitions", "check_role")
    ),
    *(_SANDBOX / f"inside/{name}.py" for name in ("lcb_stdin", "lcb_role", "roles", "zygote")),
)
"""In the order of their imports."""
_SYSTEM_LIBRARIES = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/usr/share/zoneinfo",
)
_NOT_STANDARD = {"site-packages", "dist-packages", "__pycache__"}


def command(fd: int) -> list[str]:
    """The argument vector; `fd` holds what `image` returns."""
    return [sys.executable, *_FLAGS, "-c", _BOOTSTRAP, str(fd)]


def environment() -> dict[str, str]:
    """Everything that the interpreter finds in its environment; programs find none of it."""
    return dict(_ENVIRONMENT)


def image(config: dict[str, Any]) -> bytes:
    """What the interpreter loads: its configuration, and its modules' code."""
    return marshal.dumps((config, _codes(), PRELOADED))


@functools.cache
def _codes() -> dict[str, Any]:
    names = {file: file.parent.name if file.stem == "__init__" else file.stem for file in _MODULES}
    return {name: compile(file.read_bytes(), str(file), "exec") for file, name in names.items()}


@functools.cache
def readable_paths() -> tuple[str, ...]:
    """What a program may read: the standard library without installed packages, the PACKAGES, the system's libraries.

    Packages at large are left out, because benchmarks come as packages too, with their answers.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    entries = [entry for entry in standard.iterdir() if entry.name not in _NOT_STANDARD]
    shared = [*Path(sys.base_prefix, "lib").glob("*.so*")]
    paths = [*map(str, entries), *map(str, shared), *package_paths(), *_SYSTEM_LIBRARIES]
    return tuple(sorted(path for path in paths if os.path.exists(path)))


def listable_paths() -> tuple[str, ...]:
    """Directories whose names a program may list without reading all of it, so that imports work."""
    return (sysconfig.get_path("stdlib"),)


@functools.cache
def package_paths() -> tuple[str, ...]:
    """Where the PACKAGES lie, shared libraries beside them included."""
    found = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            place = Path(spec.submodule_search_locations[0])
            found += [place, *place.parent.glob(f"{name}.libs")]
    return tuple(map(str, found))


@functools.cache
def interpreter_readable() -> bool:
    """Whether any user may read this interpreter, its standard library and the packages."""
    paths = [Path(place).resolve() for place in (sys.executable, os.__file__, *package_paths())]
    parents = {parent for path in paths for parent in path.parents}
    return all(path.stat().st_mode & 0o4 for path in paths) and all(
        parent.stat().st_mode & 0o1 for parent in parents
    )
