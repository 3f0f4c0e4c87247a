"""Levels of isolation, and the configuration of a zygote for each.

`supervisor` finds the levels of a machine by starting a sandbox at each. Reads the interpreter's
directories.
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
    """A set of walls around programs. `L0` limits resources only and claims no security."""

    name: str
    filtered: bool
    """A seccomp filter on system calls."""
    landlock: bool
    namespaces: bool
    """Network, process and IPC namespaces of its own."""
    own_root: bool
    """A file system of its own, with readable files only."""
    gvisor: bool = False
    """The other walls are within gVisor's kernel, which has no pidfds and no Landlock."""

    @property
    def covers(self) -> str:
        """One line about the walls of this level."""
        return COVERS[self.name]


COVERS = {
    "L0": "limits on time, memory and output only; no claim of security",
    "L1-": (
        "a filter on system calls: no processes, sockets, signals or writing; "
        "what the grader's user may read can be read"
    ),
    "L1": "the filter, and Landlock: no file but the standard library can be read, none written",
    "L2": (
        "as L1, in namespaces of its own for network, processes, IPC, "
        "under a spare user id where started by root"
    ),
    "L3": "as L2, in a file system that holds the standard library and nothing else",
    "L4": (
        "the filter, under a spare user id, in a kernel of its own (gVisor), "
        "whose file system holds the standard library"
    ),
}
"""One line about each level, for errors and for `ssd-ray sandbox`."""
L4 = Level(name="L4", filtered=True, landlock=False, namespaces=False, own_root=False, gvisor=True)


def candidates() -> list[Level]:
    """Return the levels to try on this machine, the strongest first."""
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
    """Return the configuration of a zygote at a level.

    `root` is an empty directory. The zygote mounts its own root over it, invisible to others.
    """
    inherited = own = b""
    if level.filtered:
        # At levels without Landlock, the filter denies writing.
        inherited, own = seccomp.compile_filters(deny_writing=not level.landlock)
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
    """Return the index of a level's name in LEVELS."""
    return LEVELS.index(name)
