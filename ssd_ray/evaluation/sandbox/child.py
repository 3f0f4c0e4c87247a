"""One sandboxed process from outside: the grader feeds, reads, times and kills it.

- Nothing here trusts the process: its output, time and threads are watched from outside.
- A `Child` is the `Process` of this kernel.

Reads and writes pipes, and reads /proc.
"""

from __future__ import annotations

import contextlib
import os
import select
import time
from collections import deque
from collections.abc import Callable

from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox.handles import KillPipe, PidFd
from ssd_ray.evaluation.sandbox.process import MOST_THREADS, End, Report

START_TIMEOUT_S = 60.0
"""Limit for a process to become confined. No program runs before, so none can exceed it."""
_STOP_TIMEOUT_S = 10.0
_MOST_STOLEN = 3.0
"""Bound on the extension of a time limit for waiting for a core, as a multiple of the limit."""
_CHUNK_BYTES = 1 << 16
_WATCH_S = 0.05
"""Seconds between two counts of the threads."""
_QUICK_S = 0.01
"""Seconds before /proc is first read for the time without a core; most calls end earlier."""


class Child:
    """A process of a zygote, by the grader's ends of its pipes; used by one thread.

    Implements `Process`, with a cap of `output_bytes` for each stream and each reply.
    """

    def __init__(self, output_bytes: int, *, cpu_s: float, filtered: bool) -> None:
        self.cpu_s = cpu_s
        self.filtered = filtered
        self._most = output_bytes
        self._received = {name: bytearray() for name in ("stdout", "stderr", "status", "reply")}
        self._replies: deque[bytes] = deque()
        self._names: dict[int, str] = {}
        self._poll = select.poll()
        self._outgoing = memoryview(b"")
        self._request_fd = -1
        self._process: PidFd | KillPipe | None = None
        self._overflowed = False
        self._ended = False
        self._began = 0.0

    def outlet(self, name: str) -> int:
        """Make a pipe from the process, to be collected as `name`, and return its write end."""
        ours, theirs = os.pipe()
        # Any user id of a program may then open /dev/stdout. gVisor's pipes keep their mode, and
        # nothing can be opened for writing there.
        with contextlib.suppress(PermissionError):
            os.fchmod(theirs, 0o666)
        self._listen(ours, name)
        return theirs

    def _listen(self, fd: int, name: str) -> None:
        os.set_blocking(fd, False)
        self._names[fd] = name
        self._poll.register(fd, select.POLLIN)

    def inlet(self) -> int:
        """Make a pipe for messages to the process and return its read end."""
        theirs, self._request_fd = os.pipe()
        os.set_blocking(self._request_fd, False)
        return theirs

    def started(self, process: PidFd | KillPipe, status_fd: int) -> None:
        """Take over a process that was forked, by its handle and its status pipe."""
        self._process = process
        self._listen(status_fd, "status")

    def wait_ready(self) -> None:
        """Return when the process is confined and about to compile the program.

        Raises:
            InfrastructureError: It failed earlier. No program has run then, so none can cause this.
        """
        status = self._received["status"]
        self._pump(lambda: b"\n" in status, time.monotonic() + START_TIMEOUT_S)
        first = bytes(status.partition(b"\n")[0])
        if first != b"ready":
            self.close()
            reason = first.decode(errors="replace") or "no status received"
            raise InfrastructureError(f"a sandboxed process did not start: {reason}")
        self._began = time.monotonic()

    def run(self, time_s: float) -> End:
        """Let the process run to its end, for at most `time_s` seconds, and stop it."""
        end = self._within(lambda: False, time_s)
        self.stop()
        return "output_limit" if self._overflowed and end == "exited" else end

    def send(self, lines: str) -> None:
        """Queue complete lines, sent as the process reads."""
        self._outgoing = memoryview(bytes(self._outgoing) + lines.encode())
        self._poll.register(self._request_fd, select.POLLOUT)

    def receive(self, time_s: float) -> bytes | End:
        """Return the next line within `time_s` seconds, or the reason why none came.

        A line is never longer than the output cap.
        """
        replies = self._replies
        if not replies:
            self._began = time.monotonic()
            end = self._within(lambda: bool(replies), time_s)
            if not replies:
                return end
        return replies.popleft()

    @property
    def stdout(self) -> bytes:
        """Standard output so far, cut off at the cap."""
        return bytes(self._received["stdout"])

    @property
    def stderr(self) -> bytes:
        """Standard error so far, cut off at the cap."""
        return bytes(self._received["stderr"])

    @property
    def report(self) -> Report:
        """The end of the process.

        Raises:
            InfrastructureError: The zygote died before it reported one.
        """
        words = bytes(self._received["status"]).partition(b"\n")[2].split()
        if len(words) != 4:
            raise InfrastructureError("a sandbox ended before its program did")
        kind, number, peak_kib, cpu_s = words
        return Report(
            kind=kind.decode(), number=int(number), peak_kib=int(peak_kib), cpu_s=float(cpu_s)
        )

    def stop(self) -> None:
        """Kill the process if it is alive, and collect its remaining output."""
        if self._process is not None and not self._ended:
            self._process.kill()
            self._pump(lambda: False, time.monotonic() + _STOP_TIMEOUT_S, drop=True)
        for fd, name in list(self._names.items()):
            while fd in self._names and self._take(fd, name):
                pass

    def close(self) -> None:
        """Stop the process and close every descriptor."""
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
        """Pump until `done` or for `time_s` seconds; waiting for a core does not count."""
        deadline = self._began + time_s
        self._pump(done, min(deadline, time.monotonic() + _QUICK_S))
        waited_before = 0.0 if done() else self._waited_s()
        while not (done() or self._overflowed or self._ended or self._gone()):
            if self._num_threads() > MOST_THREADS:
                return "thread_limit"
            if time.monotonic() >= deadline:
                # A busy machine must not turn a slow right answer into a time-out. A program cannot
                # gain time by it: sleeping is not waiting, and the extension is bounded.
                stolen = min(self._waited_s() - waited_before, _MOST_STOLEN * time_s)
                if time.monotonic() >= self._began + time_s + stolen:
                    return "time_limit"
                deadline = self._began + time_s + stolen + _WATCH_S
            self._pump(done, min(deadline, time.monotonic() + _WATCH_S))
        return "output_limit" if self._overflowed else "exited"

    def _waited_s(self) -> float:
        """Return the seconds spent ready to run without a core; 0 if unknown.

        Source: the second field of /proc/PID/schedstat (Linux, Documentation/scheduler).
        """
        try:
            with open(f"/proc/{self._pid}/schedstat", "rb", buffering=0) as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def _num_threads(self) -> int:
        # A directory has a link from each child, its own "." and its parent's entry.
        with contextlib.suppress(OSError):
            return os.stat(f"/proc/{self._pid}/task").st_nlink - 2
        return 0

    @property
    def _pid(self) -> int:
        return self._process.pid if self._process is not None else -1

    def _gone(self) -> bool:
        # The zygote reports the end on a second line, after "ready".
        return bool(self._received["status"].count(b"\n") > 1)

    def _pump(self, done: Callable[[], bool], deadline: float, *, drop: bool = False) -> None:
        """Move bytes until `done`, the end of the status pipe or the deadline.

        Too much output ends it as well, unless `drop`.
        """
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
        """Read one chunk, up to the cap; return False if no more is there yet, or at the end."""
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
        """Add to the replies; return True if one of them exceeds the cap."""
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
    """Return the last line of an error stream, printable and at most 300 characters."""
    lines = output[-4096:].decode("utf-8", "backslashreplace").strip().split("\n")
    return printable(lines[-1])[:300] if lines else ""


def printable(text: str) -> str:
    """Return a text with escapes for characters that could forge a line or move a cursor."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )
