"""Growth of the connected cluster: its autoscaler, and the nodes of its largest size.

The first source that answers is taken:

1. The groups of nodes that a hosted autoscaler states in the store of the cluster.
2. On the head of KubeRay, the RayCluster in the Kubernetes API.
3. On the head, the command of Ray's monitor. It names the YAML file of the cluster launcher, or
   none without an autoscaler.
4. Elsewhere, the reports of the monitor. They show if there is an autoscaler, but not its maximum.

Reads the state of the cluster, that API, /proc and that file; writes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from ssd_ray.cluster import kuberay, ray_internals
from ssd_ray.cluster.cluster_files import DescribedCluster
from ssd_ray.cluster.groups import Group, launcher_groups

_PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Growth:
    """Ability of a cluster to grow beyond its nodes."""

    has_autoscaler: bool | None
    """None as long as it is unknown."""
    groups: tuple[Group, ...] = ()
    """Nodes of the largest cluster; empty if they are unknown."""
    most_nodes: float = math.inf
    """Largest number of nodes in all groups."""


def read_growth() -> Growth:
    """Read the growth of the connected cluster."""
    if stated := ray_internals.stated_groups():
        groups = tuple(Group(resources=node, most=most) for node, most in stated)
        return Growth(has_autoscaler=True, groups=groups)
    if own := kuberay.own_groups():
        return Growth(has_autoscaler=True, groups=own)
    options = _monitor_options()
    if options is None:
        return Growth(has_autoscaler=ray_internals.has_autoscaler())
    if path := options.get("--autoscaling-config"):
        return _configured(Path(path).expanduser())
    return Growth(has_autoscaler=False)


def own_cluster() -> DescribedCluster | None:
    """Return the cluster of this process as KubeRay or the launcher describes it.

    None without a description that this process may read.
    """
    if groups := kuberay.own_groups():
        source = f"RayCluster {kuberay.own_name()}"
        return DescribedCluster(source=source, kind="kuberay", groups=groups)
    path = (_monitor_options() or {}).get("--autoscaling-config")
    if not path:
        return None
    launched = _configured(Path(path).expanduser())
    if not launched.groups:
        return None
    return DescribedCluster(
        source=path, kind="launcher", groups=launched.groups, most_nodes=launched.most_nodes
    )


def _monitor_options() -> dict[str, str] | None:
    """Return the options of the cluster's monitor if it runs on this machine."""
    import ray

    for arguments in _commands():
        options = dict(each.split("=", 1) for each in arguments if "=" in each)
        is_monitor = any(each.endswith("/monitor.py") for each in arguments)
        address = ray.get_runtime_context().gcs_address if is_monitor else None
        if address and options.get("--gcs-address") == address:
            return options
    return None


def _commands() -> Iterator[list[str]]:
    """Yield the arguments of each process on this machine."""
    for path in _PROC.glob("[0-9]*/cmdline"):
        try:
            yield path.read_text(errors="replace").split("\0")
        except OSError:
            # The process has ended.
            continue


def _configured(path: Path) -> Growth:
    """Return the growth by a file of the cluster launcher; unknown groups if it cannot be read."""
    try:
        document = yaml.safe_load(path.read_text())
    except OSError:
        return Growth(has_autoscaler=True)
    groups = launcher_groups(document)
    if not groups:
        return Growth(has_autoscaler=True)
    most_nodes = document.get("max_workers", math.inf)
    return Growth(has_autoscaler=True, groups=groups, most_nodes=most_nodes)
