"""How well programs can be walled in: the levels, and what a zygote is told of each.

Which of them a machine offers is found out by starting one (supervisor.py). Writes the links to packages.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass

from ssd_ray.evaluation.sandbox import bootstrap, seccomp

LEVELS = ("L0", "L1-", "L1", "L2", "L3", "L4")
"""From the weakest to the strongest."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of walls. `L0` has limits on resources only: no claim of security.

    `gvisor`: these walls stand within a kernel of their own, one that has no pidfds and no Landlock.
    """

    name: str
    filtered: bool
    landlock: bool
    namespaces: bool
    own_root: bool
    gvisor: bool = False

    @property
    def covers(self) -> str:
        """What this level adds, in one line."""
        return COVERS[self.name]


COVERS = {
    "L0": "limits on time, memory and output only; no claim of security",
    "L1-": "a filter on system calls: no processes, sockets, signals or writing; what the grader's user may read can be read",
    "L1": "the filter, and Landlock: no file but the standard library can be read, none written",
    "L2": "as L1, in namespaces of its own for network, processes, IPC, under a spare user id where started by root",
    "L3": "as L2, in a file system that holds the standard library and nothing else",
    "L4": "the filter, under a spare user id, in a kernel of its own (gVisor), whose file system holds the standard library",
}
L4 = Level(name="L4", filtered=True, landlock=False, namespaces=False, own_root=False, gvisor=True)


def candidates() -> list[Level]:
    """The levels to be tried on this machine, the strongest first."""
    filtered = seccomp.supported()
    strong = [
        ("L3", True, True, True),
        ("L2", True, True, False),
        ("L1", True, False, False),
        ("L1-", False, False, False),
    ]
    levels = [
        Level(name=name, filtered=True, landlock=landlock, namespaces=namespaces, own_root=own_root)
        for name, landlock, namespaces, own_root in strong
        if filtered
    ]
    if filtered and shutil.which("runsc") and shutil.which("mkfs.erofs"):
        levels.insert(0, L4)
    return [
        *levels,
        Level(name="L0", filtered=False, landlock=False, namespaces=False, own_root=False),
    ]


def config(level: Level, root: str) -> dict[str, object]:
    """What a zygote at this level is told; `root` is an empty directory, over which it mounts a root that it alone sees."""
    inherited, own = (
        seccomp.compile_filters(deny_writing=not level.landlock) if level.filtered else (b"", b"")
    )
    return {
        "namespaces": level.namespaces,
        "own_root": level.own_root,
        "landlock": level.landlock,
        "pidfds": not level.gvisor,
        "filter": inherited.hex(),
        "own_filter": own.hex(),
        "own_pid": seccomp.OWN_PID_BYTES.hex(),
        "interpreter_readable": bootstrap.interpreter_readable(),
        "root": root,
        "packages": {os.path.basename(place): place for place in bootstrap.package_paths()},
        "readable": list(bootstrap.readable_paths()),
        "listable": list(bootstrap.listable_paths()),
        "devices": list(bootstrap.DEVICES),
    }


def rank(name: str) -> int:
    """The place of a level's name in LEVELS."""
    return LEVELS.index(name)
