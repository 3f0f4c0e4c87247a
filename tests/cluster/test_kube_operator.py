"""The double's operator makes of a RayCluster what KubeRay does."""

from __future__ import annotations

import base64
from collections import Counter
from typing import Any

import pytest

from tests.kube.api import Object, Store
from tests.kube.kuberay_rules import cluster_errors, job_errors
from tests.kube.operator import Operator
from tests.kube.ray_pods import head_pod, worker_pod
from tests.support.played_cluster import PlayedCluster
from tests.support.ray_manifests import cluster_spec, ray_cluster, ray_job, worker_group


def _env(container: Object) -> dict[str, Any]:
    return {each["name"]: each.get("value", each.get("valueFrom")) for each in container["env"]}


def test_a_cluster_has_head_service_token_and_rights() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 2)))
    store = cluster.store
    (head,) = cluster.pods("headgroup")
    assert head["metadata"]["name"].startswith("c-head-")
    assert len(cluster.pods("spot")) == 2
    service = store.get("services", "default", "c-head-svc")
    assert service is not None
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["selector"].items() <= head["metadata"]["labels"].items()
    secret = store.get("secrets", "default", "c")
    assert secret is not None
    assert len(base64.b64decode(secret["data"]["auth_token"])) > 40
    assert head["spec"]["serviceAccountName"] == "c"
    assert store.get("serviceaccounts", "default", "c")
    assert store.get("rolebindings", "default", "c")
    assert cluster.object()["spec"]["workerGroupSpecs"][0]["scaleStrategy"] == {}


def test_a_head_pod_has_the_autoscaler_and_knows_its_name() -> None:
    head = head_pod(PlayedCluster(ray_cluster("c")).object())
    ray, autoscaler = head["spec"]["containers"]
    assert ray["args"] == [
        "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-65536}; ray start --head --block "
        "--dashboard-agent-listen-port=52365 --dashboard-host=0.0.0.0 --memory=4294967296 "
        "--metrics-export-port=8080 --no-monitor --num-cpus=0"
    ]
    assert autoscaler["args"] == [
        "ray kuberay-autoscaler --cluster-name $(RAY_CLUSTER_NAME) "
        "--cluster-namespace $(RAY_CLUSTER_NAMESPACE)"
    ]
    env = _env(ray)
    assert env["RAY_CLOUD_INSTANCE_ID"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    group = {"fieldRef": {"fieldPath": "metadata.labels['ray.io/group']"}}
    assert env["RAY_NODE_TYPE_NAME"] == group
    assert env["RAY_enable_autoscaler_v2"] == "true"
    assert env["RAY_ADDRESS"] == "127.0.0.1:6379"
    token = {"secretKeyRef": {"name": "c", "key": "auth_token"}}
    assert env["RAY_AUTH_TOKEN"] == _env(autoscaler)["RAY_AUTH_TOKEN"] == token
    assert head["spec"]["restartPolicy"] == "Never"
    mounts = [{each["mountPath"] for each in part["volumeMounts"]} for part in (ray, autoscaler)]
    assert mounts == [{"/dev/shm", "/tmp/ray"}, {"/tmp/ray"}]


def test_a_worker_pod_waits_for_the_head_and_has_its_labels() -> None:
    fields: Any = {"labels": {"ssd-ray/role": "sampler"}, "rayStartParams": {"num-cpus": "1"}}
    group = worker_group("spot", 1, **fields)
    group["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] = "1"
    pod = worker_pod(PlayedCluster(ray_cluster("c", group)).object(), group)
    (ray,) = pod["spec"]["containers"]
    host = "c-head-svc.default.svc.cluster.local"
    assert f"--address={host}:6379" in ray["args"][0]
    assert "--labels=ssd-ray/role=sampler" in ray["args"][0]
    assert "--num-cpus=1 --num-gpus=1" in ray["args"][0]
    assert pod["metadata"]["labels"]["ssd-ray/role"] == "sampler"
    assert pod["metadata"]["labels"]["ray.io/group"] == "spot"
    (wait,) = pod["spec"]["initContainers"]
    assert f"ray health-check --address {host}:6379" in wait["args"][0]
    assert wait["securityContext"] == ray["securityContext"]
    assert _env(wait)["FQ_RAY_IP"] == _env(ray)["FQ_RAY_IP"] == host


def test_a_fault_tolerant_head_knows_its_store() -> None:
    options = {
        "redisAddress": "redis://redis:6379",
        "redisPassword": {"valueFrom": {"secretKeyRef": {"name": "redis", "key": "password"}}},
    }
    obj = ray_cluster("c", gcsFaultToleranceOptions=options)
    obj["metadata"]["uid"] = "1-2"
    ray = head_pod(obj)["spec"]["containers"][0]
    assert "--redis-password=$REDIS_PASSWORD" in ray["args"][0]
    env = _env(ray)
    assert env["RAY_REDIS_ADDRESS"] == "redis://redis:6379"
    assert env["RAY_external_storage_namespace"] == "1-2"
    worker = worker_pod(obj, worker_group("spot"))["spec"]["containers"][0]
    assert _env(worker)["RAY_gcs_rpc_server_reconnect_timeout_s"] == "600"


def test_all_pods_of_a_cluster_pass_restricted_pod_security() -> None:
    # Autoscaler, init container, workers and head; the store refuses any other.
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 1)), restricted=True)
    assert len(cluster.pods()) == 2
    options = {"version": "v2"}
    cluster = PlayedCluster(ray_cluster("c", autoscalerOptions=options), restricted=True)
    assert cluster.pods() == []
    (event,) = cluster.store.list("events")
    assert "containers[1].securityContext" in event["message"]


