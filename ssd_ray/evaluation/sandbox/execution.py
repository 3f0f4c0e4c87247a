"""Outcomes of programs and of messages to them, judged by evidence from outside the process.

- `judge` turns the end of a process into a status.
- A `Conversation` sends messages to one process and returns an `Execution` for each answer.
- `call` has a process call its function with arguments.
"""

from __future__ import annotations

import dataclasses
import re
import signal
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.sandbox.child import printable, tail
from ssd_ray.evaluation.sandbox.process import MOST_THREADS, End, Limits, Process

_SHORTAGE = re.compile(
    r"[\w.]*MemoryError\b|OSError: \[Errno 12\]|RuntimeError: can't start new thread"
)
"""The last line on standard error after a shortage of memory, in any thread of a program."""
Status = Literal[
    "ok", "runtime_error", "time_limit", "memory_limit", "output_limit", "infrastructure_error"
]
_NEAR_LIMIT = 0.9
"""Share of the memory limit. A program killed by a signal above it counts as out of memory."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """The outcome of a program or of one message."""

    status: Status
    stdout: str = ""
    r"""A program's standard output as UTF-8, other bytes as `\xNN`."""
    result: object = None
    """The answer to a message."""
    detail: str = ""
    """One printable line for a reader."""
    time_s: float = 0.0
    """Wall time."""
    peak_bytes: int = 0
    """Peak resident size of a program; 0 for a message."""


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A returned value that cannot leave the sandbox; equal to no expected value."""

    reason: str


def judge(end: End, child: Process, limits: Limits) -> tuple[Status, str]:
    """Return the status of a process after its end, and a detail for a reader.

    With status "ok", the detail is empty unless the last error, in any thread, was a shortage of
    memory.

    Raises:
        InfrastructureError: The kernel killed a filtered process, which cannot send itself SIGKILL.
    """
    if end == "output_limit":
        return "output_limit", f"more than {limits.output_kib} KiB of output"
    if end == "time_limit":
        return "time_limit", f"not finished after {limits.time_s:g} s"
    if end == "thread_limit":
        return "runtime_error", f"more than {MOST_THREADS} threads"
    report = child.report
    last_line = tail(child.stderr)
    if report.kind == "signal":
        if report.number == signal.SIGXCPU or (
            report.number == signal.SIGKILL and report.cpu_s >= child.cpu_s
        ):
            return "time_limit", f"more than {child.cpu_s:g} s of CPU time"
        killed_at = f"killed at {report.peak_kib >> 10} MiB of {limits.memory_mib}"
        if report.peak_kib >= _NEAR_LIMIT * limits.memory_mib * 1024:
            return "memory_limit", killed_at
        # A filtered program cannot send itself SIGKILL, and the grader did not: the OOM killer did.
        if report.number == signal.SIGKILL and child.filtered:
            raise InfrastructureError(
                f"{killed_at} by this machine, which is short of memory: give graders more of it"
            )
        return "runtime_error", f"killed by {_signal_name(report.number)}"
    shortage = _shortage(last_line, limits)
    # A thread may have died of it while the program went on and ended well.
    if report.number == 0:
        return "ok", shortage
    if last_line.startswith("MemoryError"):
        return "memory_limit", shortage
    return "runtime_error", last_line or f"exit status {report.number}"


def _shortage(last_line: str, limits: Limits) -> str:
    """Return a detail if the last line on standard error is a shortage of memory, else ""."""
    if not _SHORTAGE.match(last_line):
        return ""
    reason = last_line.partition(":")[2].strip()
    detail = f"MemoryError within {limits.memory_mib} MiB"
    return f"{detail}: {reason}" if reason else detail


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"


class Conversation:
    """Messages to one confined process and its answers; a context manager that ends the process."""

    def __init__(self, child: Process, limits: Limits) -> None:
        self._child = child
        self._limits = limits

    def __enter__(self) -> Conversation:
        """Return the conversation; its process has started already."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._child.close()

    @property
    def peak_bytes(self) -> int:
        """Peak resident size of the process; ends the process.

        Raises:
            InfrastructureError: The sandbox died before it reported the end.
        """
        self._child.stop()
        return self._child.report.peak_kib << 10

    @property
    def shortage(self) -> str:
        """Detail of a shortage of memory in any thread, empty without one; ends the process."""
        self._child.stop()
        return _shortage(tail(self._child.stderr), self._limits)

    def ask(self, message: object, time_s: float | None = None) -> Execution:
        """Send a message and return its outcome; `result` is the answer as the role defines it.

        After any status but "ok" the process is dead and takes no more messages.

        Raises:
            InfrastructureError: The sandbox died under the process.
            wire.UnsupportedValueError: The message has no form on the wire.
        """
        return self.ask_text(wire.dumps(message), time_s)

    def ask_text(self, text: str, time_s: float | None = None) -> Execution:
        """Send a message given as wire text, as `ask` does."""
        self.send_texts([text])
        return self.answer(time_s)

    def send_texts(self, texts: Iterable[str]) -> None:
        """Send messages given as wire text, without waiting for their answers."""
        # The wire writes one line. A text of a user's file may have line ends as white space.
        self._child.send("".join(text.replace("\n", " ") + "\n" for text in texts))

    def answer(self, time_s: float | None = None) -> Execution:
        """Return the outcome of the first message without an answer, as `ask` does."""
        execution = self.answer_line(time_s)
        if not isinstance(execution.result, bytes):
            return execution
        try:
            return dataclasses.replace(execution, result=wire.loads(execution.result))
        except wire.MalformedError as error:
            self._child.stop()
            detail = f"a malformed result: {printable(str(error))}"
            return Execution(status="runtime_error", detail=detail, time_s=execution.time_s)

    def answer_line(self, time_s: float | None = None) -> Execution:
        """Return an outcome as `answer` does, with the line as `result`, not parsed.

        The grader passes such lines on from one process to another.
        """
        limit_s = self._limits.time_s if time_s is None else time_s
        began = time.monotonic()
        line = self._child.receive(limit_s)
        time_s = time.monotonic() - began
        if isinstance(line, bytes):
            return Execution(status="ok", result=line, time_s=time_s)
        self._child.stop()
        status, detail = judge(line, self._child, self._limits)
        if status == "ok":
            status = "runtime_error"
            detail = detail or "the program ended before it answered"
        return Execution(status=status, detail=detail, time_s=time_s)


