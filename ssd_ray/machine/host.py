"""Cores and memory of this host for this process.

Memory is within the limit of a container. Cores are those of the process's affinity, because a
container's quota of CPU time is not read. Reads /proc and the cgroup's limit of memory.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_LIMITS = ("sys/fs/cgroup/memory.max", "sys/fs/cgroup/memory/memory.limit_in_bytes")
"""Limits of cgroups, version 2 and 1."""


@dataclass(frozen=True, kw_only=True)
class Host:
    """Cores and memory for this process."""

    cores: int
    memory: int
    """Bytes of memory: the machine's, or the container's limit if that is lower."""
    available: int
    """Bytes available now without swapping; at most `memory`."""


def read_host(root: Path = Path("/")) -> Host:
    """Read the host; `root` is the file system with /proc and /sys."""
    amounts = {}
    for line in (root / "proc/meminfo").read_text().splitlines():
        name, _, rest = line.partition(":")
        amounts[name] = int(rest.split()[0]) * 1024
    memory = min([amounts["MemTotal"], *_limits(root)])
    return Host(
        cores=len(os.sched_getaffinity(0)),
        memory=memory,
        available=min(memory, amounts["MemAvailable"]),
    )


def _limits(root: Path) -> list[int]:
    """Return the limits of the container in bytes; "max" is none."""
    paths = (root / name for name in _LIMITS)
    texts = (path.read_text().strip() for path in paths if path.exists())
    return [int(text) for text in texts if text.isdecimal()]
