"""Pods of the double are containers: identity, limits, mounts, notice, network policies."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kube.api import Store
from tests.kube.machine import Machine, Options, clear_all
from tests.kube.nodes import NodeType

Object = dict[str, Any]
GENERAL = NodeType(name="general", cpu=8, memory_gib=32, room=2, boot_s=0.0)
LISTEN = """
import socket, sys, time
sockets = [socket.create_server(("0.0.0.0", int(port))) for port in sys.argv[1:]]
print("listens", flush=True)
time.sleep(600)
"""
REACH = """
import socket, sys
for place in sys.argv[1:]:
    name, port = place.split(":")
    try:
        socket.create_connection((name, int(port)), 1.5).close()
        print(place, "yes", flush=True)
    except OSError:
        print(place, "no", flush=True)
"""
ODD_S = 600 + os.getpid() % 10000 / 10000
CRASH = """
import os, time
from pathlib import Path
from tests.kube.api import Store
from tests.kube.machine import Machine, Options
from tests.kube.nodes import LOCAL_TYPES
store = Store()
machine = Machine(store, Options(folder=Path("{folder}"), types=LOCAL_TYPES))
machine.start()
store.create("pods", {pod})
while "ready" not in machine.kubelet.lines("default", "orphan", "main"):
    time.sleep(0.05)
print(machine.kubelet.host.prefix if machine.network else "", flush=True)
os._exit(7)
"""
INSIDE = """
id -u; id -g
grep -E 'CapEff|NoNewPrivs|Seccomp:' /proc/self/status
echo "limit $LIMIT address $ADDRESS secret $SECRET file $(cat /secret/token)"
touch /shared/written && echo written
touch /part/refused 2>&1 | grep -o 'Read-only file system'
df --output=size -k /dev/shm | tail -n 1
trap 'echo notice; sleep 0.5; echo ended; exit 3' TERM
echo ready
while true; do sleep 0.1; done
"""


class Cluster:
    """A store and a machine under it."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.machine = Machine(self.store, Options(folder=folder, types=(GENERAL,)))
        self.machine.start()

    def lines(self, pod: str) -> list[str]:
        return self.machine.kubelet.lines("default", pod, "main")

    def phase(self, pod: str) -> str:
        obj = self.store.get("pods", "default", pod)
        return str(obj["status"]["phase"]) if obj else ""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("kubelet") / "cluster")
    if cluster.machine.note:
        warnings.warn(cluster.machine.note, stacklevel=1)
    yield cluster
    cluster.machine.close()


def _wait(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.05)


def _pod(name: str, command: list[str], **spec: object) -> Object:
    container = {"name": "main", "command": command, **spec}
    pod_spec: Object = {"restartPolicy": "Never", "containers": [container]}
    return {"metadata": {"name": name, "labels": {"app": name}}, "spec": pod_spec}


def _restricted(name: str) -> Object:
    """A pod as in k8s/: not root, no capability, limits, a claim with a read-only part."""
    pod = _pod(
        name,
        ["/bin/bash", "-c", INSIDE],
        env=[
            {"name": "LIMIT", "valueFrom": {"resourceFieldRef": _field("limits.memory", "1Mi")}},
            {"name": "ADDRESS", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "token", "key": "token"}}},
        ],
        resources={"limits": {"cpu": "1", "memory": "100Mi"}},
        securityContext={
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        volumeMounts=[
            {"name": "shared", "mountPath": "/shared"},
            {"name": "shared", "mountPath": "/part", "subPath": "part", "readOnly": True},
            {"name": "token", "mountPath": "/secret"},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    )
    pod["spec"] |= {
        "terminationGracePeriodSeconds": 60,
        "securityContext": {"runAsUser": 1000, "runAsGroup": 100, "fsGroup": 100},
        "initContainers": [{"name": "first", "command": ["/bin/true"]}],
        "volumes": [
            {"name": "shared", "persistentVolumeClaim": {"claimName": "shared"}},
            {"name": "token", "secret": {"secretName": "token"}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "20Mi"}},
        ],
    }
    return pod


def _field(resource: str, divisor: str) -> Object:
    return {"resource": resource, "divisor": divisor}


@pytest.mark.real
def test_a_pod_has_its_identity_limits_and_mounts(cluster: Cluster) -> None:
    store = cluster.store
    store.create("persistentvolumeclaims", {"metadata": {"name": "shared"}, "spec": {}})
    store.create("secrets", {"metadata": {"name": "token"}, "stringData": {"token": "s3cret"}})
    store.create("pods", _restricted("whole"))
    _wait(lambda: "ready" in cluster.lines("whole"), lambda: store.get("pods", "default", "whole"))
    lines = cluster.lines("whole")
    pod = store.get("pods", "default", "whole")
    assert pod is not None
    address = pod["status"]["podIP"]
    assert f"limit 100 address {address} secret s3cret file s3cret" in lines
    assert "written" in lines
    if cluster.machine.runtime.isolates:
        assert lines[:2] == ["1000", "100"]
        assert "CapEff:\t0000000000000000" in lines
        assert "NoNewPrivs:\t1" in lines
        assert "Seccomp:\t2" in lines
        assert "Read-only file system" in lines
        assert any(line.strip() == "20480" for line in lines)
    store.delete("pods", "default", "whole")
    _wait(lambda: cluster.phase("whole") == "", lambda: cluster.lines("whole"))
    assert cluster.lines("whole")[-2:] == ["notice", "ended"]


