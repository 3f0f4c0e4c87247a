"""The sandbox of a grader: run a program with given input, or exchange messages with one.

- A `Sandbox` owns a zygote. At L4 the zygote runs inside a gVisor kernel.
- Every program gets a fresh process, forked from the zygote and confined.
- A misbehaving program raises nothing: the result is an `Execution` with a status.
- The status `infrastructure_error` means that sandboxes did not start or died in all attempts.
  A program causes it only by asking for more memory than the machine has, or by crashing gVisor.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Literal, TypeVar

from ssd_ray.errors import InfrastructureError, OutsideError, UserError
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.sandbox.execution import Conversation, Execution, judge
from ssd_ray.evaluation.sandbox.gvisor.client import GVisor
from ssd_ray.evaluation.sandbox.levels import Level
from ssd_ray.evaluation.sandbox.process import Limits, Process
from ssd_ray.evaluation.sandbox.spawning import Task, Zygote

Role = Literal["calls", "objects", "check", "lcb"]
Result = TypeVar("Result")

_MOST_CHILDREN = 5000
"""Programs run by one zygote before a fresh one replaces it."""
_ATTEMPTS = 3


class Sandbox:
    """Confined processes on demand; a context manager for one thread.

    Starts nothing before its first program.

    Args:
        floor: The weakest acceptable level.
        level: The level to use, instead of the strongest one of this machine.

    Raises:
        UserError: The system is not Linux, or the machine offers only levels below `floor`.
        InfrastructureError: No sandbox starts at any level.
    """

    def __init__(self, *, floor: str = "L1", level: Level | None = None) -> None:
        self._level = level or best_level(floor)
        if levels.rank(self._level.name) < levels.rank(floor):
            raise OutsideError(
                f"this machine sandboxes programs at {self._level.name} ({self._level.covers}), "
                f"below the floor {floor}: see docs/sandbox.md for what is missing, "
                "or lower the floor for programs that you trust (evaluate.sandbox_floor of a "
                "recipe, --sandbox-floor of files)"
            )
        self._zygote: Zygote | GVisor | None = None
        self._check_sandbox: Sandbox | None = None

    @property
    def level(self) -> str:
        """Name of the level, as recorded in verdicts."""
        return self._level.name

    def __enter__(self) -> Sandbox:
        """Return the sandbox."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and every process of the sandbox; a later program starts a fresh one."""
        for resource in (self._zygote, self._check_sandbox):
            if resource is not None:
                resource.close()
        self._zygote = None
        self._check_sandbox = None

    def run_program(self, code: str, stdin: str, limits: Limits) -> Execution:
        """Run a program as `__main__` with real standard streams, and return its outcome.

        Status "ok" means exit status 0 within the limits.
        """
        try:
            return self._retried(lambda: self._run_once(code, stdin, limits))
        except InfrastructureError as error:
            return Execution(status="infrastructure_error", detail=str(error))

    def _run_once(self, code: str, stdin: str, limits: Limits) -> Execution:
        task = Task(role="program", units=[code], limits=limits, stdin=stdin, cpu_s=limits.time_s)
        with contextlib.closing(self._start(task)) as child:
            began = time.monotonic()
            end = child.run(limits.time_s)
            time_s = time.monotonic() - began
            status, detail = judge(end, child, limits)
            stdout = child.stdout.decode("utf-8", "backslashreplace")
            peak_bytes = child.report.peak_kib << 10
            return Execution(
                status=status, stdout=stdout, detail=detail, time_s=time_s, peak_bytes=peak_bytes
            )

    def converse(
        self,
        role: Role,
        units: Sequence[str],
        limits: Limits,
        *,
        entry_point: str = "",
        cpu_s: float | None = None,
    ) -> Conversation:
        """Start a process that answers messages.

        Args:
            role: Protocol of the messages; the modules of `inside` describe it.
            units: Sources, such as a preamble and the program, compiled at the first message.
            limits: Limits of the process. The time limit holds for each message.
            entry_point: Function of the program, as `definitions.entries` reads it.
            cpu_s: CPU time of all messages together, by default the time limit.

        Raises:
            InfrastructureError: The process does not start, after retries.
        """
        # The process of a trusted check holds expected outputs, and a program in gVisor may read
        # the memory of its neighbors. So at L4 checks run in a separate sandbox without gVisor.
        if self._level.gvisor and role == "check":
            self._check_sandbox = self._check_sandbox or Sandbox(floor="L0")
            return self._check_sandbox.converse(
                role, units, limits, entry_point=entry_point, cpu_s=cpu_s
            )
        task = Task(
            role=role,
            units=units,
            limits=limits,
            entry_point=entry_point,
            cpu_s=cpu_s or limits.time_s,
        )
        return Conversation(self._retried(lambda: self._start(task)), limits)

    def _retried(self, act: Callable[[], Result]) -> Result:
        """Return the result of `act`, retried in a fresh sandbox after a failure of this one."""
        for _ in range(_ATTEMPTS - 1):
            with contextlib.suppress(InfrastructureError):
                return act()
            self.close()
        return act()

    def _start(self, task: Task) -> Process:
        if self._zygote is not None and self._zygote.num_children >= _MOST_CHILDREN:
            self.close()
        if self._zygote is None:
            self._zygote = _launch(self._level)
        return self._zygote.start(task)


def _launch(level: Level) -> Zygote | GVisor:
    return GVisor() if level.gvisor else Zygote(level)


_probing = threading.Lock()


def best_level(floor: str = "L1") -> Level:
    """Return the strongest level at which a sandbox runs a program on this machine.

    The level is found by trial, once per process. L4 is tried only if `floor` is L4,
    because it is more than ten times as slow.

    Raises:
        UserError: The system is not Linux.
        InfrastructureError: No sandbox runs a program at any level.
    """
    if sys.platform != "linux":
        raise UserError(
            f"programs can be graded on Linux only, not on {sys.platform}: "
            "run the grading stage there"
        )
    # One probe at a time: threads of a process would otherwise start a sandbox each.
    with _probing:
        return _probe(floor == levels.L4.name)


@functools.cache
def _probe(gvisor: bool) -> Level:
    denied = ""
    for level in levels.candidates():
        if level.gvisor and not gvisor:
            continue
        with Sandbox(floor="L0", level=level) as sandbox:
            # A zygote that starts is not enough: a program has to run and print.
            execution = sandbox.run_program(
                "import bisect; print(6 * 7)",
                "",
                Limits(time_s=20, memory_mib=512, output_kib=16),
            )
        if execution.stdout == "42\n":
            return level
        denied = f"{level.name}: {execution.detail}"
    raise InfrastructureError(f"no sandbox runs on this machine: {denied}")


def try_levels() -> Iterator[tuple[Level, str]]:
    """Start a sandbox at each level, the strongest first; yield the level and an error.

    The error is empty if a sandbox starts.
    """
    if levels.L4 not in levels.candidates():
        yield levels.L4, "runsc and mkfs.erofs (erofs-utils 1.7 or later) are not on the PATH"
    for level in levels.candidates():
        try:
            _launch(level).close()
            yield level, ""
        except InfrastructureError as error:
            yield level, str(error)
