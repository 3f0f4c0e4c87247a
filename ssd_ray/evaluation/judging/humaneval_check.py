"""HumanEval's form of test, `check(candidate)`, with the check apart from the untrusted program.

- The trusted check runs in a confined process of its own (sandbox/check_role.py).
- Its calls go to the program's process. What the program returns, raises and changes comes back.
- Only data crosses. The program sees arguments, never an expected value.
- Whether an assertion holds is decided where no untrusted code runs.

Reads and writes nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.outcomes import OUTCOMES
from ssd_ray.evaluation.sandbox import Conversation, Execution, Limits, Sandbox, printable
from ssd_ray.schema import Outcome

CHECK_LIMITS = Limits(time_s=30.0, memory_mib=2048, output_kib=65536)
"""Limits of the trusted side. One call with its arguments is its output."""

_CALL, _ANSWERS = b'["call",', (b'["returned",', b'["raised",', b'["awaited",')


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome of one check; `time_s` is the wall time that the program took over all calls."""

    outcome: Outcome
    detail: str
    time_s: float
    peak_bytes: int = 0


class BrokenCheckError(UserError):
    """A check that fails by itself, or asks for what its candidate cannot do.

    `called` says that the program had answered a call before.
    """

    def __init__(self, reason: str, *, called: bool) -> None:
        super().__init__(reason)
        self.called = called


class NoCallError(InfrastructureError):
    """A check that used up its time or memory before it called the program."""


def run_check(
    check: Sequence[str],
    program: Sequence[str],
    entry_points: str,
    limits: Limits,
    sandbox: Sandbox,
) -> Checked:
    """Run a check of a program, both of them source texts that are run in one module each.

    An exception in the check after the first answer is a wrong answer, as in HumanEval. The time
    limit is for all of the program's calls together. Arguments come back with the value, so that
    the output limit is at least that of the check.

    Raises:
        BrokenCheckError: the check fails or passes without a call, or asks for what cannot be done.
        NoCallError: the check's process ended before the program had any part in it.
        InfrastructureError: a sandbox did not come up, or died.
    """
    roomy = dataclasses.replace(limits, output_kib=max(limits.output_kib, CHECK_LIMITS.output_kib))
    with (
        sandbox.converse("check", check, CHECK_LIMITS, entry_point=entry_points) as checker,
        sandbox.converse("objects", program, roomy, entry_point=entry_points) as caller,
    ):
        checked = _Exchange(checker, caller, limits.time_s).run()
        return dataclasses.replace(checked, peak_bytes=caller.peak_bytes)


def try_check(check: Sequence[str], entry_points: str, sandbox: Sandbox) -> None:
    """Run a check up to its first call.

    Raises:
        BrokenCheckError, NoCallError: it does not come to one.
        InfrastructureError: a sandbox did not come up.
    """
    with sandbox.converse("check", check, CHECK_LIMITS, entry_point=entry_points) as checker:
        checker.send_texts(["null"])
        asked = checker.answer_line(CHECK_LIMITS.time_s)
        if not (isinstance(asked.result, bytes) and asked.result.startswith(_CALL)):
            _require_sound(asked, called=False)


def _require_sound(asked: Execution, *, called: bool) -> None:
    """Raise an error if a check has failed by itself; `called` as for BrokenCheckError."""
    match _loaded(asked):
        case ["broken", str(name), str(message)]:
            raise BrokenCheckError(
                f"the check itself fails, before it calls the program: {name}: {message}",
                called=False,
            )
        case ["unable", str(reason)]:
            raise BrokenCheckError(
                f"the check cannot be run apart from the program: {reason}", called=called
            )
    if asked.status == "output_limit":
        reason = f"it calls the program with more than {CHECK_LIMITS.output_kib} KiB"
        raise BrokenCheckError(
            f"the check cannot be run apart from the program: {reason}", called=called
        )
    if asked.status != "ok" and not called:
        raise NoCallError(
            f"the check neither called the program nor ended within {CHECK_LIMITS.time_s:g} s ({asked.status}, {asked.detail})"
        )


class _Exchange:
    """The calls of one check and the program's answers, passed on without being read."""

    def __init__(self, checker: Conversation, caller: Conversation, time_limit_s: float) -> None:
        self._checker, self._caller, self._time_limit_s = checker, caller, time_limit_s
        self._check_left_s = CHECK_LIMITS.time_s
        self._time_s = 0.0
        self._called = False

    def run(self) -> Checked:
        """Pass lines on until the check or the program has come to an end."""
        answer = "null"
        while True:
            self._checker.send_texts([answer])
            asked = self._checker.answer_line(self._check_left_s)
            self._check_left_s -= asked.time_s
            if not isinstance(asked.result, bytes) or not asked.result.startswith(_CALL):
                return self._end(asked)
            self._caller.send_texts([asked.result.decode()])
            execution = self._caller.answer_line(max(0.0, self._time_limit_s - self._time_s))
            self._time_s += execution.time_s
            line = execution.result
            if not isinstance(line, bytes) or not line.startswith(_ANSWERS) or not line.isascii():
                return self._without_answer(execution)
            answer, self._called = line.decode(), True

    def _without_answer(self, execution: Execution) -> Checked:
        """Return the outcome of a program whose last call gave nothing that the check could use."""
        if execution.status != "ok":
            return self._checked(OUTCOMES[execution.status], execution.detail)
        match _loaded(execution):
            case ["unsupported", str(reason)]:
                return self._checked("wrong_answer", f"returned {reason}")
            case ["error", str(name), str(message)]:
                return self._checked(
                    "memory_limit" if name == "MemoryError" else "runtime_error",
                    f"{name}: {message}",
                )
        return self._checked("runtime_error", "a malformed result")

    def _end(self, asked: Execution) -> Checked:
        """Return what the check came to."""
        _require_sound(asked, called=self._called)
        match _loaded(asked):
            case ["passed"]:
                return self._checked("accepted", "")
            case ["failed", str(name), str(message)]:
                return self._checked("wrong_answer", f"{name}: {message}")
            case ["raised", str(reason)]:
                return self._checked("runtime_error", reason)
            case ["forged", str(reason)]:
                return self._checked("runtime_error", f"a malformed result: {reason}")
        return self._checked("wrong_answer", "the check came to no end on the values returned")

    def _checked(self, outcome: Outcome, detail: str) -> Checked:
        return Checked(outcome=outcome, detail=printable(detail)[:300], time_s=self._time_s)


def _loaded(execution: Execution) -> object:
    """Return what a line says, None where there is none or it says nothing."""
    try:
        return wire.loads(execution.result) if isinstance(execution.result, bytes) else None
    except wire.MalformedError:
        return None
