"""One confined process of an untrusted program: started, fed, read, timed, killed and reaped from outside.

The grader never forks itself (it may be a thread of a Ray worker): it execs child.py, which confines itself. Everything
that bounds the program's time and output is here, on this side. Reads and writes a private temporary directory, which is
the program's working directory and is gone afterwards.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation import bootstrap
from ssd_ray.evaluation.leftovers import kill_survivors, remove_directory

Role = Literal["program", "function", "check"]
End = Literal["exited", "time_limit", "output_limit"]
START_TIMEOUT_S = 60.0
"""Until the sandbox stands, which no program can influence."""
_STOP_TIMEOUT_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one test may use: wall seconds, MiB of address space, KiB of each of its output streams and of its result."""

    time_s: float
    memory_mib: int
    output_kib: int

    @property
    def cpu_s(self) -> int:
        """CPU seconds after which the kernel kills the program, whatever the wall clock says."""
        return int(-(-self.time_s // 1)) + 1


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """What a program on this machine is kept from, beyond limits on its resources; proved by starting one.

    network: it has no interface, not even the host's loopback. processes: it sees and signals none but its own, shares no
    user namespace or user id with the grader, so cannot read its memory, and none of its processes survives. files: all
    file systems are read-only but for 16 MiB of scratch space.
    """

    network: bool
    processes: bool
    files: bool


class DeniedError(InfrastructureError):
    """The kernel or the container denies a part of the isolation that was asked for."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How the program itself ended, as its guard saw it: an exit status or a signal, peak RSS and CPU time."""

    kind: str
    number: int
    peak_kib: int
    cpu_s: float


class Child:
    """A confined process, to be used by one thread; its parent-death signal follows that thread."""

    def __init__(
        self, role: Role, units: Sequence[str], limits: Limits, isolation: Isolation, *, stdin: str = "", entry_point: str = ""
    ) -> None:
        """Start it; `wait_ready` says whether it stands.

        Raises:
            InfrastructureError: no process, pipe or directory is to be had.
        """
        self._limits, self._isolation = limits, isolation
        self._received = {name: bytearray() for name in ("stdout", "stderr", "status", "reply")}
        self._selector = selectors.PollSelector()
        self._outgoing = memoryview(b"")
        self._overflowed = self._exited = self._stopped = False
        self._process: subprocess.Popen[bytes] | None = None
        self._resources = contextlib.ExitStack()
        try:
            self._directory = tempfile.mkdtemp(prefix="ssd-ray-")
            self._resources.callback(remove_directory, self._directory)
            self._resources.callback(self._selector.close)
            self._launch(role, units, stdin, entry_point)
        except OSError as error:
            self.close()
            raise InfrastructureError(f"cannot start a sandbox: {error}") from error

    def _launch(self, role: Role, units: Sequence[str], stdin: str, entry_point: str) -> None:
        sources = [unit.encode("utf-8", "surrogatepass") for unit in units]
        lengths = " ".join(str(len(source)) for source in sources)
        with contextlib.ExitStack() as theirs:
            payload = self._memory_file(b"".join([f"{lengths}\n".encode(), *sources]), theirs)
            modules = self._memory_file(bootstrap.modules(bare=role == "program"), theirs)
            stdin_fd = stdout_fd = subprocess.DEVNULL
            stderr_fd = self._outlet("stderr", theirs)
            fds = {"payload": payload, "status": self._outlet("status", theirs)}
            if role == "program":
                stdin_fd = self._memory_file(stdin.encode("utf-8", "surrogatepass"), theirs)
                stdout_fd = self._outlet("stdout", theirs)
            else:
                fds |= {"reply": self._outlet("reply", theirs), "request": self._inlet(theirs)}
            options: dict[str, int | str] = {
                **fds,
                "role": role,
                "entry_point": entry_point,
                "parent": os.getpid(),
                "memory_bytes": self._limits.memory_mib << 20,
                "cpu_s": self._limits.cpu_s,
                "file_bytes": self._limits.output_kib << 10,
                "namespaces": int(self._isolation.processes),
                "files": int(self._isolation.files),
                "readable": int(bootstrap.interpreter_readable()),
            }
            self._process = subprocess.Popen(
                bootstrap.command(modules, options),
                env={"PYTHONHASHSEED": "0", "LANG": "C.UTF-8", "TMPDIR": self._directory},
                cwd=self._directory,
                pass_fds=(modules, *fds.values()),
                start_new_session=True,
                stdin=stdin_fd,
                stdout=stdout_fd,
                stderr=stderr_fd,
            )
        pidfd = self._own(os.pidfd_open(self._process.pid))
        self._selector.register(pidfd, selectors.EVENT_READ, self._on_exit)

    def _own(self, fd: int) -> int:
        self._resources.callback(os.close, fd)
        return fd

    def _memory_file(self, content: bytes, theirs: contextlib.ExitStack) -> int:
        fd = os.memfd_create("ssd-ray")
        theirs.callback(os.close, fd)
        with open(fd, "wb", closefd=False) as file:
            file.write(content)
        os.lseek(fd, 0, os.SEEK_SET)
        return fd

    def _outlet(self, name: str, theirs: contextlib.ExitStack) -> int:
        ours, other = os.pipe()
        theirs.callback(os.close, other)
        os.set_blocking(self._own(ours), False)
        self._selector.register(ours, selectors.EVENT_READ, functools.partial(self._on_bytes, name))
        return other

    def _inlet(self, theirs: contextlib.ExitStack) -> int:
        other, self._request_fd = os.pipe()
        theirs.callback(os.close, other)
        os.set_blocking(self._own(self._request_fd), False)
        return other

    def wait_ready(self) -> None:
        """Return when the sandbox stands and the program is about to be compiled.

        Raises:
            DeniedError: the isolation that was asked for is not to be had here.
            InfrastructureError: the sandbox did not come up. No program has run then, so none can bring this about.
        """
        self._pump(lambda: b"\n" in self._received["status"], time.monotonic() + START_TIMEOUT_S)
        first, ended, _ = self._received["status"].partition(b"\n")
        if ended and first == b"ready":
            return
        self.stop()
        reason = first.decode(errors="replace") or tail(self.stderr) or f"it was not ready within {START_TIMEOUT_S:.0f} s"
        raise (DeniedError if first.startswith(b"denied") else InfrastructureError)(f"the sandbox did not start: {reason}")

    def run(self, time_s: float) -> End:
        """Let the program run for at most so long, then see that nothing of it is left."""
        self._pump(lambda: False, time.monotonic() + time_s)
        end: End = "output_limit" if self._overflowed else "exited" if self._exited else "time_limit"
        self.stop()
        return "output_limit" if self._overflowed and end == "exited" else end

    def exchange(self, message: str, time_s: float) -> bytes | End:
        """Send a line and return the line that comes back within so long, or why none came; never more than the output cap."""
        reply = self._received["reply"]
        self._outgoing = memoryview(f"{message}\n".encode())
        self._selector.register(self._request_fd, selectors.EVENT_WRITE, self._on_writable)
        self._pump(lambda: b"\n" in reply, time.monotonic() + time_s)
        if self._request_fd in self._selector.get_map():
            self._selector.unregister(self._request_fd)
        line, ended, rest = reply.partition(b"\n")
        if ended:
            reply[:] = rest
            return bytes(line)
        return "output_limit" if self._overflowed else "exited" if self._exited else "time_limit"

    @property
    def stdout(self) -> bytes:
        """What came so far, at most the cap."""
        return bytes(self._received["stdout"])

    @property
    def stderr(self) -> bytes:
        """What came so far, at most the cap."""
        return bytes(self._received["stderr"])

    @property
    def report(self) -> Report | None:
        """How the program ended; None where it was killed together with its guard."""
        words = bytes(self._received["status"]).partition(b"\n")[2].split()
        try:
            kind, number, peak_kib, cpu_s = words
            return Report(kind=kind.decode(), number=int(number), peak_kib=int(peak_kib), cpu_s=float(cpu_s))
        except ValueError:
            return None

    def stop(self) -> None:
        """Kill whatever is left of the program, reap it, and read what it had written."""
        if self._stopped or self._process is None:
            return
        self._stopped = True
        if not self._exited:
            self._process.terminate()
            self._pump(lambda: False, time.monotonic() + _STOP_TIMEOUT_S, drop=True)
        if not self._exited:
            self._process.kill()
        self._process.wait()
        if not self._isolation.processes:
            kill_survivors(self._directory)
        for key in list(self._selector.get_map().values()):
            if key.events == selectors.EVENT_READ and key.data != self._on_exit:
                while key.fd in self._selector.get_map() and key.data(key.fd):
                    pass

    def close(self) -> None:
        """Stop it and give back every descriptor and the directory."""
        self.stop()
        self._resources.close()

    def _pump(self, done: Callable[[], bool], deadline: float, *, drop: bool = False) -> None:
        """Move bytes until `done`, the program's end, too much output (unless `drop`) or the deadline."""
        while not done() and not self._exited and (drop or not self._overflowed):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            for key, _ in self._selector.select(remaining):
                key.data(key.fd)

    def _on_exit(self, fd: int) -> bool:
        self._exited = True
        self._selector.unregister(fd)
        return False

    def _on_bytes(self, name: str, fd: int) -> bool:
        """Take what is there, up to the cap; False when there is nothing more for now or for good."""
        try:
            chunk = os.read(fd, 1 << 16)
        except BlockingIOError:
            return False
        received = self._received[name]
        room = (self._limits.output_kib << 10) - len(received)
        received += chunk[:room]
        self._overflowed |= len(chunk) > room
        if not chunk or len(chunk) > room:
            self._selector.unregister(fd)
            return False
        return True

    def _on_writable(self, fd: int) -> bool:
        try:
            self._outgoing = self._outgoing[os.write(fd, self._outgoing) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            self._outgoing = memoryview(b"")
        if not self._outgoing:
            self._selector.unregister(fd)
        return False


def tail(output: bytes) -> str:
    """The last line of an error stream that says something, printable and at most 300 characters."""
    lines = output[-4096:].decode("utf-8", "backslashreplace").strip().split("\n")
    return printable(lines[-1])[:300] if lines else ""


def printable(text: str) -> str:
    """The text with everything escaped that could forge a line or move a terminal's cursor."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
