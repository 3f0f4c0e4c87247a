"""The command that execs a sandbox: a bare interpreter and, by a file descriptor, the modules that run in it, compiled.

Reads the sources of those modules and the modes of the interpreter's files.
"""

from __future__ import annotations

import functools
import marshal
import os
import sys
from collections.abc import Mapping
from pathlib import Path

_FLAGS = ("-s", "-P", "-S", "-B", "-X", "utf8")
"""Like -I, but heeding PYTHONHASHSEED: the environment is ours. Without site the program has the standard library only."""
_BOOTSTRAP = """
import marshal, sys
with open(int(sys.argv[1]), "rb") as file:
    codes = marshal.load(file)
for name, code in codes.items():
    sys.modules[name] = type(sys)(name)
    exec(code, sys.modules[name].__dict__)
sys.modules["child"].main(sys.argv[2:])
"""


def command(modules_fd: int, options: Mapping[str, int | str]) -> list[str]:
    """The argument vector; `modules_fd` holds what `modules` returns, the options are for child.py."""
    return [sys.executable, *_FLAGS, "-c", _BOOTSTRAP, str(modules_fd), *(f"{name}={value}" for name, value in options.items())]


@functools.cache
def modules(*, bare: bool) -> bytes:
    """The modules that run in the child, compiled, in the order of their imports; `bare` leaves out the wire."""
    names = ("confinement", "child") if bare else ("confinement", "wire", "child")
    files = {name: Path(__file__).parent / ("sandbox/wire.py" if name == "wire" else f"{name}.py") for name in names}
    return marshal.dumps({name: compile(file.read_bytes(), str(file), "exec") for name, file in files.items()})


@functools.cache
def interpreter_readable() -> bool:
    """Whether any user may read this interpreter and its standard library."""
    paths = [Path(sys.executable).resolve(), Path(os.__file__).resolve()]
    parents = {parent for path in paths for parent in path.parents}
    return all(path.stat().st_mode & 0o4 for path in paths) and all(parent.stat().st_mode & 0o1 for parent in parents)
