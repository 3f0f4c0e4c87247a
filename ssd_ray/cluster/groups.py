"""Groups of equal nodes, as a RayCluster of KubeRay or a launcher's file states them.

- Resources are those that Ray's autoscaler derives: a test compares both.
- The head is a group of one node, and no autoscaler starts it.

Pure functions of parsed YAML.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import ROUND_UP, Decimal
from typing import Any, TypeAlias

from ssd_ray.errors import UserError

Document: TypeAlias = Mapping[str, Any]
"""A parsed YAML document."""
HEAD = "head"
"""Name of KubeRay's group of the head."""
_UNITS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
_BINARY = {"Ki": 10, "Mi": 20, "Gi": 30, "Ti": 40, "Pi": 50, "Ei": 60}
_QUANTITY = re.compile(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)([A-Za-z]*)")


@dataclass(frozen=True, kw_only=True)
class Group:
    """Equal nodes that an autoscaler may start."""

    resources: Mapping[str, float]
    """Resources of one node; `memory` in bytes, where it is stated."""
    most: float
    """Largest number of nodes, without the head."""
    labels: Mapping[str, str] | None = None
    """Ray labels of its nodes; None if they are unknown."""
    name: str = ""
    is_head: bool = False
    """True for the group of the head, which has one more node."""
    priority: int = 0
    """The autoscaler starts nodes of the highest priority first."""

    @property
    def nodes(self) -> float:
        """Largest number of nodes, the head included."""
        return self.most + self.is_head

    def may_have(self, labels: Mapping[str, str] | None) -> bool:
        """Return False if its nodes are known to lack one of these labels."""
        return self.labels is None or (labels or {}).items() <= self.labels.items()


def kuberay_groups(spec: Document) -> tuple[Group, ...]:
    """Return the groups of a RayCluster's spec, the head first.

    Raises:
        UserError: a part of the spec is missing, or is no quantity.
    """
    try:
        return tuple(_kuberay_groups(spec))
    except (KeyError, IndexError, TypeError, AttributeError) as error:
        raise UserError(f"the RayCluster's spec lacks a part of its groups: {error}") from error


def _kuberay_groups(spec: Document) -> Iterator[Group]:
    yield Group(
        name=HEAD,
        resources=_resources(spec["headGroupSpec"], HEAD),
        most=0,
        labels=spec["headGroupSpec"].get("labels") or {},
        is_head=True,
    )
    for group in spec.get("workerGroupSpecs") or ():
        name = group["groupName"]
        hosts = group.get("numOfHosts", 1)
        # KubeRay's default of maxReplicas is the largest integer of 32 bits.
        most = group.get("maxReplicas", math.inf) * hosts
        if not spec.get("enableInTreeAutoscaling"):
            most = group.get("replicas", 0) * hosts
        yield Group(
            name=name,
            resources=_resources(group, name),
            most=most,
            labels=group.get("labels") or {},
            priority=group.get("priority") or 0,
        )


def _resources(group: Document, name: str) -> dict[str, float]:
    """Return the resources of a group's pod.

    The group's own field `resources` comes first, then parameters of `ray start`, then the limits
    and the requests of the first container.
    """
    stated = group.get("resources") or {}
    parameters = group.get("rayStartParams") or {}
    container = group["template"]["spec"]["containers"][0].get("resources") or {}
    limits, requests = container.get("limits") or {}, container.get("requests") or {}

    def first(resource: str, parameter: str, key: str) -> float | None:
        for value in (
            stated.get(resource),
            parameters.get(parameter),
            limits.get(key),
            requests.get(key),
        ):
            if value is not None:
                return quantity(value)
        return None

    cores = first("CPU", "num-cpus", "cpu")
    if cores is None:
        raise UserError(
            f"group {name} states no cores: set resources.limits.cpu of its first container"
        )
    key = next((key for key in (*limits, *requests) if key.endswith("gpu")), "nvidia.com/gpu")
    resources = {"CPU": cores}
    if gpus := first("GPU", "num-gpus", key):
        resources["GPU"] = gpus
    if (memory := first("memory", "memory", "memory")) is not None:
        resources["memory"] = memory
    return resources


def quantity(text: object) -> int:
    """Return a quantity of Kubernetes, rounded up, as Ray's autoscaler does.

    Raises:
        UserError: it has another form.
    """
    match = _QUANTITY.fullmatch(str(text))
    number, unit = match.groups() if match else ("", "?")
    if unit in _BINARY:
        value = Decimal(number) * 2 ** _BINARY[unit]
    elif unit in _UNITS:
        value = Decimal(number).scaleb(_UNITS[unit])
    else:
        raise UserError(f"{text!r} is no quantity of Kubernetes: write it as 8, 500m or 64Gi")
    return int(value.to_integral_value(rounding=ROUND_UP))


def launcher_groups(document: Document) -> tuple[Group, ...]:
    """Return the groups of a file of Ray's cluster launcher.

    Empty if a node type that may start has no resources: only the cloud knows them.

    Raises:
        UserError: a part of the file has the wrong type.
    """
    _check_types(document)
    head = document.get("head_node_type")
    total = document.get("max_workers", math.inf)
    groups = []
    for name, node in document["available_node_types"].items():
        # The launcher fills both in, as the provider knows them.
        most = node.get("max_workers", 0 if name == head else total)
        resources = node.get("resources") or {}
        if most and not resources:
            return ()
        # Without labels here, its command of `ray start` may still give some.
        labels = node.get("labels")
        groups.append(
            Group(name=name, resources=resources, most=most, labels=labels, is_head=name == head)
        )
    return tuple(groups)


def _check_types(document: Document) -> None:
    """Refuse a launcher's file with a part of the wrong type, by its field and value."""
    types = document["available_node_types"]
    if not isinstance(types, dict):
        raise UserError(f"available_node_types={types!r}: use a mapping of names to node types")
    total = document.get("max_workers", 0)
    if not isinstance(total, int):
        raise UserError(f"max_workers={total!r}: use a whole number")
    for name, node in types.items():
        field = f"available_node_types.{name}"
        if not isinstance(node, dict):
            raise UserError(f"{field}={node!r}: use a mapping of keys to values")
        for key in ("resources", "labels"):
            value = node.get(key)
            if value is not None and not isinstance(value, dict):
                raise UserError(f"{field}.{key}={value!r}: use a mapping of keys to values")
        most = node.get("max_workers", 0)
        if not isinstance(most, int):
            raise UserError(f"{field}.max_workers={most!r}: use a whole number")
