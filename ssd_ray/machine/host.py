"""Cores and memory of this host for this process.

Memory is within the limit of a container. Cores are those of the process's affinity, because a
container's quota of CPU time is not read. Reads /proc, and the cgroup's limit and
use of memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = (
    ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""Directory, limit, use and freeable cache of cgroups, version 2 and 1."""


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
    limits = list(_limits(root))
    return Host(
        cores=len(os.sched_getaffinity(0)),
        memory=min([amounts["MemTotal"], *(limit for limit, _ in limits)]),
        available=max(0, min([amounts["MemAvailable"], *(limit - use for limit, use in limits)])),
    )


def _limits(root: Path) -> Iterator[tuple[int, int]]:
    """Yield limit and use of the container's memory in bytes; the limit "max" is none.

    Cached files count as use, and the kernel frees the inactive ones before it refuses memory.
    """
    for directory, limit, use, cache in _CGROUPS:
        place = root / directory
        text = _text(place / limit)
        if not text.isdecimal():
            continue
        statistics = dict(line.split(" ", 1) for line in _text(place / "memory.stat").splitlines())
        used = int(_text(place / use) or 0) - int(statistics.get(cache, 0))
        yield int(text), max(0, used)


def _text(path: Path) -> str:
    """Return the text of a file; empty if it does not exist."""
    return path.read_text().strip() if path.exists() else ""
