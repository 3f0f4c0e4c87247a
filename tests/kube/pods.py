"""One pod on its node: from volumes to the last container's end."""

from __future__ import annotations

import signal
import threading
import time
import traceback
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.kube.api import Object, Refused
from tests.kube.containers import ConfigError, Surroundings, describe
from tests.kube.objects import now
from tests.kube.probes import Probes
from tests.kube.runtimes import End
from tests.kube.volumes import make_volumes, remove_folder

if TYPE_CHECKING:
    from tests.kube.kubelet import Kubelet

POLL_S = 0.2
BACKOFF_S = (1.0, 2.0, 4.0, 10.0)
"""Delays of restarts, shorter than Kubernetes' 10 s to 5 min."""


@dataclass(kw_only=True)
class _Running:
    """A container of the manifest and its latest life."""

    spec: Object
    restarts: int = 0
    state: Object | None = None
    last: Object | None = None
    started: bool = False
    retry_at: float = 0.0
    ready: bool = False
    probes: Probes | None = None

    def status(self) -> Object:
        """Return the entry of `containerStatuses`."""
        waiting = {"waiting": {"reason": "ContainerCreating"}}
        return {
            "name": self.spec["name"],
            "image": self.spec.get("image", ""),
            "imageID": "",
            "ready": self.ready,
            "started": self.started,
            "restartCount": self.restarts,
            "state": self.state or waiting,
            "lastState": self.last or {},
        }


