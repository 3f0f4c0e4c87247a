"""HumanEval's form of test, `check(candidate)`, with the check apart from the program.

- The trusted check runs in a confined process of its own (sandbox/inside/check_role.py).
- Its calls go to the program's process. Values, exceptions and changed arguments come back.
- Only data crosses. The program sees arguments, never an expected value.
- Assertions are decided where no untrusted code runs.

Accesses no files.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, OUTCOMES, Result
from ssd_ray.evaluation.sandbox import Conversation, Execution, Limits, Sandbox, printable
from ssd_ray.schema import Outcome

CHECK_LIMITS = Limits(time_s=30.0, memory_mib=2048, output_kib=65536)
"""Limits of the check's process. Its output limit bounds one call with its arguments."""

_CALL = b'["call",'
"""Beginning of a check's line with a call of the program."""
_ANSWERS = (b'["returned",', b'["raised",', b'["awaited",')
"""Beginnings of the program's lines with an answer to a call."""


class BrokenCheckError(UserError):
    """A check with a fault of its own, or with calls beyond the abilities of its candidate.

    `called` is True if the program had answered a call before.
    """

    def __init__(self, reason: str, *, called: bool) -> None:
        super().__init__(reason)
        self.called = called


class NoCallError(InfrastructureError):
    """A check out of time or memory before it called the program."""


def run_check(
    check: Sequence[str],
    program: Sequence[str],
    entry_points: str,
    limits: Limits,
    sandbox: Sandbox,
) -> Result:
    """Run a check against a program. Each consists of source texts and has its own module.

    - An exception in the check after the first answer is a wrong answer, as in HumanEval.
    - The time limit holds for all calls together. `time_s` of the result is their sum.
    - Arguments come back with the value, so the output limit is at least that of the check.

    Raises:
        BrokenCheckError: the check fails or passes without a call, or asks for more than the
            candidate can do.
        NoCallError: the check's process ended before the program had any part in it.
        InfrastructureError: a sandbox did not start, or crashed.
    """
    output_kib = max(limits.output_kib, CHECK_LIMITS.output_kib)
    raised = dataclasses.replace(limits, output_kib=output_kib)
    with (
        sandbox.converse("check", check, CHECK_LIMITS, entry_point=entry_points) as checker,
        sandbox.converse("objects", program, raised, entry_point=entry_points) as caller,
    ):
        result = _Exchange(checker, caller, limits.time_s).run()
        return dataclasses.replace(result, peak_bytes=caller.peak_bytes)


def try_check(check: Sequence[str], entry_points: str, sandbox: Sandbox) -> None:
    """Run a check up to its first call.

    Raises:
        BrokenCheckError, NoCallError: it ends before a call.
        InfrastructureError: a sandbox did not start.
    """
    with sandbox.converse("check", check, CHECK_LIMITS, entry_point=entry_points) as checker:
        checker.send_texts(["null"])
        request = checker.answer_line(CHECK_LIMITS.time_s)
        if not (isinstance(request.result, bytes) and request.result.startswith(_CALL)):
            _require_sound(request, called=False)


def _require_sound(request: Execution, *, called: bool) -> None:
    """Raise an error if a check has failed by itself; `called` as for BrokenCheckError."""
    match _loaded(request):
        case ["broken", str(name), str(message)]:
            raise BrokenCheckError(
                f"the check itself fails, before it calls the program: {name}: {message}",
                called=False,
            )
        case ["unable", str(reason)]:
            raise BrokenCheckError(
                f"the check cannot be run apart from the program: {reason}", called=called
            )
    if request.status == "output_limit":
        reason = f"it calls the program with more than {CHECK_LIMITS.output_kib} KiB"
        raise BrokenCheckError(
            f"the check cannot be run apart from the program: {reason}", called=called
        )
    if request.status != "ok" and not called:
        raise NoCallError(
            f"the check neither called the program nor ended within {CHECK_LIMITS.time_s:g} s "
            f"({request.status}, {request.detail})"
        )


class _Exchange:
    """Calls of one check and answers of the program, passed on without being parsed."""

    def __init__(self, checker: Conversation, caller: Conversation, time_limit_s: float) -> None:
        self._checker = checker
        self._caller = caller
        self._time_limit_s = time_limit_s
        self._check_left_s = CHECK_LIMITS.time_s
        self._time_s = 0.0
        self._called = False

    def run(self) -> Result:
        """Pass lines on until the check or the program ends."""
        answer = "null"
        while True:
            self._checker.send_texts([answer])
            request = self._checker.answer_line(self._check_left_s)
            # The check has its own time, over all of its parts between calls.
            self._check_left_s -= request.time_s
            if not isinstance(request.result, bytes) or not request.result.startswith(_CALL):
                return self._end(request)
            self._caller.send_texts([request.result.decode()])
            execution = self._caller.answer_line(max(0.0, self._time_limit_s - self._time_s))
            self._time_s += execution.time_s
            line = execution.result
            # The program wrote this line. Only the beginning is looked at here: the check's
            # process, confined as well, parses the rest.
            if not isinstance(line, bytes) or not line.startswith(_ANSWERS) or not line.isascii():
                return self._without_answer(execution)
            answer = line.decode()
            self._called = True

    def _without_answer(self, execution: Execution) -> Result:
        """Return the result of a program whose last call gave no usable answer."""
        if execution.status != "ok":
            return self._result(OUTCOMES[execution.status], execution.detail)
        match _loaded(execution):
            case ["unsupported", str(reason)]:
                return self._result("wrong_answer", f"returned {reason}")
            case ["error", str(name), str(message)]:
                return self._result(
                    "memory_limit" if name == "MemoryError" else "runtime_error",
                    f"{name}: {message}",
                )
        return self._result("runtime_error", "a malformed result")

    def _end(self, request: Execution) -> Result:
        """Return the result by the last line of the check."""
        _require_sound(request, called=self._called)
        match _loaded(request):
            case ["passed"]:
                return self._result("accepted", "")
            case ["failed", str(name), str(message)]:
                return self._result("wrong_answer", f"{name}: {message}")
            case ["raised", str(reason)]:
                return self._result("runtime_error", reason)
            case ["forged", str(reason)]:
                return self._result("runtime_error", f"a malformed result: {reason}")
        return self._result("wrong_answer", "the check did not end on the values returned")

    def _result(self, outcome: Outcome, detail: str) -> Result:
        return Result(
            outcome=outcome,
            detail=printable(detail)[:MAX_DETAIL],
            num_passed=int(outcome == "accepted"),
            time_s=self._time_s,
        )


def _loaded(execution: Execution) -> object:
    """Return the value in a line, None if there is no line or it is malformed."""
    try:
        return wire.loads(execution.result) if isinstance(execution.result, bytes) else None
    except wire.MalformedError:
        return None
