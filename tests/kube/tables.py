"""Tables for `kubectl get`: columns by kind, as Kubernetes and KubeRay print them.

The columns of RayCluster and RayJob are `additionalPrinterColumns` of KubeRay's definitions.
"""

from __future__ import annotations

import time
from typing import Any

from tests.kube.api import Object
from tests.kube.kinds import Kind
from tests.kube.objects import seconds

_COLUMNS = {
    "rayclusters": {
        "Desired Workers": "status.desiredWorkerReplicas",
        "Available Workers": "status.availableWorkerReplicas",
        "CPUs": "status.desiredCPU",
        "Memory": "status.desiredMemory",
        "GPUs": "status.desiredGPU",
        "Status": "status.state",
    },
    "rayjobs": {
        "Job Status": "status.jobStatus",
        "Deployment Status": "status.jobDeploymentStatus",
        "Ray Cluster Name": "status.rayClusterName",
        "Start Time": "status.startTime",
        "End Time": "status.endTime",
    },
    "services": {"Type": "spec.type", "Cluster-IP": "spec.clusterIP"},
    "jobs": {"Succeeded": "status.succeeded", "Failed": "status.failed"},
    "persistentvolumeclaims": {"Status": "status.phase"},
}


def as_table(kind: Kind, items: list[Object]) -> Object:
    """Return a Table of objects for kubectl."""
    rows = []
    for obj in items:
        cells = {"Name": obj["metadata"]["name"], **_cells(kind.plural, obj), "Age": _age(obj)}
        part = {"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata"}
        rows.append({"cells": list(cells.values()), "object": part | {"metadata": obj["metadata"]}})
    names = list({"Name": 0, **_cells(kind.plural, {"metadata": {}}), "Age": 0})
    columns = [{"name": name, "type": "string", "format": "", "priority": 0} for name in names]
    head = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": {}}
    return head | {"columnDefinitions": columns, "rows": rows}


def _cells(plural: str, obj: Object) -> Object:
    if plural == "pods":
        return _pod_cells(obj)
    return {name: _at(obj, path) for name, path in _COLUMNS.get(plural, {}).items()}


def _pod_cells(pod: Object) -> Object:
    statuses = pod.get("status", {}).get("containerStatuses", [])
    ready = sum(bool(each.get("ready")) for each in statuses)
    count = len(pod.get("spec", {}).get("containers", []))
    phase = pod.get("status", {}).get("phase", "Pending")
    is_ending = "deletionTimestamp" in pod["metadata"]
    return {
        "Ready": f"{ready}/{count}",
        "Status": "Terminating" if is_ending else phase,
        "Restarts": str(sum(each.get("restartCount", 0) for each in statuses)),
    }


def _at(obj: Object, path: str) -> str:
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return "" if value is None else str(value)


def _age(obj: Object) -> str:
    """Return the age as kubectl writes it, such as `42s` or `5m12s`."""
    age = max(0, int(time.time() - seconds(obj["metadata"]["creationTimestamp"])))
    if age < 120:
        return f"{age}s"
    minutes, rest = divmod(age, 60)
    if minutes < 10:
        return f"{minutes}m{rest}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if hours else f"{minutes}m"
