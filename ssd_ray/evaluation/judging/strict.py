"""The `strict` profile: a process for every test, with real streams and exit codes.

- Expected outputs, comparisons and assertions stay outside of the program's process.
- EvalPlus's problems run as EvalPlus runs them: call by call, one process for the base inputs
  and one for the plus inputs.

Accesses no files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging.comparison import first_difference, same, shown
from ssd_ray.evaluation.judging.evalplus_comparison import tolerance
from ssd_ray.evaluation.judging.humaneval_check import BrokenCheckError, NoCallError, run_check
from ssd_ray.evaluation.judging.outcomes import (
    MAX_DETAIL,
    OUTCOMES,
    UNGRADABLE,
    Result,
    UngradableError,
    ungradable,
)
from ssd_ray.evaluation.judging.output_limit import fitting_limits, too_large
from ssd_ray.evaluation.judging.source_texts import check_units, entry_points, program_units
from ssd_ray.evaluation.sandbox import Execution, Limits, Sandbox, Unsupported, call
from ssd_ray.schema import Outcome, Problem, Test
from ssd_ray.wire import restored

_EVALPLUS_MIB = 4096
"""EvalPlus's own memory limit."""
_EVALPLUS_OUTPUT_KIB = 65536
"""Fits EvalPlus's largest right answers, of 13 MB."""
_ANY_VALUE = {"evalplus-not-none", "evalplus-any"}
"""Comparisons without regard to the value, which need not even leave the sandbox."""
_NEEDS_ARGUMENTS = {"evalplus-root", "evalplus-digits", "evalplus-pyramid"}


def grade_strict(problem: Problem, code: str, limits: Limits, sandbox: Sandbox) -> Result:
    """Run the tests of a problem on a program, in order, up to the first failure.

    `limits` hold for each test.

    Raises:
        UserError: the problem cannot be graded: no tests, no entry point, tests not in wire format,
            or a check with a fault of its own. No program can cause this.
    """
    require_gradable(problem)
    is_evalplus = problem.comparison.startswith("evalplus")
    runner = _RUNNERS["evalplus" if is_evalplus else problem.kind]
    total = Result(outcome="accepted")
    for group, tests in itertools.groupby(problem.tests, key=lambda test: test.group):
        for batch in runner.batches(tests):
            raised = fitting_limits(limits, problem, batch)
            result = _retried(functools.partial(runner.run, problem, batch, code, raised, sandbox))
            total = dataclasses.replace(
                total,
                num_passed=total.num_passed + result.num_passed,
                time_s=total.time_s + result.time_s,
                peak_bytes=max(total.peak_bytes, result.peak_bytes),
            )
            if result.outcome != "accepted":
                # After the base tests passed, a failed plus test leaves their outcome as it is.
                failed_base = result.outcome if group == "base" else ""
                return dataclasses.replace(
                    total,
                    outcome=result.outcome,
                    detail=f"test {total.num_passed + 1}: {result.detail}"[:MAX_DETAIL],
                    failed_test=total.num_passed,
                    outcome_base=total.outcome_base or failed_base,
                )
        if group == "base":
            total = dataclasses.replace(total, outcome_base="accepted")
    return total


def _retried(run: Callable[[], Result]) -> Result:
    """Return the result of a run, or of a second one if the sandbox crashed in the first."""
    try:
        return run()
    except InfrastructureError:
        try:
            return run()
        except InfrastructureError as error:
            return Result(outcome="infrastructure_error", detail=str(error))


def require_gradable(problem: Problem) -> None:
    """Raise an error for a problem with the same result for every program.

    Raises:
        UserError: no tests, or no entry point.
        UngradableError: a test beyond any limit.
    """
    if not problem.tests:
        raise UserError(
            f"problem {problem.problem_id} has no tests, so no answer to it can be graded: "
            "add tests or leave it out"
        )
    if problem.kind in ("function", "asserts") and not problem.entry_point:
        raise UserError(
            f"problem {problem.problem_id} is of kind {problem.kind} and needs an entry_point"
        )
    if reason := too_large(problem):
        raise UngradableError(f"problem {problem.problem_id} {UNGRADABLE} {reason}")


def _run_stdin(
    problem: Problem, tests: Sequence[Test], code: str, limits: Limits, sandbox: Sandbox
) -> Result:
    """Run a program on one input and compare its standard output."""
    execution = sandbox.run_program(code, tests[0].input, limits)
    outcome: Outcome = "accepted"
    detail = ""
    if execution.status != "ok":
        outcome = OUTCOMES[execution.status]
        detail = execution.detail
    elif difference := first_difference(execution.stdout, tests[0].output):
        # A detail of status "ok" reports a thread that ran out of memory, which explains the rest.
        outcome = "memory_limit" if execution.detail else "wrong_answer"
        detail = f"{execution.detail}; {difference}" if execution.detail else difference
    return Result(
        outcome=outcome,
        detail=detail,
        num_passed=int(outcome == "accepted"),
        time_s=execution.time_s,
        peak_bytes=execution.peak_bytes,
    )


