"""Jobs and stateful sets in the double become pods as under Kubernetes' own controllers."""

from __future__ import annotations

import time

from tests.kube.api import Object, Store
from tests.kube.operator import Operator


def _job_pods(store: Store) -> list[Object]:
    return [pod for pod in store.list("pods") if "job-name" in pod["metadata"]["labels"]]


def test_a_job_ends_at_once_by_its_failure_policy() -> None:
    store, now = Store(), time.time()
    policy = {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [2]}}]}
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}
    spec = {"backoffLimit": 5, "podFailurePolicy": policy, "template": template}
    store.create("jobs", {"metadata": {"name": "grade"}, "spec": spec})
    operator = Operator(store, None, lambda: now)
    operator.step()
    (pod,) = _job_pods(store)
    ended = {"name": "main", "state": {"terminated": {"exitCode": 2}}}
    status = {"phase": "Failed", "containerStatuses": [ended]}
    store.set_status("pods", "default", pod["metadata"]["name"], status)
    operator.step()
    (condition,) = store.list("jobs")[0]["status"]["conditions"]
    assert (condition["type"], condition["reason"]) == ("Failed", "PodFailurePolicy")
    assert len(_job_pods(store)) == 1


def test_a_lost_pod_of_a_job_counts_as_failed() -> None:
    store = Store()
    clock = [time.time()]
    template = {"spec": {"restartPolicy": "Never", "containers": [{"name": "main"}]}}
    spec = {"backoffLimit": 0, "template": template}
    store.create("jobs", {"metadata": {"name": "grade"}, "spec": spec})
    operator = Operator(store, None, lambda: clock[0])
    operator.step()
    operator.step()
    store.delete("pods", "default", _job_pods(store)[0]["metadata"]["name"])
    operator.step()
    assert store.list("jobs")[0]["status"]["conditions"][0]["reason"] == "BackoffLimitExceeded"


def test_a_stateful_set_keeps_names_and_claims() -> None:
    store = Store()
    claims = [{"metadata": {"name": "data"}, "spec": {"accessModes": ["ReadWriteOnce"]}}]
    template = {"metadata": {"labels": {"app": "redis"}}, "spec": {"containers": [{"name": "r"}]}}
    spec = {"replicas": 1, "template": template, "volumeClaimTemplates": claims}
    store.create("statefulsets", {"metadata": {"name": "redis"}, "spec": spec})
    operator = Operator(store)
    operator.step()
    (pod,) = store.list("pods")
    claim = pod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert (pod["metadata"]["name"], claim) == ("redis-0", "data-redis-0")
    store.set_status("pods", "default", "redis-0", {"phase": "Failed"})
    operator.step()
    operator.step()
    assert store.list("pods")[0]["metadata"]["uid"] != pod["metadata"]["uid"]
    assert len(store.list("persistentvolumeclaims")) == 1
