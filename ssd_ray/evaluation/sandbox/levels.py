"""How well programs are walled in on this machine: the levels, and the highest one at which a sandbox starts, found by starting one.

Reads nothing but what starting a sandbox reads.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ssd_ray.evaluation.sandbox import bootstrap, seccomp

LEVELS = ("L0", "L1-", "L1", "L2", "L3")
"""From the weakest to the strongest."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """A set of walls. `L0` has limits on resources only: no claim of security."""

    name: str
    filtered: bool
    landlock: bool
    namespaces: bool
    own_root: bool

    @property
    def covers(self) -> str:
        """What this level adds, in one line."""
        return COVERS[self.name]


COVERS = {
    "L0": "limits on time, memory and output only; no claim of security",
    "L1-": "a filter on system calls: no processes, sockets, signals or writing; world-readable files can be read",
    "L1": "the filter, and Landlock: no file but the standard library can be read, none written",
    "L2": "as L1, in namespaces of its own for network, processes, IPC, under a spare user id where started by root",
    "L3": "as L2, in a file system that holds the standard library and nothing else",
}


def candidates() -> list[Level]:
    """The levels to be tried on this machine, the strongest first."""
    filtered = seccomp.supported()
    strong = [("L3", True, True, True), ("L2", True, True, False), ("L1", True, False, False), ("L1-", False, False, False)]
    levels = [
        Level(name=name, filtered=True, landlock=landlock, namespaces=namespaces, own_root=own_root)
        for name, landlock, namespaces, own_root in strong
        if filtered
    ]
    return [*levels, Level(name="L0", filtered=False, landlock=False, namespaces=False, own_root=False)]


def config(level: Level, directory: str) -> dict[str, object]:
    """What a zygote at this level is told; `directory` is its own, and filled here."""
    packages = bootstrap.link_packages(directory)
    root = f"{directory}/root"
    os.mkdir(root)
    instructions = seccomp.compile_filter(deny_writing=not level.landlock) if level.filtered else b""
    return {
        "namespaces": level.namespaces,
        "own_root": level.own_root,
        "landlock": level.landlock,
        "filter": instructions.hex(),
        "own_pid": seccomp.OWN_PID_BYTES.hex(),
        "interpreter_readable": bootstrap.interpreter_readable(),
        "root": root,
        "packages": packages,
        "readable": [*bootstrap.readable_paths(), packages],
        "listable": list(bootstrap.listable_paths()),
        "devices": list(bootstrap.DEVICES),
    }


def rank(name: str) -> int:
    """The place of a level's name in LEVELS."""
    return LEVELS.index(name)