@pytest.mark.real
def test_the_grace_ends_and_a_full_memory_does(cluster: Cluster) -> None:
    store = cluster.store
    deaf = ["/bin/bash", "-c", "trap '' TERM; echo ready; while true; do sleep 0.1; done"]
    store.create("pods", _pod("deaf", deaf))
    fill = ["/usr/bin/python3", "-c", "held = bytearray(200 * 2**20); print(len(held))"]
    store.create("pods", _pod("greedy", fill, resources={"limits": {"memory": "64Mi"}}))
    _wait(lambda: "ready" in cluster.lines("deaf"), lambda: store.list("pods"))
    begin = time.monotonic()
    store.delete("pods", "default", "deaf", 2)
    _wait(lambda: cluster.phase("deaf") == "", lambda: store.list("pods"))
    assert time.monotonic() - begin >= 2
    if cluster.machine.runtime.isolates:
        _wait(lambda: cluster.phase("greedy") == "Failed", lambda: store.list("pods"))
        pod = store.get("pods", "default", "greedy")
        assert pod is not None
        end = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        assert (end["exitCode"], end["reason"]) == (137, "OOMKilled")


@pytest.mark.real
def test_a_deleted_node_takes_its_pods_without_notice(cluster: Cluster) -> None:
    store = cluster.store
    store.create("pods", _restricted("taken"))
    _wait(lambda: "ready" in cluster.lines("taken"), lambda: store.list("pods"))
    pod = store.get("pods", "default", "taken")
    assert pod is not None
    store.delete("nodes", "", pod["spec"]["nodeName"])
    _wait(lambda: cluster.phase("taken") == "", lambda: store.list("pods"))
    assert "notice" not in cluster.lines("taken")


@pytest.mark.real
def test_a_policy_denies_all_that_it_does_not_allow(cluster: Cluster) -> None:
    network = cluster.machine.network
    if network is None:
        warnings.warn(f"no policy is enforced: {cluster.machine.note}", stacklevel=1)
        return
    store = cluster.store
    egress = {"to": [{"podSelector": {"matchLabels": {"app": "head"}}}], "ports": [{"port": 8000}]}
    policy = {
        "metadata": {"name": "grader"},
        "spec": {
            "podSelector": {"matchLabels": {"app": "grader"}},
            "policyTypes": ["Egress"],
            "egress": [egress],
        },
    }
    store.create("networkpolicies", policy)
    store.create("services", {"metadata": {"name": "svc"}, "spec": {"selector": {"app": "head"}}})
    for name in ("head", "foreign"):
        store.create("pods", _pod(name, ["/usr/bin/python3", "-c", LISTEN, "8000", "8001"]))
    network.attach("metadata", "169.254.169.254")
    inside = ["ip", "netns", "exec", network.namespace("metadata"), "/usr/bin/python3", "-c"]
    # The machine acts as API server, a namespace as the cloud's metadata service.
    servers = [
        subprocess.Popen([*inside, LISTEN, "80"]),
        subprocess.Popen(["/usr/bin/python3", "-c", LISTEN, "8443"]),
    ]
    try:
        for name in ("head", "foreign"):
            _wait(lambda: "listens" in cluster.lines(name), lambda: store.list("pods"))  # noqa: B023
        places = ["svc:8000", "head:8001", "foreign:8000", "169.254.169.254:80"]
        places.append(f"{cluster.machine.address}:8443")
        for name in ("grader", "free"):
            store.create("pods", _pod(name, ["/usr/bin/python3", "-c", REACH, *places]))
        for name in ("grader", "free"):
            _wait(lambda: cluster.phase(name) == "Succeeded", lambda: store.list("pods"))  # noqa: B023
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert cluster.lines("free") == [f"{place} yes" for place in places]
    assert cluster.lines("grader") == [
        f"{place} {'yes' if place == 'svc:8000' else 'no'}" for place in places
    ]


@pytest.mark.real
def test_nothing_is_left_of_a_crashed_cluster(tmp_path: Path) -> None:
    folder = tmp_path / "crashed"
    pod = _pod("orphan", ["/bin/bash", "-c", f"echo ready; sleep {ODD_S}"])
    code = CRASH.format(folder=str(folder), pod=pod)
    python = [sys.executable, "-c", code]
    done = subprocess.run(python, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 7, done.stderr
    assert _sleepers() == 1
    clear_all()
    assert _sleepers() == 0
    assert not folder.exists()
    prefix = done.stdout.strip()
    if prefix:
        assert not Path(f"/sys/class/net/{prefix}").exists()
        names = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True)
        assert f"{prefix}-" not in names.stdout
    clear_all()  # no more to do, and no error


def _sleepers() -> int:
    words = [path.read_bytes() for path in _command_lines()]
    return sum(each.startswith(b"sleep\0") and str(ODD_S).encode() in each for each in words)


def _command_lines() -> list[Path]:
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
