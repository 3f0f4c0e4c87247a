"""A zygote from outside: started at a level, then asked for confined processes one by one.

- A spare child is forked ahead of its program, so no program waits for the fork.
- Sources and standard input travel in sealed memory files, unread by the zygote.

Writes nothing but an empty directory, removed once the zygote is up. The zygote mounts its root
over it.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import marshal
import os
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox import bootstrap, levels
from ssd_ray.evaluation.sandbox.child import Child, tail
from ssd_ray.evaluation.sandbox.handles import KillPipe, PidFd
from ssd_ray.evaluation.sandbox.levels import Level
from ssd_ray.evaluation.sandbox.process import MOST_THREADS, Limits


class DeniedError(InfrastructureError):
    """The kernel or the container denies a wall that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """The work of one process."""

    role: str
    units: Sequence[str]
    """Sources, compiled in their order."""
    limits: Limits
    stdin: str | None = None
    """Standard input of a program; None for a conversation."""
    entry_point: str = ""
    cpu_s: float
    """Limit of CPU time, over all threads."""


class Zygote:
    """A zygote process, asked for children by a socket.

    Raises:
        DeniedError: The kernel or the container denies a wall of the level.
        InfrastructureError: The zygote does not start within 60 s.
    """

    def __init__(self, level: Level) -> None:
        self._level = level
        self.num_children = 0
        self._spare_requested = False
        self._resources = contextlib.ExitStack()
        try:
            self._launch(level)
        except OSError as error:
            self.close()
            raise InfrastructureError(f"cannot start a sandbox: {error}") from error

    def _launch(self, level: Level) -> None:
        with tempfile.TemporaryDirectory(prefix="ssd-ray-", ignore_cleanup_errors=True) as root:
            self._exec(levels.config(level, root))
            self._channel.settimeout(60)
            reply = json.loads(self._receive() or b"{}")
        if "up" not in reply:
            errors = self._process.stderr.read() if self._process.stderr else b""
            reason = reply.get("denied") or tail(errors)
            raise DeniedError(f"a sandbox at level {level.name} does not start here: {reason}")

    def _exec(self, config: dict[str, object]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._resources.enter_context(self._channel)
        with theirs, contextlib.ExitStack() as files:
            config |= {"socket": theirs.fileno(), "parent": os.getpid()}
            # Graders of one machine should start at different user ids, so that their programs
            # rarely share one.
            config["first_user"] = os.getpid() * 67 + threading.get_native_id()
            fd = _sealed_file(bootstrap.image(config))
            empty = _sealed_file(b"")
            files.callback(os.close, fd)
            files.callback(os.close, empty)
            self._process = subprocess.Popen(
                bootstrap.command(fd),
                env=bootstrap.environment(),
                cwd="/",
                pass_fds=(fd, theirs.fileno()),
                start_new_session=True,
                # The same kinds of files as a program gets: it inherits Python's stream objects.
                stdin=empty,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
            self._resources.callback(self._end)

    def _receive(self) -> bytes:
        try:
            return self._channel.recv(1 << 16)
        except TimeoutError as error:
            raise InfrastructureError("a sandbox did not come up within 60 s") from error
        except ConnectionError:
            return b""

    def start(self, task: Task) -> Child:
        """Return a process that is confined and about to compile its sources.

        Raises:
            InfrastructureError: The zygote is dead or cannot fork, or descriptors have run out.
        """
        child = Child(task.limits.output_kib << 10, cpu_s=task.cpu_s, filtered=self._level.filtered)
        try:
            self._fork(child, task)
            child.wait_ready()
        # Also at Ctrl-C: the caller has no handle yet to close the process by.
        except BaseException:
            child.close()
            raise
        return child

    def _fork(self, child: Child, task: Task) -> None:
        """Give the task to the spare process, fill `child` in, and request the next spare."""
        self.num_children += 1
        with contextlib.ExitStack() as theirs:
            try:
                if not self._spare_requested:
                    self._channel.send(b"spare")
                reply, fds, _, _ = socket.recv_fds(self._channel, 64, 3)
                word, _, pid = reply.partition(b" ")
                if word != b"spare" or len(fds) != 3:
                    raise InfrastructureError("a sandbox died as it was asked for a process")
                handle_fd, channel_fd, status_fd = fds
                child.started(
                    KillPipe(handle_fd, int(pid)) if self._level.gvisor else PidFd(handle_fd),
                    status_fd,
                )
                with socket.socket(fileno=channel_fd) as channel:
                    request, fds = self._request(child, task, theirs)
                    socket.send_fds(channel, [marshal.dumps(request)], fds)
                self._channel.send(b"spare")
                self._spare_requested = True
            except OSError as error:
                raise InfrastructureError(
                    f"a sandbox could not start a process: {error}"
                ) from error

    def _request(
        self, child: Child, task: Task, theirs: contextlib.ExitStack
    ) -> tuple[dict[str, object], list[int]]:
        """Return a request and its descriptors.

        The descriptors are the payload, the standard streams and, for a conversation, two pipes.
        """

        def closed_later(fd: int) -> int:
            theirs.callback(os.close, fd)
            return fd

        sources = [unit.encode("utf-8", "surrogatepass") for unit in task.units]
        request = {
            "role": task.role,
            "entry_point": task.entry_point,
            "memory_bytes": task.limits.memory_mib << 20,
            "cpu_s": int(-(-task.cpu_s // 1)) + 1,
            "file_bytes": task.limits.output_kib << 10,
            "num_threads": MOST_THREADS,
            "unit_ends": list(itertools.accumulate(len(source) for source in sources)),
            "payload_bytes": sum(len(source) for source in sources),
        }
        payload = closed_later(_sealed_file(b"".join(sources)))
        if task.stdin is None:
            null = closed_later(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            pipes = [closed_later(child.inlet()), closed_later(child.outlet("reply"))]
            return request, [payload, null, null, closed_later(child.outlet("stderr")), *pipes]
        text = closed_later(_sealed_file(task.stdin.encode("utf-8", "surrogatepass")))
        stdout = closed_later(child.outlet("stdout"))
        stderr = closed_later(child.outlet("stderr"))
        return request, [payload, text, stdout, stderr]

    def close(self) -> None:
        """Kill the zygote and its children, and wait for its end."""
        self._resources.close()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


def _sealed_file(content: bytes) -> int:
    """Return a descriptor of an immutable memory file, positioned at its start."""
    fd = os.memfd_create("ssd-ray", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(
        fd,
        fcntl.F_ADD_SEALS,
        fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE,
    )
    return fd