def _run_calls(
    problem: Problem, tests: Sequence[Test], code: str, limits: Limits, sandbox: Sandbox
) -> Result:
    """Call the function with each test's arguments in one process; each call has the time limit."""
    assert problem.entry_point is not None
    if problem.comparison.startswith("evalplus"):
        limits = dataclasses.replace(
            limits,
            memory_mib=max(limits.memory_mib, _EVALPLUS_MIB),
            output_kib=max(limits.output_kib, _EVALPLUS_OUTPUT_KIB),
        )
    units = program_units(problem, code)
    time_s = 0.0
    atol = problem.atol
    with sandbox.converse(
        "calls",
        units,
        limits,
        entry_point=entry_points(problem),
        cpu_s=limits.time_s * len(tests),
    ) as conversation:
        for index, test in enumerate(tests):
            expected = _loads(problem, "output", test.output)
            # The text goes to the process unparsed, so its outermost form is checked here.
            if not (test.input.startswith("[") and test.input.endswith("]")):
                raise UserError(
                    f"problem {problem.problem_id}: a function test's input must be a list, "
                    f"not {test.input!r:.80}"
                )
            execution = call(conversation, test.input)
            time_s += execution.time_s
            # In EvalPlus a raised tolerance lasts for the rest of the group.
            atol = tolerance(atol, expected)
            outcome, detail = _compared(problem, execution, expected, test, atol)
            if outcome != "accepted":
                return Result(
                    outcome=outcome,
                    detail=detail,
                    time_s=time_s,
                    peak_bytes=conversation.peak_bytes,
                    num_passed=index,
                )
        return Result(
            outcome="accepted",
            time_s=time_s,
            peak_bytes=conversation.peak_bytes,
            num_passed=len(tests),
        )


def _compared(
    problem: Problem, execution: Execution, expected: object, test: Test, atol: float
) -> tuple[Outcome, str]:
    """Return the outcome of one call and a detail."""
    if execution.status != "ok":
        return OUTCOMES[execution.status], execution.detail
    if isinstance(execution.result, Unsupported) and problem.comparison not in _ANY_VALUE:
        return "wrong_answer", f"returned {execution.result.reason}"
    # Parsed only for the three tasks that need them: arguments can be large.
    arguments = (
        _loads(problem, "input", test.input) if problem.comparison in _NEEDS_ARGUMENTS else []
    )
    assert isinstance(arguments, list)
    with contextlib.suppress(restored.AmbiguousError):
        if same(problem.comparison, execution.result, expected, atol, arguments):
            return "accepted", ""
    return (
        "wrong_answer",
        f"returned {shown(execution.result)} and should have returned {shown(expected)}",
    )


def _run_asserts(
    problem: Problem, tests: Sequence[Test], code: str, limits: Limits, sandbox: Sandbox
) -> Result:
    """Run one check of a program, in the form `check(candidate)`."""
    try:
        result = run_check(
            check_units(problem, tests[0]),
            program_units(problem, code),
            entry_points(problem),
            limits,
            sandbox,
        )
    except NoCallError as error:
        return Result(outcome="infrastructure_error", detail=str(ungradable(problem, str(error))))
    except BrokenCheckError as error:
        if not (error.called and problem.reference):
            raise ungradable(problem, str(error)) from error
        # The reference passes this check, so the program's answers made it fail.
        return Result(outcome="wrong_answer", detail=str(error)[:MAX_DETAIL])
    return result


@dataclass(frozen=True, kw_only=True)
class _Runner:
    """A way to run tests, by the kind of their problem."""

    run: Callable[[Problem, Sequence[Test], str, Limits, Sandbox], Result]
    one_process_per_group: bool = False
    """True if one process runs all tests of a group; else each test has its own."""

    def batches(self, tests: Iterable[Test]) -> list[tuple[Test, ...]]:
        """Split the tests of a group by process."""
        return [tuple(tests)] if self.one_process_per_group else [(test,) for test in tests]


_RUNNERS = {
    "stdin": _Runner(run=_run_stdin),
    "function": _Runner(run=_run_calls),
    "evalplus": _Runner(run=_run_calls, one_process_per_group=True),
    "asserts": _Runner(run=_run_asserts),
}


def _loads(problem: Problem, field: str, text: str) -> object:
    """Return a value of a test, as written in the problem's file."""
    try:
        return wire.loads(text)
    except wire.MalformedError as error:
        raise UserError(
            f"problem {problem.problem_id}: a test's {field} is not a wire text: {error}"
        ) from error
