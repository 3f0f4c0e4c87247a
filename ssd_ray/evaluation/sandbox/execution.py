"""What came of a program or of a message to one, judged by evidence from outside of its process. Reads and writes nothing."""

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
from ssd_ray.evaluation.sandbox.child import MOST_THREADS, End, Limits, Process, printable, tail

_SHORTAGE = re.compile(
    r"[\w.]*MemoryError\b|OSError: \[Errno 12\]|RuntimeError: can't start new thread"
)
"""The last line of a program, or of one of its threads, that ended for want of memory."""
Status = Literal[
    "ok", "runtime_error", "time_limit", "memory_limit", "output_limit", "infrastructure_error"
]
_NEAR_LIMIT = 0.9
"""Share of the memory limit that a program killed by a signal must have filled for memory to be blamed."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    r"""What came of a program or a message: `result` is a conversation's answer, `stdout` a program's output, `time_s` wall time.

    `detail` is one printable line for a reader. stdout is decoded as UTF-8, foreign bytes as `\xNN`. `peak_bytes` is the
    resident size, known once the process has ended.
    """

    status: Status
    stdout: str = ""
    result: object = None
    detail: str = ""
    time_s: float = 0.0
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Unsupported:
    """A returned value that cannot leave the sandbox, such as a generator; equal to no expected value."""

    reason: str


def judge(end: End, child: Process, limits: Limits) -> tuple[Status, str]:
    """The status of a process that has ended, by evidence from outside of it, and a detail.

    Of an end with status 0, the detail says whether the last error, of a thread perhaps, was a lack of memory.

    Raises:
        InfrastructureError: the machine killed it, which a program that is filtered cannot bring about by itself.
    """
    if end == "output_limit":
        return "output_limit", f"more than {limits.output_kib} KiB of output"
    if end == "time_limit":
        return "time_limit", f"not finished after {limits.time_s:g} s"
    if end == "thread_limit":
        return "runtime_error", f"more than {MOST_THREADS} threads"
    report, last_line = child.report, tail(child.stderr)
    if report.kind == "signal":
        if report.number == signal.SIGXCPU or (
            report.number == signal.SIGKILL and report.cpu_s >= child.cpu_s
        ):
            return "time_limit", f"more than {child.cpu_s:g} s of CPU time"
        killed_at = f"killed at {report.peak_kib >> 10} MiB of {limits.memory_mib}"
        if report.peak_kib >= _NEAR_LIMIT * limits.memory_mib * 1024:
            return "memory_limit", killed_at
        if report.number == signal.SIGKILL and child.filtered:
            raise InfrastructureError(
                f"{killed_at} by this machine, which is short of memory: give graders more of it"
            )
        return "runtime_error", f"killed by {_signal_name(report.number)}"
    shortage = _shortage(last_line, limits)
    if report.number == 0:
        return "ok", shortage
    if last_line.startswith("MemoryError"):
        return "memory_limit", shortage
    return "runtime_error", last_line or f"exit status {report.number}"


def _shortage(last_line: str, limits: Limits) -> str:
    """Return what a last line on standard error says of memory, empty where it is about something else."""
    match = _SHORTAGE.match(last_line)
    reason = last_line.partition(":")[2].strip() if match else ""
    return (
        f"MemoryError within {limits.memory_mib} MiB" + (f": {reason}" if reason else "")
        if match
        else ""
    )


def _signal_name(number: int) -> str:
    return signal.Signals(number).name if number in signal.valid_signals() else f"signal {number}"


class Conversation:
    """Messages to one confined process and its answers; a context manager, which ends the process."""

    def __init__(self, child: Process, limits: Limits) -> None:
        self._child, self._limits = child, limits
        self._ended: Execution | None = None

    def __enter__(self) -> Conversation:
        """The process is there already."""
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
        """The process's resident size at its largest; ends the process.

        Raises:
            InfrastructureError: the sandbox died under it.
        """
        self._child.stop()
        return self._child.report.peak_kib << 10

    @property
    def shortage(self) -> str:
        """What the process last wrote of a lack of memory, in one of its threads perhaps; ends the process."""
        self._child.stop()
        return _shortage(tail(self._child.stderr), self._limits)

    def ask(self, message: object, time_s: float | None = None) -> Execution:
        """Send a message; `result` of status "ok" is the answer, as the role defines it.

        After any other status the process is dead and there is nothing more to ask.

        Raises:
            InfrastructureError: the sandbox died under the process.
            wire.UnsupportedValueError: the message has no form on the wire.
        """
        return self.ask_text(wire.dumps(message), time_s)

    def ask_text(self, text: str, time_s: float | None = None) -> Execution:
        """As `ask`, with a message that is a text of the wire already."""
        self.send_texts([text])
        return self.answer(time_s)

    def send_texts(self, texts: Iterable[str]) -> None:
        """Send messages, texts of the wire, ahead of their answers; the process may read them as it likes."""
        # What the wire writes is one line; a text of somebody's file may have line ends where JSON may have white space.
        self._child.send("".join(text.replace("\n", " ") + "\n" for text in texts))

    def answer(self, time_s: float | None = None) -> Execution:
        """The answer to the first message that has none yet, as `ask` returns it."""
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
        """As `answer`, but `result` is the line as it came, for another process to read."""
        limit_s = self._limits.time_s if time_s is None else time_s
        began = time.monotonic()
        line = self._child.receive(limit_s)
        taken_s = time.monotonic() - began
        if isinstance(line, bytes):
            return Execution(status="ok", result=line, time_s=taken_s)
        self._child.stop()
        status, detail = judge(line, self._child, self._limits)
        if status == "ok":
            status, detail = "runtime_error", detail or "the program ended before it answered"
        return Execution(status=status, detail=detail, time_s=taken_s)


def call(
    conversation: Conversation, arguments: Sequence[object] | str, time_s: float | None = None
) -> Execution:
    """Have a process of role "calls" call its function; `result` is the value, an `Unsupported` where it cannot leave.

    `arguments` are a list, or the wire text of one.

    Raises:
        InfrastructureError, wire.UnsupportedValueError: as for `Conversation.ask`.
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
