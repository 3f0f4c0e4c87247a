"""A cluster of the chaos table on this machine: a head and nodes of Ray, each with one role.

- Each node is a `ray start --block` with its raylet, agents and workers. Its processes get a
  signal together, as those of a pod do.
- Every process has a mark in its environment, so those left over are found.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from chaos_target import (
    Command,
    Leftovers,
    ProcessCommand,
    children_of,
    command_line,
    family,
    is_at_work,
    last_line,
    send,
)

ROOT = Path(__file__).resolve().parent.parent
TITLES = {"sampler": "ray::MapWorker", "trainer": "RayTrainWorker", "grader": "ray::GraderActor"}
"""Part of the title of a worker process, by role."""
SCRIPTS = {"run": "pipeline", "sample": "sample", "train": "train", "grade": "grade"}
"""Scripts of `jobs/` by verb."""
CGROUP = Path("/sys/fs/cgroup/memory")
MEMORY_LIMIT = 1 << 12
"""Bytes that a worker may still take under the limit of a cgroup: one page."""
_MARK = "SSD_RAY_CHAOS"
_START_S = 120
_ASK_S = 0.5
_DASHBOARD = "ray/dashboard/"
_INFRASTRUCTURE = (
    "raylet",
    "gcs_server",
    _DASHBOARD,
    "ray/_private/",
    "ray/autoscaler/",
    "ray.util.client.server",
    "bin/ray start",
    "ray::IDLE",
    "ray-dashboard",
    "ray::DashboardAgent",
    "ray::RuntimeEnvAgent",
    "default_worker.py",
)
_RAY_DATA = ("ActorLocationTracker", "_AutoscalingCoordinatorActor", "_StatsActor")
"""Detached actors of Ray Data: one of each serves all jobs of a cluster, and stays."""


def is_raylet(process: psutil.Process) -> bool:
    """Return True for the raylet of a node."""
    return command_line(process).split(" ")[0].endswith("/raylet")


def free_port() -> int:
    """Return a port of this machine that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class JobCommand:
    """A submitted job; `ray job logs --follow` ends with it."""

    target: LocalTarget
    job: str
    log: Path
    asked_at: float = 0.0
    """Time of the last question: each takes a request to the dashboard."""
    status: int | None = None

    def poll(self) -> int | None:
        """Return 0 after success and 1 after any other end, None while it runs."""
        if self.status is not None or time.monotonic() - self.asked_at < _ASK_S:
            return self.status
        self.asked_at = time.monotonic()
        status = self.target.jobs.get_job_status(self.job)
        if not status.is_terminal():
            return None
        self.log.write_text(self.target.jobs.get_job_logs(self.job))
        self.status = int(status != "SUCCEEDED")
        return self.status

    def stop(self) -> None:
        """Call `ray job stop`, which returns once the job has ended."""
        self.target.ray("job", "stop", "--address", self.target.dashboard, self.job)

    def kill(self) -> list[psutil.Process]:
        """Kill the driver alone."""
        info = self.target.jobs.get_job_info(self.job)
        driver = psutil.Process(int(info.driver_info.pid))
        below = family([driver])
        driver.kill()
        return below

    def tail(self) -> str:
        """Return the last line of its output."""
        return last_line(self.log)


@dataclass
class _Node:
    role: str
    process: psutil.Process
    members: list[psutil.Process] = field(default_factory=list)


