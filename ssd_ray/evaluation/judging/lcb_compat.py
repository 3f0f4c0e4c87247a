r"""The `lcb-compat` profile: LiveCodeBench's verdicts, bug for bug, with the answers out of the program's reach.

One confined process runs all tests of a program one after another (sandbox/lcb_role.py), the first failure ends it, and
what it printed or returned is compared here by the official rules. Described from LiveCodeBench 28fef95 of 16 July 2025
(lcb_official.py), lcb_runner/evaluation/testing_util.py and compute_code_generation_metrics.py. Reads and writes nothing.

Two printed texts agree when both, stripped and split at `\n`, have as many lines and every pair of stripped lines is the
same text or, split at whitespace, the same list of Decimals: `6.0` is `6` and `Infinity` is `inf`, but 0.30000000000000004
is not 0.3 and NaN is nothing. A returned value passes when Python's `==` finds it equal, the outermost tuple as a list.

The official codes become our words: -4 (the program does not load, or raises) `runtime_error`, -3 `time_limit`, -2
`wrong_answer`, and -5 (its process died or outlived its time) what became of the process; `detail` starts with the code. It
goes on with the official stand-in for sys.stdin where that gave the program what no file would have given.

Where this profile differs, on purpose:

- An object whose `__eq__` claims equality is not believed; a number of a foreign type counts as the number that it is.
- A problem without tests is refused; officially every program passes it.
- Memory and output are bounded by the limits (`memory_limit`, `output_limit`); officially they are not.
- What only forged a verdict officially (reading the answers, patching the grader) finds nothing here.
"""

from __future__ import annotations

import dataclasses
import functools
import time

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.comparison import first_difference, same, shown
from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Graded
from ssd_ray.evaluation.judging.output_limit import with_room, with_room_for_replies
from ssd_ray.evaluation.sandbox import Conversation, Execution, Limits, Sandbox, printable
from ssd_ray.evaluation.sandbox.inside import lcb_stdin
from ssd_ray.lcb_official import with_reason
from ssd_ray.schema import Outcome, Problem
from ssd_ray.wire import restored

_ATTEMPTS = 2
"""A program is graded from its first test once more where the sandbox died under it."""
_GRACE_S = 5
"""What the official grader waits beyond one second more than the limit for every test."""
_LOADING = -1
"""The index of what comes before the first test."""


def grade_lcb(problem: Problem, code: str, limits: Limits, sandbox: Sandbox) -> Graded:
    """Grade a program as the official grader does; `limits.time_s` is for each test, cut to whole seconds as officially.

    `failed_test` is -1 where the program did not load, so that no test was run. All tests together have
    (whole seconds + 1) · number of tests + 5 s, by the clock outside.

    Raises:
        UserError: the problem cannot be graded: no tests, tests that are not on the wire, a kind or comparison that
            LiveCodeBench does not have, or less than a second for a test. Never a pass, nothing a program can bring about.
    """
    _require_gradable(problem, limits)
    limit_s = int(limits.time_s)
    deadline_s = (limit_s + 1) * len(problem.tests) + _GRACE_S
    entry_point = (
        (problem.entry_point or "").rpartition("().")[2] if problem.kind == "function" else ""
    )
    room = (
        with_room_for_replies
        if problem.kind == "stdin"
        else functools.partial(with_room, problem=problem)
    )
    whole = dataclasses.replace(room(limits, tests=problem.tests), time_s=float(deadline_s))
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            with sandbox.converse("lcb", [code], whole, entry_point=entry_point) as conversation:
                return _grade(problem, conversation, limit_s, deadline_s)
        except InfrastructureError as error:
            reason = str(error)
    return Graded(
        outcome="infrastructure_error", num_passed=0, time_s=0.0, detail=reason[:MAX_DETAIL]
    )


def _require_gradable(problem: Problem, limits: Limits) -> None:
    name = f"problem {problem.problem_id}"
    if not problem.tests:
        raise UserError(
            f"{name} has no tests, so no answer to it can be graded: add tests or leave it out"
        )
    if problem.kind not in ("stdin", "function") or problem.comparison not in ("value", "lcb"):
        what = f"is of kind {problem.kind} with comparison {problem.comparison}"
        raise UserError(
            f"{name} {what}, which LiveCodeBench does not have: grade it under the profile strict"
        )
    if problem.kind == "function" and not problem.entry_point:
        raise UserError(f"{name} is of kind function and needs an entry_point")
    if limits.time_s < 1:
        raise UserError(
            f"the profile lcb-compat takes whole seconds, not timeout_s={limits.time_s:g}: give at least 1"
        )


