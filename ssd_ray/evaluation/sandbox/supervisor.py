"""Untrusted programs, run: a whole program on standard input, or a conversation with one, with what came of it.

A `Sandbox` owns a zygote, which forks one confined process for every program. A program that misbehaves is data, an
`Execution` with a status. Only a sandbox that does not come up, or dies under its program, is an `infrastructure_error`,
after retries in a fresh sandbox; no program decides that. Used by one thread. Writes nothing; an empty directory, over
which a zygote mounts a root that it alone sees, is there while it starts.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import marshal
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, TypeVar

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.sandbox import bootstrap, levels
from ssd_ray.evaluation.sandbox.child import MOST_THREADS, Child, Limits, sealed_file, tail
from ssd_ray.evaluation.sandbox.execution import Conversation, Execution, judge
from ssd_ray.evaluation.sandbox.levels import Level

Role = Literal["calls", "check", "lcb"]
Result = TypeVar("Result")

_MOST_CHILDREN = 5000
"""Programs that one zygote forks before a fresh one takes over."""
_ATTEMPTS = 3


class DeniedError(InfrastructureError):
    """The kernel or the container denies a wall that was asked for."""


class Sandbox:
    """Confined processes on demand; a context manager, for one thread.

    Raises:
        UserError: this is not Linux, or the machine offers a level below `floor`.
        InfrastructureError: no sandbox starts at all.
    """

    def __init__(self, *, floor: str = "L1", level: Level | None = None) -> None:
        self._level = level or best_level()
        if levels.rank(self._level.name) < levels.rank(floor):
            raise UserError(
                f"this machine sandboxes programs at {self._level.name} ({self._level.covers}), below the floor {floor}: "
                "see docs/sandbox.md for what is missing, or lower evaluate.sandbox_floor for programs that you trust"
            )
        self._zygote: _Zygote | None = None

    @property
    def level(self) -> str:
        """The name of the level, as recorded in verdicts."""
        return self._level.name

    def __enter__(self) -> Sandbox:
        """Nothing starts before the first program."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and with it everything in the sandbox."""
        if self._zygote is not None:
            self._zygote.close()
            self._zygote = None

    def run_program(self, code: str, stdin: str, limits: Limits) -> Execution:
        """Run a program as `__main__` with real standard streams; "ok" means that it ended with exit status 0 in its limits."""
        try:
            return self._retried(lambda: self._run_once(code, stdin, limits))
        except InfrastructureError as error:
            return Execution(status="infrastructure_error", detail=str(error))

    def _run_once(self, code: str, stdin: str, limits: Limits) -> Execution:
        with contextlib.closing(self._start("program", [code], limits, stdin=stdin)) as child:
            began = time.monotonic()
            end = child.run(limits.time_s)
            time_s = time.monotonic() - began
            status, detail = judge(end, child, limits)
            stdout = child.stdout.decode("utf-8", "backslashreplace")
            peak_bytes = child.report.peak_kib << 10
            return Execution(status=status, stdout=stdout, detail=detail, time_s=time_s, peak_bytes=peak_bytes)

    def converse(
        self, role: Role, units: Sequence[str], limits: Limits, *, entry_point: str = "", cpu_s: float | None = None
    ) -> Conversation:
        """Start a process that answers messages; the units (a preamble, the program) are compiled with its first one.

        `cpu_s` is the CPU time that all messages together may take; the time limit's by default.

        Raises:
            InfrastructureError: it does not start, after retries.
        """
        start = functools.partial(self._start, role, units, limits, entry_point=entry_point, cpu_s=cpu_s)
        return Conversation(self._retried(start), limits)

    def _retried(self, act: Callable[[], Result]) -> Result:
        """The act's result, tried again in a fresh sandbox when this one failed."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(InfrastructureError):
                return act()
            self.close()
        return act()

    def _start(
        self,
        role: str,
        units: Sequence[str],
        limits: Limits,
        *,
        stdin: str | None = None,
        entry_point: str = "",
        cpu_s: float | None = None,
    ) -> Child:
        if self._zygote is not None and self._zygote.num_children >= _MOST_CHILDREN:
            self.close()
        if self._zygote is None:
            self._zygote = _Zygote(self._level)
        allowed_s = cpu_s or limits.time_s
        request = {
            "role": role,
            "entry_point": entry_point,
            "memory_bytes": limits.memory_mib << 20,
            "cpu_s": int(-(-allowed_s // 1)) + 1,
            "file_bytes": limits.output_kib << 10,
            "num_threads": MOST_THREADS,
        }
        child = Child(limits.output_kib << 10, cpu_s=allowed_s, filtered=self._level.filtered)
        try:
            self._zygote.fork(child, request, units, stdin)
            child.wait_ready()
        except BaseException:
            child.close()
            raise
        return child


class _Zygote:
    """A zygote from outside: the socket that asks it for children."""

    def __init__(self, level: Level) -> None:
        self.num_children = 0
        self._ordered = False
        self._resources = contextlib.ExitStack()
        try:
            self._launch(level)
        except OSError as error:
            self.close()
            raise InfrastructureError(f"cannot start a sandbox: {error}") from error

    def _launch(self, level: Level) -> None:
        with tempfile.TemporaryDirectory(prefix="ssd-ray-", ignore_cleanup_errors=True) as root:  # gone once the zygote is up
            self._exec(levels.config(level, root))
            self._channel.settimeout(60)
            said = json.loads(self._receive() or b"{}")
        if "up" not in said:
            reason = said.get("denied") or tail(self._process.stderr.read() if self._process.stderr else b"")
            raise DeniedError(f"a sandbox at level {level.name} does not start here: {reason}")

    def _exec(self, config: dict[str, object]) -> None:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._resources.enter_context(self._channel)
        with theirs, contextlib.ExitStack() as files:
            config |= {"socket": theirs.fileno(), "parent": os.getpid()}
            config["first_user"] = os.getpid() * 67 + threading.get_native_id()
            fd, empty = sealed_file(bootstrap.image(config)), sealed_file(b"")
            files.callback(os.close, fd)
            files.callback(os.close, empty)
            self._process = subprocess.Popen(
                bootstrap.command(fd),
                env=bootstrap.environment(),
                cwd="/",
                pass_fds=(fd, theirs.fileno()),
                start_new_session=True,
                stdin=empty,  # its streams are of the kinds that programs get, who inherit them
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

    def fork(self, child: Child, request: dict[str, object], units: Sequence[str], stdin: str | None) -> None:
        """Turn the spare process into one that meets the request, and order the next; gives `child` its descriptors.

        Raises:
            InfrastructureError: the zygote is dead or cannot fork, or descriptors have run out.
        """
        self.num_children += 1
        with contextlib.ExitStack() as theirs:
            try:
                if not self._ordered:
                    self._channel.send(b"spare")
                said, fds, _, _ = socket.recv_fds(self._channel, 64, 3)
                if said != b"spare" or len(fds) != 3:
                    raise InfrastructureError("a sandbox died as it was asked for a process")
                pidfd, channel_fd, status_fd = fds
                child.started(pidfd, status_fd)
                with socket.socket(fileno=channel_fd) as channel:
                    fds = self._descriptors(child, request, units, stdin, theirs)
                    socket.send_fds(channel, [marshal.dumps(request)], fds)
                self._channel.send(b"spare")
                self._ordered = True
            except OSError as error:
                raise InfrastructureError(f"a sandbox could not start a process: {error}") from error

    def _descriptors(
        self, child: Child, request: dict[str, object], units: Sequence[str], stdin: str | None, theirs: contextlib.ExitStack
    ) -> list[int]:
        """What the process is given: its payload, its standard streams, and a pair of pipes for a conversation."""

        def given(fd: int) -> int:
            theirs.callback(os.close, fd)
            return fd

        sources = [unit.encode("utf-8", "surrogatepass") for unit in units]
        request["unit_ends"] = list(itertools.accumulate(len(source) for source in sources))
        request["payload_bytes"] = sum(len(source) for source in sources)
        payload = given(sealed_file(b"".join(sources)))
        if stdin is None:
            null = given(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            return [payload, null, null, given(child.outlet("stderr")), given(child.inlet()), given(child.outlet("reply"))]
        text = given(sealed_file(stdin.encode("utf-8", "surrogatepass")))
        return [payload, text, given(child.outlet("stdout")), given(child.outlet("stderr"))]

    def close(self) -> None:
        """Kill it, and with it its children; wait until it is gone."""
        self._resources.close()

    def _end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        for stream in (self._process.stdout, self._process.stderr):
            if stream:
                stream.close()


_probing = threading.Lock()


def best_level() -> Level:
    """The strongest level at which a sandbox starts on this machine and runs a program, found once a process.

    Raises:
        UserError: this is not Linux.
        InfrastructureError: no sandbox starts at any level, or one fails for another reason than being denied.
    """
    if sys.platform != "linux":
        raise UserError(f"programs can be graded on Linux only, not on {sys.platform}: run the grading stage there")
    with _probing:
        return _probe()


@functools.cache
def _probe() -> Level:
    denied = ""
    for level in levels.candidates():
        try:
            with Sandbox(floor="L0", level=level) as sandbox:
                execution = sandbox.run_program(
                    "import bisect; print(6 * 7)", "", Limits(time_s=20, memory_mib=512, output_kib=16)
                )
        except DeniedError as error:
            denied = str(error)
            continue
        if execution.stdout == "42\n":
            return level
        denied = f"{level.name}: {execution.detail}"
    raise InfrastructureError(f"no sandbox runs on this machine: {denied}")


def working_levels() -> Iterator[tuple[Level, str]]:
    """Every level, the strongest first, with why a sandbox does not start at it, or an empty text where it does."""
    for level in levels.candidates():
        try:
            _Zygote(level).close()
            yield level, ""
        except InfrastructureError as error:
            yield level, str(error)