def call(
    conversation: Conversation, arguments: Sequence[object] | str, time_s: float | None = None
) -> Execution:
    """Have a process of role "calls" call its function, and return the outcome.

    Args:
        conversation: The process.
        arguments: Positional arguments, or the wire text of a list of them.
        time_s: Wall time, instead of the limit of the process.

    Returns:
        With status "ok", `result` is the value, or `Unsupported` if it cannot cross.

    Raises:
        InfrastructureError, wire.UnsupportedValueError: As for `Conversation.ask`.
    """
    text = arguments if isinstance(arguments, str) else wire.dumps(list(arguments))
    execution = conversation.ask_text(text, time_s)
    if execution.status != "ok":
        return execution
    match execution.result:
        case ["value", value]:
            return Execution(status="ok", result=value, time_s=execution.time_s)
        case ["unsupported", str(reason)]:
            return Execution(
                status="ok",
                result=Unsupported(reason=printable(reason)[:300]),
                time_s=execution.time_s,
            )
        case ["error", str(name), str(message)]:
            status: Status = "memory_limit" if name == "MemoryError" else "runtime_error"
            return Execution(
                status=status, detail=printable(f"{name}: {message}")[:300], time_s=execution.time_s
            )
    return Execution(status="runtime_error", detail="a malformed result", time_s=execution.time_s)
