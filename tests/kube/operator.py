"""KubeRay's part of the double: RayClusters become pods, services, secrets and rights.

- `step` looks at every object once. All that it does follows from the store, so it may be
  repeated at any time, as KubeRay's reconcilers may.
- A pod at its end is deleted and made again. A pod with notice still counts as a replica.
- With the autoscaler, surplus pods stay: only `workersToDelete` names pods to go.

Source: KubeRay, ray-operator/controllers/ray/raycluster_controller.go (`reconcilePods`,
`calculateStatus`), common/service.go, common/rbac.go. `ray_pods.py` has the pods, `ray_jobs.py` the
RayJobs, `kuberay_rules.py` the checks. Not here: ingress, serve, upgrades.
"""

from __future__ import annotations

import base64
import functools
import secrets
import threading
import time
import traceback
from collections.abc import Callable

from tests.kube.api import Object, Refused, Store
from tests.kube.cluster_status import cluster_status, is_suspended, is_suspending
from tests.kube.dashboard import Dashboard, HttpDashboard
from tests.kube.kuberay_rules import cluster_errors
from tests.kube.objects import now
from tests.kube.ray_jobs import RayJobs
from tests.kube.ray_pods import (
    account_name,
    autoscales,
    head_pod,
    head_service_name,
    owner_reference,
    short_name,
    uses_token,
    worker_pod,
)
from tests.kube.redis_cleanup import FINALIZER, clean_up, uses_redis
from tests.kube.replicas import Labels, delete_pod, is_ended, pods_of, reconcile_group
from tests.kube.services import head_service
from tests.kube.workloads import Workloads

PERIOD_S = 1.0
"""Longest time between two steps; a write to the store starts one at once."""
_REST_S = 0.2
_RULES = (
    ([""], ["pods"], ["get", "list", "watch", "patch"]),
    ([""], ["pods/resize"], ["patch"]),
    (["ray.io"], ["rayclusters"], ["get", "patch"]),
)
"""Rights of the autoscaler (common/rbac.go)."""


class Operator:
    """Reconciles RayClusters, RayJobs and workloads in a thread."""

    def __init__(
        self,
        store: Store,
        dashboard: Dashboard | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._jobs = RayJobs(store, dashboard or HttpDashboard(store), clock)
        self._workloads = Workloads(store, clock)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="operator", daemon=True)

    def start(self) -> None:
        """Reconcile from now on."""
        self._thread.start()

    def close(self) -> None:
        """Stop; all objects stay."""
        self._stop.set()
        self._thread.join()

    def step(self) -> None:
        """Reconcile every object once."""
        for job in self._store.list("rayjobs"):
            self._attempt(self._jobs.reconcile, job)
        for cluster in self._store.list("rayclusters"):
            self._attempt(lambda each: reconcile_cluster(self._store, each), cluster)
        self._workloads.step()

    def _attempt(self, reconcile: Callable[[Object], None], obj: Object) -> None:
        """Reconcile one object; a conflict with another writer is for the next step."""
        try:
            reconcile(obj)
        except Refused as refused:
            if refused.code not in (404, 409):
                record(self._store, obj, "FailedReconcile", refused.message)

    def _loop(self) -> None:
        version = 0
        while not self._stop.wait(_REST_S):
            version = self._store.wait(version, PERIOD_S)
            try:
                self.step()
            except Exception:
                # A fault with one object must not end the loop for all.
                traceback.print_exc()


def reconcile_cluster(store: Store, cluster: Object) -> None:
    """Bring pods, services and rights of a cluster up to its spec, and its status up to them."""
    if cluster["spec"].get("managedBy", "ray.io/kuberay-operator") != "ray.io/kuberay-operator":
        return
    errors = cluster_errors(cluster)
    if errors:
        record(store, cluster, "InvalidRayClusterSpec", errors[0])
        return
    metadata = cluster["metadata"]
    if uses_redis(cluster) and FINALIZER not in metadata.get("finalizers", []):
        if "deletionTimestamp" not in metadata:
            metadata["finalizers"] = [*metadata.get("finalizers", []), FINALIZER]
            store.replace("rayclusters", cluster)
        return
    if "deletionTimestamp" in metadata:
        if uses_redis(cluster):
            clean_up(store, cluster)
        return
    _write_scale_strategies(store, cluster)
    _grant_rights(store, cluster)
    _make_token(store, cluster)
    _make_head_service(store, cluster)
    is_settled = _reconcile_pods(store, cluster)
    status = cluster_status(store, cluster, is_settled=is_settled)
    store.set_status("rayclusters", metadata["namespace"], metadata["name"], status)


