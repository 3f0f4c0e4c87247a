"""RayJobs in the double: the submitter, and which end of a job costs how many clusters."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable
from typing import Any

import pytest

from ssd_ray.submissions.retries import RETRIED_BY
from tests.kube.admission import admit
from tests.kube.api import Object, Store
from tests.kube.dashboard import JobInfo
from tests.kube.operator import Operator
from tests.support.job_service import job_service
from tests.support.ray_manifests import ray_job, worker_group

MERGE = "application/merge-patch+json"
RETRIED = {RETRIED_BY: "kuberay"}


class _Dashboard:
    """A dashboard by hand: one answer for every cluster."""

    def __init__(self) -> None:
        self.answer: JobInfo | None = JobInfo(status="RUNNING")
        self.is_silent = False
        self.stopped: list[str] = []

    def job(self, cluster: Object, job_id: str) -> JobInfo | None:
        if self.is_silent:
            raise ConnectionRefusedError
        return self.answer

    def stop(self, cluster: Object, job_id: str) -> None:
        self.stopped.append(job_id)


class _Played:
    """A RayJob, an operator with a clock of its own, and a kubelet by hand."""

    def __init__(self, **fields: Any) -> None:
        self.now = time.time()
        self.store = Store(admit)
        self.dashboard = _Dashboard()
        self.operator = Operator(self.store, self.dashboard, lambda: self.now)
        self.clusters: set[str] = set()
        self.store.create("rayjobs", ray_job("j", worker_group("g", 1), **fields))

    @property
    def status(self) -> Object:
        jobs = self.store.list("rayjobs")
        return dict(jobs[0].get("status") or {}) if jobs else {}

    @property
    def state(self) -> str:
        return str(self.status.get("jobDeploymentStatus", ""))

    def step(self, wait_s: float = 4.0) -> None:
        self.now += wait_s
        self.operator.step()
        self.clusters |= {each["metadata"]["name"] for each in self.store.list("rayclusters")}

    def run_pods(self) -> None:
        for pod in self.store.list("pods"):
            if "nodeName" not in pod["spec"]:
                self.store.replace("pods", pod | {"spec": pod["spec"] | {"nodeName": "n"}})
                name = pod["metadata"]["name"]
                self.store.set_status("pods", "default", name, {"phase": "Running"})
            elif "deletionTimestamp" in pod["metadata"]:
                self.store.finalize("pods", "default", pod["metadata"]["name"])

    def until(self, *states: str, act: Callable[[], None] = lambda: None) -> None:
        """Go on until the RayJob has one of the states."""
        for _ in range(200):
            if self.state in states:
                return
            self.run_pods()
            act()
            self.step()
        raise AssertionError(f"{self.state} is none of {states}")

    def end_submitter(self, phase: str) -> None:
        """End the running pod of the submitter."""
        for pod in self.store.list("pods"):
            is_submitter = "job-name" in pod["metadata"]["labels"]
            if is_submitter and pod["status"]["phase"] == "Running":
                self.store.set_status("pods", "default", pod["metadata"]["name"], {"phase": phase})

    def patch(self, **fields: Any) -> None:
        self.store.patch("rayjobs", "default", "j", {"spec": fields}, content_type=MERGE)


def test_the_driver_starts_once_all_desired_workers_run() -> None:
    played = _Played()
    for _ in range(3):
        played.step()
    assert played.store.list("jobs") == []
    assert played.state == "Initializing"
    played.until("Running")
    (job,) = played.store.list("jobs")
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert job["metadata"]["name"] == "j"
    assert container["command"] == ["/bin/bash", "-ce", "--"]
    (command,) = container["args"]
    job_id, url = played.status["jobId"], played.status["dashboardURL"]
    assert f"if ! ray job status --address http://{url} {job_id}" in command
    assert (
        f"ray job submit --address http://{url} --no-wait --submission-id {job_id} -- " in command
    )
    assert command.endswith(f"ray job logs --address http://{url} --follow {job_id}")
    names = {each["name"] for each in container["env"]}
    assert names >= {"RAY_DASHBOARD_ADDRESS", "RAY_JOB_SUBMISSION_ID", "RAY_AUTH_TOKEN"}


def _submitter_command(played: _Played) -> str:
    (job,) = played.store.list("jobs")
    return str(job["spec"]["template"]["spec"]["containers"][0]["args"][0])


def test_entrypoint_resources_move_the_driver_off_the_head() -> None:
    played = _Played(entrypointNumCpus=1, entrypointResources='{"driver": 1}')
    played.until("Running")
    command = _submitter_command(played)
    assert "--entrypoint-num-cpus 1.000000" in command
    assert r'--entrypoint-resources "{\"driver\": 1}"' in command


def _fails(played: _Played) -> None:
    """Any exit status of the driver but 0."""
    played.dashboard.answer = JobInfo(status="FAILED", message="exit code 1")
    if played.status.get("jobStatus") == "FAILED":
        played.end_submitter("Failed")


def _submitter_fails(played: _Played) -> None:
    played.end_submitter("Failed")
    played.now += 60


def _head_is_silent(played: _Played) -> None:
    played.dashboard.is_silent = True


def _submitter_ends_without_a_job(played: _Played) -> None:
    played.dashboard.answer = None
    played.end_submitter("Succeeded")


def _is_stopped(played: _Played) -> None:
    """`ray job stop`; the submitter follows the log to its end."""
    played.dashboard.answer = JobInfo(status="STOPPED")
    if played.status.get("jobStatus") == "STOPPED":
        played.end_submitter("Succeeded")


def _succeeds(played: _Played) -> None:
    played.dashboard.answer = JobInfo(status="SUCCEEDED")
    played.end_submitter("Succeeded")


def _runs_on(played: _Played) -> None:
    played.now += 60


def _no_pod_starts(played: _Played) -> None:
    for pod in played.store.list("pods"):
        if pod["status"]["phase"] == "Running":
            name = pod["metadata"]["name"]
            played.store.set_status("pods", "default", name, {"phase": "Pending"})
    played.now += 60


@pytest.mark.parametrize(
    ("act", "fields", "end", "reason", "clusters"),
    [
        (_succeeds, {}, "Complete", "", 1),
        (_fails, {}, "Failed", "AppFailed", 4),
        (_submitter_fails, {}, "Failed", "SubmissionFailed", 4),
        (_submitter_ends_without_a_job, {}, "Failed", "AppFailed", 4),
        (
            _no_pod_starts,
            {"preRunningDeadlineSeconds": 600},
            "Failed",
            "PreRunningDeadlineExceeded",
            4,
        ),
        (_head_is_silent, {}, "Failed", "JobStatusCheckTimeoutExceeded", 1),
        (_runs_on, {"activeDeadlineSeconds": 600}, "Failed", "DeadlineExceeded", 1),
        (_is_stopped, {}, "Complete", "", 1),
    ],
    ids=lambda value: value.__name__ if callable(value) else None,
)
def test_the_table_of_retries(
    act: Callable[[_Played], None], fields: Object, end: str, reason: str, clusters: int
) -> None:
    # With `backoffLimit: 3`. Only two reasons of failure cost no second cluster.
    played = _Played(backoffLimit=3, **fields)
    played.until("Complete", "Failed", act=lambda: act(played))
    assert (played.state, played.status.get("reason", "")) == (end, reason)
    assert len(played.clusters) == clusters
    assert played.status["failed"] == (clusters if end == "Failed" else 0)


@pytest.mark.parametrize(
    ("script", "metadata", "clusters"),
    [("jobs/pipeline.py", RETRIED, 1), ("jobs/pipeline.py", {}, 4), ("-m ssd_ray run", RETRIED, 4)],
)
@pytest.mark.slow
def test_a_mistake_of_the_user_costs_one_cluster(
    script: str, metadata: Object, clusters: int
) -> None:
    """The driver is the real one, and stops its job where a script of `jobs/` has to.

    The metadata are those of the RayJobs in `k8s/`.
    """
    entrypoint = f"python {script} nowhere.yaml"
    played = _Played(backoffLimit=3, entrypoint=entrypoint, metadata=metadata)
    ends: list[str] = []

    def run_driver() -> None:
        """Submit the job as the submitter's command does, and follow its log."""
        words = shlex.split(_submitter_command(played))
        sent = {}
        if "--metadata-json" in words:
            sent = json.loads(words[words.index("--metadata-json") + 1])
        if not ends:
            with job_service() as service:
                ends.append(service.run(shlex.split(entrypoint), sent)[0])
        played.dashboard.answer = JobInfo(status=ends[0])
        if played.status.get("jobStatus") == ends[0]:
            played.end_submitter("Succeeded")

    def act() -> None:
        if played.state == "Running":
            run_driver()

    played.until("Complete", "Failed", act=act)
    assert len(played.clusters) == clusters
    end = ("Complete", "STOPPED") if clusters == 1 else ("Failed", "FAILED")
    assert (played.state, played.status["jobStatus"]) == end


