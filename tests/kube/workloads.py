"""Controllers of Kubernetes itself: Jobs, StatefulSets and Deployments become pods.

- A Job of one completion: failed pods are replaced with a growing pause up to `backoffLimit`; its
  `podFailurePolicy` can end it at once by exit codes; deadline, suspension and time to live.
- A pod of a Job deleted before its end counts as failed.
- A StatefulSet names its pods by number and makes their claims; a Deployment has no revisions.

Source: Kubernetes, pkg/controller/job/job_controller.go and backoff_utils.go.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

from tests.kube.api import Object, Refused, Store
from tests.kube.objects import now, seconds
from tests.kube.ray_pods import owner_reference
from tests.kube.replicas import delete_pod

BACKOFF_S = 10.0
"""Pause before the first new pod of a Job; it doubles up to `LONGEST_S`."""
LONGEST_S = 600.0


class Workloads:
    """Reconciles Jobs, StatefulSets and Deployments."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._alive: dict[str, set[str]] = {}
        """Pods of a Job seen before their end, by the Job's uid."""
        self._failed_at: dict[str, float] = {}

    def step(self) -> None:
        """Reconcile every object once."""
        for plural, reconcile in (
            ("jobs", self._job),
            ("statefulsets", self._stateful_set),
            ("deployments", self._deployment),
        ):
            for obj in self._store.list(plural):
                if "deletionTimestamp" not in obj["metadata"]:
                    self._attempt(reconcile, obj)

    def _attempt(self, reconcile: Callable[[Object], None], obj: Object) -> None:
        try:
            reconcile(obj)
        except Refused as refused:
            if refused.code not in (404, 409):
                # As the real controllers, which try again for ever.
                status = (obj.get("status") or {}) | {"message": refused.message}
                self._write(obj, status)

    def _pods(self, obj: Object) -> list[Object]:
        namespace, uid = obj["metadata"]["namespace"], obj["metadata"]["uid"]
        return [
            pod
            for pod in self._store.list("pods", namespace)
            if any(each["uid"] == uid for each in pod["metadata"].get("ownerReferences", ()))
        ]

    def _write(self, obj: Object, status: Object) -> None:
        kind = obj["kind"].lower() + "s"
        self._store.set_status(kind, obj["metadata"]["namespace"], obj["metadata"]["name"], status)

    def _create(self, owner: Object, name: str | None = None) -> None:
        template = copy.deepcopy(owner["spec"]["template"])
        metadata = template.get("metadata") or {}
        metadata |= {
            "namespace": owner["metadata"]["namespace"],
            "ownerReferences": [owner_reference(owner)],
        }
        prefix = {"generateName": f"{owner['metadata']['name']}-"}
        metadata |= {"name": name} if name else prefix
        self._store.create("pods", {"metadata": metadata, "spec": template["spec"]})

    def _job(self, job: Object) -> None:
        uid, status = job["metadata"]["uid"], dict(job.get("status") or {})
        if any(each["type"] in ("Complete", "Failed") for each in status.get("conditions", ())):
            self._end_by_age(job, status)
            return
        pods = self._pods(job)
        if job["spec"].get("suspend"):
            for pod in pods:
                delete_pod(self._store, pod)
            self._write(job, {key: status[key] for key in status if key != "startTime"})
            return
        status.setdefault("startTime", self._stamp())
        failed = self._count_failures(uid, pods, status)
        active = [pod for pod in pods if pod["status"].get("phase") in ("Pending", "Running")]
        succeeded = [pod for pod in pods if pod["status"].get("phase") == "Succeeded"]
        status |= {"active": len(active), "succeeded": len(succeeded), "failed": failed}
        verdict = self._verdict(job, status, pods)
        if verdict is not None:
            kind, reason = verdict
            self._finish(status, kind, reason)
            for pod in active:
                delete_pod(self._store, pod)
        self._write(job, status)
        if verdict is None and not active and self._has_rested(uid, failed):
            self._create(job)

    def _count_failures(self, uid: str, pods: list[Object], status: Object) -> int:
        """Return the failed pods so far: those at hand, and those gone before their end."""
        ended = {pod["metadata"]["uid"] for pod in pods if pod["status"].get("phase") == "Failed"}
        over = {p["metadata"]["uid"] for p in pods if p["status"].get("phase") == "Succeeded"}
        current = {pod["metadata"]["uid"] for pod in pods}
        alive = self._alive.setdefault(uid, set())
        lost = alive - current
        alive -= lost | ended | over
        alive |= current - ended - over
        gone = int(status.get("gone", 0)) + len(lost)
        if gone:
            status["gone"] = gone
        failed = len(ended) + gone
        if failed > int(status.get("failed", 0)):
            self._failed_at[uid] = self._clock()
        return failed

    def _has_rested(self, uid: str, failed: int) -> bool:
        if not failed:
            return True
        pause = min(BACKOFF_S * 2 ** (failed - 1), LONGEST_S)
        return bool(self._clock() >= self._failed_at.get(uid, 0.0) + pause)

    def _verdict(self, job: Object, status: Object, pods: list[Object]) -> tuple[str, str] | None:
        """Return the condition that ends a Job and its reason, or None."""
        spec = job["spec"]
        if status["succeeded"] >= spec.get("completions", 1):
            return "Complete", "CompletionsReached"
        if any(_fails_job(spec.get("podFailurePolicy") or {}, pod) for pod in pods):
            return "Failed", "PodFailurePolicy"
        if status["failed"] > spec.get("backoffLimit", 6):
            return "Failed", "BackoffLimitExceeded"
        deadline = spec.get("activeDeadlineSeconds")
        if deadline and self._clock() - seconds(status["startTime"]) >= deadline:
            return "Failed", "DeadlineExceeded"
        return None

    def _finish(self, status: Object, kind: str, reason: str) -> None:
        condition = {"type": kind, "status": "True", "reason": reason, "message": reason}
        status["conditions"] = [condition | {"lastTransitionTime": self._stamp()}]
        status["active"] = 0
        if kind == "Complete":
            status["completionTime"] = self._stamp()

    def _stamp(self) -> str:
        return now(self._clock() - time.time())

    def _end_by_age(self, job: Object, status: Object) -> None:
        limit = job["spec"].get("ttlSecondsAfterFinished")
        finished = status["conditions"][0]["lastTransitionTime"]
        if limit is not None and self._clock() - seconds(finished) >= limit:
            self._store.delete("jobs", job["metadata"]["namespace"], job["metadata"]["name"])

    def _stateful_set(self, obj: Object) -> None:
        """Keep pods NAME-0, NAME-1, …; one is made again once it is gone."""
        count, name = obj["spec"].get("replicas", 1), obj["metadata"]["name"]
        pods = {pod["metadata"]["name"]: pod for pod in self._pods(obj)}
        wanted = [f"{name}-{index}" for index in range(count)]
        for pod_name in wanted:
            if pod_name not in pods:
                self._create_claims(obj, pod_name)
                self._create(self._with_claims(obj, pod_name), pod_name)
            elif pods[pod_name]["status"].get("phase") in ("Failed", "Succeeded"):
                delete_pod(self._store, pods[pod_name])
        for pod_name, pod in pods.items():
            if pod_name not in wanted:
                delete_pod(self._store, pod)
        self._write(obj, _scale(count, list(pods.values())))

    def _create_claims(self, obj: Object, pod_name: str) -> None:
        namespace = obj["metadata"]["namespace"]
        for template in obj["spec"].get("volumeClaimTemplates") or ():
            name = f"{template['metadata']['name']}-{pod_name}"
            if self._store.get("persistentvolumeclaims", namespace, name) is None:
                metadata = {"name": name, "namespace": namespace}
                claim = {"metadata": metadata, "spec": template["spec"]}
                self._store.create("persistentvolumeclaims", claim)

    def _with_claims(self, obj: Object, pod_name: str) -> Object:
        obj = copy.deepcopy(obj)
        volumes = obj["spec"]["template"]["spec"].setdefault("volumes", [])
        for template in obj["spec"].get("volumeClaimTemplates") or ():
            name = template["metadata"]["name"]
            source = {"claimName": f"{name}-{pod_name}"}
            volumes.append({"name": name, "persistentVolumeClaim": source})
        return obj

    def _deployment(self, obj: Object) -> None:
        count = obj["spec"].get("replicas", 1)
        pods = self._pods(obj)
        for pod in pods:
            if pod["status"].get("phase") in ("Failed", "Succeeded"):
                delete_pod(self._store, pod)
        living = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        for _ in range(count - len(living)):
            self._create(obj)
        for pod in living[count:]:
            delete_pod(self._store, pod)
        self._write(obj, _scale(count, pods))


def _scale(count: int, pods: list[Object]) -> Object:
    ready = sum(
        pod["status"].get("phase") == "Running"
        and all(each.get("ready") for each in pod["status"].get("containerStatuses", ()))
        for pod in pods
    )
    return {"replicas": count, "readyReplicas": ready, "availableReplicas": ready}


def _fails_job(policy: Object, pod: Object) -> bool:
    """Return True if a rule `FailJob` matches an exit code of a failed pod."""
    if pod["status"].get("phase") != "Failed":
        return False
    for rule in policy.get("rules") or ():
        wanted = rule.get("onExitCodes")
        if rule.get("action") != "FailJob" or not wanted:
            continue
        for each in pod["status"].get("containerStatuses", ()):
            code = each.get("state", {}).get("terminated", {}).get("exitCode", 0)
            matches = (code in wanted["values"]) == (wanted["operator"] == "In")
            if code and matches and wanted.get("containerName", each["name"]) == each["name"]:
                return True
    return False
