"""Start, watch and end containers: by podman, or as plain processes without it."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tests.kube.containers import Container, podman_arguments

LABEL = "ssd-ray-kube"
OUT_OF_MEMORY = "oom"
MISSING = (
    "pods are plain processes: no own network, user, mount or limit holds, "
    "because containers cannot be had"
)


@dataclass(frozen=True, kw_only=True)
class End:
    """A container's end."""

    exit_code: int
    reason: str
    """Completed, Error or OOMKilled."""


class Runtime(Protocol):
    """Operations on containers, each by its name."""

    isolates: bool
    """Containers have networks, mounts, users and limits of their own."""

    def start(self, container: Container) -> None:
        """Start a container. Raise RuntimeError with the cause if that fails."""

    def end(self, name: str) -> End | None:
        """Return None while the container runs."""

    def signal(self, name: str, number: int) -> None:
        """Send a signal to the first process; SIGKILL ends all. An ended one ignores it."""

    def remove(self, name: str) -> None:
        """End a container and remove it, its writable layer too."""

    def run_inside(self, name: str, command: Sequence[str], timeout_s: float) -> bool:
        """Run a probe in a container. Return True if it succeeds in time."""

    def clear(self) -> None:
        """Remove every container."""


class Podman:
    """Containers of podman and runc; all of one slot have its label."""

    isolates = True

    def __init__(self, prefix: str) -> None:
        self._label = f"{LABEL}={prefix}"
        self._processes: dict[str, Path] = {}
        self._folders: dict[str, Path] = {}

    def start(self, container: Container) -> None:
        """Start a container, its log in a file."""
        folder = container.log.with_suffix("")
        folder.mkdir(parents=True, exist_ok=True)
        # Under cgroups of version 1, conmon notes the lack of memory as a file in its directory.
        (folder / OUT_OF_MEMORY).unlink(missing_ok=True)
        done = _podman(*podman_arguments(container, self._label), folder=folder)
        if done.returncode:
            raise RuntimeError(done.stderr.strip()[-400:])
        self._folders[container.name] = folder
        pid = _podman("inspect", "--format", "{{.State.Pid}}", container.name).stdout.strip()
        self._processes[container.name] = Path("/proc") / pid

    def end(self, name: str) -> End | None:
        """Ask podman only once the process is gone: a call costs 50 ms of CPU."""
        process = self._processes.get(name)
        if process is not None and process.name != "0" and _is_alive(process):
            return None
        _podman("wait", "--interval", "100ms", name)
        text = _podman("inspect", "--format", "{{json .State}}", name).stdout
        state = json.loads(text) if text.strip() else {"ExitCode": 137}
        code = int(state["ExitCode"])
        folder = self._folders.get(name, Path("/nonexistent"))
        oom = state.get("OOMKilled", False) or (folder / OUT_OF_MEMORY).exists()
        reason = "OOMKilled" if oom else "Error" if code else "Completed"
        return End(exit_code=code, reason=reason)

    def signal(self, name: str, number: int) -> None:
        """Send a signal through the runtime."""
        _podman("kill", "--signal", str(number), name)

    def remove(self, name: str) -> None:
        """Remove a container by force."""
        self._processes.pop(name, None)
        _podman("rm", "--force", "--time", "0", name)

    def run_inside(self, name: str, command: Sequence[str], timeout_s: float) -> bool:
        """Enter the container's namespaces with its user: cheaper than `podman exec`."""
        process = self._processes.get(name)
        if process is None or not process.exists():
            return False
        owner = process.stat()
        enter = ["nsenter", "--target", process.name, "--mount", "--net", "--pid", "--uts"]
        enter += ["--setuid", str(owner.st_uid), "--setgid", str(owner.st_gid)]
        try:
            done = subprocess.run([*enter, *command], capture_output=True, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return False
        return done.returncode == 0

    def clear(self) -> None:
        """Remove the containers of the slot, those of a crashed owner too."""
        names = _podman("ps", "--all", "--quiet", "--filter", f"label={self._label}").stdout.split()
        if names:
            _podman("rm", "--force", "--time", "0", *names)
        self._processes.clear()


class Processes:
    """Plain processes, each with a session of its own; paths of mounts are replaced in words."""

    isolates = False

    def __init__(self, record: Path) -> None:
        self._record = record
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._lock = threading.Lock()

    def start(self, container: Container) -> None:
        """Start the command with the pod's variables."""
        container.log.parent.mkdir(parents=True, exist_ok=True)
        env = {name: _on_host(value, container) for name, value in container.env.items()}
        words = [_on_host(word, container) for word in container.command]
        workdir = Path(_on_host(container.workdir, container))
        with container.log.open("ab") as log:
            try:
                process = subprocess.Popen(
                    words,
                    env=env,
                    cwd=workdir if workdir.is_dir() else "/",
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except OSError as error:
                raise RuntimeError(str(error)) from error
        with self._lock:
            self._processes[container.name] = process
            with self._record.open("a") as record:
                record.write(f"{process.pid} {_start_time(process.pid)}\n")

    def end(self, name: str) -> End | None:
        """Return the exit status; 128 and the number of a signal, as a runtime does."""
        process = self._processes.get(name)
        code = 137 if process is None else process.poll()
        if code is None:
            return None
        code = 128 - code if code < 0 else code
        return End(exit_code=code, reason="Error" if code else "Completed")

    def signal(self, name: str, number: int) -> None:
        """Signal the first process, or its session for SIGKILL."""
        process = self._processes.get(name)
        if process is None:
            return
        if number == signal.SIGKILL:
            _kill_session(process)
        elif process.poll() is None:
            process.send_signal(number)

    def remove(self, name: str) -> None:
        """End a session."""
        with self._lock:
            process = self._processes.pop(name, None)
        if process is not None:
            _kill_session(process)
            process.wait()

    def run_inside(self, name: str, command: Sequence[str], timeout_s: float) -> bool:
        """Run a probe on the machine."""
        try:
            done = subprocess.run(list(command), capture_output=True, timeout=timeout_s)
        except (subprocess.TimeoutExpired, OSError):
            return False
        return done.returncode == 0

    def clear(self) -> None:
        """End every session."""
        for name in list(self._processes):
            self.remove(name)


def end_recorded(record: Path) -> None:
    """End the sessions of a crashed owner.

    The kernel gives a session's number to no new process while a member lives. So a process of
    this number with another start time shows that the session is over.
    """
    for line in record.read_text().splitlines() if record.exists() else []:
        leader, start_time = line.split()
        if _start_time(int(leader)) not in ("", start_time):
            continue
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.getsid(int(process.name)) == int(leader):
                    os.kill(int(process.name), signal.SIGKILL)
            except ProcessLookupError:
                continue


def _start_time(pid: int) -> str:
    """Return the start of a process in ticks since boot, or an empty string."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return ""


@functools.cache
def missing_for_containers(prefix: str = "ssdk-try") -> str:
    """Return the cause why containers cannot be had here, or an empty string."""
    if os.geteuid() != 0:
        return "it needs root"
    tools = [tool for tool in ("podman", "runc", "nft", "ip", "nsenter") if not shutil.which(tool)]
    if tools:
        return f"{', '.join(tools)} not installed"
    name = f"{prefix}-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    if made.returncode:
        return made.stderr.strip()
    try:
        container = Container(
            name=name,
            command=("/bin/true",),
            env={},
            mounts=(),
            log=Path("/dev/null"),
            namespace=name,
            hostname="try",
            workdir="/",
            memory_bytes=2**26,
        )
        arguments = podman_arguments(container, f"{LABEL}=try")
        arguments[arguments.index("--detach")] = "--rm"
        done = _podman(*arguments, folder=Path("/tmp"))
        rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True)
    finally:
        subprocess.run(["ip", "netns", "delete", name], capture_output=True)
    return (
        (done.stderr + rules.stderr).strip()[-200:] if done.returncode or rules.returncode else ""
    )


def _podman(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    words = ["podman", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=folder)


def _is_alive(process: Path) -> bool:
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def _kill_session(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _on_host(text: str, container: Container) -> str:
    for mount in sorted(container.mounts, key=lambda mount: -len(mount.target)):
        if str(mount.source) != mount.target and not mount.target.startswith("/dev"):
            text = text.replace(mount.target, str(mount.source))
    return text
