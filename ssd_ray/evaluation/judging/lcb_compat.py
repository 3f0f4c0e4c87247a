r"""The `lcb-compat` profile: LiveCodeBench's verdicts, bug for bug.

One confined process runs all tests of a program in order (sandbox/inside/lcb_role.py). The first
failure ends it. Its outputs are compared here by the official rules, out of the program's reach.
Source: LiveCodeBench 28fef95 of 16 July 2025 (lcb_official.py),
lcb_runner/evaluation/testing_util.py and compute_code_generation_metrics.py.

Comparison:

- Printed texts: both are stripped and split at `\n`, and have as many lines. Two stripped lines
  agree as texts, or as lists of Decimals when split at whitespace. So `6.0` is `6` and `Infinity`
  is `inf`, but 0.30000000000000004 is not 0.3, and NaN equals nothing.
- Returned values: Python's `==`, with the outermost tuple as a list.

Official codes begin the detail and map to outcomes:

- -2: `wrong_answer`.
- -3: `time_limit`.
- -4, the program does not load or raises: `runtime_error`.
- -5, its process crashed or exceeded the total time: the outcome of the process.

The detail names the official stand-in for sys.stdin if it behaved unlike a file.

Differences, on purpose:

- An object's own `__eq__` is not trusted. A number of a foreign type counts by its value.
- A problem without tests is refused; officially every program passes it.
- Limits bound memory and output (`memory_limit`, `output_limit`); officially nothing does.
- Ways to forge a verdict officially (reading the answers, patching the grader) have no effect.

Accesses no files.
"""

from __future__ import annotations

import dataclasses
import time

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.comparison import first_difference, same, shown
from ssd_ray.evaluation.judging.outcomes import MAX_DETAIL, Result
from ssd_ray.evaluation.judging.output_limit import fitting_limits, fitting_limits_for_replies
from ssd_ray.evaluation.sandbox import Conversation, Execution, Limits, Sandbox, printable
from ssd_ray.evaluation.sandbox.inside import lcb_stdin
from ssd_ray.lcb_official import with_reason
from ssd_ray.schema import Outcome, Problem
from ssd_ray.wire import restored

_ATTEMPTS = 2
"""Attempts at a program if the sandbox crashes, each from the first test."""
_GRACE_S = 5
"""Seconds that the official grader waits beyond (limit + 1 s) for every test."""
_LOADING = -1
"""The index of loading, before the first test."""


def grade_lcb(problem: Problem, code: str, limits: Limits, sandbox: Sandbox) -> Result:
    """Grade a program as the official grader does.

    - `limits.time_s` holds for each test, cut to full seconds as officially.
    - All tests together have (full seconds + 1) · number of tests + 5 s, measured outside.
    - `failed_test` is -1 if the program did not load.

    Raises:
        UserError: the problem cannot be graded: no tests, tests that are not text of the wire, a
            kind or comparison unknown to LiveCodeBench, or less than a second for a test. No
            program can cause this.
    """
    _require_gradable(problem, limits)
    # signal.alarm, which the official grader uses, takes full seconds.
    limit_s = int(limits.time_s)
    deadline_s = (limit_s + 1) * len(problem.tests) + _GRACE_S
    if problem.kind == "stdin":
        entry_point = ""
        raised = fitting_limits_for_replies(limits, problem.tests)
    else:
        entry_point = (problem.entry_point or "").rpartition("().")[2]
        raised = fitting_limits(limits, problem, problem.tests)
    total = dataclasses.replace(raised, time_s=float(deadline_s))
    reason = ""
    for _ in range(_ATTEMPTS):
        try:
            with sandbox.converse("lcb", [code], total, entry_point=entry_point) as conversation:
                return _grade(problem, conversation, limit_s, deadline_s)
        except InfrastructureError as error:
            reason = str(error)
    return Result(outcome="infrastructure_error", detail=reason[:MAX_DETAIL])


def _require_gradable(problem: Problem, limits: Limits) -> None:
    """Raise an error for a problem that this profile cannot grade."""
    name = f"problem {problem.problem_id}"
    if not problem.tests:
        raise UserError(
            f"{name} has no tests, so no answer to it can be graded: add tests or leave it out"
        )
    if problem.kind not in ("stdin", "function") or problem.comparison not in ("value", "lcb"):
        raise UserError(
            f"{name} is of kind {problem.kind} with comparison {problem.comparison}, which "
            "LiveCodeBench does not have: grade it under the profile strict"
        )
    if problem.kind == "function" and not problem.entry_point:
        raise UserError(f"{name} is of kind function and needs an entry_point")
    if limits.time_s < 1:
        raise UserError(
            f"the profile lcb-compat takes full seconds, not timeout_s={limits.time_s:g}: "
            "give at least 1"
        )


