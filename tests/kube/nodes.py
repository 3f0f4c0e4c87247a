"""Nodes that come and go: types with a capacity, the scheduler, spot, and failures.

- `Cloud` makes a node for a pod that fits on none, while the node type has room.
- A node without pods is removed after a while, as a cluster autoscaler does.
- `take`, `offer`, `cut` and `rejoin` are the failures of the chaos table.
- A node deleted by another, such as `kubectl delete node`, is a machine taken without notice.
"""

from __future__ import annotations

import itertools
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tests.kube.api import Object, Refused, Store
from tests.kube.kubelet import Kubelet
from tests.kube.objects import now
from tests.kube.scheduling import Amounts, choose, obstacle, used_by_node

TICK_S = 0.25
LOST_S = 40.0
"""Seconds until a silent node is marked, as in Kubernetes (`node-monitor-grace-period`)."""
EVICTED_S = 300.0
"""Seconds until the pods of a silent node are deleted (`tolerationSeconds`)."""


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A kind of machine."""

    name: str
    cpu: float
    memory_gib: float
    room: int
    """Most nodes at a time."""
    resources: Mapping[str, int] = field(default_factory=dict)
    """Extended resources, such as nvidia.com/gpu; no device is behind them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    taints: tuple[tuple[str, str], ...] = ()
    """Keys and values; the effect is NoSchedule."""
    boot_s: float = 0.5


SPOT_LABELS = {"cloud.google.com/gke-spot": "true", "karpenter.sh/capacity-type": "spot"}
LOCAL_TYPES = (
    NodeType(name="general", cpu=64, memory_gib=512, room=4),
    NodeType(
        name="spot",
        cpu=8,
        memory_gib=64,
        room=8,
        resources={"nvidia.com/gpu": 1},
        labels=SPOT_LABELS,
        taints=(("cloud.google.com/gke-spot", "true"),),
    ),
    NodeType(
        name="spot-large",
        cpu=96,
        memory_gib=1024,
        room=8,
        resources={"nvidia.com/gpu": 8},
        labels=SPOT_LABELS,
        taints=(("cloud.google.com/gke-spot", "true"),),
    ),
    NodeType(
        name="gpu",
        cpu=96,
        memory_gib=1024,
        room=4,
        resources={"nvidia.com/gpu": 8},
        taints=(("nvidia.com/gpu", "present"),),
    ),
)
"""Types of `make cluster`; the sum is more than one machine has."""


