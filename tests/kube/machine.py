"""One machine as a cluster: runtime, network, kubelet and nodes; nothing is left at the end."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.kube import network
from tests.kube.api import Store
from tests.kube.kubelet import Host, Kubelet
from tests.kube.nodes import Cloud, NodeType
from tests.kube.runtimes import (
    MISSING,
    Podman,
    Processes,
    Runtime,
    end_recorded,
    missing_for_containers,
)
from tests.kube.volumes import remove_folder

RECORD = "sessions"
"""File with the sessions of plain processes."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Choices of a machine."""

    folder: Path
    """Pods, claims and logs; removed at the end."""
    types: Sequence[NodeType]
    api_port: int = 0
    """0 without an API server for pods."""
    account: Callable[[str, str], Path] | None = None
    """Directory with the files of a service account, by namespace and name."""


class Machine:
    """The parts of a cluster below the API."""

    def __init__(self, store: Store, options: Options) -> None:
        self.cause = missing_for_containers()
        self._folder = options.folder
        self._slot, free = network.claim_slot()
        options.folder.mkdir(parents=True, exist_ok=True)
        self.runtime: Runtime = Processes(options.folder / RECORD)
        self.network: network.Network | None = None
        self.address = "127.0.0.1"
        prefix = self._slot.prefix
        clear_slots(free)
        if not self.cause:
            self.runtime = Podman(prefix)
            self.network = network.Network(self._slot, options.folder / "network")
            self.network.start()
            self.address = self._slot.gateway
        network.release([each for each in free if each is not self._slot])
        network.note(self._slot, options.folder)
        api = f"{self.address}:{options.api_port}" if options.api_port else ""
        host = Host(
            runtime=self.runtime,
            network=self.network,
            prefix=prefix,
            address=self.address,
            folder=options.folder,
            api_address=api,
            account=options.account,
        )
        self.kubelet = Kubelet(store, host)
        self.cloud = Cloud(store, self.kubelet, options.types)

    @property
    def note(self) -> str:
        """A sentence about what does not hold here; empty with containers."""
        return f"{MISSING}: {self.cause}" if self.cause else ""

    def start(self) -> None:
        """Start to schedule and to run pods."""
        self.kubelet.start()
        self.cloud.start()

    def close(self) -> None:
        """End all pods, and remove what was made."""
        self.cloud.close()
        self.kubelet.close()
        self.runtime.clear()
        if self.network is not None:
            network.clear(self._slot)
        remove_folder(self._folder)
        network.note(self._slot, None)
        network.release([self._slot])


def clear_slots(free: Sequence[network.Slot]) -> None:
    """Remove what crashed owners of free slots left: containers, networks, memory, folders."""
    for slot in free:
        folder = network.noted(slot)
        if folder is not None:
            end_recorded(folder / RECORD)
            if shutil.which("podman"):
                Podman(slot.prefix).clear()
                network.clear(slot)
            remove_folder(folder)
            network.note(slot, None)


def clear_all() -> None:
    """Remove the leftovers of all slots without an owner."""
    _, free = network.claim_slot()
    clear_slots(free)
    network.release(free)
