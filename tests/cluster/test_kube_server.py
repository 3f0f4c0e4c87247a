"""The ordinary kubectl, and a bare client, work against the cluster double's API."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sysconfig
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.admission import admit
from tests.kube.api import Object, Store
from tests.kube.selectors import matches_fields, matches_labels
from tests.kube.server import Server
from tests.support.ray_manifests import ray_cluster, worker_group

SCRIPTS = sysconfig.get_path("scripts")
KUBECTL = shutil.which("kubectl", path=f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}") or "kubectl"
POD: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a", "labels": {"app": "x"}},
    "spec": {"containers": [{"name": "main", "image": "none"}]},
}
Kubectl = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    api = Server(Store(admit), tmp_path / "api", log_file=lambda *names: tmp_path / "-".join(names))
    api.start()
    yield api
    api.close()


@pytest.fixture
def kubectl(server: Server, tmp_path: Path) -> Kubectl:
    def run(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
        return subprocess.run(
            [KUBECTL, "--kubeconfig", str(server.kubeconfig), *words],
            input=text,
            env=env,
            capture_output=True,
            text=True,
        )

    return run


def _request(server: Server, path: str, token: str, body: Any = None) -> tuple[int, Any]:
    """Send a request as a plain client. Return code and document."""
    context = ssl.create_default_context(cafile=str(server.credentials.authority))
    request = urllib.request.Request(
        f"https://127.0.0.1:{server.port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}"} if token else {},
    )
    try:
        with urllib.request.urlopen(request, context=context) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_kubectl_applies_and_gets_an_object(server: Server, kubectl: Kubectl) -> None:
    text = json.dumps(POD)
    assert kubectl("apply", "-f", "-", text=text).stdout == "pod/a created\n"
    assert kubectl("apply", "-f", "-", text=text).stdout == "pod/a unchanged\n"
    changed = {**POD, "spec": {"containers": [{"name": "main", "image": "other"}]}}
    assert kubectl("apply", "-f", "-", text=json.dumps(changed)).stdout == "pod/a configured\n"
    assert server.store.list("pods")[0]["spec"]["containers"][0]["image"] == "other"
    answer = kubectl("get", "pods", "-l", "app=x", "-o", "json").stdout
    assert [pod["metadata"]["name"] for pod in json.loads(answer)["items"]] == ["a"]
    heading, row = kubectl("get", "pods").stdout.splitlines()
    assert heading.split() == ["NAME", "READY", "STATUS", "RESTARTS", "AGE"]
    assert row.split()[:4] == ["a", "0/1", "Pending", "0"]


def test_kubectl_is_refused_with_the_field_named(kubectl: Kubectl) -> None:
    wrong = {**POD, "spec": {**POD["spec"], "restart": "Never"}}
    refused = kubectl("apply", "-f", "-", text=json.dumps(wrong))
    assert refused.returncode == 1
    assert 'Pod "a" is invalid: spec.restart: unknown field' in refused.stderr
    cluster = ray_cluster("c", worker_group("g", replica=1))
    refused = kubectl("apply", "-f", "-", text=json.dumps(cluster))
    assert "spec.workerGroupSpecs[0].replica: unknown field" in refused.stderr


def test_kubectl_waits_for_the_end_of_a_pod(server: Server, kubectl: Kubectl) -> None:
    server.store.create("pods", {**POD, "spec": {**POD["spec"], "nodeName": "n"}})

    def end() -> None:
        # What the kubelet does: it sees the notice, and then the containers are gone.
        for _, _, pod in server.store.watch("pods", timeout_s=60):
            if "deletionTimestamp" in pod["metadata"]:
                server.store.finalize("pods", "default", "a")
                return

    kubelet = threading.Thread(target=end)
    kubelet.start()
    deleted = kubectl("delete", "pod", "a")
    kubelet.join()
    assert 'pod "a" deleted' in deleted.stdout
    assert server.store.list("pods") == []


def test_kubectl_follows_the_log_of_a_job(server: Server, kubectl: Kubectl, tmp_path: Path) -> None:
    template = {"metadata": {}, "spec": {**POD["spec"], "restartPolicy": "Never"}}
    job = server.store.create("jobs", {"metadata": {"name": "j"}, "spec": {"template": template}})
    labels = job["spec"]["template"]["metadata"]["labels"]
    server.store.create("pods", {**POD, "metadata": {"name": "a", "labels": labels}})
    # Podman's files have a prefix in each line.
    text = "2026-11-30T01:41:18.2+00:00 stdout F one\ntwo\nunfinished"
    (tmp_path / "default-a-main").write_text(text)
    server.store.set_status("pods", "default", "a", {"phase": "Succeeded"})
    assert kubectl("logs", "-f", "job/j").stdout == "one\ntwo\n"
    assert kubectl("logs", "a", "--tail", "1").stdout == "two\n"


def test_kubectl_describes_and_scales_by_patch(server: Server, kubectl: Kubectl) -> None:
    server.store.create("rayclusters", ray_cluster("c", worker_group("g")))
    patch = '[{"op": "replace", "path": "/spec/workerGroupSpecs/0/replicas", "value": 2}]'
    patched = kubectl("patch", "raycluster", "c", "--type", "json", "-p", patch)
    assert patched.returncode == 0, patched.stderr
    assert "Replicas:  2" in kubectl("describe", "raycluster", "c").stdout


@pytest.mark.parametrize("token", ["", "wrong"])
def test_no_request_without_a_valid_token(server: Server, token: str) -> None:
    for path in ("/api/v1/namespaces/default/pods", "/api", "/version"):
        assert _request(server, path, token)[0] == 401


def test_an_account_may_do_only_what_its_roles_allow(server: Server) -> None:
    token = (server.credentials.account("default", "scaler") / "token").read_text()
    pods = "/api/v1/namespaces/default/pods"
    assert _request(server, pods, token)[0] == 403
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list"]}
    server.store.create("roles", {"metadata": {"name": "r"}, "rules": [rule]})
    binding = {
        "metadata": {"name": "b"},
        "subjects": [{"kind": "ServiceAccount", "name": "scaler", "namespace": "default"}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
    }
    server.store.create("rolebindings", binding)
    assert _request(server, pods, token)[0] == 200
    assert _request(server, pods, token, POD)[0] == 403
    assert _request(server, "/api/v1/namespaces/kube-system/pods", token)[0] == 403
    assert _request(server, "/api/v1/namespaces/default/secrets", token)[0] == 403


def test_an_eviction_respects_a_disruption_budget(server: Server) -> None:
    server.store.create("pods", POD)
    server.store.set_status("pods", "default", "a", {"phase": "Running"})
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "x"}}}
    server.store.create("poddisruptionbudgets", {"metadata": {"name": "b"}, "spec": spec})
    path = "/api/v1/namespaces/default/pods/a/eviction"
    code, answer = _request(server, path, server.credentials.admin_token, {})
    assert (code, answer["reason"]) == (429, "TooManyRequests")
    server.store.delete("poddisruptionbudgets", "default", "b")
    assert _request(server, path, server.credentials.admin_token, {})[0] == 201
    assert server.store.list("pods") == []


def test_an_outage_closes_connections_without_an_answer(server: Server) -> None:
    token = server.credentials.admin_token
    server.away = True
    with pytest.raises((OSError, ConnectionError)):
        _request(server, "/api", token)
    server.away = False
    assert _request(server, "/api", token)[0] == 200


def test_requests_are_counted(server: Server) -> None:
    token = server.credentials.admin_token
    before = server.requests
    _request(server, "/api", token)
    assert server.requests == before + 1
    assert _request(server, "/metrics", "wrong")[0] == 401


def test_the_kubeconfig_and_the_key_are_private(server: Server) -> None:
    assert server.kubeconfig.stat().st_mode & 0o077 == 0
    assert server.credentials.key.stat().st_mode & 0o077 == 0
    assert yaml.safe_load(server.kubeconfig.read_text())["kind"] == "Config"


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ("", True),
        ("a=1", True),
        ("a==1,b=2", True),
        ("a!=1", False),
        ("c!=1", True),
        ("a in (0, 1),b", True),
        ("a notin (1)", False),
        ("!c,b", True),
        ("c", False),
    ],
)
def test_label_selectors(selector: str, matches: bool) -> None:
    assert matches_labels(selector, {"a": "1", "b": "2"}) == matches


def test_field_selectors() -> None:
    pod = {"metadata": {"name": "a"}, "spec": {"nodeName": "n"}}
    assert matches_fields("metadata.name=a,spec.nodeName=n", pod)
    assert not matches_fields("metadata.name!=a", pod)
    assert not matches_fields("spec.nodeName=", pod)
    assert not matches_fields("status.phase=Running", pod)
