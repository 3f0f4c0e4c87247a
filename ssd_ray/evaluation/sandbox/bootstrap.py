"""The command of a zygote: a bare interpreter that loads its modules from a descriptor.

- `command` and `environment` are the arguments and the environment of the interpreter.
- `image` packs the configuration of a zygote and the compiled modules.
- `readable_paths` and its neighbors list the files open to programs.

Reads the sources of the modules and the directories of the interpreter.
"""

from __future__ import annotations

import functools
import importlib.util
import marshal
import os
import sys
import sysconfig
from pathlib import Path

PACKAGES = ("numpy", "sortedcontainers")
"""Packages of contest judges. Programs may import them, where installed."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

# Like -I, but PYTHONHASHSEED counts, because the environment is ours. Without site, no other
# package of this environment is on the path.
_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "LANG": "C.UTF-8",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
PRELOADED = (
    "array",
    "ast",
    "atexit",
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
)
"""Modules imported by many programs. Loaded in the zygote, they cost a program no time."""
_BOOTSTRAP = """
import marshal, os, sys
with open(int(sys.argv[1]), "rb") as file:
    config, codes, preloaded = marshal.load(file)
os.environ.clear()
# The fork handlers of threading and random are half of a fork's cost. The zygote has one thread, so
# no lock needs to be replaced, and roles.py seeds random where a program names it.
register = os.register_at_fork
os.register_at_fork = lambda **_: None
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
    *(_SANDBOX / f"inside/{name}.py" for name in ("kernel", "mounts", "landlock", "walls")),
    *(
        _SANDBOX.parent.parent / "wire" / name
        for name in ("restored.py", "foreign.py", "__init__.py")
    ),
    *(
        _SANDBOX / f"inside/{name}.py"
        for name in ("kinds", "contents", "objects", "shortage", "definitions", "check_role")
    ),
    *(
        _SANDBOX / f"inside/{name}.py"
        for name in ("lcb_stdin", "lcb_program", "lcb_role", "roles", "zygote")
    ),
)
"""Modules of the zygote, each after its imports."""
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
    """Return the argument vector of an interpreter; it loads an `image` from a descriptor."""
    return [sys.executable, *_FLAGS, "-c", _BOOTSTRAP, str(fd)]


def environment() -> dict[str, str]:
    """Return the complete environment of the interpreter; it is cleared before programs run."""
    return dict(_ENVIRONMENT)


def image(config: dict[str, object]) -> bytes:
    """Return the bytes for the interpreter to load: `levels.config` and the code of its modules."""
    codes = _codes()
    return marshal.dumps(({**config, "own_modules": list(codes)}, codes, PRELOADED))


@functools.cache
def _codes() -> dict[str, object]:
    names = {file: file.parent.name if file.stem == "__init__" else file.stem for file in _MODULES}
    return {name: compile(file.read_bytes(), str(file), "exec") for file, name in names.items()}


@functools.cache
def readable_paths() -> tuple[str, ...]:
    """Return the files and directories readable by a program.

    - the standard library without installed packages,
    - the PACKAGES,
    - the system's libraries.

    Other packages are left out, because some of them are benchmarks with their answers.
    """
    standard = Path(sysconfig.get_path("stdlib"))
    entries = [entry for entry in standard.iterdir() if entry.name not in _NOT_STANDARD]
    shared = [*Path(sys.base_prefix, "lib").glob("*.so*")]
    paths = [*map(str, entries), *map(str, shared), *package_paths(), *_SYSTEM_LIBRARIES]
    return tuple(sorted(path for path in paths if os.path.exists(path)))


def listable_paths() -> tuple[str, ...]:
    """Return directories to list but not to read in full, so that imports work."""
    return (sysconfig.get_path("stdlib"),)


@functools.cache
def package_paths() -> tuple[str, ...]:
    """Return the directories of the PACKAGES and of their shared libraries."""
    places: list[Path] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            place = Path(spec.submodule_search_locations[0])
            # Wheels repaired by auditwheel keep their libraries next to the package.
            places += [place, *place.parent.glob(f"{name}.libs")]
    return tuple(map(str, places))


@functools.cache
def interpreter_readable() -> bool:
    """Return True if any user may read this interpreter, its standard library and the packages."""
    paths = [Path(place).resolve() for place in (sys.executable, os.__file__, *package_paths())]
    parents = {parent for path in paths for parent in path.parents}
    return all(path.stat().st_mode & 0o4 for path in paths) and all(
        parent.stat().st_mode & 0o1 for parent in parents
    )
