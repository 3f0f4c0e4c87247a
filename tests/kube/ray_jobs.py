"""RayJobs: a cluster, a submitter, retries, deadlines, suspension and deletion.

One call of `reconcile` is one turn of KubeRay's state machine: Initializing, Running, and then
Complete, Failed or Retrying. KubeRay knows no exit codes: a mistake and a lost head look alike.
Only DeadlineExceeded and JobStatusCheckTimeoutExceeded are never retried, and every attempt has
another cluster and its own deadlines.

Source: KubeRay, ray-operator/controllers/ray/rayjob_controller.go. Of the modes only `K8sJobMode`
is played.
"""

from __future__ import annotations

import contextlib
import copy
import secrets
import time
from collections.abc import Callable

from tests.kube.api import Object, Refused, Store
from tests.kube.dashboard import Dashboard, JobInfo
from tests.kube.deletion import due_policy
from tests.kube.kuberay_rules import job_errors
from tests.kube.objects import now, seconds
from tests.kube.ray_pods import head_host, owner_reference
from tests.kube.services import serve_job
from tests.kube.submitter import submitter_job

FINALIZER = "ray.io/rayjob-finalizer"
POLL_S = 3.0
"""Time between two questions to a dashboard (`RayJobDefaultRequeueDuration`)."""
SUBMITTER_S = 30.0
"""Time from the submitter's end to the job's (`DefaultSubmitterFinishedTimeout`)."""
TRANSITION_S = 300.0
STATUS_CHECK_S = 300.0
"""Time without an answer of the dashboard (`RAYJOB_STATUS_CHECK_TIMEOUT_SECONDS`)."""
TERMINAL = ("STOPPED", "SUCCEEDED", "FAILED")
_OVER = ("Complete", "Failed")
_NOT_RETRIED = ("DeadlineExceeded", "JobStatusCheckTimeoutExceeded")


