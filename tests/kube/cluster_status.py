"""The status of a RayCluster, from its pods and services.

Source: KubeRay, raycluster_controller.go, `calculateStatus`; utils/consistency.go. A cluster is
`ready` for the first time when all desired pods run, and `ready` it stays.
"""

from __future__ import annotations

from typing import Any

from tests.kube.api import Object, Refused, Store
from tests.kube.objects import now
from tests.kube.quantities import quantity
from tests.kube.replicas import desired, hosts, pods_of

_SUSPENDING, _SUSPENDED = "RayClusterSuspending", "RayClusterSuspended"


def is_suspending(cluster: Object) -> bool:
    """Return True while the pods of a suspended cluster go."""
    return _condition(cluster.get("status") or {}, _SUSPENDING) == "True"


def is_suspended(cluster: Object) -> bool:
    """Return True once the pods of a suspended cluster are gone."""
    return _condition(cluster.get("status") or {}, _SUSPENDED) == "True"


def cluster_status(store: Store, cluster: Object, *, is_settled: bool) -> Object:
    """Return the new status; `is_settled` is False while KubeRay would try again at once."""
    old = cluster.get("status") or {}
    pods = pods_of(store, cluster)
    workers = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "worker"]
    groups = cluster["spec"].get("workerGroupSpecs") or []
    active = [group for group in groups if not group.get("suspend")]
    status = old | {
        "observedGeneration": cluster["metadata"]["generation"],
        "readyWorkerReplicas": sum(map(is_ready, workers)),
        "availableWorkerReplicas": sum(pod["status"]["phase"] == "Running" for pod in workers),
        "desiredWorkerReplicas": sum(map(desired, groups)),
        "minWorkerReplicas": sum(each.get("minReplicas", 0) * hosts(each) for each in active),
        "maxWorkerReplicas": sum(each.get("maxReplicas", 0) * hosts(each) for each in active),
        **_desired_resources(cluster, active),
        "head": _head(store, cluster, pods),
        "endpoints": _endpoints(store, cluster),
    }
    all_run = bool(pods) and all(is_ready(pod) for pod in pods)
    if is_settled and all_run and len(pods) == status["desiredWorkerReplicas"] + 1:
        status["state"] = "ready"
    if cluster["spec"].get("suspend") and not pods:
        status["state"] = "suspended"
    status["conditions"] = _conditions(cluster, old, pods, all_run=all_run)
    if _visible(status) == _visible(old):
        return old
    if status.get("state") != old.get("state"):
        times = old.get("stateTransitionTimes") or {}
        status["stateTransitionTimes"] = times | {status["state"]: now()}
    return status | {"lastUpdateTime": now()}


def is_ready(pod: Object) -> bool:
    """Return True if a pod runs and no readiness check fails."""
    status = pod["status"]
    return status.get("phase") == "Running" and _condition(status, "Ready") in ("True", "")


def _condition(status: Object, kind: str) -> str:
    """Return the status of a condition, or nothing."""
    states = [each["status"] for each in status.get("conditions") or () if each["type"] == kind]
    return str(states[0]) if states else ""


def _visible(status: Object) -> Object:
    return {key: status.get(key) for key in status if key != "lastUpdateTime"}


def _conditions(cluster: Object, old: Object, pods: list[Object], *, all_run: bool) -> list[Object]:
    """Return the conditions; a transition time is kept while its condition is."""
    heads = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    head_ready = bool(heads) and is_ready(heads[0])
    wants = bool(cluster["spec"].get("suspend"))
    suspending, suspended = is_suspending(cluster), is_suspended(cluster)
    provisioned = _condition(old, "RayClusterProvisioned") == "True" or all_run
    if suspending and not pods:
        suspending, suspended, provisioned = False, True, False
    elif suspended:
        suspended = wants
    elif not suspending:
        suspending = wants
    states = {
        "HeadPodReady": (head_ready, "HeadPodRunningAndReady" if head_ready else "HeadPodNotFound"),
        "RayClusterProvisioned": (
            provisioned,
            "AllPodRunningAndReadyFirstTime" if provisioned else "RayClusterPodsProvisioning",
        ),
        _SUSPENDING: (suspending, _SUSPENDING),
        _SUSPENDED: (suspended, _SUSPENDED),
    }
    conditions = []
    before = {each["type"]: each for each in old.get("conditions") or ()}
    for kind, (is_true, reason) in states.items():
        status = "True" if is_true else "False"
        former = before.get(kind, {})
        time = former["lastTransitionTime"] if former.get("status") == status else now()
        conditions.append(
            {
                "type": kind,
                "status": status,
                "reason": reason,
                "message": "",
                "lastTransitionTime": time,
            }
        )
    return conditions


def _desired_resources(cluster: Object, groups: list[Object]) -> dict[str, str]:
    counts: list[tuple[Object, int]] = [(cluster["spec"]["headGroupSpec"], 1)]
    counts += [(group, hosts(group) * group.get("replicas", 0)) for group in groups]
    totals: dict[str, float] = {}
    for group, count in counts:
        for container in group["template"]["spec"]["containers"]:
            resources = container.get("resources") or {}
            amounts: dict[str, Any] = {
                **resources.get("limits", {}),
                **resources.get("requests", {}),
            }
            for name, amount in amounts.items():
                totals[name] = totals.get(name, 0.0) + quantity(amount) * count
    gpus = sum(total for name, total in totals.items() if name.endswith("gpu"))
    memory = totals.get("memory", 0.0)
    gibibytes = memory / 2**30
    return {
        "desiredCPU": f"{totals.get('cpu', 0.0):g}",
        "desiredMemory": f"{gibibytes:g}Gi" if gibibytes.is_integer() else f"{memory:.0f}",
        "desiredGPU": f"{gpus:g}",
        "desiredTPU": "0",
    }


def _head(store: Store, cluster: Object, pods: list[Object]) -> dict[str, str]:
    heads = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    service = _service(store, cluster)
    address = heads[0]["status"].get("podIP", "") if heads else ""
    return {
        "podIP": address,
        "podName": heads[0]["metadata"]["name"] if heads else "",
        "serviceIP": address,
        "serviceName": service["metadata"]["name"],
    }


def _endpoints(store: Store, cluster: Object) -> dict[str, str]:
    ports = _service(store, cluster)["spec"]["ports"]
    return {port["name"]: str(port.get("targetPort", port["port"])) for port in ports}


def _service(store: Store, cluster: Object) -> Object:
    metadata = cluster["metadata"]
    labels = {"ray.io/cluster": metadata["name"], "ray.io/node-type": "head"}
    services = store.list("services", metadata["namespace"], labels)
    if not services:
        raise Refused(404, "NotFound", f"no head service of {metadata['name']}")
    return services[0]
