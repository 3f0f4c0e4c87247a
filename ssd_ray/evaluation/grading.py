"""From an answer to a verdict: extract the program, run its tests in order, stop at the first that fails.

Everything that decides (expected outputs, comparisons, assertions) stays on this side of the sandbox. Safe in any thread
and in a Ray task; keeps no state. Reads and writes nothing.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.sandbox import wire
from ssd_ray.evaluation.checking import OUTCOMES, BrokenCheckError, run_check
from ssd_ray.evaluation.comparison import first_difference, same_value
from ssd_ray.evaluation.execution import Execution, FunctionCaller, Limits, Unsupported, run_program
from ssd_ray.evaluation.extraction import extract_code
from ssd_ray.evaluation.process import printable
from ssd_ray.schema import Completion, Outcome, Problem, Test, Verdict

_MAX_DETAIL = 300


@dataclass(frozen=True, kw_only=True)
class Graded:
    """What became of one program; `time_s` is wall time over the tests that were run, without the sandbox's start."""

    outcome: Outcome
    num_passed: int
    time_s: float
    detail: str


def grade_completion(problem: Problem, completion: Completion, limits: Limits) -> Verdict:
    """The verdict on one sampled answer.

    Raises:
        UserError: the problem cannot be graded: no tests, no entry point, tests that are not JSON, a check that fails by
            itself. Never a pass, and nothing that a program could bring about.
    """
    _require_gradable(problem)
    code = extract_code(completion.text)
    if code is None:
        graded = Graded(outcome="no_code", num_passed=0, time_s=0.0, detail="no closed code block at the end of the answer")
    else:
        graded = grade_code(problem, code, limits)
    return Verdict(
        prompt_id=completion.prompt_id,
        sample_index=completion.sample_index,
        source=completion.source,
        difficulty=completion.difficulty,
        outcome=graded.outcome,
        num_tests=len(problem.tests),
        num_passed=graded.num_passed,
        time_s=graded.time_s,
        code=code or "",
        detail=graded.detail,
    )


def grade_code(problem: Problem, code: str, limits: Limits) -> Graded:
    """Run the tests of a problem on a program, in order, each within the limits, up to the first that is not passed.

    Raises:
        UserError: as for `grade_completion`.
    """
    _require_gradable(problem)
    run_test = _RUNNERS[problem.kind]
    time_s = 0.0
    for index, test in enumerate(problem.tests):
        try:
            outcome, detail, test_s = run_test(problem, test, code, limits)
        except InfrastructureError as error:
            outcome, detail, test_s = "infrastructure_error", str(error), 0.0
        except BrokenCheckError as error:
            raise UserError(f"problem {problem.problem_id}, test {index + 1}: {error}") from error
        time_s += test_s
        if outcome != "accepted":
            detail = f"test {index + 1}: {detail}"[:_MAX_DETAIL]
            return Graded(outcome=outcome, num_passed=index, time_s=time_s, detail=detail)
    return Graded(outcome="accepted", num_passed=len(problem.tests), time_s=time_s, detail="")


def check_references(problems: Iterable[Problem], limits: Limits) -> list[str]:
    """One line for every problem whose own reference solution is not accepted, or that has none; empty when all is well."""
    complaints = []
    for problem in problems:
        if problem.reference is None:
            complaints.append(f"{problem.problem_id}: no reference solution")
            continue
        graded = grade_code(problem, problem.reference, limits)
        if graded.outcome != "accepted":
            complaints.append(f"{problem.problem_id}: {graded.outcome}, {graded.detail}")
    return complaints


def _require_gradable(problem: Problem) -> None:
    if not problem.tests:
        raise UserError(f"problem {problem.problem_id} has no tests, so no answer to it can be graded: add tests or leave it out")
    if problem.kind != "stdin" and not problem.entry_point:
        raise UserError(f"problem {problem.problem_id} is of kind {problem.kind} and needs an entry_point")


TestResult = tuple[Outcome, str, float]


def _run_stdin(problem: Problem, test: Test, code: str, limits: Limits) -> TestResult:
    execution = run_program(code, test.input, limits)
    if execution.status != "ok":
        return OUTCOMES[execution.status], execution.detail, execution.time_s
    difference = first_difference(execution.stdout, test.output)
    if difference is None:
        return "accepted", "", execution.time_s
    number, got, want = difference
    if got is None or want is None:
        return "wrong_answer", f"line {number} is {'missing' if got is None else 'one too many'}", execution.time_s
    return "wrong_answer", f"line {number} is {_shown(got)} and should be {_shown(want)}", execution.time_s


def _run_function(problem: Problem, test: Test, code: str, limits: Limits) -> TestResult:
    args, expected = _json(problem, "input", test.input), _json(problem, "output", test.output)
    if not isinstance(args, list):
        raise UserError(
            f"problem {problem.problem_id}: a function test's input must be a JSON list of arguments, not {args!r:.80}"
        )
    execution = _call_once(problem, args, code, limits)
    if execution.status != "ok":
        return OUTCOMES[execution.status], execution.detail, execution.time_s
    if isinstance(execution.result, Unsupported):
        return "wrong_answer", f"returned {execution.result.reason}", execution.time_s
    if same_value(execution.result, expected):
        return "accepted", "", execution.time_s
    return "wrong_answer", f"returned {_shown(execution.result)} and should have returned {_shown(expected)}", execution.time_s


def _call_once(problem: Problem, args: list[object], code: str, limits: Limits) -> Execution:
    assert problem.entry_point is not None
    with FunctionCaller(program_units(problem, code), problem.entry_point, limits) as caller:
        try:
            return caller.call(args)
        except wire.UnsupportedValueError as error:
            raise UserError(f"problem {problem.problem_id}: a test's argument is {error}") from error


def _run_asserts(problem: Problem, test: Test, code: str, limits: Limits) -> TestResult:
    assert problem.entry_point is not None
    check = [unit for unit in (problem.starter_code, problem.reference, test.input) if unit]
    checked = run_check(check, program_units(problem, code), problem.entry_point, limits)
    return checked.outcome, checked.detail, checked.time_s


_RUNNERS: dict[str, Callable[[Problem, Test, str, Limits], TestResult]] = {
    "stdin": _run_stdin,
    "function": _run_function,
    "asserts": _run_asserts,
}


def program_units(problem: Problem, code: str) -> Sequence[str]:
    """A program and what it may take for granted: the imports and helpers that its starter code shows before the entry point.

    They are separate source texts, to be compiled one by one, so that neither can change how the other is read.
    """
    if not problem.starter_code or not problem.entry_point:
        return (code,)
    entry = re.compile(rf"^(?:(?:async[ \t]+)?def[ \t]+{re.escape(problem.entry_point)}|class[ \t]+Solution)\b", re.MULTILINE)
    match = entry.search(problem.starter_code)
    preamble = problem.starter_code[: match.start()] if match else ""
    return (preamble, code) if preamble.strip() else (code,)


def _json(problem: Problem, field: str, text: str) -> object:
    try:
        value: object = json.loads(text)
    except ValueError as error:
        raise UserError(f"problem {problem.problem_id}: a test's {field} is not JSON: {error}") from error
    return value


def _shown(value: object) -> str:
    """A value for a reader, short and on one line."""
    try:
        return printable(reprlib.repr(value))[:100]
    except ValueError:
        return "a value with an integer of thousands of digits"