class RayJobs:
    """Reconciles RayJobs."""

    def __init__(
        self, store: Store, dashboard: Dashboard, clock: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._dashboard = dashboard
        self._clock = clock
        self._asked_at: dict[str, float] = {}

    def reconcile(self, job: Object) -> None:
        """Go one turn further with a RayJob."""
        if job["spec"].get("managedBy", "ray.io/kuberay-operator") != "ray.io/kuberay-operator":
            return
        if "deletionTimestamp" in job["metadata"]:
            self._end(job)
            return
        old = job.get("status") or {}
        if old.get("jobDeploymentStatus") in _OVER:
            self._clear(job)
            return
        errors = job_errors(job)
        if errors:
            status = old | {"jobDeploymentStatus": "ValidationFailed", "reason": "ValidationFailed"}
            self._write(job, status | {"message": f"The RayJob spec is invalid: {errors[0]}"})
            return
        status = copy.deepcopy(old)
        if self._turn(job, status):
            _count(job, status)
            if status.get("jobDeploymentStatus") in _OVER:
                status["endTime"] = self._stamp()
            self._write(job, status)

    def _turn(self, job: Object, status: Object) -> bool:
        """Change the status in place. Return False if there is nothing to write."""
        match status.get("jobDeploymentStatus", ""):
            case "":
                return self._begin(job, status)
            case "Initializing":
                return self._initialize(job, status)
            case "Running":
                return self._run(job, status)
            case "Suspending" | "Retrying":
                return self._release(job, status)
            case "Suspended" if not job["spec"].get("suspend"):
                status |= {"jobStatus": "", "jobDeploymentStatus": ""}
                return True
        return False

    def _begin(self, job: Object, status: Object) -> bool:
        if FINALIZER not in job["metadata"].get("finalizers", []):
            finalizers = [*job["metadata"].get("finalizers", []), FINALIZER]
            patch = {"metadata": {"finalizers": finalizers}}
            kind = "application/merge-patch+json"
            self._store.patch("rayjobs", *_place(job), patch, content_type=kind)
        name = job["metadata"]["name"]
        selected = (job["spec"].get("clusterSelector") or {}).get("ray.io/cluster")
        status |= {
            "jobId": status.get("jobId") or job["spec"].get("jobId") or _generated(name),
            "rayClusterName": status.get("rayClusterName") or selected or _generated(name),
            "jobStatus": "",
            "jobDeploymentStatus": "Initializing",
            "startTime": self._stamp(),
        }
        return True

    def _initialize(self, job: Object, status: Object) -> bool:
        if self._is_stopped_early(job, status, "preRunningDeadlineSeconds"):
            return True
        cluster = self._cluster(job, status)
        if (cluster.get("status") or {}).get("state") != "ready":
            status["rayClusterStatus"] = cluster.get("status") or {}
            return True
        status["dashboardURL"] = f"{head_host(cluster)}:8265"
        if self._store.get("jobs", *_place(job)) is None:
            self._store.create("jobs", submitter_job(job, status, cluster))
        status["jobDeploymentStatus"] = "Running"
        return True

    def _run(self, job: Object, status: Object) -> bool:
        if self._is_stopped_early(job, status, None) or self._is_stale(status):
            return True
        cluster = self._cluster(job, status)
        if not job["spec"].get("clusterSelector"):
            serve_job(self._store, job, cluster)
        submitter = self._store.get("jobs", *_place(job))
        if submitter is None:
            return False
        finished, failure = _end_of(submitter)
        if failure:
            is_known = status.get("jobStatus") == "FAILED"
            _fail(status, "AppFailed" if is_known else "SubmissionFailed", failure)
            return True
        if finished and self._clock() - finished >= SUBMITTER_S:
            reason = "JobDeploymentStatusTransitionGracePeriodExceeded"
            status["jobStatus"] = "FAILED"
            _fail(status, reason, "The submitter finished, and the job did not end in time")
            return True
        return self._ask(job, status, cluster, has_submitter=not finished)

    def _ask(self, job: Object, status: Object, cluster: Object, *, has_submitter: bool) -> bool:
        """Ask the dashboard about the job, at most once in `POLL_S`."""
        uid = job["metadata"]["uid"]
        if self._clock() - self._asked_at.get(uid, 0.0) < POLL_S:
            return False
        self._asked_at[uid] = self._clock()
        try:
            info = self._dashboard.job(cluster, status["jobId"])
        except OSError:
            if "jobStatusCheckFailureStartTime" in status:
                return False
            status["jobStatusCheckFailureStartTime"] = self._stamp()
            return True
        if info is None:
            if has_submitter:
                return False
            _fail(status, "AppFailed", "Submitter completed but Ray job not found in RayCluster.")
            return True
        status.pop("jobStatusCheckFailureStartTime", None)
        _take(status, info, cluster, is_over=not has_submitter)
        return True

    def _is_stopped_early(self, job: Object, status: Object, deadline: str | None) -> bool:
        """Apply suspension and deadlines. Return True if one of them changed the status."""
        if job["spec"].get("suspend"):
            status["jobDeploymentStatus"] = "Suspending"
            return True
        age = self._clock() - seconds(status["startTime"])
        fields = {"activeDeadlineSeconds": "DeadlineExceeded"}
        if deadline:
            fields[deadline] = "PreRunningDeadlineExceeded"
        for field, reason in fields.items():
            limit = job["spec"].get(field)
            if limit is not None and age >= limit:
                _fail(status, reason, f"The RayJob has passed the {field}.")
                return True
        return False

    def _is_stale(self, status: Object) -> bool:
        """Apply the limits on a job without news. Return True if one of them changed the status."""
        ended = (status.get("rayJobInfo") or {}).get("endTime")
        is_over = status.get("jobStatus") in TERMINAL
        if ended and is_over and self._clock() - seconds(ended) >= TRANSITION_S:
            is_failed = status["jobStatus"] == "FAILED"
            status["jobDeploymentStatus"] = "Failed" if is_failed else "Complete"
            status["reason"] = "JobDeploymentStatusTransitionGracePeriodExceeded"
            return True
        since = status.get("jobStatusCheckFailureStartTime")
        if since and self._clock() - seconds(since) >= STATUS_CHECK_S:
            message = f"Job status checks have been failing since {since}"
            _fail(status, "JobStatusCheckTimeoutExceeded", message)
            return True
        return False

    def _release(self, job: Object, status: Object) -> bool:
        """Delete cluster and submitter; once both are gone, begin again or rest."""
        for plural, name in (("rayclusters", status.get("rayClusterName", "")), ("jobs", "")):
            self._delete(plural, job["metadata"]["namespace"], name or job["metadata"]["name"])
        namespace, name = _place(job)
        cluster = self._store.get("rayclusters", namespace, status.get("rayClusterName", ""))
        if cluster or self._store.get("jobs", namespace, name):
            return False
        is_suspending = status["jobDeploymentStatus"] == "Suspending"
        kept = {key: status[key] for key in ("succeeded", "failed") if key in status}
        status.clear()
        status |= kept | {
            "jobStatus": "",
            "jobDeploymentStatus": "Suspended" if is_suspending else "",
        }
        return True

    def _cluster(self, job: Object, status: Object) -> Object:
        """Return the job's cluster; create it if there is none."""
        namespace, name = job["metadata"]["namespace"], status["rayClusterName"]
        cluster = self._store.get("rayclusters", namespace, name)
        if cluster is not None:
            return cluster
        if job["spec"].get("clusterSelector"):
            raise Refused(422, "RayClusterNotFound", f"RayCluster {namespace}/{name} is not there")
        labels = {
            **job["metadata"].get("labels", {}),
            "ray.io/originated-from-cr-name": job["metadata"]["name"],
            "ray.io/originated-from-crd": "RayJob",
            "ray.io/job-submission-mode": "K8sJobMode",
        }
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": labels,
            "annotations": job["metadata"].get("annotations", {}),
            "ownerReferences": [owner_reference(job)],
        }
        spec = copy.deepcopy(job["spec"]["rayClusterSpec"])
        return self._store.create("rayclusters", {"metadata": metadata, "spec": spec})

    def _end(self, job: Object) -> None:
        """Stop the Ray job of a deleted RayJob, and let the object go."""
        status = job.get("status") or {}
        place = (job["metadata"]["namespace"], status.get("rayClusterName", ""))
        cluster = self._store.get("rayclusters", *place)
        if cluster and status.get("jobStatus") not in TERMINAL:
            # Without an answer the cluster goes all the same.
            with contextlib.suppress(OSError):
                self._dashboard.stop(cluster, status.get("jobId", ""))
        finalizers = [each for each in job["metadata"].get("finalizers", []) if each != FINALIZER]
        if finalizers != job["metadata"].get("finalizers", []):
            job["metadata"]["finalizers"] = finalizers
            self._store.replace("rayjobs", job)

    def _clear(self, job: Object) -> None:
        """Delete parts of a job at its end as its spec says."""
        age_s = self._clock() - seconds(job["status"]["endTime"])
        policy = due_policy(job["spec"], job["status"], age_s)
        if policy:
            self._apply(job, policy)

    def _apply(self, job: Object, policy: str) -> None:
        namespace, name = _place(job)
        cluster_name = job["status"]["rayClusterName"]
        if policy == "DeleteSelf":
            self._delete("rayjobs", namespace, name)
        elif policy == "DeleteCluster":
            self._delete("rayclusters", namespace, cluster_name)
        elif policy == "DeleteWorkers":
            cluster = self._store.get("rayclusters", namespace, cluster_name)
            for group in cluster["spec"].get("workerGroupSpecs", ()) if cluster else ():
                group["suspend"] = True
            if cluster:
                self._store.replace("rayclusters", cluster)

    def _delete(self, plural: str, namespace: str, name: str) -> None:
        obj = self._store.get(plural, namespace, name)
        if obj is not None and "deletionTimestamp" not in obj["metadata"]:
            self._store.delete(plural, namespace, name)

    def _stamp(self) -> str:
        return now(self._clock() - time.time())

    def _write(self, job: Object, status: Object) -> None:
        self._store.set_status("rayjobs", *_place(job), status)


