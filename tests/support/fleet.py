"""A local cluster with Ray's autoscaler or without, isolated from any other Ray.

`ray.cluster_utils.AutoscalingCluster` calls `ray stop --force`. It ends every Ray process on
the machine. `Fleet` starts the same pieces and ends only its own processes.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID

from tests.support.processes import command_of, descendants, kill_all

IDLE_MINUTES = 0.1
EMPTY: Mapping[str, int] = {}
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"}


class Fleet:
    """A head without cores, and up to `most` nodes with one logical GPU each; a context manager.

    With `head` there is no autoscaler: the head alone has these resources. `version` is that of
    Ray's monitor, which runs in either case.
    """

    def __init__(
        self, directory: Path, most: int = 0, head: Mapping[str, int] = EMPTY, version: int = 1
    ) -> None:
        self._directory = directory
        self._head_resources = head
        self._version = version
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"{ray.util.get_node_ip_address()}:{self._port}"
        self.environment = os.environ | TOKEN | {"RAY_ADDRESS": self.address}
        self._config = directory / "fleet.json"
        self._config.write_text(json.dumps(_config(self.address, most)))
        self._head: psutil.Popen | None = None
        self._temporary = tempfile.TemporaryDirectory(
            prefix="fleet", dir="/tmp", ignore_cleanup_errors=True
        )

    def __enter__(self) -> Fleet:
        command = ["ray", "start", "--head", "--block", f"--port={self._port}"]
        command += [
            f"--num-{name}={self._head_resources.get(name, 0)}" for name in ("cpus", "gpus")
        ]
        command += [
            "--include-dashboard=false",
            f"--temp-dir={self._temporary.name}",
        ]
        command += ["--object-store-memory=100000000"]
        environment = (
            os.environ
            | TOKEN
            | {
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_USAGE_STATS_ENABLED": "0",
                "RAY_enable_autoscaler_v2": str(self._version - 1),
            }
        )
        if not self._head_resources:
            command += [f"--autoscaling-config={self._config}"]
            environment |= {"RAY_FAKE_CLUSTER": "1"}
            if self._version == 2:
                environment |= {"RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID}
        log = (self._directory / "fleet.log").open("w")
        self._head = psutil.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        deadline = time.monotonic() + 120
        while "Ray runtime started" not in (self._directory / "fleet.log").read_text():
            assert self._head.poll() is None, (self._directory / "fleet.log").read_text()
            assert time.monotonic() < deadline, "the head did not start"
            time.sleep(0.2)
        return self

    def raylets(self) -> list[psutil.Process]:
        """Return the raylets of the nodes but the head, in the order of their start."""
        assert self._head is not None
        raylets = [
            process for process in self._head.children(recursive=True) if _is_raylet(process)
        ]
        return sorted(raylets, key=lambda process: process.create_time())[1:]

    def take_away_a_node(self) -> list[psutil.Process]:
        """Kill a raylet; return the engines of its node, with the processes they had started.

        Ray's own two agents of a node notice later; they hold no device and no core.
        """
        victim = self.raylets()[0]
        engines = [child for child in victim.children() if "ray::MapWorker" in command_of(child)]
        family = [process for engine in engines for process in (engine, *descendants(engine.pid))]
        victim.kill()
        return family

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._head is not None
        family = [*self._head.children(recursive=True), self._head]
        kill_all(family)
        self._temporary.cleanup()


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet"
    except psutil.Error:
        return False


def _config(address: str, most: int) -> dict[str, Any]:
    node: dict[str, Any] = {"node_config": {}, "min_workers": 0}
    lists = (
        "initialization_commands",
        "setup_commands",
        "head_setup_commands",
        "worker_setup_commands",
    )
    lists += (
        "head_start_ray_commands",
        "worker_start_ray_commands",
        "rsync_exclude",
        "rsync_filter",
        "cluster_synced_files",
    )
    return {
        "cluster_name": "fleet",
        "max_workers": most,
        "upscaling_speed": 100,
        "idle_timeout_minutes": IDLE_MINUTES,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "engine": {
                **node,
                "resources": {"CPU": 1, "GPU": 1, "object_store_memory": 80_000_000},
                "max_workers": most,
            },
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in lists},
    }
