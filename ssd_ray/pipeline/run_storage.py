"""Storage of a run directory: refused before work starts if it lacks what a run needs.

Tries out writes, renames and locks in a directory of its own; reads the environment of KubeRay.
"""

from __future__ import annotations

import os
from pathlib import Path

from ssd_ray.cluster import address
from ssd_ray.errors import LastingError
from ssd_ray.machine.storage import read_storage

_OWN_DISKS = {"overlay", "tmpfs"}
"""File systems of a container itself, not of a volume mounted there."""


def check(run: Path) -> None:
    """Refuse a run directory without writes, atomic renames or locks, or on the head's own disk.

    Raises:
        LastingError: names the failed operation, or the place to use instead.
    """
    storage = read_storage(run)
    if storage.failure:
        raise LastingError(
            f"the run directory {run} is on storage ({storage.kind or 'unknown'}) that a run "
            f"cannot use, because {storage.failure}: choose another --out"
        )
    # KubeRay sets the variable in its pods. A cluster of one node needs no shared volume.
    in_pod = "KUBERAY_GEN_RAY_START_CMD" in os.environ
    if in_pod and address.named() and storage.kind in _OWN_DISKS:
        runs = os.environ.get("SSD_RAY_RUNS", "/mnt/shared/runs")
        raise LastingError(
            f"the run directory {run} is on the head's own disk ({storage.kind}), where other "
            f"nodes cannot see it: give --out on the shared volume, such as {runs}/{run.name}"
        )