def _grade(problem: Problem, conversation: Conversation, limit_s: int, deadline_s: int) -> Result:
    """Send all inputs at once, then judge one answer after another up to the first failure."""
    # Inputs go ahead of their answers, as officially: the process runs on without waiting for us.
    ends = time.monotonic() + deadline_s
    time_s = 0.0
    conversation.send_texts(
        [str(limit_s), *(_question(problem, index) for index in range(len(problem.tests)))]
    )
    for index in range(_LOADING, len(problem.tests)):
        execution = conversation.answer(max(0.0, ends - time.monotonic()))
        time_s += execution.time_s
        outcome, detail = _judge(problem, index, execution)
        # A thread that ran out of memory explains a wrong answer better than the answer does.
        if outcome == "wrong_answer" and (shortage := conversation.shortage):
            outcome, detail = "memory_limit", f"{detail}; {shortage}"
        if outcome != "accepted":
            where = "loading" if index == _LOADING else f"test {index + 1}"
            return Result(
                outcome=outcome,
                num_passed=max(index, 0),
                time_s=time_s,
                detail=printable(f"{where}: {detail}")[:MAX_DETAIL],
                failed_test=index,
                peak_bytes=conversation.peak_bytes,
            )
    return Result(
        outcome="accepted",
        num_passed=len(problem.tests),
        time_s=time_s,
        peak_bytes=conversation.peak_bytes,
    )


def _question(problem: Problem, index: int) -> str:
    """Return the message for one test, as text of the wire: its input, never its output."""
    text = problem.tests[index].input
    if problem.kind == "stdin":
        return wire.dumps(text)
    if not (text.startswith("[") and text.endswith("]")):
        raise UserError(
            f"problem {problem.problem_id}, test {index + 1}: "
            f"its input must be a list of arguments, not {text!r:.80}"
        )
    return text


def _expected(problem: Problem, index: int) -> object:
    """Return the expected value of a test."""
    try:
        return wire.loads(problem.tests[index].output)
    except wire.MalformedError as error:
        raise UserError(
            f"problem {problem.problem_id}, test {index + 1}: its output is not wire text: {error}"
        ) from error


def _judge(problem: Problem, index: int, execution: Execution) -> tuple[Outcome, str]:
    """Return the outcome of one step and its reason.

    A malformed reply counts against the program, which alone could write it.
    """
    if execution.status != "ok":
        return execution.status, f"official -5: {execution.detail}"
    reply, note = _without_note(execution.result)
    outcome, detail = _judge_reply(problem, index, reply)
    if note and outcome != "accepted":
        detail = with_reason(detail, lcb_stdin.NOTES[note])
    return outcome, detail


def _without_note(reply: object) -> tuple[object, str]:
    """Return a reply without the note at its end, and the note.

    The note names a way in which standard input behaved unlike a file.
    """
    match reply:
        case ["printed", _, str(note)] | ["error", _, _, _, str(note)] if note in lcb_stdin.NOTES:
            return reply[:-1], note
    return reply, ""


def _judge_reply(problem: Problem, index: int, reply: object) -> tuple[Outcome, str]:
    """Return the outcome of a reply and its reason."""
    match reply:
        case ["loaded"] if index == _LOADING:
            return "accepted", ""
        case ["printed", str(text)] if index != _LOADING and problem.kind == "stdin":
            difference = first_difference(text, problem.tests[index].output, finite=False)
            if difference:
                return "wrong_answer", f"official -2: {difference}"
            return "accepted", ""
        case ["value", value] if index != _LOADING and problem.kind == "function":
            return _judge_value(value, _expected(problem, index))
        case ["unsupported", str(reason)]:
            return "wrong_answer", f"official -2: returned {reason}"
        case ["error", _, "MemoryError", str(message)]:
            return "memory_limit", f"official -4: MemoryError {message}"
        # The alarm raises within the program, as officially, so it comes as an error.
        case ["error", "time", *_]:
            return "time_limit", "official -3: the alarm went off"
        case ["error", _, str(name), str(message)]:
            return "runtime_error", f"official -4: {name}: {message}"
    return "runtime_error", "official -5: a malformed reply"


def _judge_value(value: object, expected: object) -> tuple[Outcome, str]:
    """Return the outcome of a returned value and its reason."""
    try:
        if same("lcb", value, expected, 0.0, []):
            return "accepted", ""
    except restored.AmbiguousError as error:
        return "runtime_error", f"official -4: ValueError: {error}"
    return (
        "wrong_answer",
        f"official -2: returned {shown(value)} and should have returned {shown(expected)}",
    )