def test_a_new_attempt_waits_until_the_last_one_is_gone() -> None:
    played = _Played(backoffLimit=1)
    played.until("Retrying", act=lambda: _fails(played))
    first = played.store.list("rayclusters")[0]["metadata"]["name"]
    played.step()
    assert played.state == "", "cluster and submitter are deleted in one turn"
    played.dashboard.answer = JobInfo(status="RUNNING")
    played.until("Running")
    (cluster,) = played.store.list("rayclusters")
    assert cluster["metadata"]["name"] != first
    assert played.status["failed"] == 1


def test_every_attempt_has_its_own_deadline() -> None:
    played = _Played(backoffLimit=1, activeDeadlineSeconds=5000)
    played.until("Running")
    started = played.status["startTime"]
    played.now += 4000
    played.until("Retrying", act=lambda: _fails(played))
    played.dashboard.answer = JobInfo(status="RUNNING")
    played.until("Running")
    assert played.status["startTime"] > started
    played.step(3000)
    assert played.state == "Running"


def test_a_silence_shorter_than_the_limit_is_forgotten() -> None:
    played = _Played()
    played.until("Running")
    played.dashboard.is_silent = True
    played.step()
    assert "jobStatusCheckFailureStartTime" in played.status
    played.dashboard.is_silent = False
    played.step(200)
    assert "jobStatusCheckFailureStartTime" not in played.status
    assert played.state == "Running"


