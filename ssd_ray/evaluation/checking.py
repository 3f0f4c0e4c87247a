"""HumanEval's form of test, `check(candidate)`, with the assertions on one side and the untrusted program on the other.

The trusted check runs in a confined process of its own; its `candidate` sends the arguments out, this module passes them
to the program's process and the value back. Only data crosses: the program sees arguments, never an expected value, and
whether an assertion holds is decided where no untrusted code runs. Reads and writes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.outcomes import OUTCOMES
from ssd_ray.evaluation.sandbox import Conversation, Limits, Sandbox, Unsupported, call, printable
from ssd_ray.schema import Outcome

CHECK_LIMITS = Limits(time_s=30.0, memory_mib=2048, output_kib=16384)
"""What the trusted side may use, apart from the program's own limits."""


@dataclass(frozen=True, kw_only=True)
class Checked:
    """The outcome of one check; `time_s` is the wall time that the program took over all calls."""

    outcome: Outcome
    detail: str
    time_s: float
    peak_bytes: int = 0


class BrokenCheckError(UserError):
    """A check that fails by itself, whatever the program."""


def run_check(check: Sequence[str], program: Sequence[str], entry_point: str, limits: Limits, sandbox: Sandbox) -> Checked:
    """Run a check of a program: both are source texts, compiled one after another into one module each.

    An exception in the check after the program has returned a value is a wrong answer, as in HumanEval. The time limit is
    for all of the program's calls together.

    Raises:
        BrokenCheckError: the check fails or passes without ever calling its candidate.
        InfrastructureError: a sandbox did not come up, or the check's process ended before the program had any part in it.
    """
    with (
        sandbox.converse("check", check, CHECK_LIMITS) as checker,
        sandbox.converse("calls", program, limits, entry_point=entry_point) as caller,
    ):
        checked = _converse(checker, caller, limits)
        return Checked(outcome=checked.outcome, detail=checked.detail, time_s=checked.time_s, peak_bytes=caller.peak_bytes)


def _converse(checker: Conversation, caller: Conversation, limits: Limits) -> Checked:
    time_s, called, check_left_s = 0.0, False, CHECK_LIMITS.time_s
    value: object = None
    while True:
        said = checker.ask([value], check_left_s)
        check_left_s -= said.time_s
        match said.result:
            case ["call", *arguments]:
                called = True
                execution = call(caller, arguments, max(0.0, limits.time_s - time_s))
                time_s += execution.time_s
                if execution.status != "ok":
                    return Checked(outcome=OUTCOMES[execution.status], detail=execution.detail, time_s=time_s)
                if isinstance(execution.result, Unsupported):
                    return Checked(outcome="wrong_answer", detail=f"returned {execution.result.reason}", time_s=time_s)
                value = execution.result
            case ["passed"]:
                return Checked(outcome="accepted", detail="", time_s=time_s)
            case ["failed", str(name), str(message)]:
                return Checked(outcome="wrong_answer", detail=printable(f"{name}: {message}")[:300], time_s=time_s)
            case ["broken", str(name), str(message)]:
                raise BrokenCheckError(f"the check itself fails, before it calls the program: {name}: {message}")
            case _ if not called:
                raise InfrastructureError(f"the check neither called the program nor ended within {CHECK_LIMITS.time_s:g} s")
            case _:
                return Checked(outcome="wrong_answer", detail="the check came to no end on the values returned", time_s=time_s)
