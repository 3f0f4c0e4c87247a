"""Roles of processes in a cluster: the nodes of each, and what it reserves.

- A node has at most one role, its Ray label `ssd-ray/role`. A process runs on nodes of its role
  alone: engines on those of samplers, programs of answers on those of graders.
- Roles are in effect where any live node carries the label; the label of the head is enough.
  Elsewhere, as on a laptop or in a cluster of others, no process gets a selector.
- Groups of an autoscaler without a node yet state no labels. So label the head.
- Helpers that reserve nothing stay with the driver: the source of units, Ray Train's controller.

Reads the nodes of the connected Ray; writes nothing.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ssd_ray.config import ClusterConfig, EngineConfig, RolesChoice
from ssd_ray.errors import UserError

LABEL = "ssd-ray/role"
"""Key of the Ray label."""
_LABEL_THE_HEAD = f"start the head with `ray start --head --labels={LABEL}=driver`"

Node = Mapping[str, Any]
"""A node as `ray.nodes` describes it."""


class Role(enum.StrEnum):
    """A role; its value is that of the label."""

    DRIVER = "driver"
    """The program itself and helpers that reserve nothing. Never on a spot node."""
    SAMPLER = "sampler"
    """Engines. Their nodes may come and go."""
    TRAINER = "trainer"
    """Training workers, a gang on nodes that stay."""
    GRADER = "grader"
    """Graders and the programs of answers. Their nodes hold no secret and no GPU."""


DRIVER = Role.DRIVER
SAMPLER = Role.SAMPLER
TRAINER = Role.TRAINER
GRADER = Role.GRADER


def engine_bundle(engine: EngineConfig, device: str) -> dict[str, float]:
    """Return what the first process of an engine reserves: cores, or a GPU with one core."""
    return {"CPU": engine.cpus} if device == "cpu" else {"CPU": 1.0, "GPU": 1.0}


def worker_bundle(cluster: ClusterConfig, cores: float = 1) -> dict[str, float]:
    """Return what a training worker reserves: cores, or a GPU with `cores`."""
    if cluster.device == "cpu":
        return {"CPU": cluster.cpus_per_train_worker}
    return {"GPU": 1, "CPU": cores}


def grader_bundle(cluster: ClusterConfig) -> dict[str, float]:
    """Return what a grader reserves.

    On a node of its own that is at least one core: there is no engine to run next to, and an
    autoscaler starts no node for nothing.
    """
    least = 1.0 if in_effect(cluster.roles) else 0.0
    return {"CPU": max(cluster.grader_cpus, least)}


def grader_cores(node: Node) -> int:
    """Return the cores of a node that graders may take.

    On a node with GPUs, one core a GPU belongs to its engine or training worker.
    """
    resources = node["Resources"]
    return max(0, int(resources.get("CPU", 0) - resources.get("GPU", 0)))


def selector(role: Role, choice: RolesChoice) -> dict[str, str] | None:
    """Return the label selector of a role, None where roles are not in effect.

    Raises:
        UserError: `choice` is "required", and no node has the label.
    """
    return {LABEL: role.value} if in_effect(choice) else None


def for_each(
    bundles: Sequence[object], labels: Mapping[str, str] | None
) -> list[dict[str, str]] | None:
    """Return a selector for each bundle of a placement group, None without `labels`."""
    return None if labels is None else [dict(labels) for _ in bundles]


def in_effect(choice: RolesChoice) -> bool:
    """Return True if processes have to run on nodes of their role.

    Raises:
        UserError: `choice` is "required", and no node has the label.
    """
    if choice == "off":
        return False
    is_labeled = any(LABEL in labels_of(node) for node in live_nodes())
    if choice == "required" and not is_labeled:
        raise UserError(
            f"cluster.roles is 'required', and no node of Ray has the label {LABEL}: "
            f"{_LABEL_THE_HEAD}, or set cluster.roles=auto"
        )
    return is_labeled


def live_nodes(labels: Mapping[str, str] | None = None) -> list[Node]:
    """Return the live nodes of the connected Ray, those with `labels` alone if given."""
    import ray

    wanted = (labels or {}).items()
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [node for node in nodes if wanted <= labels_of(node).items()]


def resources_by_node(labels: Mapping[str, str]) -> dict[str, Mapping[str, float]]:
    """Return the resources of each live node with `labels`, by its id."""
    return {node["NodeID"]: node["Resources"] for node in live_nodes(labels)}


def labels_of(node: Node) -> dict[str, str]:
    """Return the Ray labels of a node."""
    return node.get("Labels") or {}


def check_driver(choice: RolesChoice) -> None:
    """Refuse a driver on a node of another role: its helpers would end with a spot node.

    Raises:
        UserError: the node of this process lacks the role of the driver.
    """
    if not in_effect(choice):
        return
    import ray

    own = ray.get_runtime_context().get_node_id()
    here = next((node for node in live_nodes() if node["NodeID"] == own), {})
    role = labels_of(here).get(LABEL)
    if role == DRIVER:
        return
    wanted = json.dumps({LABEL: DRIVER.value})
    has = f"the role {role}" if role else f"no label {LABEL}"
    raise UserError(
        f"this process runs on a node with {has}, and other nodes of the cluster have roles: "
        f"submit the job with --entrypoint-label-selector='{wanted}', "
        f"{_LABEL_THE_HEAD}, or set cluster.roles=off"
    )
