"""The cluster double as one object: store, API server, operator, machine."""

from __future__ import annotations

import base64
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kube.admission import admit
from tests.kube.api import Object, Store
from tests.kube.machine import Machine, Options
from tests.kube.network import SLOTS
from tests.kube.nodes import LOCAL_TYPES, NodeType
from tests.kube.operator import Operator
from tests.kube.ray_pods import short_name
from tests.kube.server import Server

PODS = [f"10.89.{number}.1" for number in SLOTS]
"""The machine's address as pods see it, for every slot."""


class Cluster:
    """A running double; `close` leaves nothing behind but its folder's logs."""

    def __init__(self, folder: Path, types: Sequence[NodeType] = LOCAL_TYPES) -> None:
        self.store = Store(admit)
        self.server = Server(
            self.store,
            folder / "api",
            addresses=["127.0.0.1", *PODS],
            log_file=lambda *place: self.machine.kubelet.log(*place),
        )
        options = Options(
            folder=folder / "machine",
            types=types,
            api_port=self.server.port,
            account=self.server.credentials.account,
        )
        self.machine = Machine(self.store, options)
        self.operator = Operator(self.store)
        self._folder = folder

    def start(self) -> None:
        """Start every part."""
        self.server.start()
        self.machine.start()
        self.operator.start()

    def close(self) -> None:
        """End every pod, and stop."""
        self.operator.close()
        self.machine.close()
        self.server.close()
        shutil.rmtree(self._folder / "api", ignore_errors=True)

    def head(self, name: str, timeout_s: float = 120.0) -> Object:
        """Return the head pod of a RayCluster once it is ready."""
        labels = {"ray.io/cluster": name, "ray.io/node-type": "head"}
        deadline = time.monotonic() + timeout_s
        version = 0
        while time.monotonic() < deadline:
            for pod in self.store.list("pods", labels=labels):
                if any(
                    each["type"] == "Ready" and each["status"] == "True"
                    for each in pod["status"].get("conditions", ())
                ):
                    return pod
            version = self.store.wait(version, 1.0)
        raise TimeoutError(f"the head of {name} is not ready after {timeout_s:.0f} s")

    def exports(self, name: str, timeout_s: float = 120.0) -> dict[str, str]:
        """Return the variables for `ray job submit` to a RayCluster once its head is ready."""
        head = self.head(name, timeout_s)
        secret = self.store.get("secrets", head["metadata"]["namespace"], short_name(name))
        variables = {"RAY_ADDRESS": f"http://{head['status']['podIP']}:8265"}
        if secret is not None:
            token = base64.b64decode(secret["data"]["auth_token"]).decode()
            variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
        return variables
