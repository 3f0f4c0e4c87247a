"""Groups of a described cluster for one stage of a recipe: nodes, lacks and remedies.

- A stage counts alone, at the largest size of the cluster: engines end before training starts.
- With roles in effect (`ssd_ray.roles`), only groups of the stage's role count.
- Where a stage does not fit, `changes` are the smallest change of the cluster with which it does.
  `options` are a change of the recipe instead, where one helps.

Pure functions; `training_fit.py` has the stage of training.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from ssd_ray.cluster.cluster_files import DescribedCluster
from ssd_ray.cluster.groups import Group
from ssd_ray.cluster.room import holding
from ssd_ray.config import Recipe
from ssd_ray.models.architecture import Architecture
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import GIB
from ssd_ray.roles import LABEL, Role

Stage = Literal["render", "sample", "train", "grade"]
ACCELERATOR = "ray.io/accelerator-type"
"""Ray's own label of a node with GPUs."""
_GPU_GIB = {
    "T4": 14.7,
    "V100": 15.8,
    "L4": 22.5,
    "A10G": 22.5,
    "A100": 39.5,
    "A100-40G": 39.5,
    "L40S": 44.7,
    "A100-80G": 79.1,
    "H100": 79.6,
    "H20": 95.6,
    "H200": 140.4,
    "B200": 178.4,
    "B300": 268.6,
}
"""GiB that a GPU reports, by the label of its node."""


@dataclass(frozen=True, kw_only=True)
class Change:
    """A change of one group in the files of a cluster."""

    group: str
    field: str
    value: str

    def __str__(self) -> str:
        """Return the change as a request."""
        return f"set {self.field} of {self.group} to {self.value}"


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """Nodes of one group for a stage."""

    group: str
    number: int
    """Nodes that the stage takes, at most those of the group."""