def test_named_workers_go_and_others_stay() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 3)))
    cluster.run_pods()
    first, *others = cluster.names("spot")
    cluster.scale(0, 2, [first])
    cluster.operator.step()
    notices = [pod for pod in cluster.pods() if "deletionTimestamp" in pod["metadata"]]
    assert [pod["metadata"]["name"] for pod in notices] == [first]
    cluster.operator.step()
    assert len(cluster.pods("spot")) == 3, "the pod with notice is not replaced"
    cluster.finalize_all()
    cluster.operator.step()
    assert cluster.names("spot") == others


def test_surplus_workers_stay_with_the_autoscaler() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 3)))
    cluster.scale(0, 1)
    cluster.operator.step()
    assert len(cluster.pods("spot")) == 3
    plain = ray_cluster("c", worker_group("spot", 3), enableInTreeAutoscaling=False)
    cluster = PlayedCluster(plain)
    cluster.scale(0, 1)
    cluster.operator.step()
    assert len(cluster.pods("spot")) == 1


def test_a_pod_with_notice_is_replaced_only_once_it_is_gone() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 1)))
    cluster.run_pods()
    (name,) = cluster.names("spot")
    cluster.store.delete("pods", "default", name)
    cluster.operator.step()
    assert cluster.names("spot") == [name]
    cluster.finalize_all()
    cluster.operator.step()
    assert len(cluster.names("spot")) == 1
    assert cluster.names("spot") != [name]


@pytest.mark.parametrize("group", ["headgroup", "spot"])
def test_a_failed_pod_is_replaced(group: str) -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 1)))
    cluster.run_pods()
    (name,) = cluster.names(group)
    cluster.end(name)
    cluster.operator.step()
    cluster.operator.step()
    assert len(cluster.names(group)) == 1
    assert cluster.names(group) != [name]


def test_a_head_without_its_autoscaler_stays() -> None:
    # KubeRay looks at Ray's container only, and with autoscaler v2 no container starts again. So
    # the autoscaler's own arguments have to go on after its end.
    cluster = PlayedCluster(ray_cluster("c"))
    cluster.run_pods()
    (name,) = cluster.names("headgroup")
    statuses = [
        {"name": "ray-head", "state": {"running": {}}},
        {"name": "autoscaler", "state": {"terminated": {"exitCode": 1}}},
    ]
    status = {"phase": "Running", "containerStatuses": statuses}
    cluster.store.set_status("pods", "default", name, status)
    cluster.operator.step()
    assert cluster.names("headgroup") == [name]
    (pod,) = cluster.pods("headgroup")
    assert "deletionTimestamp" not in pod["metadata"]
    assert pod["spec"]["restartPolicy"] == "Never"


def test_pods_of_one_replica_go_together() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("gang", 2, numOfHosts=2)))
    assert len(cluster.pods("gang")) == 4
    cluster.run_pods()
    first = cluster.pods("gang")[0]
    cluster.end(first["metadata"]["name"])
    cluster.operator.step()
    cluster.finalize_all()
    index = "ray.io/worker-group-replica-index"
    left = {pod["metadata"]["labels"][index] for pod in cluster.pods("gang")}
    assert left == {"0", "1"} - {first["metadata"]["labels"][index]}
    cluster.operator.step()
    counts = Counter(pod["metadata"]["labels"][index] for pod in cluster.pods("gang"))
    assert counts == {"0": 2, "1": 2}


def test_a_cluster_is_ready_once_all_its_pods_run() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 2)))
    assert cluster.object()["status"].get("state") is None
    cluster.run_pods()
    cluster.operator.step()
    status = cluster.object()["status"]
    assert status["state"] == "ready"
    assert (status["desiredWorkerReplicas"], status["availableWorkerReplicas"]) == (2, 2)
    assert (status["desiredCPU"], status["desiredMemory"]) == ("6", "12Gi")
    assert status["head"]["podIP"] == "1.2.3.4"
    assert status["endpoints"]["dashboard"] == "8265"


def test_a_settled_cluster_causes_no_writes() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 2)))
    cluster.run_pods()
    cluster.operator.step()
    version = cluster.store.version
    cluster.operator.step()
    assert cluster.store.version == version


