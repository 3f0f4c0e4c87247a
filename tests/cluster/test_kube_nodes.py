"""The double's scheduler and nodes: room, taints, labels, and capacity that goes and comes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube.api import Store
from tests.kube.nodes import LOCAL_TYPES, Cloud, NodeType
from tests.kube.ray_pods import head_pod, worker_pod
from tests.kube.scheduling import choose, obstacle, requests_of

Object = dict[str, Any]
OVERLAYS = Path(__file__).parents[2] / "k8s" / "overlays"
KUBECTL = shutil.which("kubectl", path=f"{sysconfig.get_path('scripts')}:{os.defpath}") or "kubectl"
SPOT_TERM = {"matchExpressions": [{"key": "spot", "operator": "In", "values": ["true"]}]}
TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


def _pod(cpu: str = "1", **spec: object) -> Object:
    container = {"name": "main", "resources": {"requests": {"cpu": cpu}}}
    return {
        "metadata": {"name": "pod", "namespace": "default"},
        "spec": {"containers": [container], **spec},
        "status": {},
    }


def _node(name: str = "node", cpu: str = "4", **spec: object) -> Object:
    return {
        "metadata": {"name": name, "labels": {"spot": "true"}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "pods": "110"}},
    }


def _required(term: Object) -> Object:
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]}}
    return {"nodeAffinity": required}


@pytest.mark.parametrize(
    ("pod", "node", "cause"),
    [
        (_pod(), _node(), ""),
        (_pod(cpu="4500m"), _node(), "Insufficient cpu"),
        (_pod(), _node(unschedulable=True), "node(s) were unschedulable"),
        (_pod(), _node(taints=[TAINT]), "node(s) had untolerated taint {nvidia.com/gpu: present}"),
        (
            _pod(tolerations=[{"key": "nvidia.com/gpu", "operator": "Exists"}]),
            _node(taints=[TAINT]),
            "",
        ),
        (
            _pod(tolerations=[{"key": "nvidia.com/gpu", "value": "other"}]),
            _node(taints=[TAINT]),
            "node(s) had untolerated taint {nvidia.com/gpu: present}",
        ),
        (
            _pod(nodeSelector={"spot": "false"}),
            _node(),
            "node(s) didn't match Pod's node affinity/selector",
        ),
        (_pod(affinity=_required(SPOT_TERM)), _node(), ""),
        (
            _pod(
                affinity=_required({"matchExpressions": [{"key": "a", "operator": "Exists"}]}),
            ),
            _node(),
            "node(s) didn't match Pod's node affinity/selector",
        ),
    ],
)
def test_a_node_takes_a_pod_or_has_a_cause(pod: Object, node: Object, cause: str) -> None:
    assert obstacle(pod, node, {}) == cause


def test_bound_pods_take_room() -> None:
    assert obstacle(_pod(), _node(), {"cpu": 3.0}) == ""
    assert obstacle(_pod(), _node(), {"cpu": 3.5}) == "Insufficient cpu"


def test_init_containers_count_by_the_largest() -> None:
    pod = _pod(cpu="2")
    pod["spec"]["initContainers"] = [
        {"name": "i", "resources": {"limits": {"cpu": "3"}}},
        {"name": "j", "resources": {"limits": {"cpu": "1"}}},
    ]
    assert requests_of(pod) == {"pods": 1.0, "cpu": 3.0}


def test_preferences_decide_between_nodes() -> None:
    preferred = {"weight": 5, "preference": SPOT_TERM}
    name = "preferredDuringSchedulingIgnoredDuringExecution"
    pod = _pod(affinity={"nodeAffinity": {name: [preferred]}})
    plain = _node("a")
    plain["metadata"]["labels"] = {}
    assert choose(pod, [plain, _node("b")], {}) == ("b", "")


def test_causes_are_counted() -> None:
    nodes = [_node("a", cpu="1"), _node("b", cpu="1"), _node("c", unschedulable=True)]
    message = "0/3 nodes are available: 2 Insufficient cpu, 1 node(s) were unschedulable."
    assert choose(_pod(cpu="2"), nodes, {}) == ("", message)


@pytest.mark.parametrize("overlay", sorted(path.name for path in OVERLAYS.iterdir()))
def test_each_group_of_an_overlay_has_a_node_type(overlay: str) -> None:
    words = [KUBECTL, "kustomize", str(OVERLAYS / overlay)]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    documents = [each for each in yaml.safe_load_all(text) if each["kind"] == "RayCluster"]
    _, _, cloud = _cloud(*LOCAL_TYPES)
    for cluster in documents:
        cluster["metadata"] |= {"namespace": "default", "uid": "uid"}
        pods = [worker_pod(cluster, group) for group in cluster["spec"]["workerGroupSpecs"]]
        for pod in (head_pod(cluster), *pods):
            causes = [obstacle(pod, cloud.node(each, "new"), {}) for each in LOCAL_TYPES]
            assert "" in causes, (pod["metadata"], causes)


class StubKubelet:
    """Remembers nodes that end or are cut off."""

    def __init__(self) -> None:
        self.killed: list[str] = []
        self.silent: list[str] = []

    def kill_node(self, node: str) -> None:
        self.killed.append(node)

    def cut(self, nodes: object) -> None:
        self.silent = list(nodes)  # type: ignore[call-overload]


def _cloud(*types: NodeType) -> tuple[Store, StubKubelet, Cloud]:
    store, kubelet = Store(), StubKubelet()
    return store, kubelet, Cloud(store, kubelet, types)


def _until(cloud: Cloud, condition: Callable[[], bool]) -> None:
    for _ in range(200):
        cloud.step()
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("the condition never held")


GENERAL = NodeType(name="general", cpu=2, memory_gib=8, room=2, boot_s=0.0)


def _create(store: Store, name: str, **spec: object) -> None:
    pod = _pod(**spec)
    pod["metadata"]["name"] = name
    store.create("pods", pod)


def _bound(store: Store, name: str) -> str:
    pod = store.get("pods", "default", name)
    return str(pod["spec"].get("nodeName", "")) if pod else "gone"


def test_nodes_come_for_pods_and_go_without_them() -> None:
    store, _, cloud = _cloud(GENERAL)
    _create(store, "a", cpu="2")
    _create(store, "b", cpu="2")
    _until(cloud, lambda: bool(_bound(store, "a") and _bound(store, "b")))
    assert cloud.nodes() == ["general-1", "general-2"]
    _create(store, "c", cpu="2")
    for _ in range(5):
        cloud.step()
    pod = store.get("pods", "default", "c")
    assert pod is not None
    assert pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    assert "2 Insufficient cpu" in pod["status"]["conditions"][0]["message"]
    store.delete("pods", "default", "a", 0)
    _until(cloud, lambda: bool(_bound(store, "c")))
    for name in ("b", "c"):
        store.delete("pods", "default", name, 0)
    cloud.idle_s = 0.0
    _until(cloud, lambda: cloud.nodes() == [])


def test_capacity_can_be_away() -> None:
    store, _, cloud = _cloud(GENERAL)
    cloud.offer("general", 0)
    _create(store, "a")
    for _ in range(5):
        cloud.step()
    assert _bound(store, "a") == ""
    cloud.offer("general", 1)
    _until(cloud, lambda: _bound(store, "a") == "general-1")


def test_a_node_is_taken_at_once() -> None:
    store, kubelet, cloud = _cloud(GENERAL)
    _create(store, "a")
    _until(cloud, lambda: bool(_bound(store, "a")))
    cloud.take("general-1")
    assert kubelet.killed == ["general-1"]
    assert (_bound(store, "a"), cloud.nodes()) == ("gone", [])


def test_a_notice_shortens_the_grace_of_its_pods() -> None:
    store, kubelet, cloud = _cloud(GENERAL)
    _create(store, "a", terminationGracePeriodSeconds=120)
    _until(cloud, lambda: bool(_bound(store, "a")))
    seen = []

    def leave(node: str) -> None:
        pod = store.get("pods", "default", "a")
        assert pod is not None
        seen.append(pod["metadata"]["deletionGracePeriodSeconds"])
        kubelet.killed.append(node)

    kubelet.kill_node = leave  # type: ignore[method-assign]
    cloud.take("general-1", notice_s=1.0)
    assert (seen, kubelet.killed) == ([1], ["general-1"])
    assert (_bound(store, "a"), cloud.nodes()) == ("gone", [])


def test_a_silent_node_is_marked_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.kube.nodes.LOST_S", 0.0)
    store, kubelet, cloud = _cloud(GENERAL)
    _create(store, "a")
    _until(cloud, lambda: bool(_bound(store, "a")))
    cloud.cut("general-1")
    assert kubelet.silent == ["general-1"]

    def is_ready() -> str:
        node = store.get("nodes", "", "general-1")
        assert node is not None
        return str(node["status"]["conditions"][0]["status"])

    _until(cloud, lambda: is_ready() == "Unknown")
    cloud.rejoin("general-1")
    assert (kubelet.silent, is_ready(), _bound(store, "a")) == ([], "True", "general-1")


def test_spot_pods_find_a_type_and_others_stay_off_it() -> None:
    store, _, cloud = _cloud(*(LOCAL_TYPES[index] for index in (1, 2, 3, 0)))
    spot = {"key": "cloud.google.com/gke-spot", "operator": "In", "values": ["true"]}
    toleration = {"key": "cloud.google.com/gke-spot", "value": "true", "effect": "NoSchedule"}
    affinity = _required({"matchExpressions": [spot]})
    _create(store, "spot", affinity=affinity, tolerations=[toleration])
    _create(store, "plain")
    _until(cloud, lambda: bool(_bound(store, "spot") and _bound(store, "plain")))
    assert _bound(store, "spot").startswith("spot-")
    assert _bound(store, "plain").startswith("general-")