def _place(job: Object) -> tuple[str, str]:
    return job["metadata"]["namespace"], job["metadata"]["name"]


def _generated(name: str) -> str:
    return f"{name}-{secrets.token_hex(3)[:5]}"


def _fail(status: Object, reason: str, message: str) -> None:
    status |= {"jobDeploymentStatus": "Failed", "reason": reason, "message": message}


def _end_of(submitter: Object) -> tuple[float | None, str]:
    """Return the time of a submitter's end, if it came, and the cause of its failure, if any."""
    for condition in (submitter.get("status") or {}).get("conditions") or ():
        if condition["type"] in ("Complete", "Failed"):
            failure = condition["reason"] if condition["type"] == "Failed" else ""
            return seconds(condition["lastTransitionTime"]), failure
    return None, ""


def _take(status: Object, info: JobInfo, cluster: Object, *, is_over: bool) -> None:
    """Take over the state of a job; it ends once its submitter has ended too."""
    status |= {
        "rayClusterStatus": cluster.get("status") or {},
        "jobStatus": info.status,
        "message": info.message,
        "reason": "",
    }
    times = {"startTime": info.start_ms, "endTime": info.end_ms}
    status["rayJobInfo"] = {
        key: now(value / 1000 - time.time()) for key, value in times.items() if value
    }
    if is_over and info.status in TERMINAL:
        status["jobDeploymentStatus"] = "Complete"
        if info.status == "FAILED":
            status |= {"jobDeploymentStatus": "Failed", "reason": "AppFailed"}


def _count(job: Object, status: Object) -> None:
    """Count an attempt at its end, and ask for another (`checkBackoffLimit…`)."""
    state, limit = status.get("jobDeploymentStatus"), job["spec"].get("backoffLimit")
    failed = int(status.get("failed", 0)) + (state == "Failed")
    is_success = state == "Complete" and status.get("jobStatus") == "SUCCEEDED"
    status |= {"failed": failed, "succeeded": int(status.get("succeeded", 0)) + is_success}
    has_attempts = state == "Failed" and limit is not None and failed <= limit
    if has_attempts and status.get("reason") not in _NOT_RETRIED:
        status["jobDeploymentStatus"] = "Retrying"