def test_a_suspended_cluster_has_no_pods_and_comes_back() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 2)))
    obj = cluster.object()
    cluster.store.replace("rayclusters", obj | {"spec": obj["spec"] | {"suspend": True}})
    for _ in range(4):
        cluster.operator.step()
    assert cluster.pods() == []
    obj = cluster.object()
    assert obj["status"]["state"] == "suspended"
    cluster.store.replace("rayclusters", obj | {"spec": obj["spec"] | {"suspend": False}})
    for _ in range(3):
        cluster.operator.step()
    assert len(cluster.pods()) == 3


def test_a_deleted_cluster_takes_everything_with_it() -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 2)))
    cluster.run_pods()
    cluster.store.delete("rayclusters", "default", "c")
    cluster.operator.step()
    assert all("deletionTimestamp" in pod["metadata"] for pod in cluster.pods())
    cluster.finalize_all()
    kinds = ("pods", "services", "secrets", "roles", "rolebindings")
    assert {kind: cluster.store.list(kind) for kind in kinds} == {kind: [] for kind in kinds}


def test_a_cluster_in_redis_is_cleaned_up_before_it_goes() -> None:
    options = {"redisAddress": "redis:6379"}
    cluster = PlayedCluster(ray_cluster("c", gcsFaultToleranceOptions=options))
    cluster.operator.step()
    assert len(cluster.pods()) == 1
    cluster.store.delete("rayclusters", "default", "c")
    cluster.operator.step()
    cluster.operator.step()
    (job,) = cluster.store.list("jobs")
    assert "cleanup_redis_storage" in job["spec"]["template"]["spec"]["containers"][0]["args"][0]
    (pod,) = cluster.store.list("pods")
    cluster.end(pod["metadata"]["name"], "Succeeded")
    cluster.operator.step()
    cluster.operator.step()
    assert cluster.store.list("rayclusters") == []
    assert cluster.store.list("jobs") == cluster.store.list("pods") == []


def test_a_foreign_service_of_the_name_stops_the_cluster() -> None:
    # KubeRay creates the head service before any pod, and gives up there.
    store = Store()
    store.create("services", {"metadata": {"name": "c-head-svc"}, "spec": {"selector": {}}})
    store.create("rayclusters", ray_cluster("c"))
    Operator(store).step()
    assert store.list("pods") == []
    assert {event["reason"] for event in store.list("events")} >= {"FailedToCreateService"}


@pytest.mark.parametrize(
    ("groups", "fields", "complaint"),
    [
        ((worker_group("g", rayStartParams={"labels": "a=b"}),), {}, "labels"),
        ((worker_group("g", minReplicas=9),), {}, "minReplicas greater than maxReplicas"),
        ((worker_group("g", priority=1),), {"rayVersion": "2.50.0"}, "priority needs Ray 2.56"),
        ((worker_group("g", suspend=True),), {}, "cannot be suspended with Autoscaler"),
        (
            (worker_group("g", resources={"CPU": "1"}, rayStartParams={"num-cpus": "1"}),),
            {},
            "both rayStartParams and Resources",
        ),
        ((), {"gcsFaultToleranceOptions": {"backend": "rocksdb"}}, "feature gate"),
    ],
)
def test_a_cluster_against_the_rules_gets_an_event_only(
    groups: tuple[Object, ...], fields: Object, complaint: str
) -> None:
    store = Store()
    store.create("rayclusters", ray_cluster("c", *groups, **fields))
    Operator(store).step()
    assert store.list("pods") == []
    (event,) = store.list("events")
    assert complaint in event["message"]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"ttlSecondsAfterFinished": 5}, "cannot have TTLSecondsAfterFinished"),
        ({"suspend": True}, "not allowed to be suspended"),
        ({"activeDeadlineSeconds": 0}, "must be a positive integer"),
        (
            {
                "shutdownAfterJobFinishes": True,
                "deletionStrategy": {
                    "deletionRules": [
                        {"policy": "DeleteCluster", "condition": {"jobStatus": "FAILED"}}
                    ]
                },
            },
            "mutually exclusive",
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [
                        {"policy": "DeleteWorkers", "condition": {"jobStatus": "FAILED"}}
                    ]
                }
            },
            "not supported with autoscaling",
        ),
        (
            {
                "deletionStrategy": {
                    "deletionRules": [
                        {
                            "policy": "DeleteCluster",
                            "condition": {"jobStatus": "FAILED", "ttlSeconds": 9},
                        },
                        {"policy": "DeleteSelf", "condition": {"jobStatus": "FAILED"}},
                    ]
                }
            },
            "must not fall",
        ),
    ],
)
def test_rules_for_jobs(fields: Object, complaint: str) -> None:
    (error,) = job_errors(ray_job("j", **fields))
    assert complaint in error
    assert cluster_errors(ray_cluster("c", worker_group("g", priority=10))) == []
    assert cluster_spec()["rayVersion"] == "2.60.0"
