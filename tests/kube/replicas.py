"""The pods of a worker group: how many, and which of them go.

Source: KubeRay, raycluster_controller.go, `reconcilePods` and `reconcileMultiHostWorkerGroup`.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

from tests.kube.api import Object, Refused, Store
from tests.kube.ray_pods import autoscales

INDEX = "ray.io/worker-group-replica-index"
REPLICA = "ray.io/worker-group-replica-name"
HOST = "ray.io/replica-host-index"
Labels = dict[str, str]


def pods_of(store: Store, cluster: Object, group: str | None = None) -> list[Object]:
    """Return the pods of a cluster, or of one of its groups."""
    labels = {"ray.io/cluster": cluster["metadata"]["name"], "ray.io/is-ray-node": "yes"}
    if group is not None:
        labels["ray.io/group"] = group
    return store.list("pods", cluster["metadata"]["namespace"], labels)


def is_ended(pod: Object) -> bool:
    """Return True if a pod will not run again (`shouldDeletePod`)."""
    status = pod.get("status", {})
    if status.get("phase") in ("Failed", "Succeeded"):
        return True
    name = pod["spec"]["containers"][0]["name"]
    ray: Object = next((e for e in status.get("containerStatuses", ()) if e["name"] == name), {})
    is_over = status.get("phase") == "Running" and "terminated" in ray.get("state", {})
    return is_over and pod["spec"].get("restartPolicy") == "Never"


def desired(group: Object) -> int:
    """Return the number of pods a group is to have (`GetWorkerGroupDesiredReplicas`)."""
    if group.get("suspend"):
        return 0
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 2**31 - 1)
    return int(min(max(group.get("replicas", 0), least), most) * hosts(group))


def hosts(group: Object) -> int:
    """Return the pods of one replica."""
    return max(1, int(group.get("numOfHosts", 1)))


def delete_pod(store: Store, pod: Object) -> None:
    """Delete a pod once: one with notice is left alone, unless it ended since."""
    if "deletionTimestamp" in pod["metadata"] and not is_ended(pod):
        return
    try:
        store.delete("pods", pod["metadata"]["namespace"], pod["metadata"]["name"])
    except Refused:
        return  # It is gone already.


def reconcile_group(
    store: Store, cluster: Object, group: Object, create: Callable[[Labels], None]
) -> bool:
    """Bring one group to its number. Return False if the rest has to wait for the next step."""
    pods = pods_of(store, cluster, group["groupName"])
    if group.get("suspend"):
        for pod in pods:
            delete_pod(store, pod)
        return True
    replicas, size = _replicas(pods), hosts(group)
    unhealthy = [
        pod
        for members in replicas.values()
        if len(members) < size or any(is_ended(pod) for pod in members)
        for pod in members
    ]
    for pod in unhealthy:
        delete_pod(store, pod)
    if unhealthy:
        # KubeRay makes no pod of this group in the same step.
        return False
    running = len(replicas) - len(_delete_named(store, group, replicas))
    surplus = running - desired(group) // size
    for _ in range(-surplus):
        _create_replica(group, replicas, create)
    if surplus > 0 and not autoscales(cluster["spec"]):
        for pod in (pod for members in list(replicas.values())[:surplus] for pod in members):
            delete_pod(store, pod)
    return True


def _delete_named(store: Store, group: Object, replicas: dict[str, list[Object]]) -> list[str]:
    """Delete the replicas with a pod in `workersToDelete`. Return their indices."""
    named = set((group.get("scaleStrategy") or {}).get("workersToDelete") or ())
    indices = [
        index
        for index, members in replicas.items()
        if any(pod["metadata"]["name"] in named for pod in members)
    ]
    for pod in (pod for index in indices for pod in replicas[index]):
        delete_pod(store, pod)
    return indices


def _replicas(pods: list[Object]) -> dict[str, list[Object]]:
    """Return pods by the index of their replica; one without a label is a replica of its own."""
    replicas: dict[str, list[Object]] = {}
    for pod in pods:
        index = pod["metadata"]["labels"].get(INDEX, pod["metadata"]["name"])
        replicas.setdefault(index, []).append(pod)
    return replicas


def _create_replica(
    group: Object, replicas: dict[str, list[Object]], create: Callable[[Labels], None]
) -> None:
    """Create the pods of one more replica under the first free index."""
    index = next(str(i) for i in range(len(replicas) + 1) if str(i) not in replicas)
    labels = {INDEX: index}
    replicas[index] = []
    if hosts(group) == 1:
        create(labels)
        return
    labels[REPLICA] = f"{group['groupName']}-{secrets.token_hex(3)[:5]}"
    for host in range(hosts(group)):
        create(labels | {HOST: str(host)})
