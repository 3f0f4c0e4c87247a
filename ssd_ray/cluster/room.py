"""Room for workers in the connected Ray: a need that it can never hold is refused.

- Ray itself waits forever, without a message, for resources that a cluster lacks.
- A local Ray never grows. A cluster at RAY_ADDRESS grows if it has an autoscaler, up to its
  largest size where that is known (`growth.py`).
- Where roles are in effect, only nodes of the role of the workers count (`ssd_ray.roles`).
- Nodes joined by hand, with `ray start --address`, may take up to `JOIN_S` seconds to join.

Reads the state of the cluster; writes nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ssd_ray import roles
from ssd_ray.cluster import address
from ssd_ray.cluster.growth import Growth, read_growth
from ssd_ray.config import ClusterConfig, RolesChoice, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.roles import Role

JOIN_S = 60.0
"""Longest wait for nodes of a cluster that does not grow by itself."""
_POLL_S = 1.0
_HEAD = "node:__internal_head__"
"""Resource of Ray's head alone. An autoscaler does not count it among its nodes."""
_NAMES = {"GPU": "GPU", "CPU": "core"}


@dataclass(frozen=True, kw_only=True)
class Need:
    """Workers that have to run at the same time, such as those of a training."""

    subject: str
    """Beginning of a sentence: `training` needs, `an engine` needs."""
    workers: int
    bundle: Mapping[str, float]
    """Resources of one worker, all on one node."""
    fields: str
    """Fields of the recipe that decide the numbers."""
    role: Role
    """Where roles are in effect, only nodes of this role count."""
    roles: RolesChoice

    def __str__(self) -> str:
        """Return the need as the beginning of a sentence."""
        amounts = " and ".join(
            f"{amount:g} {_NAMES[name]}{'' if amount == 1 else 's'}"
            for name, amount in self.bundle.items()
        )
        each = " each" if self.workers > 1 else ""
        plural = "s" if self.workers > 1 else ""
        return f"{self.subject} needs {self.workers} worker{plural} of {amounts}{each}"


def training_need(train: TrainConfig, cluster: ClusterConfig, cores: float = 1) -> Need:
    """Return the fewest workers of a training, each on a GPU with `cores`, or on cores alone."""
    least = cluster.min_train_workers or cluster.train_workers
    on_cpu = cluster.device == "cpu"
    return Need(
        subject="training",
        workers=train.worker_counts(least, cluster.train_workers)[0],
        bundle=roles.worker_bundle(cluster, cores),
        fields="cluster.train_workers" + (", cluster.cpus_per_train_worker" if on_cpu else ""),
        role=roles.TRAINER,
        roles=cluster.roles,
    )


def grading_need(cluster: ClusterConfig) -> Need:
    """Return the need of one grader."""
    return Need(
        subject="a grader",
        workers=1,
        bundle=roles.grader_bundle(cluster),
        fields="cluster.grader_cpus",
        role=roles.GRADER,
        roles=cluster.roles,
    )


@dataclass(frozen=True, kw_only=True)
class Room:
    """Numbers of workers that a cluster can hold."""

    now: int
    """On the present nodes, once nothing else runs there."""
    most: float
    """After growth; infinite where the maximum is unknown."""
    place: str
    """The cluster, as in a sentence."""
    limit: str = ""
    """Reason why it holds no more."""
    is_known: bool = True
    """False if it is unknown whether the cluster grows."""
    lacks_role: bool = False
    """True if no node has the role, and none will."""


def check_room(need: Need, say: Callable[[str], None], remedy: Callable[[int], str]) -> None:
    """Refuse a need that can never be met; report one that waits for the cluster to grow.

    `remedy` gets the number of workers that fit at most.

    Raises:
        UserError: the cluster cannot hold the workers, now or later.
        InfrastructureError: the cluster no longer answers.
    """
    room = _after_joining(need, say)
    if room.most < need.workers:
        most = int(room.most)
        advice = remedy(most)
        if room.lacks_role:
            advice = (
                f"start nodes with `--labels={roles.LABEL}={need.role}`, or set cluster.roles=off"
            )
        raise UserError(
            f"{need} ({need.fields}), and {room.place} holds {most}{room.limit}: {advice}"
        )
    if room.now < need.workers:
        say(f"{need}: waiting for the cluster to grow, it holds {room.now} now")


def _after_joining(need: Need, say: Callable[[str], None]) -> Room:
    """Return the room once nodes have joined and the monitor has reported, or after `JOIN_S`.

    Nothing is awaited in a local Ray, or if the need is met now or by growth.

    Raises:
        InfrastructureError: the cluster no longer answers.
    """
    room = room_for(need.bundle, roles.selector(need.role, need.roles))
    until = time.monotonic() + JOIN_S if address.named() else 0
    is_waiting = False
    while room.now < need.workers and time.monotonic() < until:
        if room.is_known and room.most >= need.workers:
            break
        if not is_waiting:
            say(f"{need}: waiting {JOIN_S:g} s for nodes to join, the cluster holds {room.now} now")
        is_waiting = True
        time.sleep(_POLL_S)
        address.check_still_answers(say)
        room = room_for(need.bundle, roles.selector(need.role, need.roles))
    return room


def room_for(bundle: Mapping[str, float], labels: Mapping[str, str] | None = None) -> Room:
    """Return the room of the connected Ray for workers that reserve `bundle` each.

    Only nodes with `labels` count, if given.
    """
    present = [node["Resources"] for node in roles.live_nodes(labels)]
    now = sum(holding(bundle, node) for node in present)
    where = f" on nodes with the label {_text(labels)}" if labels else ""
    lacks_role = bool(labels) and not present
    if not address.named():
        return Room(now=now, most=now, place="this machine", limit=where, lacks_role=lacks_role)
    place = "the cluster at RAY_ADDRESS"
    growth = read_growth()
    if growth.groups:
        groups = tuple(group for group in growth.groups if group.may_have(labels))
        on_head = sum(holding(bundle, node) for node in present if _HEAD in node)
        most = max(now, on_head + largest(bundle, replace(growth, groups=groups)))
        limit = f"{where} at its largest"
        lacks_role = lacks_role and not groups
        return Room(now=now, most=most, place=place, limit=limit, lacks_role=lacks_role)
    if growth.has_autoscaler is False:
        limit = f"{where} and has no autoscaler"
        return Room(now=now, most=now, place=place, limit=limit, lacks_role=lacks_role)
    is_known = growth.has_autoscaler is not None
    return Room(now=now, most=math.inf, place=place, is_known=is_known)


def _text(labels: Mapping[str, str]) -> str:
    return ",".join(f"{key}={value}" for key, value in labels.items())


def largest(bundle: Mapping[str, float], growth: Growth) -> float:
    """Return the number of bundles that the groups of nodes hold at their largest."""
    total = 0.0
    left = growth.most_nodes
    sizes = ((holding(bundle, group.resources), group.most) for group in growth.groups)
    for each, most in sorted(sizes, reverse=True):
        nodes = min(most, left)
        if each and nodes:
            total += each * nodes
            left -= nodes
    return total


def holding(bundle: Mapping[str, float], node: Mapping[str, float]) -> int:
    """Return the number of bundles that fit the resources of one node."""
    # A tenth of a core is not exact in binary.
    return min(math.floor(node.get(name, 0) / amount + 1e-9) for name, amount in bundle.items())
