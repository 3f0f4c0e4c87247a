"""Run the pods bound to nodes as containers, and keep their status.

- `Kubelet` looks at the store a few times a second, and gives each bound pod a `PodRunner`.
- A runner is a thread: volumes, network, init containers, containers, restarts, the end.
- A deleted pod gets SIGTERM, and SIGKILL after its grace; then `finalize` removes the object.
- A node that is cut off runs on unseen: no status is written, and no deletion arrives.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kube.api import Object, Store
from tests.kube.containers import Mount, image_mounts
from tests.kube.network import Network
from tests.kube.pods import PodRunner
from tests.kube.policies import Peer, World, matches
from tests.kube.runtimes import Runtime
from tests.kube.volumes import Places, remove_folder

TICK_S = 0.25
_ENDED = ("Succeeded", "Failed")


@dataclass(frozen=True, kw_only=True)
class Host:
    """The machine under all nodes."""

    runtime: Runtime
    network: Network | None
    """None for plain processes."""
    prefix: str
    """Start of the containers' names."""
    address: str
    """Address of the nodes."""
    folder: Path
    """Pods, claims and logs."""
    api_address: str
    """Address and port of the API for pods."""
    account: Callable[[str, str], Path] | None = None
    """Directory with `ca.crt`, `token` and `namespace` of a service account, by its place."""


class Kubelet:
    """Runs the pods that are bound to nodes."""

    def __init__(self, store: Store, host: Host) -> None:
        self.store = store
        self.host = host
        self._runners: dict[str, PodRunner] = {}
        self._cut: frozenset[str] = frozenset()
        self._sync = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="kubelet", daemon=True)

    def start(self) -> None:
        """Prepare the image's mounts and start to look for pods."""
        empty = self.host.folder / "empty"
        empty.mkdir(parents=True, exist_ok=True)
        self.image = image_mounts(empty) if self.host.runtime.isolates else ()
        self._thread.start()

    def close(self) -> None:
        """End every container at once; objects stay."""
        self._stop.set()
        self._thread.join()
        runners = list(self._runners.values())
        for runner in runners:
            runner.kill()
        for runner in runners:
            runner.join()

    def kill_node(self, node: str) -> None:
        """End all containers of a node with SIGKILL: the machine is gone, and reports nothing."""
        for runner in list(self._runners.values()):
            if runner.node == node:
                runner.kill()

    def cut(self, nodes: Iterable[str]) -> None:
        """Cut off these nodes, and connect all others again."""
        self._cut = frozenset(nodes)
        self.connect()

    def is_cut(self, node: str) -> bool:
        """Return True for a node without a connection."""
        return node in self._cut

    def connect(self) -> None:
        """Bring names and packet filter up to the state of the store."""
        network = self.host.network
        if network is None:
            return
        with self._sync:
            pods = [pod for pod in self.store.list("pods") if _is_up(pod)]
            spaces = self.store.list("namespaces")
            labels = {
                each["metadata"]["name"]: {
                    "kubernetes.io/metadata.name": each["metadata"]["name"],
                    **each["metadata"].get("labels", {}),
                }
                for each in spaces
            }
            network.enforce(
                World(
                    peers=[_peer(pod) for pod in pods],
                    policies=self.store.list("networkpolicies"),
                    namespaces=labels,
                    cut=[
                        pod["status"]["podIP"]
                        for pod in pods
                        if pod["spec"]["nodeName"] in self._cut
                    ],
                )
            )
            services = self.store.list("services")
            for namespace in labels:
                network.name(namespace, names(namespace, pods, services))

    def mounts(self, pod: Object) -> list[Mount]:
        """Return the mounts common to a pod's containers."""
        mounts = list(self.image)
        name = pod["metadata"]["namespace"]
        if self.host.network is not None:
            hosts = self.host.network.hosts(name)
            mounts.append(Mount(source=hosts, target="/etc/hosts", read_only=True))
            resolver = self.host.network.resolver
            mounts.append(Mount(source=resolver, target="/etc/resolv.conf", read_only=True))
        if self.host.account is not None and self._has_account(pod):
            target = "/var/run/secrets/kubernetes.io/serviceaccount"
            account = self.host.account(name, _account_name(pod))
            mounts.append(Mount(source=account, target=target, read_only=True))
        return mounts

    def places(self, pod: Object) -> Places:
        """Return the directories of a pod."""
        return Places(
            pod=self.host.folder / "pods" / pod["metadata"]["uid"],
            claims=self.host.folder / "claims",
            mounts_memory=self.host.runtime.isolates,
        )

    def lines(self, namespace: str, pod: str, container: str) -> list[str]:
        """Return the lines of a container's log."""
        path = self.log(namespace, pod, container)
        return log_lines(path, self.host.runtime.isolates) if path.exists() else []

    def log(self, namespace: str, pod: str, container: str) -> Path:
        """Return the file of a container's log."""
        return self.host.folder / "logs" / f"{namespace}_{pod}" / f"{container}.log"

    def _has_account(self, pod: Object) -> bool:
        mounts = pod["spec"].get("automountServiceAccountToken")
        if mounts is None:
            place = (pod["metadata"]["namespace"], _account_name(pod))
            account = self.store.get("serviceaccounts", *place) or {}
            mounts = account.get("automountServiceAccountToken", True)
        return bool(mounts)

    def _loop(self) -> None:
        while not self._stop.wait(TICK_S):
            try:
                self._step()
            except Exception:
                # A fault in one turn must not end the loop for all pods.
                traceback.print_exc()

    def _step(self) -> None:
        bound = {
            pod["metadata"]["uid"]: pod
            for pod in self.store.list("pods")
            if pod["spec"].get("nodeName")
        }
        for uid, pod in bound.items():
            if uid not in self._runners and pod["status"].get("phase") not in _ENDED:
                self._runners[uid] = PodRunner(self, pod)
                self._runners[uid].start()
        for uid, runner in list(self._runners.items()):
            if not runner.is_alive():
                if uid not in bound:
                    del self._runners[uid]
            elif not self.is_cut(runner.node):
                runner.see(bound.get(uid))
        self._remove_claims()
        self.connect()

    def _remove_claims(self) -> None:
        """Bind the claims, and remove the directories of deleted ones."""
        claims = self.store.list("persistentvolumeclaims")
        for claim in claims:
            if claim.get("status", {}).get("phase") != "Bound":
                metadata = claim["metadata"]
                status = {"phase": "Bound", "accessModes": claim["spec"].get("accessModes", [])}
                self.store.set_status(
                    "persistentvolumeclaims", metadata["namespace"], metadata["name"], status
                )
        kept = {(each["metadata"]["namespace"], each["metadata"]["name"]) for each in claims}
        for path in (self.host.folder / "claims").glob("*/*"):
            if (path.parent.name, path.name) not in kept:
                remove_folder(path)