def _grade(problem: Problem, conversation: Conversation, limit_s: int, deadline_s: int) -> Graded:
    """Have the program loaded and all inputs sent, then judge answer after answer up to the first that is not passed."""
    ends = time.monotonic() + deadline_s
    time_s = 0.0
    conversation.send_texts(
        [str(limit_s), *(_question(problem, index) for index in range(len(problem.tests)))]
    )
    for index in range(_LOADING, len(problem.tests)):
        execution = conversation.answer(max(0.0, ends - time.monotonic()))
        time_s += execution.time_s
        outcome, detail = _judge(problem, index, execution)
        if outcome == "wrong_answer" and (shortage := conversation.shortage):
            outcome, detail = "memory_limit", f"{detail}; {shortage}"
        if outcome != "accepted":
            where = "loading" if index == _LOADING else f"test {index + 1}"
            return Graded(
                outcome=outcome,
                num_passed=max(index, 0),
                time_s=time_s,
                detail=printable(f"{where}: {detail}")[:MAX_DETAIL],
                failed_test=index,
                peak_bytes=conversation.peak_bytes,
            )
    peak_bytes = conversation.peak_bytes
    return Graded(
        outcome="accepted",
        num_passed=len(problem.tests),
        time_s=time_s,
        detail="",
        peak_bytes=peak_bytes,
    )


def _question(problem: Problem, index: int) -> str:
    """What the program is to be told of a test, as text of the wire: its input, never its output."""
    given = problem.tests[index].input
    if problem.kind == "stdin":
        return wire.dumps(given)
    if not (given.startswith("[") and given.endswith("]")):
        raise UserError(
            f"problem {problem.problem_id}, test {index + 1}: its input must be a list of arguments, not {given!r:.80}"
        )
    return given


def _expected(problem: Problem, index: int) -> object:
    try:
        return wire.loads(problem.tests[index].output)
    except wire.MalformedError as error:
        raise UserError(
            f"problem {problem.problem_id}, test {index + 1}: its output is not wire text: {error}"
        ) from error


def _judge(problem: Problem, index: int, execution: Execution) -> tuple[Outcome, str]:
    """The outcome of one step and why; whatever is wrong with a reply is the program's doing."""
    if execution.status != "ok":
        return execution.status, f"official -5: {execution.detail}"
    reply, note = _without_note(execution.result)
    outcome, detail = _judge_reply(problem, index, reply)
    return outcome, with_reason(
        detail, lcb_stdin.NOTES[note]
    ) if note and outcome != "accepted" else detail


def _without_note(reply: object) -> tuple[object, str]:
    """Return a reply without the name at its end that says how standard input was not what a file is."""
    match reply:
        case ["printed", _, str(note)] | ["error", _, _, _, str(note)] if note in lcb_stdin.NOTES:
            return reply[:-1], note
    return reply, ""


def _judge_reply(problem: Problem, index: int, reply: object) -> tuple[Outcome, str]:
    match reply:
        case ["loaded"] if index == _LOADING:
            return "accepted", ""
        case ["printed", str(text)] if index != _LOADING and problem.kind == "stdin":
            fault = first_difference(text, problem.tests[index].output, finite=False)
            return ("wrong_answer", f"official -2: {fault}") if fault else ("accepted", "")
        case ["value", value] if index != _LOADING and problem.kind == "function":
            return _judge_value(value, _expected(problem, index))
        case ["unsupported", str(reason)]:
            return "wrong_answer", f"official -2: returned {reason}"
        case ["error", _, "MemoryError", str(message)]:
            return "memory_limit", f"official -4: MemoryError {message}"
        case ["error", "time", *_]:
            return "time_limit", "official -3: the alarm went off"
        case ["error", _, str(name), str(message)]:
            return "runtime_error", f"official -4: {name}: {message}"
    return "runtime_error", "official -5: a malformed reply"


def _judge_value(value: object, expected: object) -> tuple[Outcome, str]:
    try:
        if same("lcb", value, expected, 0.0, []):
            return "accepted", ""
    except restored.AmbiguousError as error:
        return "runtime_error", f"official -4: ValueError: {error}"
    return (
        "wrong_answer",
        f"official -2: returned {shown(value)} and should have returned {shown(expected)}",
    )
