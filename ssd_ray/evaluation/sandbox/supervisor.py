"""Untrusted programs, run: a whole program on standard input, or a conversation with one, with what came of it.

A `Sandbox` owns a zygote, or a kernel of its own with one in it, which forks one confined process for every program. A
program that misbehaves is data, an `Execution` with a status. Only a sandbox that does not come up, or dies under its program,
is an `infrastructure_error`, after retries in a fresh sandbox; no program decides that. Used by one thread. Writes nothing.
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

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.sandbox import levels
from ssd_ray.evaluation.sandbox.child import Limits, Process
from ssd_ray.evaluation.sandbox.execution import Conversation, Execution, judge
from ssd_ray.evaluation.sandbox.gvisor.client import GVisor
from ssd_ray.evaluation.sandbox.levels import Level
from ssd_ray.evaluation.sandbox.spawning import DeniedError, Task, Zygote

Role = Literal["calls", "objects", "check", "lcb"]
Result = TypeVar("Result")

_MOST_CHILDREN = 5000
"""Programs that one zygote forks before a fresh one takes over."""
_ATTEMPTS = 3


class Sandbox:
    """Confined processes on demand; a context manager, for one thread.

    Raises:
        UserError: this is not Linux, or the machine offers a level below `floor`.
        InfrastructureError: no sandbox starts at all.
    """

    def __init__(self, *, floor: str = "L1", level: Level | None = None) -> None:
        self._level = level or best_level(floor)
        if levels.rank(self._level.name) < levels.rank(floor):
            raise UserError(
                f"this machine sandboxes programs at {self._level.name} ({self._level.covers}), below the floor {floor}: "
                "see docs/sandbox.md for what is missing, or lower evaluate.sandbox_floor for programs that you trust"
            )
        self._zygote: Zygote | GVisor | None = None
        self._beside: Sandbox | None = None

    @property
    def level(self) -> str:
        """The name of the level, as recorded in verdicts."""
        return self._level.name

    def __enter__(self) -> Sandbox:
        """Nothing starts before the first program."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the zygote and with it everything in the sandbox."""
        for held in (self._zygote, self._beside):
            if held is not None:
                held.close()
        self._zygote = self._beside = None

    def run_program(self, code: str, stdin: str, limits: Limits) -> Execution:
        """Run a program as `__main__` with real standard streams; "ok" means that it ended with exit status 0 in its limits."""
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
        """Start a process that answers messages; the units (a preamble, the program) are compiled with its first one.

        `cpu_s` is the CPU time that all messages together may take; the time limit's by default. A trusted check, which names
        expected outputs, never goes where programs may see into other processes: beside gVisor it has a sandbox to itself.

        Raises:
            InfrastructureError: it does not start, after retries.
        """
        if self._level.gvisor and role == "check":
            self._beside = self._beside or Sandbox(floor="L0")
            return self._beside.converse(role, units, limits, entry_point=entry_point, cpu_s=cpu_s)
        task = Task(
            role=role,
            units=units,
            limits=limits,
            entry_point=entry_point,
            cpu_s=cpu_s or limits.time_s,
        )
        return Conversation(self._retried(lambda: self._start(task)), limits)

    def _retried(self, act: Callable[[], Result]) -> Result:
        """The act's result, tried again in a fresh sandbox when this one failed."""
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
    """The strongest level at which a sandbox starts on this machine and runs a program, found once a process.

    L4 starts slowly and runs programs several times slower than the others: it is tried only where the floor asks for it.

    Raises:
        UserError: this is not Linux.
        InfrastructureError: no sandbox starts at any level, or one fails for another reason than being denied.
    """
    if sys.platform != "linux":
        raise UserError(
            f"programs can be graded on Linux only, not on {sys.platform}: run the grading stage there"
        )
    with _probing:
        return _probe(floor == levels.L4.name)


@functools.cache
def _probe(gvisor: bool) -> Level:
    denied = ""
    for level in levels.candidates():
        if level.gvisor and not gvisor:
            continue
        try:
            with Sandbox(floor="L0", level=level) as sandbox:
                execution = sandbox.run_program(
                    "import bisect; print(6 * 7)",
                    "",
                    Limits(time_s=20, memory_mib=512, output_kib=16),
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
    if levels.L4 not in levels.candidates():
        yield levels.L4, "runsc and mkfs.erofs (erofs-utils 1.7 or later) are not on the PATH"
    for level in levels.candidates():
        try:
            _launch(level).close()
            yield level, ""
        except InfrastructureError as error:
            yield level, str(error)
