"""Untrusted programs, run: a whole program on standard input, or one function call by call, with what came of it.

A program that misbehaves is data, an `Execution` with a status. Only a sandbox that does not come up is an
`infrastructure_error`; that is decided before the program is compiled, so no program can choose it. Runs on Linux only;
safe in any thread. Reads and writes nothing outside the process's private directory.
"""

from __future__ import annotations

import functools
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.process import Child, DeniedError, End, Isolation, Limits, printable, tail
from ssd_ray.evaluation.sandbox import wire

__all__ = ["Execution", "FunctionCaller", "Isolation", "Limits", "Unsupported", "isolation", "network_isolated", "run_program"]

Status = Literal["ok", "runtime_error", "time_limit", "memory_limit", "output_limit", "infrastructure_error"]

_LEVELS = (
    Isolation(network=True, processes=True, files=True),
    Isolation(network=True, processes=True, files=False),
    Isolation(network=False, processes=False, files=False),
)
_NEAR_LIMIT = 0.9
"""Share of the memory limit that a program killed by a signal must have filled for memory to be blamed."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    r"""What came of a program or a call: `result` is a call's value, `stdout` a program's output, `time_s` wall time.

    `detail` is one printable line for a reader. stdout is decoded as UTF-8, foreign bytes as `\xNN`.
    """

    status: Status
    stdout: str = ""
    result: object = None
    detail: str = ""
    time_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A returned value that cannot leave the sandbox, such as a generator; equal to no expected value."""

    reason: str


def isolation() -> Isolation:
    """What programs are kept from on this machine: the highest level at which a sandbox starts, found once a process.

    Raises:
        UserError: this is not Linux.
        InfrastructureError: no sandbox starts at any level, or one fails for another reason than being denied.
    """
    if sys.platform != "linux":
        raise UserError(f"programs can be graded on Linux only, not on {sys.platform}: run the grading stage there")
    return _probe()


@functools.cache
def _probe() -> Isolation:
    for level in _LEVELS:
        child = Child("program", [""], Limits(time_s=10, memory_mib=256, output_kib=16), level)
        try:
            child.wait_ready()
            child.run(10)
            return level
        except DeniedError:
            continue
        finally:
            child.close()
    raise AssertionError("the last level asks for nothing that can be denied")


def network_isolated() -> bool:
    """Whether programs on this machine are without any network, as `isolation` found."""
    return isolation().network


def run_program(code: str, stdin: str, limits: Limits) -> Execution:
    """Run a program as `__main__` with real standard streams; "ok" means that it ended with exit status 0 within its limits.

    Raises:
        UserError: this is not Linux.
    """
    try:
        child = Child("program", [code], limits, isolation(), stdin=stdin)
    except InfrastructureError as error:
        return Execution(status="infrastructure_error", detail=str(error))
    try:
        child.wait_ready()
        began = time.monotonic()
        end = child.run(limits.time_s)
        time_s = time.monotonic() - began
        status, detail = _judge(end, child, limits)
        return Execution(status=status, stdout=child.stdout.decode("utf-8", "backslashreplace"), detail=detail, time_s=time_s)
    except InfrastructureError as error:
        return Execution(status="infrastructure_error", detail=str(error))
    finally:
        child.close()


def _judge(end: End, child: Child, limits: Limits) -> tuple[Status, str]:
    """The status of a program that has ended, by evidence from outside of it."""
    if end == "output_limit":
        return "output_limit", f"more than {limits.output_kib} KiB of output"
    if end == "time_limit":
        return "time_limit", f"not finished after {limits.time_s:g} s"
    report, last_line = child.report, tail(child.stderr)
    if report is None:
        return "runtime_error", "killed together with its guard"
    if report.kind == "signal":
        if report.cpu_s >= limits.cpu_s:
            return "time_limit", f"more than {limits.cpu_s} s of CPU time"
        if report.peak_kib >= _NEAR_LIMIT * limits.memory_mib * 1024:
            return "memory_limit", f"killed at {report.peak_kib >> 10} MiB of {limits.memory_mib}"
        return "runtime_error", f"killed by {_signal_name(report.number)}"
    if report.number == 0:
        return "ok", ""
    if last_line.startswith("MemoryError"):
        return "memory_limit", f"MemoryError within {limits.memory_mib} MiB"
    return "runtime_error", last_line or f"exit status {report.number}"


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"


class FunctionCaller:
    """A context in which one function of a program is called, always in the same confined process.

    The units (a preamble, the program) are compiled one by one into one module. `entry_point` names a function of it, or a
    method of its class `Solution`. The time limit is for everything that happens while calls are awaited, together.
    """

    def __init__(self, units: Sequence[str], entry_point: str, limits: Limits) -> None:
        self._units, self._entry_point, self._limits = tuple(units), entry_point, limits
        self._child: Child | None = None
        self._ready = False
        self._left_s = limits.time_s

    def __enter__(self) -> FunctionCaller:
        """Start the process, without waiting for it: errors come with the first call.

        Raises:
            InfrastructureError: no process can be started.
            UserError: this is not Linux.
        """
        self._child = Child("function", self._units, self._limits, isolation(), entry_point=self._entry_point)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._child is not None:
            self._child.close()

    def call(self, args: Sequence[object]) -> Execution:
        """Call the function; the value of status "ok" is `result`, an `Unsupported` where it cannot leave the sandbox.

        After any other status the process is dead and there is nothing more to call.

        Raises:
            InfrastructureError: the sandbox did not come up.
            wire.UnsupportedValueError: an argument has no form on the wire.
        """
        assert self._child is not None, "call within the context"
        message = wire.dumps(list(args))
        if not self._ready:
            self._child.wait_ready()
            self._ready = True
        began = time.monotonic()
        line = self._child.exchange(message, self._left_s)
        time_s = time.monotonic() - began
        self._left_s -= time_s
        if isinstance(line, bytes):
            execution = _read_reply(line, time_s)
        else:
            self._child.stop()
            status, detail = _judge(line, self._child, self._limits)
            if status == "ok":
                status, detail = "runtime_error", "the program ended before the function returned"
            execution = Execution(status=status, detail=detail, time_s=time_s)
        if execution.status != "ok":
            self._child.stop()
        return execution


def _read_reply(line: bytes, time_s: float) -> Execution:
    """An answer on the result channel; whatever is wrong with it is the program's doing."""
    try:
        reply = wire.loads(line)
    except wire.MalformedError as error:
        return Execution(status="runtime_error", detail=f"a malformed result: {printable(str(error))}", time_s=time_s)
    match reply:
        case {"value": value}:
            return Execution(status="ok", result=value, time_s=time_s)
        case {"unsupported": str(reason)}:
            return Execution(status="ok", result=Unsupported(reason=printable(reason)[:300]), time_s=time_s)
        case {"error": [str(name), str(message)]}:
            status: Status = "memory_limit" if name == "MemoryError" else "runtime_error"
            return Execution(status=status, detail=printable(f"{name}: {message}")[:300], time_s=time_s)
    return Execution(status="runtime_error", detail="a malformed result", time_s=time_s)