def test_a_lost_submitter_is_replaced_and_asks_first() -> None:
    # The new pod has the same command and submission id, so a new head gets the same job.
    played = _Played()
    played.until("Running")
    played.run_pods()
    before = played.status["jobId"]
    (pod,) = [p for p in played.store.list("pods") if "job-name" in p["metadata"]["labels"]]
    played.store.set_status("pods", "default", pod["metadata"]["name"], {"phase": "Failed"})
    for _ in range(5):
        played.step()
    pods = [p for p in played.store.list("pods") if "job-name" in p["metadata"]["labels"]]
    assert len(pods) == 2
    assert (played.status["jobId"], played.state) == (before, "Running")


def test_a_suspended_job_gives_everything_back_and_starts_again() -> None:
    played = _Played(shutdownAfterJobFinishes=True)
    played.until("Running")
    played.patch(suspend=True)
    played.until("Suspended")
    for kind in ("rayclusters", "jobs", "pods"):
        played.run_pods()
        assert played.store.list(kind) == [], kind
    played.patch(suspend=False)
    played.until("Running")
    assert len(played.clusters) == 2


@pytest.mark.parametrize(
    ("fields", "after_s", "left"),
    [
        ({}, 9999, ("rayjobs", "rayclusters", "jobs")),
        (
            {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 600},
            500,
            ("rayjobs", "rayclusters", "jobs"),
        ),
        (
            {"shutdownAfterJobFinishes": True, "ttlSecondsAfterFinished": 600},
            700,
            ("rayjobs", "jobs"),
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [
                        {
                            "policy": "DeleteCluster",
                            "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 100},
                        },
                        {
                            "policy": "DeleteSelf",
                            "condition": {"jobStatus": "SUCCEEDED", "ttlSeconds": 1000},
                        },
                    ]
                }
            },
            700,
            ("rayjobs", "jobs"),
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [
                        {"policy": "DeleteSelf", "condition": {"jobStatus": "SUCCEEDED"}}
                    ]
                }
            },
            10,
            (),
        ),
    ],
)
def test_rules_of_deletion(fields: Object, after_s: float, left: tuple[str, ...]) -> None:
    played = _Played(**fields)
    played.until("Complete", act=lambda: _succeeds(played))
    played.step(after_s)
    played.step(0)
    played.run_pods()
    kinds = ("rayjobs", "rayclusters", "jobs")
    assert tuple(kind for kind in kinds if played.store.list(kind)) == left


def test_no_rule_fits_a_stopped_job() -> None:
    # Conditions know SUCCEEDED and FAILED only, so the head of a stopped job stays.
    rules = [
        {"policy": "DeleteCluster", "condition": {"jobStatus": status, "ttlSeconds": 0}}
        for status in ("SUCCEEDED", "FAILED")
    ]
    played = _Played(deletionStrategy={"deletionRules": rules})
    played.until("Complete", act=lambda: _is_stopped(played))
    played.step(9999)
    assert len(played.store.list("rayclusters")) == 1


def test_a_deleted_job_is_stopped_first() -> None:
    played = _Played()
    played.until("Running")
    job_id = played.status["jobId"]
    played.store.delete("rayjobs", "default", "j")
    played.step()
    assert played.dashboard.stopped == [job_id]
    played.run_pods()
    kinds = ("rayjobs", "rayclusters", "jobs", "services", "secrets", "pods")
    assert [kind for kind in kinds if played.store.list(kind)] == []


def test_the_service_of_a_job_takes_over_a_namesake() -> None:
    # KubeRay updates a service of this name, whoever made it.
    played = _Played()
    selector = {"ray.io/cluster": "j"}
    spec = {"selector": selector, "ports": [{"port": 8265}]}
    played.store.create("services", {"metadata": {"name": "j-head-svc"}, "spec": spec})
    played.until("Running")
    played.step()
    service = played.store.get("services", "default", "j-head-svc")
    assert service is not None
    assert service["spec"]["selector"]["ray.io/cluster"] == played.status["rayClusterName"]


def test_a_job_against_the_rules_fails_at_once() -> None:
    played = _Played(ttlSecondsAfterFinished=5)
    played.step()
    assert played.state == "ValidationFailed"
    assert "TTLSecondsAfterFinished" in played.status["message"]
    assert played.clusters == set()