class Cloud:
    """The nodes of a cluster, their scheduler, and the hand that takes them away."""

    def __init__(self, store: Store, kubelet: Kubelet, types: Sequence[NodeType]) -> None:
        self._store = store
        self._kubelet = kubelet
        self._types = {each.name: each for each in types}
        self._room = {each.name: each.room for each in types}
        self._numbers = itertools.count(1)
        self._booting: dict[str, tuple[float, str]] = {}
        self._silent: dict[str, float] = {}
        self._empty: dict[str, float] = {}
        self.idle_s = 60.0
        self._lock = threading.RLock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="cloud", daemon=True)

    def start(self) -> None:
        """Start to schedule."""
        self._thread.start()

    def close(self) -> None:
        """Stop to schedule; nodes stay as they are."""
        self._stop.set()
        self._thread.join()

    def nodes(self, type_name: str = "") -> list[str]:
        """Return the names of the nodes, of one type or of all."""
        labels = {"node.kubernetes.io/instance-type": type_name} if type_name else {}
        return [each["metadata"]["name"] for each in self._store.list("nodes", "", labels)]

    def offer(self, type_name: str, room: int) -> None:
        """Set the most nodes of a type: 0 is no capacity. Nodes there stay."""
        with self._lock:
            self._room[type_name] = room

    def take(self, node: str, notice_s: float = 0.0) -> None:
        """Take a node: at once, or with notice. A notice stops its pods within that time."""
        if notice_s > 0:
            self._cordon(node)
            for pod in self._pods(node):
                grace = pod["spec"].get("terminationGracePeriodSeconds", 30)
                self._delete(pod, min(grace, int(notice_s)))
            deadline = time.monotonic() + notice_s
            while self._pods(node) and time.monotonic() < deadline:
                time.sleep(TICK_S)
        with self._lock:
            self._kubelet.kill_node(node)
            self._remove(node)

    def cut(self, node: str) -> None:
        """Cut a node off from all others, and from the API; its containers run on."""
        with self._lock:
            self._silent[node] = time.monotonic()
            self._kubelet.cut(self._silent)

    def rejoin(self, node: str) -> None:
        """End the cut of a node."""
        with self._lock:
            self._silent.pop(node, None)
            self._kubelet.cut(self._silent)
            self._set_ready(node, "True")

    def step(self) -> None:
        """Schedule pending pods, make and remove nodes: one turn of the loop."""
        with self._lock:
            self._boot()
            self._watch_silent()
            self._end_deleted()
            pods = self._store.list("pods")
            used = used_by_node(pods)
            self._remove_idle(used)
            for pod in pods:
                if not pod["spec"].get("nodeName") and "deletionTimestamp" not in pod["metadata"]:
                    self._schedule(pod, used)

    def _loop(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self.step()
            except Exception:
                # A fault in one turn must not end the scheduler for all pods.
                traceback.print_exc()

    def _schedule(self, pod: Object, used: dict[str, Amounts]) -> None:
        nodes = self._store.list("nodes")
        node, message = choose(pod, nodes, used)
        if node:
            try:
                self._store.replace("pods", pod | {"spec": pod["spec"] | {"nodeName": node}})
            except Refused:
                # Another write came first; the next turn sees it.
                return
            pod["spec"]["nodeName"] = node
            for name, amounts in used_by_node([pod]).items():
                before = used.setdefault(name, {})
                used[name] = {k: before.get(k, 0.0) + amounts.get(k, 0.0) for k in before | amounts}
            self._condition(pod, "True", "", "")
            return
        self._condition(pod, "False", "Unschedulable", message)
        self._grow(pod)

    def _grow(self, pod: Object) -> None:
        """Start a node of the first type with room that would take the pod."""
        for each in self._types.values():
            empty = self.node(each, "")
            if obstacle(pod, empty, {}):
                continue
            if any(name == each.name for _, name in self._booting.values()):
                return
            if len(self.nodes(each.name)) < self._room[each.name]:
                name = f"{each.name}-{next(self._numbers)}"
                self._booting[name] = (time.monotonic() + each.boot_s, each.name)
                return

    def _boot(self) -> None:
        for name, (ready_at, type_name) in list(self._booting.items()):
            if time.monotonic() >= ready_at:
                del self._booting[name]
                if len(self.nodes(type_name)) >= self._room[type_name]:
                    continue
                node = self.node(self._types[type_name], name)
                self._store.create("nodes", node)
                self._store.set_status("nodes", "", name, node["status"])

    def node(self, kind: NodeType, name: str) -> Object:
        """Return a new node of a type."""
        amounts = {"cpu": f"{kind.cpu:g}", "memory": f"{kind.memory_gib:g}Gi", "pods": "110"}
        amounts["ephemeral-storage"] = "1Ti"
        amounts |= {resource: str(number) for resource, number in kind.resources.items()}
        labels = {
            "kubernetes.io/hostname": name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": "amd64",
            "node.kubernetes.io/instance-type": kind.name,
            **kind.labels,
        }
        taints = [{"key": k, "value": v, "effect": "NoSchedule"} for k, v in kind.taints]
        return {
            "metadata": {"name": name, "labels": labels},
            "spec": {"taints": taints} if taints else {},
            "status": {
                "capacity": amounts,
                "allocatable": amounts,
                "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": now()}],
            },
        }

    def _remove_idle(self, used: Mapping[str, Amounts]) -> None:
        """Remove nodes that have been empty for `idle_s`."""
        names = self.nodes()
        self._empty = {
            name: self._empty.get(name, time.monotonic()) for name in names if name not in used
        }
        for name, since in self._empty.items():
            if time.monotonic() - since > self.idle_s:
                self._store.delete("nodes", "", name)

    def _watch_silent(self) -> None:
        """Mark silent nodes, and delete the pods of those silent for long."""
        for node, since in self._silent.items():
            silent_s = time.monotonic() - since
            if silent_s > LOST_S:
                self._set_ready(node, "Unknown")
            if silent_s > EVICTED_S:
                for pod in self._pods(node):
                    self._delete(pod, None)

    def _end_deleted(self) -> None:
        """End the pods of nodes whose object is gone: the machine is gone with its network."""
        bound = {pod["spec"].get("nodeName", "") for pod in self._store.list("pods")}
        for node in sorted(bound - {"", *self.nodes()}):
            self._kubelet.kill_node(node)
            self._remove(node)

    def _set_ready(self, node: str, value: str) -> None:
        obj = self._store.get("nodes", "", node)
        if obj is None or obj["status"]["conditions"][0]["status"] == value:
            return
        ready = {"type": "Ready", "status": value, "lastTransitionTime": now()}
        self._store.set_status("nodes", "", node, obj["status"] | {"conditions": [ready]})

    def _cordon(self, node: str) -> None:
        patch = {"spec": {"unschedulable": True}}
        content_type = "application/merge-patch+json"
        self._store.patch("nodes", "", node, patch, content_type=content_type)

    def _pods(self, node: str) -> list[Object]:
        return [pod for pod in self._store.list("pods") if pod["spec"].get("nodeName") == node]

    def _remove(self, node: str) -> None:
        """Remove a node and the objects of its pods, as the collector of lost pods does."""
        self._silent.pop(node, None)
        if self._store.get("nodes", "", node):
            self._store.delete("nodes", "", node)
        for pod in self._pods(node):
            self._delete(pod, 0)

    def _delete(self, pod: Object, grace_s: int | None) -> None:
        metadata = pod["metadata"]
        try:
            self._store.delete("pods", metadata["namespace"], metadata["name"], grace_s)
        except Refused:
            # The pod is gone already.
            return

    def _condition(self, pod: Object, value: str, reason: str, message: str) -> None:
        """Write the condition PodScheduled, if it changes."""
        new = {"type": "PodScheduled", "status": value}
        if reason:
            new |= {"reason": reason, "message": message}
        metadata = pod["metadata"]
        latest = self._store.get("pods", metadata["namespace"], metadata["name"])
        if latest is None:
            return
        before = latest["status"].get("conditions", [])
        same = [each for each in before if new.items() <= each.items()]
        if same:
            return
        others = [each for each in before if each["type"] != "PodScheduled"]
        status = latest["status"] | {"conditions": [*others, new | {"lastTransitionTime": now()}]}
        self._store.set_status("pods", metadata["namespace"], metadata["name"], status)
