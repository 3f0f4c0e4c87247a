"""Decide on a node for a pod: room, taints, labels. Pure functions on objects."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tests.kube.containers import quantity
from tests.kube.policies import matches

Object = dict[str, Any]
Amounts = dict[str, float]
"""Amounts by resource, such as `cpu` or `nvidia.com/gpu`."""


def requests_of(pod: Object) -> Amounts:
    """Return the resources a pod reserves: its containers' sum, or its largest init container."""
    total: Amounts = {"pods": 1.0}
    for container in pod["spec"]["containers"]:
        for name, amount in _requests(container).items():
            total[name] = total.get(name, 0.0) + amount
    for container in pod["spec"].get("initContainers", []):
        for name, amount in _requests(container).items():
            total[name] = max(total.get(name, 0.0), amount)
    return total


def _requests(container: Object) -> Amounts:
    resources = container.get("resources", {})
    wanted = {**resources.get("limits", {}), **resources.get("requests", {})}
    return {name: quantity(amount) for name, amount in wanted.items()}


def obstacle(pod: Object, node: Object, used: Mapping[str, float]) -> str:
    """Return the cause why a node cannot take a pod, in the scheduler's words, or nothing."""
    spec, labels = pod["spec"], node["metadata"].get("labels", {})
    if node["spec"].get("unschedulable"):
        return "node(s) were unschedulable"
    for taint in node["spec"].get("taints", []):
        if taint["effect"] != "PreferNoSchedule" and not _tolerates(spec, taint):
            return f"node(s) had untolerated taint {{{taint['key']}: {taint.get('value', '')}}}"
    if not spec.get("nodeSelector", {}).items() <= labels.items():
        return "node(s) didn't match Pod's node affinity/selector"
    if not _accepts(spec, labels):
        return "node(s) didn't match Pod's node affinity/selector"
    capacity = node["status"]["allocatable"]
    for name, amount in requests_of(pod).items():
        if used.get(name, 0.0) + amount > quantity(capacity.get(name, 0)) + 1e-9:
            return f"Insufficient {name}"
    return ""


def _tolerates(spec: Object, taint: Object) -> bool:
    for each in spec.get("tolerations", []):
        same_key = each.get("key") in (None, "", taint["key"])
        same_effect = each.get("effect") in (None, "", taint["effect"])
        exists = each.get("operator", "Equal") == "Exists"
        if same_key and same_effect and (exists or each.get("value", "") == taint.get("value", "")):
            return True
    return False


def _accepts(spec: Object, labels: Mapping[str, str]) -> bool:
    affinity = spec.get("affinity", {}).get("nodeAffinity", {})
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    if required is None:
        return True
    return any(matches(term, labels) for term in required["nodeSelectorTerms"])


def score(pod: Object, node: Object) -> int:
    """Return the weight of the preferences that a node meets."""
    affinity = pod["spec"].get("affinity", {}).get("nodeAffinity", {})
    preferred = affinity.get("preferredDuringSchedulingIgnoredDuringExecution", [])
    labels = node["metadata"].get("labels", {})
    return sum(each["weight"] for each in preferred if matches(each["preference"], labels))


def used_by_node(pods: Iterable[Object]) -> dict[str, Amounts]:
    """Return what the bound pods reserve on each node; ended pods reserve nothing."""
    used: dict[str, Amounts] = {}
    for pod in pods:
        node = pod["spec"].get("nodeName")
        if node and pod["status"].get("phase") not in ("Succeeded", "Failed"):
            amounts = used.setdefault(node, {})
            for name, amount in requests_of(pod).items():
                amounts[name] = amounts.get(name, 0.0) + amount
    return used


def choose(pod: Object, nodes: Sequence[Object], used: Mapping[str, Amounts]) -> tuple[str, str]:
    """Return the name of the best node and "", or "" and the scheduler's message."""
    causes: dict[str, int] = {}
    fitting = []
    for node in nodes:
        name = node["metadata"]["name"]
        cause = obstacle(pod, node, used.get(name, {}))
        if cause:
            causes[cause] = causes.get(cause, 0) + 1
        else:
            fitting.append((-score(pod, node), name))
    if fitting:
        return min(fitting)[1], ""
    text = ", ".join(f"{number} {cause}" for cause, number in sorted(causes.items()))
    return "", f"0/{len(nodes)} nodes are available: {text or 'no node'}."
