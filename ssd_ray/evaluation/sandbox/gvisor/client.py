"""A kernel of its own (gVisor) around a zygote: the front that a grader sees, with the interface of spawning.py.

    grader ─ client.py ─ pipes ─> runsc exec (launcher.py) ─> guest_agent.py ─> zygote.py ─ fork ─> the program

Programs and their input go in, what came of them comes out, expected outputs stay here. What comes is bounded and is told by
the relay, whom a program would have to break out of its own walls to reach. Time is kept here too: a relay that does not
answer is killed with its sandbox.
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
from ssd_ray.evaluation.sandbox.child import End, Report, tail
from ssd_ray.evaluation.sandbox.spawning import DeniedError, Task

_START_TIMEOUT_S = 240.0
"""Until the relay is up, the making of an image included."""
_PATIENCE_S = 60.0
"""What a relay may take over the time that its process is given."""
_END_TIMEOUT_S = 60.0
_CHUNK_BYTES = 1 << 16
_MOST_WORDS_BYTES = 1 << 16
"""What an answer may hold beside the bytes of a process."""


class GVisor:
    """A sandbox with a relay in it, made by a keeper, or by another `module` with its arguments.

    Raises:
        DeniedError: none can be made here.
        InfrastructureError: none came up in time.
    """

    def __init__(self, module: Sequence[str] = ()) -> None:
        self.num_children = 0
        self._numbers = itertools.count()
        self._received = bytearray()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        package = str(Path(__file__).parents[4])
        places = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._keeper = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                *(module or ("ssd_ray.evaluation.sandbox.gvisor.launcher", str(os.getpid()))),
            ],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(places)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,
        )
        for stream in (self._keeper.stdin, self._keeper.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)
        try:
            match self._read(time.monotonic() + _START_TIMEOUT_S, _MOST_WORDS_BYTES):
                case ["up"]:
                    return
                case ["denied" | "failed", str(reason)]:
                    raise DeniedError(f"a sandbox at level L4 does not start here: {reason}")
            raise InfrastructureError("a gVisor sandbox did not say that it is up")
        except BaseException:
            self.close()
            raise

    def start(self, task: Task) -> RelayedProcess:
        """A process that is confined and about to compile its sources.

        Raises:
            InfrastructureError: the relay is gone, or could not start it.
        """
        self.num_children += 1
        process = RelayedProcess(self, next(self._numbers), task)
        match self.ask(["start", process.number, dataclasses.asdict(task)], _PATIENCE_S, 0):
            case ["started"]:
                return process
            case ["failed", str(reason)]:
                raise InfrastructureError(f"in a gVisor sandbox: {reason}")
        raise _broken()

    def tell(self, request: list[object], timeout_s: float = _PATIENCE_S) -> None:
        """Send a request that has no answer."""
        stream = self._keeper.stdin
        assert stream is not None
        if stream.closed:
            raise _broken()
        rest, deadline = (
            memoryview(json.dumps(request).encode() + b"\n"),
            time.monotonic() + timeout_s,
        )
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        with self._whole():
            while rest:
                if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                    raise _broken()
                try:
                    rest = rest[os.write(stream.fileno(), rest[:_CHUNK_BYTES]) :]
                except OSError as error:
                    raise _broken() from error

    def ask(self, request: list[object], time_s: float, most_bytes: int) -> object:
        """The answer to a request whose process may take `time_s` seconds and have written `most_bytes`."""
        deadline = time.monotonic() + time_s + _PATIENCE_S
        with self._whole():
            self.tell(request, time_s + _PATIENCE_S)
            return self._read(deadline, 2 * most_bytes + _MOST_WORDS_BYTES)

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """An exchange that ends the sandbox unless it is completed, so that no later request meets its answer."""
        try:
            yield
        except BaseException:
            self.close()
            raise

    def _read(self, deadline: float, most_bytes: int) -> object:
        stream = self._keeper.stdout
        assert stream is not None
        poll = select.poll()
        poll.register(stream, select.POLLIN)
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
        """End the relay and with it the sandbox; return when its keeper has cleared it away."""
        if self._log.closed:
            return
        for stream in (self._keeper.stdin, self._keeper.stdout):
            assert stream is not None
            stream.close()
        self._keeper.terminate()
        try:
            self._keeper.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()
        self._log.close()


def _broken(last_words: str = "") -> InfrastructureError:
    return InfrastructureError(
        f"a gVisor sandbox died or does not answer{': ' * bool(last_words)}{last_words}"
    )


class RelayedProcess:
    """A confined process within, as child.py has it; known by what the relay tells."""

    def __init__(self, sandbox: GVisor, number: int, task: Task) -> None:
        self.number = number
        self.cpu_s, self.filtered = task.cpu_s, True
        self._sandbox, self._most_bytes = sandbox, task.limits.output_kib << 10
        self._closed = False
        self._end: End | None = None
        self._report: Report | None = None
        self.stdout = self.stderr = b""

    def run(self, time_s: float) -> End:
        """Let it run to its end, for at most so long."""
        return self._ended(
            self._sandbox.ask(["run", self.number, float(time_s)], time_s, 2 * self._most_bytes)
        )

    def send(self, lines: str) -> None:
        """Have whole lines sent as the process reads."""
        if self._end is None:
            self._sandbox.tell(["send", self.number, lines])

    def receive(self, time_s: float) -> bytes | End:
        """The next line that comes back within so long, or why none came; never more than the output cap."""
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
                list(told),
                bytes(out),
                bytes(err),
            ]:
                self._end, self.stdout, self.stderr = end, out, err
                match told:
                    case ["exit" | "signal" as kind, int(number), int(peak_kib), float(cpu_s)]:
                        self._report = Report(
                            kind=kind, number=number, peak_kib=peak_kib, cpu_s=cpu_s
                        )
                        return end
        raise _broken()

    @property
    def report(self) -> Report:
        """How the process ended.

        Raises:
            InfrastructureError: the relay did not live to say.
        """
        if self._report is None:
            raise _broken()
        return self._report

    def stop(self) -> None:
        """Kill whatever is left of it."""
        if self._end is None and not self._closed:
            self._ended(self._sandbox.ask(["stop", self.number], 0, 2 * self._most_bytes))

    def close(self) -> None:
        """Have the relay forget it."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(InfrastructureError):  # it went with its sandbox
                self._sandbox.tell(["close", self.number])