def record(store: Store, obj: Object, reason: str, message: str, kind: str = "Warning") -> None:
    """Write an event about an object, unless there is one of this reason and message."""
    metadata = obj["metadata"]
    about = {key: metadata[key] for key in ("name", "namespace", "uid")} | {"kind": obj["kind"]}
    for event in store.list("events", metadata["namespace"]):
        if (event["involvedObject"], event["message"]) == (about, message):
            return
    event = {
        "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
        "involvedObject": about,
        "type": kind,
        "reason": reason,
        "message": message,
        "source": {"component": "kuberay-operator"},
        "firstTimestamp": now(),
        "lastTimestamp": now(),
        "count": 1,
    }
    store.create("events", event)


def _write_scale_strategies(store: Store, cluster: Object) -> None:
    """Write out `scaleStrategy` of every group.

    KubeRay writes Go structs, in which the field is never missing (apis/ray/v1/raycluster_types.go,
    `WorkerGroupSpec`). Ray's patch replaces it.
    """
    groups = cluster["spec"].get("workerGroupSpecs") or []
    if all("scaleStrategy" in group for group in groups):
        return
    for group in groups:
        group.setdefault("scaleStrategy", {})
    cluster["metadata"]["resourceVersion"] = store.replace("rayclusters", cluster)["metadata"][
        "resourceVersion"
    ]


def _ensure(store: Store, plural: str, cluster: Object, obj: Object) -> None:
    """Create an object owned by the cluster unless one of its name exists."""
    namespace = cluster["metadata"]["namespace"]
    if store.get(plural, namespace, obj["metadata"]["name"]) is None:
        obj["metadata"] |= {"namespace": namespace, "ownerReferences": [owner_reference(cluster)]}
        obj["metadata"].setdefault("labels", {"ray.io/cluster": cluster["metadata"]["name"]})
        store.create(plural, obj)


def _grant_rights(store: Store, cluster: Object) -> None:
    if not autoscales(cluster["spec"]):
        return
    account, name = account_name(cluster), short_name(cluster["metadata"]["name"])
    _ensure(store, "serviceaccounts", cluster, {"metadata": {"name": account}})
    rules = [{"apiGroups": a, "resources": b, "verbs": c} for a, b, c in _RULES]
    _ensure(store, "roles", cluster, {"metadata": {"name": name}, "rules": rules})
    subject = {"kind": "ServiceAccount", "name": account}
    binding = {
        "metadata": {"name": name},
        "subjects": [subject | {"namespace": cluster["metadata"]["namespace"]}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
    }
    _ensure(store, "rolebindings", cluster, binding)


def _make_token(store: Store, cluster: Object) -> None:
    """Make the secret with Ray's token, named after the cluster (`reconcileAuthSecret`)."""
    if uses_token(cluster) and not cluster["spec"]["authOptions"].get("secretName"):
        token = base64.b64encode(secrets.token_bytes(32)).decode()
        name = short_name(cluster["metadata"]["name"])
        secret = {"metadata": {"name": name}, "stringData": {"auth_token": token}}
        _ensure(store, "secrets", cluster, secret)


def _make_head_service(store: Store, cluster: Object) -> None:
    """Make the head service; a foreign service of its name stops the cluster here.

    Source: raycluster_controller.go, `reconcileHeadService` and `createService`.
    """
    metadata = cluster["metadata"]
    labels = {"ray.io/cluster": metadata["name"], "ray.io/node-type": "head"}
    if not store.list("services", metadata["namespace"], labels):
        service = head_service(cluster)
        service["metadata"] |= {
            "name": head_service_name(cluster),
            "namespace": metadata["namespace"],
            "labels": service["spec"]["selector"],
            "ownerReferences": [owner_reference(cluster)],
        }
        try:
            store.create("services", service)
        except Refused as refused:
            record(store, cluster, "FailedToCreateService", refused.message)
            raise


def _reconcile_pods(store: Store, cluster: Object) -> bool:
    """Make and delete pods. Return False if the rest has to wait for the next step."""
    pods = pods_of(store, cluster)
    if is_suspending(cluster):
        for pod in pods:
            delete_pod(store, pod)
        return True
    if is_suspended(cluster) or cluster["spec"].get("suspend"):
        return True
    heads = [pod for pod in pods if pod["metadata"]["labels"]["ray.io/node-type"] == "head"]
    if any(is_ended(pod) for pod in heads):
        for pod in heads:
            delete_pod(store, pod)
        return False
    if not heads:
        _create_pod(store, cluster, head_pod(cluster))
    return all(
        reconcile_group(
            store, cluster, group, functools.partial(_create_worker, store, cluster, group)
        )
        for group in cluster["spec"].get("workerGroupSpecs") or ()
    )


def _create_worker(store: Store, cluster: Object, group: Object, labels: Labels) -> None:
    _create_pod(store, cluster, worker_pod(cluster, group, labels))


def _create_pod(store: Store, cluster: Object, pod: Object) -> None:
    try:
        store.create("pods", pod)
    except Refused as refused:
        record(store, cluster, "FailedToCreatePod", refused.message)
        raise