class PodRunner(threading.Thread):
    """The life of one pod."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        super().__init__(name=f"pod-{pod['metadata']['name']}", daemon=True)
        self.node: str = pod["spec"]["nodeName"]
        self._kubelet = kubelet
        self._runtime = kubelet.host.runtime
        self._pod = pod
        self._key = (pod["metadata"]["namespace"], pod["metadata"]["name"])
        self._short = pod["metadata"]["uid"].split("-")[0]
        self._address = ""
        self._start_time = now()
        self._killed = threading.Event()
        self._stop_at: float | None = None
        self._grace = 0.0
        self._changed = threading.Event()
        self._inits = [_Running(spec=each) for each in pod["spec"].get("initContainers", [])]
        self._mains = [_Running(spec=each) for each in pod["spec"]["containers"]]
        self._message = ""

    def see(self, pod: Object | None) -> None:
        """Take in the pod's object; None is a pod deleted without notice."""
        if pod is None:
            self.kill()
        elif "deletionTimestamp" in pod["metadata"]:
            grace = float(pod["metadata"].get("deletionGracePeriodSeconds", 0))
            stop_at = time.monotonic() + grace
            if self._stop_at is None or (stop_at < self._stop_at and grace < self._grace):
                self._stop_at, self._grace = stop_at, grace
                self._changed.set()

    def kill(self) -> None:
        """End the pod with SIGKILL."""
        self._killed.set()
        self._changed.set()

    def run(self) -> None:
        """Go through the pod's life; in the end nothing of it is left on the machine."""
        try:
            self._live()
        except Exception as error:
            # A fault of the double: the pod has to end visibly, and the machine to be cleaned.
            traceback.print_exc()
            self._message = f"the kubelet failed: {error}"
            self._report("Failed")
        finally:
            self._clean()

    def _live(self) -> None:
        host = self._kubelet.host
        self._address = host.network.attach(self._short) if host.network else "127.0.0.1"
        self._report("Pending")
        # The packet filter has to know the address before the first packet.
        self._kubelet.connect()
        for init in self._inits:
            if not self._run_init(init):
                return
        while not self._is_ending():
            for main in self._mains:
                self._tend(main)
            phase = self._phase()
            self._report(phase)
            if phase in ("Succeeded", "Failed"):
                return
            self._changed.wait(POLL_S)

    def _run_init(self, init: _Running) -> bool:
        """Run an init container to its success. Return False if the pod ends before."""
        while not self._is_ending():
            self._tend(init, restarts="OnFailure" if self._policy() != "Never" else "Never")
            terminated = (init.state or {}).get("terminated")
            if terminated and terminated["exitCode"] == 0:
                init.ready = True
                self._report("Pending")
                return True
            if terminated and self._policy() == "Never":
                self._report("Failed")
                return False
            self._report("Pending")
            self._changed.wait(POLL_S)
        return False

    def _tend(self, container: _Running, restarts: str = "") -> None:
        """Start a container that should run, and notice the end of one that ran."""
        restarts = restarts or self._policy()
        if not container.started:
            state = container.state or {}
            ended = state.get("terminated")
            if ended and not _restarts(restarts, ended["exitCode"]):
                return
            if time.monotonic() >= container.retry_at:
                self._start(container)
            return
        end = self._runtime.end(self._id(container))
        if end is not None:
            self._note_end(container, end, restarts)
        elif container.probes is not None:
            container.ready = container.probes.ready()
            if container.probes.failed():
                self._runtime.signal(self._id(container), signal.SIGKILL)

    def _start(self, container: _Running) -> None:
        if container.state and "terminated" in container.state:
            container.last = container.state
            container.restarts += 1
        name = self._id(container)
        try:
            if container.restarts:
                self._runtime.remove(name)
            self._runtime.start(describe(self._pod, container.spec, self._surroundings()))
        except (ConfigError, RuntimeError) as error:
            reason = "CreateContainerConfigError"
            if isinstance(error, RuntimeError):
                reason = "RunContainerError"
            container.state = {"waiting": {"reason": reason, "message": str(error)}}
            container.retry_at = time.monotonic() + 1.0
            return
        container.started = True
        container.state = {"running": {"startedAt": now()}}

        def inside(words: list[str], timeout_s: float) -> bool:
            return self._runtime.run_inside(name, words, timeout_s)

        container.probes = Probes(container.spec, self._address, inside)
        container.ready = container.probes.ready()

    def _note_end(self, container: _Running, end: End, restarts: str) -> None:
        started_at = (container.state or {})["running"]["startedAt"]
        container.state = {
            "terminated": {
                "exitCode": end.exit_code,
                "reason": end.reason,
                "startedAt": started_at,
                "finishedAt": now(),
            }
        }
        container.started = container.ready = False
        if _restarts(restarts, end.exit_code):
            delay = BACKOFF_S[min(container.restarts, len(BACKOFF_S) - 1)]
            container.retry_at = time.monotonic() + delay

    def _surroundings(self) -> Surroundings:
        kubelet, (namespace, name) = self._kubelet, self._key

        def lookup(plural: str, wanted: str) -> Object | None:
            return kubelet.store.get(plural, namespace, wanted)

        places = kubelet.places(self._pod)
        places.pod.mkdir(parents=True, exist_ok=True)
        network = kubelet.host.network
        return Surroundings(
            prefix=f"{self._prefix()}-{self._short}",
            namespace=network.namespace(self._short) if network else "",
            address=self._address,
            api_address=kubelet.host.api_address,
            lookup=lookup,
            volumes=make_volumes(self._pod, places, lookup),
            mounts=(*kubelet.mounts(self._pod),),
            scratch=places.pod / "scratch",
            logs=kubelet.log(namespace, name, "").parent,
        )

    def _clean(self) -> None:
        """End what still runs, by notice or at once; remove everything."""
        if not self._killed.is_set():
            self._end_by_notice()
        for container in (*self._inits, *self._mains):
            self._runtime.remove(self._id(container))
        network = self._kubelet.host.network
        if network is not None:
            network.detach(self._short)
        remove_folder(self._kubelet.places(self._pod).pod)
        if self._stop_at is not None and not self._killed.is_set():
            self._kubelet.store.finalize("pods", *self._key)

    def _end_by_notice(self) -> None:
        running = [each for each in (*self._inits, *self._mains) if each.started]
        for container in running:
            self._runtime.signal(self._id(container), signal.SIGTERM)
        while running and not self._killed.is_set():
            running = [each for each in running if self._runtime.end(self._id(each)) is None]
            if self._stop_at is None or time.monotonic() >= self._stop_at:
                return
            time.sleep(POLL_S / 2)

    def _is_ending(self) -> bool:
        return self._killed.is_set() or self._stop_at is not None

    def _policy(self) -> str:
        return str(self._pod["spec"].get("restartPolicy", "Always"))

    def _prefix(self) -> str:
        return self._kubelet.host.prefix

    def _id(self, container: _Running) -> str:
        return f"{self._prefix()}-{self._short}-{container.spec['name']}"

    def _phase(self) -> str:
        codes = []
        for each in self._mains:
            ended = (each.state or {}).get("terminated")
            if ended is None or _restarts(self._policy(), ended["exitCode"]):
                started = any(each.state and "waiting" not in each.state for each in self._mains)
                return "Running" if started else "Pending"
            codes.append(ended["exitCode"])
        return "Failed" if any(codes) else "Succeeded"

    def _report(self, phase: str) -> None:
        if self._kubelet.is_cut(self.node) or self._killed.is_set():
            return
        pod = self._kubelet.store.get("pods", *self._key)
        if pod is None or pod["metadata"]["uid"] != self._pod["metadata"]["uid"]:
            return
        ready = phase == "Running" and all(each.ready for each in self._mains)
        initialized = all(each.ready for each in self._inits)
        flags = {"Initialized": initialized, "ContainersReady": ready, "Ready": ready}
        status = pod["status"] | {
            "phase": phase,
            **({"message": self._message} if self._message else {}),
            "podIP": self._address,
            "podIPs": [{"ip": self._address}],
            "hostIP": self._kubelet.host.address,
            "startTime": self._start_time,
            "conditions": _conditions(pod["status"].get("conditions", []), flags),
            "initContainerStatuses": [each.status() for each in self._inits],
            "containerStatuses": [each.status() for each in self._mains],
        }
        try:
            self._kubelet.store.set_status("pods", *self._key, status)
        except Refused:
            # The pod was deleted in between; `see` ends it.
            return


def _restarts(policy: str, exit_code: int) -> bool:
    return policy == "Always" or (policy == "OnFailure" and exit_code != 0)


def _conditions(before: list[Object], flags: dict[str, bool]) -> list[Object]:
    """Return conditions; a transition has a new time."""
    old = {each["type"]: each for each in before}
    for name, flag in flags.items():
        value = "True" if flag else "False"
        if old.get(name, {}).get("status") != value:
            old[name] = {"type": name, "status": value, "lastTransitionTime": now()}
    return list(old.values())
