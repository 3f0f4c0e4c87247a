"""HumanEval's form of test, `check(candidate)`, with the assertions on one side and the untrusted program on the other.

The trusted check runs in a confined process of its own; its `candidate` sends the arguments out, this module passes them
to the program's process and the value back. Only data crosses: the program sees arguments, never an expected value, and
whether an assertion holds is decided where no untrusted code runs. Reads and writes nothing.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.sandbox import wire
from ssd_ray.evaluation.execution import FunctionCaller, Limits, Status, Unsupported, isolation
from ssd_ray.evaluation.process import Child, printable
from ssd_ray.schema import Outcome

CHECK_LIMITS = Limits(time_s=30.0, memory_mib=2048, output_kib=16384)
"""What the trusted side may use, apart from the program's own limits."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome of one check; `time_s` is the wall time that the program took over all calls."""

    outcome: Outcome
    detail: str
    time_s: float


class BrokenCheckError(UserError):
    """A check that fails by itself, whatever the program."""


def run_check(check: Sequence[str], program: Sequence[str], entry_point: str, limits: Limits) -> Checked:
    """Run a check of a program: both are source texts, compiled one after another into one module each.

    An exception in the check after the program has returned a value is a wrong answer, as in HumanEval.

    Raises:
        BrokenCheckError: the check fails or passes without ever calling its candidate.
        InfrastructureError: a sandbox did not come up, or the check's process ended before the program had any part in it.
    """
    with contextlib.ExitStack() as stack:
        checker = Child("check", check, CHECK_LIMITS, isolation())
        stack.callback(checker.close)
        caller = stack.enter_context(FunctionCaller(program, entry_point, limits))
        checker.wait_ready()
        return _converse(_Checker(checker), caller)


class _Checker:
    """The trusted side: give it the last value, get its next message."""

    def __init__(self, child: Child) -> None:
        self._child, self._left_s, self._value = child, CHECK_LIMITS.time_s, wire.dumps(None)

    def proceed(self) -> dict[str, object] | None:
        """The next message; None where the check's process ended or ran out of its limits."""
        began = time.monotonic()
        line = self._child.exchange(self._value, self._left_s)
        self._left_s -= time.monotonic() - began
        message = wire.loads(line) if isinstance(line, bytes) else None
        if message is None or isinstance(message, dict):
            return message
        raise InfrastructureError("a check's process wrote something that is no message")

    def give(self, value: object) -> None:
        """Keep the value of the last call for the next step."""
        self._value = wire.dumps(value)


def _converse(checker: _Checker, caller: FunctionCaller) -> Checked:
    time_s, called = 0.0, False
    while True:
        match checker.proceed():
            case {"call": tuple(args)}:
                called = True
                execution = caller.call(args)
                time_s += execution.time_s
                if execution.status != "ok":
                    return Checked(outcome=OUTCOMES[execution.status], detail=execution.detail, time_s=time_s)
                if isinstance(execution.result, Unsupported):
                    return Checked(outcome="wrong_answer", detail=f"returned {execution.result.reason}", time_s=time_s)
                checker.give(execution.result)
            case {"passed": _}:
                return Checked(outcome="accepted", detail="", time_s=time_s)
            case {"failed": [str(name), str(message)]}:
                return Checked(outcome="wrong_answer", detail=printable(f"{name}: {message}")[:300], time_s=time_s)
            case {"broken": [str(name), str(message)]}:
                raise BrokenCheckError(f"the check itself fails, before it calls the program: {name}: {message}")
            case _ if not called:
                raise InfrastructureError(f"the check neither called the program nor ended within {CHECK_LIMITS.time_s:g} s")
            case _:
                return Checked(outcome="wrong_answer", detail="the check came to no end on the values returned", time_s=time_s)


OUTCOMES: dict[Status, Outcome] = {
    "runtime_error": "runtime_error",
    "time_limit": "time_limit",
    "memory_limit": "memory_limit",
    "output_limit": "output_limit",
    "infrastructure_error": "infrastructure_error",
}
"""The outcome that each status but "ok" means."""