def log_lines(path: Path, is_cri: bool) -> list[str]:
    """Return the text of a log; the runtime's form has time, stream and part before it."""
    if not is_cri:
        return path.read_text(errors="replace").splitlines()
    lines = []
    rest = ""
    for line in path.read_text(errors="replace").splitlines():
        _, _, part, text = (line.split(" ", 3) + [""] * 3)[:4]
        rest += text
        if part == "F":
            lines.append(rest)
            rest = ""
    return [*lines, rest] if rest else lines


def _account_name(pod: Object) -> str:
    return str(pod["spec"].get("serviceAccountName") or "default")


def _is_up(pod: Object) -> bool:
    return "podIP" in pod["status"] and pod["status"].get("phase") not in _ENDED


def _peer(pod: Object) -> Peer:
    ports = [port for each in pod["spec"]["containers"] for port in each.get("ports", [])]
    return Peer(
        namespace=pod["metadata"]["namespace"],
        labels=pod["metadata"].get("labels", {}),
        address=pod["status"]["podIP"],
        ports={port["name"]: port["containerPort"] for port in ports if "name" in port},
    )


def names(namespace: str, pods: list[Object], services: list[Object]) -> dict[str, str]:
    """Return addresses by name for the pods of a namespace: pods' and services' names.

    A service has the address of the youngest of its pods. That is enough for a head, one at a time.
    """
    addresses = {}
    for pod in pods:
        if pod["metadata"]["namespace"] == namespace:
            addresses[pod["metadata"]["name"]] = pod["status"]["podIP"]
    for service in services:
        name, space = service["metadata"]["name"], service["metadata"]["namespace"]
        selector = service["spec"].get("selector") or {}
        chosen = [
            pod
            for pod in pods
            if selector
            and pod["metadata"]["namespace"] == space
            and matches({"matchLabels": selector}, pod["metadata"].get("labels", {}))
        ]
        if chosen:
            youngest = max(chosen, key=lambda pod: pod["metadata"]["creationTimestamp"])
            short = [name] if space == namespace else []
            for alias in (*short, f"{name}.{space}.svc.cluster.local", f"{name}.{space}.svc"):
                addresses[alias] = youngest["status"]["podIP"]
    return addresses
