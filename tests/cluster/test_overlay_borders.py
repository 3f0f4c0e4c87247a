"""Borders of k8s/: mounts, secrets and network of graders, and ports of the Ray cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.cluster import sameness
from ssd_ray.roles import LABEL
from tests.support.rendered import (
    OVERLAYS,
    Yaml,
    cluster_specs,
    containers,
    environment,
    groups,
    of_kind,
    pods,
    render,
)

ROLE = LABEL


@pytest.fixture(params=[f"overlays/{name}" for name in OVERLAYS])
def root(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def spec(root: str) -> Yaml:
    (spec,) = cluster_specs(render(root))
    return spec


def test_graders_see_one_run_and_write_verdicts_alone(root: str, spec: Yaml) -> None:
    (cluster,) = of_kind(render(root), "RayCluster")
    run = cluster["metadata"]["annotations"]["ssd-ray/run"]
    assert run in recipes.shipped()
    (container,) = groups(spec)["grader"]["template"]["spec"]["containers"]
    mounts = container["volumeMounts"]
    for mount in mounts:
        inside = mount["subPath"].removeprefix(f"runs/{run}/")
        assert mount["mountPath"] == f"/mnt/shared/runs/{run}/{inside}"
        assert "/" not in inside
    writable = {Path(each["mountPath"]).name for each in mounts if not each.get("readOnly")}
    assert writable == {"verdicts", "verdicts-lcb", "sample-verdicts"}
    readable = {Path(each["mountPath"]).name for each in mounts} - writable
    assert readable == {
        "benchmark",
        "eval-prompts",
        "generations",
        "prompts",
        "samples",
        "training-problems",
    }


def _place_on_volume(pod: Yaml, path: Path) -> tuple[str, str]:
    """Return the claim and the path in it that a pod sees at `path`."""
    (container, *_) = pod["spec"]["containers"]
    mounts = [each for each in container["volumeMounts"] if path.is_relative_to(each["mountPath"])]
    mount = max(mounts, key=lambda each: len(each["mountPath"]))
    (volume,) = [each for each in pod["spec"]["volumes"] if each["name"] == mount["name"]]
    inside = Path(mount.get("subPath", "")) / path.relative_to(mount["mountPath"])
    return volume["persistentVolumeClaim"]["claimName"], str(inside)


def test_every_node_reads_the_drivers_nonce(root: str) -> None:
    """Else the examination of nodes would refuse the first pod of graders."""
    (cluster,) = of_kind(render(root), "RayCluster")
    run = Path(cluster["metadata"]["annotations"]["ssd-ray/run"])
    _, nonce = sameness._nonces(run)
    seen = {
        name: _place_on_volume(pod, "/mnt/shared/runs" / nonce)
        for name, pod in pods(render(root))
        if name == "head" or name in groups(cluster["spec"])
    }
    assert set(seen) == {"head", "sampler-spot", "sampler", "trainer", "grader"}
    assert set(seen.values()) == {("ssd-ray-shared", f"runs/{nonce}")}


def test_graders_hold_no_secret_and_no_right(root: str) -> None:
    ((_, pod),) = [each for each in pods(render(root)) if each[0] == "grader"]
    spec = pod["spec"]
    assert spec["serviceAccountName"] == "ssd-ray-grader"
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(pod):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        secrets = {
            entry["name"]
            for entry in container["env"]
            if "secretKeyRef" in entry.get("valueFrom", {})
        }
        assert secrets == {"RAY_AUTH_TOKEN"}, "KubeRay's own, of every Ray pod"
        assert "envFrom" not in container
        assert "ssd-ray-cpu:" in container["image"]
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert [set(volume) for volume in spec["volumes"]] == [{"name", "persistentVolumeClaim"}]
    kinds = {each["kind"] for each in render(root)}
    assert not kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"}


def test_graders_apart_have_no_network_and_one_writable_mount() -> None:
    objects = render("overlays/30b", ("grader-apart",))
    (job,) = of_kind(objects, "Job")
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert ROLE not in labels, "no policy of the Ray cluster lets it in"
    (policy,) = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["spec"]["podSelector"].get("matchLabels") == labels
    ]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert (policy["ingress"], policy["egress"]) == ([], [])
    (container,) = job["spec"]["template"]["spec"]["containers"]
    writable = [each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")]
    assert writable == ["/mnt/run/graded"]
    values = environment(container)
    assert values["SSD_RAY_RUN"] == "qwen3-30b-instruct"
    assert None not in values.values()
    (spec,) = cluster_specs(objects)
    assert groups(spec)["grader"]["maxReplicas"] == 0


def test_ray_ports_are_closed_to_other_namespaces(root: str) -> None:
    policies = {
        each["metadata"]["name"]: each["spec"] for each in of_kind(render(root), "NetworkPolicy")
    }
    own = {"podSelector": {"matchExpressions": [{"key": ROLE, "operator": "Exists"}]}}
    inward = policies["ssd-ray-ingress"]
    everything, operator = inward["ingress"]
    assert everything == {"from": [own]}
    (peer,) = operator["from"]
    (names,) = peer["namespaceSelector"]["matchExpressions"]
    assert names["key"] == "kubernetes.io/metadata.name"
    assert operator["ports"] == [{"protocol": "TCP", "port": 8265}]
    outward = policies["ssd-ray-grader-egress"]
    assert outward["podSelector"] == {"matchLabels": {ROLE: "grader"}}
    everything, names_of_hosts = outward["egress"]
    assert everything == {"to": [own]}
    assert {each["port"] for each in names_of_hosts["ports"]} == {53, 5353}
    assert {"namespaceSelector": {}} in names_of_hosts["to"], "a name server in any namespace"


def test_prometheus_may_scrape_where_monitoring_is_added() -> None:
    objects = render("overlays/30b", ("monitoring",))
    (monitor,) = of_kind(objects, "PodMonitor")
    (policy,) = [
        each["spec"]
        for each in of_kind(objects, "NetworkPolicy")
        if each["metadata"]["name"] == "ssd-ray-metrics"
    ]
    opened = {each["port"] for rule in policy["ingress"] for each in rule["ports"]}
    assert {each["portNumber"] for each in monitor["spec"]["podMetricsEndpoints"]} == opened