@dataclass(frozen=True, kw_only=True)
class StageFit:
    """One stage on the cluster."""

    stage: Stage
    role: Role
    need: str
    """Workers and resources of the stage."""
    nodes: tuple[Nodes, ...]
    """Nodes that the stage takes, by group; also of a stage that does not fit."""
    problems: tuple[str, ...] = ()
    """Reasons why the stage does not fit; empty if it does."""
    changes: tuple[Change, ...] = ()
    """The smallest change of the cluster with which the stage fits."""
    options: str = ""
    """Another remedy: a change of the recipe, or of the cluster in words."""
    notes: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True if the stage can be scheduled."""
        return not self.problems

    @property
    def sentence(self) -> str:
        """Return the problems and the remedies as one sentence."""
        remedies = [" and ".join(map(str, self.changes)), self.options]
        return f"{', and '.join(self.problems)}: {', or '.join(filter(None, remedies))}"


@dataclass(frozen=True, kw_only=True)
class Case:
    """A recipe on a cluster."""

    recipe: Recipe
    cluster: DescribedCluster
    model: Architecture | None
    """None if it is unknown on this machine: then only resources of Ray are compared."""
    assumed: Assumptions

    @property
    def has_roles(self) -> bool:
        """True if processes run on nodes of their role alone."""
        labels = (group.labels or {} for group in self.cluster.groups)
        return self.recipe.cluster.roles != "off" and any(LABEL in each for each in labels)

    def serving(self, role: Role) -> tuple[Group, ...]:
        """Return the groups for a role, in the order in which the autoscaler takes them."""
        groups = sorted(self.cluster.groups, key=lambda group: -group.priority)
        if not self.has_roles:
            return tuple(groups)
        return tuple(group for group in groups if (group.labels or {}).get(LABEL) == role)

    def assumed_on(self, groups: Sequence[Group]) -> Assumptions:
        """Return the assumptions with what these groups state about their nodes."""
        stated: dict[str, float] = {}
        gpus = [_GPU_GIB.get((group.labels or {}).get(ACCELERATOR, "")) for group in groups]
        if known := [gib for gib in gpus if gib is not None]:
            stated["gpu_memory_gib"] = min(known)
        if memory := [each for group in groups if (each := group.resources.get("memory"))]:
            stated["host_memory_gib"] = min(memory) / GIB
        if on_node := [each for group in groups if (each := group.resources.get("GPU"))]:
            stated["gpus_per_node"] = int(min(on_node))
        chosen = self.assumed.model_fields_set
        return self.assumed.model_copy(
            update={name: value for name, value in stated.items() if name not in chosen}
        )

    def resized(self, name: str, nodes: int) -> Case:
        """Return the case with another largest number of nodes of one group."""
        groups = tuple(
            replace(group, most=nodes - group.is_head) if group.name == name else group
            for group in self.cluster.groups
        )
        return replace(self, cluster=replace(self.cluster, groups=groups))


def capacity(bundle: Mapping[str, float], groups: Sequence[Group], most_nodes: float) -> float:
    """Return the number of bundles that groups hold at their largest."""
    return sum(held for _, _, held in _filled(math.inf, bundle, groups, most_nodes))


def placed(
    number: float, bundle: Mapping[str, float], groups: Sequence[Group], most_nodes: float
) -> tuple[Nodes, ...]:
    """Return the nodes of each group that take `number` bundles, or as many as they hold."""
    return tuple(
        Nodes(group=group.name, number=int(nodes))
        for group, nodes, _ in _filled(number, bundle, groups, most_nodes)
        if nodes and math.isfinite(nodes)
    )


def _filled(
    number: float, bundle: Mapping[str, float], groups: Sequence[Group], most_nodes: float
) -> Iterator[tuple[Group, float, float]]:
    """Yield groups with their nodes and bundles, until `number` bundles have a place."""
    for group in groups:
        each = holding(bundle, group.resources)
        if not each:
            continue
        free = most_nodes + group.is_head
        wanted = math.ceil(number / each) if math.isfinite(number) else math.inf
        nodes = min(group.nodes, free, wanted)
        if nodes <= 0:
            continue
        held = min(number, each * nodes)
        number -= held
        most_nodes -= nodes - group.is_head
        yield group, nodes, held


def shortage(
    case: Case, role: Role, number: int, bundle: Mapping[str, float], subject: str
) -> tuple[str, tuple[Change, ...], str]:
    """Return the lack of room for bundles, changes and another remedy; all empty without a lack.

    `subject` begins the sentence, as in `training needs 16 workers of 1 GPU and 1 core each`.
    """
    groups = case.serving(role)
    word = case.cluster.node_word
    if not groups:
        return _no_role(case, role, subject, bundle)
    if bundle.get("GPU") and not any(group.resources.get("GPU") for group in groups):
        text = f"{subject}, and {names(groups)} has no GPU"
        return text, (), f"add a group with GPUs{_label(case, role)}, or take a recipe for CPUs"
    most = capacity(bundle, groups, case.cluster.most_nodes)
    if most >= number:
        return "", (), ""
    groups = tuple(each for each in groups if holding(bundle, each.resources)) or groups
    best = max(groups, key=lambda group: holding(bundle, group.resources))
    each = holding(bundle, best.resources)
    if not each:
        has = ", ".join(
            counted(best.resources.get(name, 0), "core" if name == "CPU" else name)
            for name in bundle
        )
        wanted = best.resources.get("GPU", 1) if "GPU" in bundle else 1
        cores = math.ceil(bundle.get("CPU", 0) * wanted)
        change = Change(group=best.name, field="the cores (CPU)", value=str(cores))
        text = f"{subject}, and a {word} of {best.name} has {has}"
        return text, (change,) if best.resources.get("CPU", 0) < cores else (), ""
    others = most - each * min(best.nodes, case.cluster.most_nodes + best.is_head)
    nodes = math.ceil((number - others) / each)
    changes = [Change(group=best.name, field=case.cluster.size_field, value=str(nodes))]
    if nodes > case.cluster.most_nodes:
        changes.append(Change(group="the cluster", field="max_workers", value=str(nodes)))
    text = f"{subject}, and {names(groups)} holds {most:g}"
    return text, tuple(changes), ""


def _no_role(
    case: Case, role: Role, subject: str, bundle: Mapping[str, float]
) -> tuple[str, tuple[Change, ...], str]:
    """Return the lack of a group with a role, and the label to set or the group to add."""
    text = f"{subject}, and no group has the label {LABEL}={role}"
    unlabeled = [
        group
        for group in case.cluster.groups
        if LABEL not in (group.labels or {}) and holding(bundle, group.resources)
    ]
    if unlabeled:
        name = unlabeled[0].name
        return text, (Change(group=name, field=f"labels.{LABEL}", value=role.value),), ""
    return text, (), f"add a group{_label(case, role)}, or set cluster.roles=off"


def _label(case: Case, role: Role) -> str:
    return f" and the label {LABEL}={role}" if case.has_roles else ""


def counted(number: float, noun: str) -> str:
    """Return a number with its noun, as `2 GPUs`."""
    return f"{number:g} {noun}{'' if number == 1 else 's'}"


def names(groups: Sequence[Group]) -> str:
    """Return the names of groups as a part of a sentence."""
    return " + ".join(group.name for group in groups)
