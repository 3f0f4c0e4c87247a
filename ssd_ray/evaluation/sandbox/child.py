"""One sandboxed process seen from outside: fed, read, timed and killed by the grader; nothing here trusts what it says.

Reads and writes pipes and sealed memory files; no file system.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox.handles import KillPipe, PidFd

End = Literal["exited", "time_limit", "output_limit", "thread_limit"]
START_TIMEOUT_S = 60.0
"""Until the sandbox stands, which no program can influence."""
_STOP_TIMEOUT_S = 10.0
_MOST_STOLEN = 3.0
"""Time limits are stretched by the time that a program waited for a core, at most by so many limits."""
_CHUNK_BYTES = 1 << 16
MOST_THREADS = 512
"""Threads of one process; made by hand they need no address space, only the kernel's memory and process ids."""
_WATCH_S = 0.05
"""Between two looks at the number of threads."""
_QUICK_S = 0.01
"""What comes sooner is not worth a look at how long it waited for a core."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one test may use: wall seconds, MiB of address space, KiB of each of its output streams and of its result.

    Seconds that it was ready to run and other processes held the cores do not count.
    """

    time_s: float
    memory_mib: int
    output_kib: int


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a process ended, as the zygote saw it: an exit status or a signal, peak RSS and CPU time."""

    kind: str
    number: int
    peak_kib: int
    cpu_s: float


def sealed_file(content: bytes) -> int:
    """A descriptor of a memory file that can be read from its start and never changed."""
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


class Process(Protocol):
    """A confined process as the grader uses it, wherever it runs."""

    cpu_s: float
    filtered: bool

    def run(self, time_s: float) -> End:
        """Let it run to its end, for at most so long."""

    def send(self, lines: str) -> None:
        """Have whole lines sent as the process reads."""

    def receive(self, time_s: float) -> bytes | End:
        """The next line that comes back within so long, or why none came."""

    @property
    def stdout(self) -> bytes:
        """What came of it, at most the cap."""

    @property
    def stderr(self) -> bytes:
        """What came of it, at least its last lines, at most the cap."""

    @property
    def report(self) -> Report:
        """How the process ended; InfrastructureError where nobody lived to say."""

    def stop(self) -> None:
        """Kill whatever is left of it."""

    def close(self) -> None:
        """Stop it and give back what it held."""


class Child:
    """The grader's ends of one process's pipes, to be used by one thread.

    `cpu_s` is the CPU time that it was given; `filtered` says that it cannot send itself SIGKILL, nor lower that limit.
    """

    def __init__(self, output_bytes: int, *, cpu_s: float, filtered: bool) -> None:
        self.cpu_s, self.filtered = cpu_s, filtered
        self._most = output_bytes
        self._received = {name: bytearray() for name in ("stdout", "stderr", "status", "reply")}
        self._replies: deque[bytes] = deque()
        self._names: dict[int, str] = {}
        self._poll = select.poll()
        self._outgoing, self._request_fd = memoryview(b""), -1
        self._process: PidFd | KillPipe | None = None
        self._overflowed = self._ended = False
        self._began = 0.0

    def outlet(self, name: str) -> int:
        """A pipe for `name`; returns the end to be given away."""
        ours, theirs = os.pipe()
        with contextlib.suppress(
            PermissionError
        ):  # gVisor's pipes keep their mode; there, nothing can be opened for writing
            os.fchmod(theirs, 0o666)  # whatever user the program is given may open /dev/stdout
        self._listen(ours, name)
        return theirs

    def _listen(self, fd: int, name: str) -> None:
        os.set_blocking(fd, False)
        self._names[fd] = name
        self._poll.register(fd, select.POLLIN)

    def inlet(self) -> int:
        """A pipe for messages to the process; returns the end to be given away."""
        theirs, self._request_fd = os.pipe()
        os.set_blocking(self._request_fd, False)
        return theirs

    def started(self, process: PidFd | KillPipe, status_fd: int) -> None:
        """Take over the process."""
        self._process = process
        self._listen(status_fd, "status")

    def wait_ready(self) -> None:
        """Return when the process is confined and about to compile the program.

        Raises:
            InfrastructureError: it did not get there. No program has run then, so none can bring this about.
        """
        status = self._received["status"]
        self._pump(lambda: b"\n" in status, time.monotonic() + START_TIMEOUT_S)
        first = bytes(status.partition(b"\n")[0])
        if first != b"ready":
            self.close()
            raise InfrastructureError(
                f"a sandboxed process did not start: {first.decode(errors='replace') or 'no word from it'}"
            )
        self._began = time.monotonic()

    def run(self, time_s: float) -> End:
        """Let it run to its end, for at most so long."""
        end = self._within(lambda: False, time_s)
        self.stop()
        return "output_limit" if self._overflowed and end == "exited" else end

    def send(self, lines: str) -> None:
        """Have whole lines sent as the process reads."""
        self._outgoing = memoryview(bytes(self._outgoing) + lines.encode())
        self._poll.register(self._request_fd, select.POLLOUT)

    def receive(self, time_s: float) -> bytes | End:
        """The next line that comes back within so long, or why none came; never more than the output cap."""
        replies = self._replies
        if not replies:
            self._began = time.monotonic()
            end = self._within(lambda: bool(replies), time_s)
            if not replies:
                return end
        return replies.popleft()

    @property
    def stdout(self) -> bytes:
        """What came so far, at most the cap."""
        return bytes(self._received["stdout"])

    @property
    def stderr(self) -> bytes:
        """What came so far, at most the cap."""
        return bytes(self._received["stderr"])

    @property
    def report(self) -> Report:
        """How the process ended.

        Raises:
            InfrastructureError: the zygote did not live to say.
        """
        words = bytes(self._received["status"]).partition(b"\n")[2].split()
        if len(words) != 4:
            raise InfrastructureError("a sandbox ended before its program did")
        kind, number, peak_kib, cpu_s = words
        return Report(
            kind=kind.decode(), number=int(number), peak_kib=int(peak_kib), cpu_s=float(cpu_s)
        )

    def stop(self) -> None:
        """Kill whatever is left of it, and take what it had written."""
        if self._process is not None and not self._ended:
            self._process.kill()
            self._pump(lambda: False, time.monotonic() + _STOP_TIMEOUT_S, drop=True)
        for fd, name in list(self._names.items()):
            while fd in self._names and self._take(fd, name):
                pass

    def close(self) -> None:
        """Stop it and give back every descriptor."""
        self.stop()
        for fd in (*self._names, self._request_fd):
            if fd >= 0:
                os.close(fd)
        self._names.clear()
        self._request_fd = -1
        if self._process is not None:
            self._process.close()
            self._process = None

    def _within(self, done: Callable[[], bool], time_s: float) -> End:
        """Pump for `time_s` seconds of the process's own: while it waits for a core, the clock stands."""
        deadline = self._began + time_s
        self._pump(done, min(deadline, time.monotonic() + _QUICK_S))
        waited_before = 0.0 if done() else self._waited_s()
        while not (done() or self._overflowed or self._ended or self._gone()):
            if self._num_threads() > MOST_THREADS:
                return "thread_limit"
            if time.monotonic() >= deadline:
                stolen = min(self._waited_s() - waited_before, _MOST_STOLEN * time_s)
                if time.monotonic() >= self._began + time_s + stolen:
                    return "time_limit"
                deadline = self._began + time_s + stolen + _WATCH_S
            self._pump(done, min(deadline, time.monotonic() + _WATCH_S))
        return "output_limit" if self._overflowed else "exited"

    def _waited_s(self) -> float:
        """Seconds that the process was ready to run and had no core (Linux, schedstat); 0 where the kernel does not say."""
        try:
            with open(f"/proc/{self._pid}/schedstat", "rb", buffering=0) as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _num_threads(self) -> int:
        with contextlib.suppress(OSError):
            return os.stat(f"/proc/{self._pid}/task").st_nlink - 2
        return 0

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process is not None else -1

    def _gone(self) -> bool:
        return bool(self._received["status"].count(b"\n") > 1)

    def _pump(self, done: Callable[[], bool], deadline: float, *, drop: bool = False) -> None:
        """Move bytes until `done`, the end of the status pipe, too much output (unless `drop`) or the deadline."""
        while not done() and not self._ended and (drop or not self._overflowed):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            for fd, _ in self._poll.poll(remaining * 1000):
                if fd == self._request_fd:
                    self._give()
                else:
                    self._take(fd, self._names[fd])

    def _take(self, fd: int, name: str) -> bool:
        """Take what is there, up to the cap; False when there is nothing more for now or for good."""
        try:
            chunk = os.read(fd, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        received = self._received[name]
        room = self._most - len(received)
        if name == "reply":
            overflowed = self._add_replies(chunk)
        else:
            received += chunk[:room]
            overflowed = len(chunk) > room
        self._overflowed |= overflowed
        if not chunk and name == "status":
            self._ended = True
        if not chunk or overflowed:
            self._unregister(fd)
            os.close(fd)
            del self._names[fd]
            return False
        return True

    def _add_replies(self, chunk: bytes) -> bool:
        """Whether an answer is larger than the cap, which each has for itself."""
        received = self._received["reply"]
        received += chunk
        if b"\n" in chunk:
            *lines, received[:] = received.split(b"\n")
            self._replies += map(bytes, lines)
            return max(map(len, lines)) > self._most or len(received) > self._most
        return len(received) > self._most

    def _give(self) -> None:
        try:
            self._outgoing = self._outgoing[
                os.write(self._request_fd, self._outgoing[:_CHUNK_BYTES]) :
            ]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._outgoing = memoryview(b"")
        if not self._outgoing:
            self._unregister(self._request_fd)

    def _unregister(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self._poll.unregister(fd)


def tail(output: bytes) -> str:
    """The last line of an error stream that says something, printable and at most 300 characters."""
    lines = output[-4096:].decode("utf-8", "backslashreplace").strip().split("\n")
    return printable(lines[-1])[:300] if lines else ""


def printable(text: str) -> str:
    """The text with everything escaped that could forge a line or move a terminal's cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