class LocalTarget:
    """A head and nodes of Ray on this machine, `sizes` of them by role.

    `environment` is added to that of every process.
    """

    def __init__(
        self, directory: Path, sizes: Mapping[str, int], environment: Mapping[str, str]
    ) -> None:
        self._directory = directory
        self._sizes = dict(sizes)
        # Sockets have short names.
        self._temporary = tempfile.TemporaryDirectory(
            prefix="chaos", dir="/tmp", ignore_cleanup_errors=True
        )
        self._mark = uuid.uuid4().hex
        token = uuid.uuid4().hex
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self._environment = os.environ | dict(environment)
        self._environment |= {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            _MARK: self._mark,
            "PATH": path,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "OMP_WAIT_POLICY": "passive",
            "RAY_JOB_STOP_WAIT_TIME_S": "60",
        }
        # Ray keeps the token of an earlier cluster in a process, so its own variables are no use.
        self._headers = {"Authorization": f"Bearer {token}"}
        port = free_port()
        import ray

        self.address = f"{ray.util.get_node_ip_address()}:{port}"
        self.dashboard = f"http://127.0.0.1:{free_port()}"
        self._nodes: dict[str, _Node] = {}
        self._count = 0
        self._limits: list[Path] = []
        self._below: list[psutil.Process] = []
        options = ["--head", f"--port={port}", "--include-dashboard=true", "--disable-usage-stats"]
        options += [f"--dashboard-port={self.dashboard.rpartition(':')[2]}"]
        options += [f"--temp-dir={self._temporary.name}"]
        try:
            self._start("driver", 0, options)
            self.restore()
        except BaseException:
            self.close()
            raise

    def ray(self, *arguments: str) -> str:
        """Run Ray's command line and return its output."""
        command = [str(Path(sys.executable).parent / "ray"), *arguments]
        done = subprocess.run(
            command,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=_START_S,
            check=True,
        )
        return done.stdout

    @functools.cached_property
    def jobs(self):
        """A client of the jobs."""
        from ray.job_submission import JobSubmissionClient

        return JobSubmissionClient(self.dashboard, headers=self._headers)

    def _start(self, role: str, cpus: int, options: list[str]) -> None:
        """Start a node; several at a time exceed the 30 s that Ray gives to each."""
        name = f"{role}-{self._count}"
        self._count += 1
        command = [str(Path(sys.executable).parent / "ray"), "start", "--block", *options]
        command += [f"--node-name={name}", f"--labels=ssd-ray/role={role}", f"--num-cpus={cpus}"]
        command += ["--num-gpus=0", "--object-store-memory=80000000"]
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        for port in ("dashboard-agent-listen-port", "dashboard-agent-grpc-port"):
            command += [f"--{port}={free_port()}"]
        log = self._directory / f"{name}.log"
        with log.open("w") as handle:
            process = psutil.Popen(
                command,
                env=self._environment,
                stdout=handle,
                stderr=handle,
                cwd=self._directory,
                start_new_session=True,
            )
        self._nodes[name] = _Node(role, process)
        until = time.monotonic() + _START_S
        while "Ray runtime started" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                self.kill(name)
                raise RuntimeError(f"node {name} did not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)

    def places(self, role: str) -> list[str]:
        """Return the names of the nodes of a role, the oldest first."""
        return [name for name, node in self._nodes.items() if node.role == role]

    def workers(self, role: str) -> list[psutil.Process]:
        """Return the live worker processes of a role."""
        return [worker for place in self.places(role) for worker in self.workers_at(place)]

    def workers_at(self, place: str) -> list[psutil.Process]:
        """Return the live worker processes of a node: children of its raylet."""
        node = self._nodes.get(place)
        if node is None:
            return []
        raylets = filter(is_raylet, children_of(node.process))
        workers = [worker for raylet in raylets for worker in children_of(raylet)]
        return [worker for worker in workers if TITLES[node.role] in command_line(worker)]

    def notice(self, place: str, seconds: float) -> None:
        """Drain the node, as at the notice of a cloud."""
        (node,) = self._live_nodes(place)
        command = ["drain-node", f"--address={self.address}", f"--node-id={node}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=chaos"]
        self.ray(*command, f"--deadline-remaining-seconds={round(seconds)}")

    def kill(self, place: str) -> None:
        """Kill all processes of the node."""
        node = self._nodes.pop(place)
        members = family([node.process])
        self._below += members
        send(members, signal.SIGKILL)
        node.process.wait()

    def add(self, role: str) -> None:
        """Start a node with one core; on a busy machine, the first start may miss Ray's 30 s."""
        options = [f"--address={self.address}"]
        try:
            self._start(role, 1, options)
        except RuntimeError:
            self._start(role, 1, options)

    def restore(self) -> None:
        """Start nodes until each role has its size again."""
        for role, size in self._sizes.items():
            for _ in range(size - len(self.places(role))):
                self.add(role)

    def cut_off(self, place: str) -> None:
        """Stop all processes of the node (SIGSTOP)."""
        node = self._nodes[place]
        node.members = family([node.process])
        self._below += node.members
        send(node.members, signal.SIGSTOP)

    def rejoin(self, place: str) -> None:
        """Continue them; a raylet that Ray gave up ends by itself, and another takes its place."""
        node = self._nodes[place]
        raylet = next(filter(is_raylet, node.members))
        send(node.members, signal.SIGCONT)
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            if not is_at_work(raylet):
                self.kill(place)
                self.add(node.role)
                return
            if self._live_nodes(place):
                return
            time.sleep(0.5)
        raise RuntimeError(f"{place} neither came back nor ended")

    def _live_nodes(self, place: str) -> list[str]:
        """Return the ids of the live nodes with the name of a place."""
        live = [node for node in self._rows("nodes") if node["state"] == "ALIVE"]
        return [node["node_id"] for node in live if node["node_name"] == place]

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        """Return all rows of a table of Ray."""
        address = f"{self.dashboard}/api/v0/{kind}?limit=10000&detail=1"
        request = urllib.request.Request(address, headers=self._headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return list(json.load(answer)["data"]["result"]["result"])

    def limit_memory(self, worker: psutil.Process) -> str:
        """Move the worker into a cgroup of `MEMORY_LIMIT`; without cgroups, limit its addresses."""
        if not os.access(CGROUP / "cgroup.procs", os.W_OK):
            import resource

            size = worker.memory_info().vms
            resource.prlimit(worker.pid, resource.RLIMIT_AS, (size, size))
            return "rlimit"
        group = CGROUP / f"chaos-{worker.pid}"
        group.mkdir()
        self._limits.append(group)
        (group / "memory.limit_in_bytes").write_text(str(MEMORY_LIMIT))
        (group / "cgroup.procs").write_text(str(worker.pid))
        return "cgroup"

    def start(self, verb: str, recipe: Path, out: Path, log: Path) -> Command:
        """Start `python -m ssd_ray VERB` on the head."""
        command = [sys.executable, "-m", "ssd_ray", verb, str(recipe), "--out", str(out)]
        environment = self._environment | {"RAY_ADDRESS": self.address}
        with log.open("ab") as handle:
            process = subprocess.Popen(
                command, env=environment, stdout=handle, stderr=handle, start_new_session=True
            )
        return ProcessCommand(process, log)

    def submit(self, verb: str, recipe: Path, out: Path, log: Path) -> Command:
        """Call `ray job submit` with the script of `jobs/`."""
        job = f"chaos-{uuid.uuid4().hex[:8]}"
        command = ["job", "submit", "--address", self.dashboard, "--no-wait"]
        command += ["--submission-id", job, "--"]
        command += [sys.executable, str(ROOT / "jobs" / f"{SCRIPTS[verb]}.py"), str(recipe)]
        self.ray(*command, "--out", str(out))
        return JobCommand(self, job, log)

    def leftovers(self) -> Leftovers:
        """Wait at most 20 s for the last process to end, then list everything."""
        until = time.monotonic() + 20
        while (processes := [*self._strays()]) and time.monotonic() < until:
            time.sleep(0.5)
        actors = [each for each in self._rows("actors") if each["state"] != "DEAD"]
        groups = [each for each in self._rows("placement_groups") if each["state"] != "REMOVED"]
        self._below.clear()
        for group in self._limits:
            with suppress(OSError):
                group.rmdir()
        return Leftovers(
            processes=tuple(f"{process.pid} {command_line(process)[:80]}" for process in processes),
            actors=tuple(f"{each['class_name']} {each['state']}" for each in but_ray_data(actors)),
            placement_groups=tuple(f"{group['name']} {group['state']}" for group in groups),
        )

    def _strays(self) -> Iterator[psutil.Process]:
        """Yield the processes with this target's mark, and those lost, that are no part of it."""
        mark = f"{_MARK}={self._mark}".encode()
        lost = {process.pid: process for process in self._below if process.is_running()}
        for process in psutil.process_iter():
            with suppress(OSError, psutil.Error):
                environment = Path(f"/proc/{process.pid}/environ").read_bytes()
                if mark in environment or process.pid in lost:
                    is_zombie = process.status() == psutil.STATUS_ZOMBIE
                    if not is_zombie and not _is_infrastructure(process):
                        yield process

    def close(self) -> None:
        """Kill all nodes, and all processes with the mark."""
        members = family(node.process for node in self._nodes.values())
        send(members, signal.SIGCONT)
        send(members, signal.SIGKILL)
        strays = list(self._strays())
        send(strays, signal.SIGKILL)
        psutil.wait_procs([*members, *strays], timeout=20)
        self._temporary.cleanup()


def _is_infrastructure(process: psutil.Process) -> bool:
    """Return True for a part of Ray, or a helper of its dashboard; also for an ended process."""
    line, parent = command_line(process), process.parent()
    is_part = not line or any(name in line for name in _INFRASTRUCTURE)
    return is_part or (parent is not None and _DASHBOARD in command_line(parent))


def but_ray_data(actors: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return actors without the first of each kind that Ray Data leaves in every cluster."""
    kept = set(_RAY_DATA)
    others = []
    for actor in actors:
        if actor["class_name"] in kept:
            kept.discard(actor["class_name"])
        else:
            others.append(actor)
    return others


@contextmanager
def local_target(
    directory: Path, sizes: Mapping[str, int], environment: Mapping[str, str]
) -> Iterator[LocalTarget]:
    """Start a `LocalTarget`, and end it with the block."""
    target = LocalTarget(directory, sizes, environment)
    try:
        yield target
    finally:
        target.close()
