"""The API double's validation refuses wrong objects, and names the field."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.kube import definitions, pod_security
from tests.kube.schemas import Invalid, fill_defaults, validate
from tests.support.rendered import changed

Object = dict[str, Any]
POD = {"image": "example.com/ray:1", "name": "ray"}
CLUSTER: Object = {
    "apiVersion": "ray.io/v1",
    "kind": "RayCluster",
    "metadata": {"name": "one"},
    "spec": {
        "headGroupSpec": {"template": {"spec": {"containers": [POD]}}},
        "workerGroupSpecs": [
            {
                "groupName": "sampler",
                "minReplicas": 0,
                "maxReplicas": 2,
                "template": {"spec": {"containers": [POD]}},
            }
        ],
    },
}
RULES = [{"policy": "DeleteWorkers", "condition": {"jobStatus": "SUCCEEDED"}}]
JOB: Object = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "one"},
    "spec": {"rayClusterSpec": CLUSTER["spec"], "deletionStrategy": {"deletionRules": RULES}},
}


def refusal(obj: Object, old: Object | None = None) -> str:
    with pytest.raises(Invalid) as caught:
        validate(fill_defaults(obj), old)
    return caught.value.field


@pytest.mark.parametrize("obj", [CLUSTER, JOB], ids=["cluster", "job"])
def test_right_objects_pass(obj: Object) -> None:
    validate(obj)
    validate(fill_defaults(obj))


def test_defaults_are_filled_below_existing_objects() -> None:
    filled = fill_defaults(JOB)
    spec = filled["spec"]
    assert (spec["submissionMode"], spec["backoffLimit"]) == ("K8sJobMode", 0)
    assert spec["deletionStrategy"]["deletionRules"][0]["condition"]["ttlSeconds"] == 0
    group = spec["rayClusterSpec"]["workerGroupSpecs"][0]
    assert (group["replicas"], group["numOfHosts"], group["priority"]) == (0, 1, 0)
    assert "submitterConfig" not in spec
    assert "submissionMode" not in JOB["spec"], "the argument is not changed"


@pytest.mark.parametrize(
    ("obj", "path", "value", "field"),
    [
        (CLUSTER, "spec.workerGroup", [], "spec.workerGroup"),
        (
            CLUSTER,
            "spec.workerGroupSpecs.0.minReplicas",
            "0",
            "spec.workerGroupSpecs[0].minReplicas",
        ),
        (CLUSTER, "spec.headGroupSpec", {}, "spec.headGroupSpec.template"),
        (CLUSTER, "spec.managedBy", "me", "spec.managedBy"),
        (CLUSTER, "metadata.name", "One", "metadata.name"),
        (CLUSTER, "metadata.labels", {"a": 1}, "metadata.labels.a"),
        (CLUSTER, "kind", "RayThing", "kind"),
        (CLUSTER, "spec.authOptions", {"mode": "basic"}, "spec.authOptions.mode"),
        (
            JOB,
            "spec.deletionStrategy",
            {"deletionRules": []},
            "spec.deletionStrategy.deletionRules",
        ),
        (JOB, "spec.deletionStrategy.onSuccess", {"policy": "DeleteSelf"}, "spec.deletionStrategy"),
        (
            JOB,
            "spec.deletionStrategy.deletionRules.0.condition.jobDeploymentStatus",
            "Failed",
            "spec.deletionStrategy.deletionRules[0].condition",
        ),
        (JOB, "spec.preRunningDeadlineSeconds", 0, "spec.preRunningDeadlineSeconds"),
        (JOB, "spec.rayClusterSpec.rayVersions", "2", "spec.rayClusterSpec.rayVersions"),
    ],
)
def test_a_wrong_field_is_refused_by_name(obj: Object, path: str, value: Any, field: str) -> None:
    assert refusal(changed(obj, path, value)) == field


def test_a_field_that_cannot_change_is_refused_on_a_change() -> None:
    old = changed(CLUSTER, "spec.managedBy", "ray.io/kuberay-operator")
    new = changed(CLUSTER, "spec.managedBy", "kueue.x-k8s.io/multikueue")
    validate(new)
    assert refusal(new, old) == "spec.managedBy"


def test_the_restricted_standard_names_what_is_missing() -> None:
    fields = [field for field, _ in pod_security.restricted({"containers": [POD], "hostPID": True})]
    assert "spec.hostPID" in fields
    assert {field.rpartition("securityContext.")[2] for field in fields if "Context" in field} == {
        "allowPrivilegeEscalation",
        "capabilities.drop",
        "runAsNonRoot",
        "seccompProfile.type",
    }


@pytest.mark.parametrize("kind", definitions.RAY_KINDS)
def test_the_summary_is_that_of_the_definitions(kind: str) -> None:
    """Where the definitions are not at hand, the summary is used; it has the version and date."""
    summary = yaml.safe_load(definitions.SUMMARY.read_text())
    assert set(summary) == set(definitions.RAY_KINDS)
    place = definitions.folder()
    if place is not None:
        assert definitions.summarized(kind, place) == summary[kind]
