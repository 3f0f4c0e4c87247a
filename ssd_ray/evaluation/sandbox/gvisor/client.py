"""The grader's end of a gVisor sandbox, with the interface of `spawning`.

    grader ─ client ─ pipes ─> runsc exec (launcher) ─> guest_agent ─> zygote ─ fork ─> the program

- Programs and their input go in, and outcomes come out. Expected outputs stay here.
- Answers are bounded. The guest agent writes them, out of a program's reach.
- Time limits hold here too: a guest agent that does not answer is killed with its sandbox.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox.child import tail
from ssd_ray.evaluation.sandbox.process import End, Report
from ssd_ray.evaluation.sandbox.spawning import DeniedError, Task

_START_TIMEOUT_S = 240.0
"""Time for a guest agent to start, making an image included."""
_GRACE_S = 60.0
"""Time for an answer, on top of the time of the process."""
_END_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_MAX_OVERHEAD_BYTES = 1 << 16
"""Size of an answer without the output of a process."""


class GVisor:
    """A gVisor sandbox with a guest agent.

    Args:
        module: A module to run and its arguments, instead of the launcher. Tests run the guest
            agent itself.

    Raises:
        DeniedError: This machine cannot start one.
        InfrastructureError: The sandbox did not start in time.
    """

    def __init__(self, module: Sequence[str] = ()) -> None:
        self.num_children = 0
        self._numbers = itertools.count()
        self._received = bytearray()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        # -P keeps the working directory off the path, so the package's own must be named.
        package = str(Path(__file__).parents[4])
        places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        launcher = ("ssd_ray.evaluation.sandbox.gvisor.launcher", str(os.getpid()))
        self._launcher = subprocess.Popen(
            [sys.executable, "-P", "-m", *(module or launcher)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        for stream in (self._launcher.stdin, self._launcher.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        try:
            self._wait_up()
        # Also at Ctrl-C: without an object nothing else would close the sandbox.
        except BaseException:
            self.close()
            raise

    def _wait_up(self) -> None:
        match self._read(time.monotonic() + _START_TIMEOUT_S, _MAX_OVERHEAD_BYTES):
            case ["up"]:
                return
            case ["denied" | "failed", str(reason)]:
                raise DeniedError(f"a sandbox at level L4 does not start here: {reason}")
        raise InfrastructureError("a gVisor sandbox did not report that it is up")

    def start(self, task: Task) -> GuestProcess:
        """Return a process that is confined and about to compile its sources.

        Raises:
            InfrastructureError: The guest agent is gone, or could not start the process.
        """
        self.num_children += 1
        process = GuestProcess(self, next(self._numbers), task)
        match self.ask(["start", process.number, dataclasses.asdict(task)], _GRACE_S, 0):
            case ["started"]:
                return process
            case ["failed", str(reason)]:
                raise InfrastructureError(f"in a gVisor sandbox: {reason}")
        raise _broken()

    def send(self, request: list[object], timeout_s: float = _GRACE_S) -> None:
        """Send a request without waiting for an answer.

        Raises:
            InfrastructureError: The guest agent is gone, or does not read within `timeout_s`.
        """
        stream = self._launcher.stdin
        assert stream is not None
        if stream.closed:
            raise _broken()
        rest = memoryview(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout_s
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        with self._complete_or_closed():
            while rest:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise _broken()
                try:
                    rest = rest[os.write(stream.fileno(), rest[:_CHUNK_BYTES]) :]
                except OSError as error:
                    raise _broken() from error

    def ask(self, request: list[object], time_s: float, most_bytes: int) -> object:
        """Return the answer to a request.

        Args:
            request: The request, verb first.
            time_s: Seconds that the process may take.
            most_bytes: Output that the process may have written.

        Raises:
            InfrastructureError: No complete answer came in time and within the bound. The sandbox
                is closed.
        """
        deadline = time.monotonic() + time_s + _GRACE_S
        with self._complete_or_closed():
            self.send(request, time_s + _GRACE_S)
            # The wire writes a byte of output as two hexadecimal digits.
            return self._read(deadline, 2 * most_bytes + _MAX_OVERHEAD_BYTES)

    @contextlib.contextmanager
    def _complete_or_closed(self) -> Iterator[None]:
        """Close the sandbox unless the exchange is completed.

        Otherwise a later request would read the answer to an earlier one.
        """
        try:
            yield
        # Also at Ctrl-C, for the same reason.
        except BaseException:
            self.close()
            raise

    def _read(self, deadline: float, most_bytes: int) -> object:
        stream = self._launcher.stdout
        assert stream is not None
        poll = select.poll()
        poll.register(stream, select.POLLIN)
        # No data in time and a closed pipe both leave an empty chunk.
        while b"\n" not in self._received:
            chunk = (
                os.read(stream.fileno(), _CHUNK_BYTES)
                if poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                else b""
            )
            self._received += chunk
            if not chunk or len(self._received) > most_bytes:
                raise _broken(self._last_words())
        line, _, self._received = self._received.partition(b"\n")
        try:
            return wire.loads(bytes(line))
        except wire.MalformedError as error:
            raise _broken() from error

    def _last_words(self) -> str:
        self._log.seek(0)
        return tail(self._log.read())

    def close(self) -> None:
        """End the guest agent and the sandbox; return when the launcher has removed it."""
        if self._log.closed:
            return
        for stream in (self._launcher.stdin, self._launcher.stdout):
            assert stream is not None
            stream.close()
        self._launcher.terminate()
        # It takes a while if it is making an image or deleting a sandbox.
        try:
            self._launcher.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._launcher.kill()
            self._launcher.wait()
        self._log.close()


def _broken(last_words: str = "") -> InfrastructureError:
    reason = f": {last_words}" if last_words else ""
    return InfrastructureError(f"a gVisor sandbox died or does not answer{reason}")


class GuestProcess:
    """A confined process within gVisor, reached through the guest agent; implements `Process`."""

    def __init__(self, sandbox: GVisor, number: int, task: Task) -> None:
        self.number = number
        self.cpu_s = task.cpu_s
        self.filtered = True
        self._sandbox = sandbox
        self._most_bytes = task.limits.output_kib << 10
        self._closed = False
        self._end: End | None = None
        self._report: Report | None = None
        self.stdout = b""
        self.stderr = b""

    def run(self, time_s: float) -> End:
        """Let the process run to its end, for at most `time_s` seconds, and stop it."""
        return self._ended(
            self._sandbox.ask(["run", self.number, float(time_s)], time_s, 2 * self._most_bytes)
        )

    def send(self, lines: str) -> None:
        """Queue complete lines, sent as the process reads."""
        if self._end is None:
            self._sandbox.send(["send", self.number, lines])

    def receive(self, time_s: float) -> bytes | End:
        """Return the next line within `time_s` seconds, or the reason why none came.

        A line is never longer than the output cap.
        """
        if self._end is not None:
            return self._end
        match self._sandbox.ask(
            ["receive", self.number, float(time_s)], time_s, 2 * self._most_bytes
        ):
            case ["line", bytes(line)]:
                return line
            case answer:
                return self._ended(answer)

    def _ended(self, answer: object) -> End:
        match answer:
            case [
                "ended",
                "exited" | "time_limit" | "output_limit" | "thread_limit" as end,
                list(report),
                bytes(stdout),
                bytes(stderr),
            ]:
                self._end = end
                self.stdout = stdout
                self.stderr = stderr
                match report:
                    case ["exit" | "signal" as kind, int(number), int(peak_kib), float(cpu_s)]:
                        self._report = Report(
                            kind=kind, number=number, peak_kib=peak_kib, cpu_s=cpu_s
                        )
                        return end
        raise _broken()

    @property
    def report(self) -> Report:
        """The end of the process.

        Raises:
            InfrastructureError: The guest agent died before it reported one.
        """
        if self._report is None:
            raise _broken()
        return self._report

    def stop(self) -> None:
        """Kill the process if it is alive, and collect its remaining output."""
        if self._end is None and not self._closed:
            self._ended(self._sandbox.ask(["stop", self.number], 0, 2 * self._most_bytes))

    def close(self) -> None:
        """Have the guest agent stop and forget the process."""
        if not self._closed:
            self._closed = True
            # A sandbox that died took the process with it.
            with contextlib.suppress(InfrastructureError):
                self._sandbox.send(["close", self.number])
