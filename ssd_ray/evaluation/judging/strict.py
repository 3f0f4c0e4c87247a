"""The `strict` profile: every test in a real process of its own, with real streams, `__main__` and exit codes.

Everything that decides (expected outputs, comparisons, assertions) stays on this side of the sandbox. EvalPlus's problems
keep EvalPlus's way, one process for the base inputs and one for the plus inputs, call by call. Reads and writes nothing.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import functools
import io
import itertools
import re
from collections.abc import Callable, Sequence
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
    Graded,
    UngradableError,
)
from ssd_ray.evaluation.judging.output_limit import too_large, with_room
from ssd_ray.evaluation.sandbox import Execution, Limits, Sandbox, Unsupported, call
from ssd_ray.extraction import is_python
from ssd_ray.schema import Outcome, Problem, Test
from ssd_ray.wire import restored

_STARRED = "string re datetime collections heapq bisect copy math random statistics itertools functools operator io sys json"
_LEETCODE_IMPORTS = "\n".join(
    [
        *(f"from {name} import *" for name in [*_STARRED.split(), "builtins", "typing"]),
        f"import {_STARRED.replace(' ', ', ')}",
    ]
)
"""What LeetCode's own judge imports before a program, whose starter code names `List` and imports nothing."""
_EVALPLUS_MIB, _EVALPLUS_OUTPUT_KIB = 4096, 65536
"""EvalPlus's own memory limit, and room for its largest right answers, of 13 MB."""
_ANY_VALUE = {"evalplus-not-none", "evalplus-any"}
"""Comparisons that do not look at the value: a match object, which cannot leave the sandbox, is right too."""
_NEEDS_ARGUMENTS = {"evalplus-root", "evalplus-digits", "evalplus-pyramid"}


@dataclass(frozen=True, kw_only=True)
class _Result:
    """What one test, or one process's tests up to the first that failed, came to."""

    outcome: Outcome
    detail: str = ""
    time_s: float = 0.0
    peak_bytes: int = 0
    num_passed: int = 0


def grade_strict(problem: Problem, code: str, limits: Limits, sandbox: Sandbox) -> Graded:
    """Run the tests of a problem on a program, in order, each within the limits, up to the first that is not passed.

    Raises:
        UserError: the problem cannot be graded: no tests, no entry point, tests that are not on the wire, a check that
            fails by itself. Never a pass, and nothing that a program could bring about.
    """
    require_gradable(problem)
    is_evalplus = problem.comparison.startswith("evalplus")
    runner = _RUNNERS["evalplus" if is_evalplus else problem.kind]
    num_passed, time_s, peak_bytes, outcome_base = 0, 0.0, 0, ""
    for group, tests in itertools.groupby(problem.tests, key=lambda test: test.group):
        for batch in (
            [tuple(tests)] if runner.one_process_per_group else [(test,) for test in tests]
        ):
            roomy = with_room(limits, problem, batch)
            result = _attempted(functools.partial(runner.run, problem, batch, code, roomy, sandbox))
            num_passed, time_s = num_passed + result.num_passed, time_s + result.time_s
            peak_bytes = max(peak_bytes, result.peak_bytes)
            if result.outcome != "accepted":
                return Graded(
                    outcome=result.outcome,
                    num_passed=num_passed,
                    time_s=time_s,
                    detail=f"test {num_passed + 1}: {result.detail}"[:MAX_DETAIL],
                    failed_test=num_passed,
                    peak_bytes=peak_bytes,
                    outcome_base=outcome_base or (result.outcome if group == "base" else ""),
                )
        if group == "base":
            outcome_base = "accepted"
    return Graded(
        outcome="accepted",
        num_passed=num_passed,
        time_s=time_s,
        detail="",
        peak_bytes=peak_bytes,
        outcome_base=outcome_base,
    )


def _attempted(run: Callable[[], _Result]) -> _Result:
    """The result, from a second attempt where the sandbox died in the first."""
    try:
        return run()
    except InfrastructureError:
        try:
            return run()
        except InfrastructureError as error:
            return _Result(outcome="infrastructure_error", detail=str(error))


def require_gradable(problem: Problem) -> None:
    """Refuse a problem on which every program would pass, or none could.

    Raises:
        UserError: no tests, or no entry point.
        UngradableError: a test that no program can pass within any limit.
    """
    if not problem.tests:
        raise UserError(
            f"problem {problem.problem_id} has no tests, so no answer to it can be graded: add tests or leave it out"
        )
    if problem.kind in ("function", "asserts") and not problem.entry_point:
        raise UserError(
            f"problem {problem.problem_id} is of kind {problem.kind} and needs an entry_point"
        )
    if reason := too_large(problem):
        raise UngradableError(f"problem {problem.problem_id} {UNGRADABLE} {reason}")


def _run_stdin(
    problem: Problem, tests: Sequence[Test], code: str, limits: Limits, sandbox: Sandbox
) -> _Result:
    execution = sandbox.run_program(code, tests[0].input, limits)
    result = _Result(
        outcome="accepted", time_s=execution.time_s, peak_bytes=execution.peak_bytes, num_passed=1
    )
    if execution.status != "ok":
        return dataclasses.replace(
            result, outcome=OUTCOMES[execution.status], detail=execution.detail, num_passed=0
        )
    fault = first_difference(execution.stdout, tests[0].output)
    if fault and execution.detail:
        return dataclasses.replace(
            result, outcome="memory_limit", detail=f"{execution.detail}; {fault}", num_passed=0
        )
    return (
        dataclasses.replace(result, outcome="wrong_answer", detail=fault, num_passed=0)
        if fault
        else result
    )


def _run_calls(
    problem: Problem, tests: Sequence[Test], code: str, limits: Limits, sandbox: Sandbox
) -> _Result:
    """Call the function with each test's arguments in one process; the time limit is each call's."""
    assert problem.entry_point is not None
    if problem.comparison.startswith("evalplus"):
        limits = dataclasses.replace(
            limits,
            memory_mib=max(limits.memory_mib, _EVALPLUS_MIB),
            output_kib=max(limits.output_kib, _EVALPLUS_OUTPUT_KIB),
        )
    units, total_s = program_units(problem, code), limits.time_s * len(tests)
    time_s, atol = 0.0, problem.atol
    with sandbox.converse(
        "calls", units, limits, entry_point=entry_points(problem), cpu_s=total_s
    ) as conversation:
        for index, test in enumerate(tests):
            expected = _loads(problem, "output", test.output)
            if not (test.input.startswith("[") and test.input.endswith("]")):
                raise UserError(
                    f"problem {problem.problem_id}: a function test's input must be a list, not {test.input!r:.80}"
                )
            execution = call(conversation, test.input)
            time_s += execution.time_s
            atol = tolerance(atol, expected)  # EvalPlus's, which lasts for the rest of the group
            outcome, detail = _compared(problem, execution, expected, test, atol)
            if outcome != "accepted":
                return _Result(
                    outcome=outcome,
                    detail=detail,
                    time_s=time_s,
                    peak_bytes=conversation.peak_bytes,
                    num_passed=index,
                )
        return _Result(
            outcome="accepted",
            time_s=time_s,
            peak_bytes=conversation.peak_bytes,
            num_passed=len(tests),
        )


def _compared(
    problem: Problem, execution: Execution, expected: object, test: Test, atol: float
) -> tuple[Outcome, str]:
    if execution.status != "ok":
        return OUTCOMES[execution.status], execution.detail
    if isinstance(execution.result, Unsupported) and problem.comparison not in _ANY_VALUE:
        return "wrong_answer", f"returned {execution.result.reason}"
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
) -> _Result:
    try:
        checked = run_check(
            check_units(problem, tests[0]),
            program_units(problem, code),
            entry_points(problem),
            limits,
            sandbox,
        )
    except NoCallError as error:
        return _Result(outcome="infrastructure_error", detail=str(ungradable(problem, str(error))))
    except BrokenCheckError as error:
        if not (error.called and problem.reference):
            raise ungradable(problem, str(error)) from error
        # The reference passes this check. So what it cannot do follows from the program's answers.
        return _Result(outcome="wrong_answer", detail=str(error)[:MAX_DETAIL])
    return _Result(
        outcome=checked.outcome,
        detail=checked.detail,
        time_s=checked.time_s,
        peak_bytes=checked.peak_bytes,
        num_passed=int(checked.outcome == "accepted"),
    )


def ungradable(problem: Problem, reason: str) -> UngradableError:
    """Return the error that names a problem on which no program can be graded."""
    return UngradableError(
        f"problem {problem.problem_id} {UNGRADABLE} {reason}; correct it or leave it out"
    )


@dataclass(frozen=True, kw_only=True)
class _Runner:
    run: Callable[[Problem, Sequence[Test], str, Limits, Sandbox], _Result]
    one_process_per_group: bool = False
    """True if one process runs all tests of a group; else each test has its own."""


_RUNNERS = {
    "stdin": _Runner(run=_run_stdin),
    "function": _Runner(run=_run_calls),
    "evalplus": _Runner(run=_run_calls, one_process_per_group=True),
    "asserts": _Runner(run=_run_asserts),
}


def entry_points(problem: Problem) -> str:
    """Return what of a program is called (the form is that of sandbox/definitions.py).

    As officially, a method of LiveCodeBench's class Solution comes before a function of its name.
    Elsewhere the function comes first. `Solution().name` (LeetCodeDataset) is that method alone.
    """
    name = problem.entry_point or ""
    return (
        f"Solution().{name} {name}" if problem.comparison == "lcb" and "()." not in name else name
    )


def program_units(problem: Problem, code: str) -> Sequence[str]:
    """Return a program after what it may take for granted: the imports and helpers of its starter code.

    LiveCodeBench's function problems are LeetCode's, which come with imports of their own. The
    source texts are compiled one by one, so that neither changes how the other is read.

    Raises:
        UngradableError: the starter code is not Python before the entry point.
    """
    if problem.comparison == "lcb" and problem.kind == "function":
        return (_LEETCODE_IMPORTS, code)
    lent = starter_preamble(problem)
    return (lent, code) if lent.strip() else (code,)


def check_units(problem: Problem, test: Test) -> Sequence[str]:
    """Return a check after the starter code and the reference, whose helpers it may use.

    Of starter code that ends in a function's header, only what comes before the header is run.
    """
    starter = problem.starter_code or ""
    if starter and not _is_python(starter):
        starter = starter_preamble(problem)
    return [unit for unit in (starter, problem.reference, test.input) if unit and unit.strip()]


def starter_preamble(problem: Problem) -> str:
    """Return the starter code before the entry point's decorators, blank where there is none.

    Raises:
        UngradableError: it is not Python.
    """
    if not problem.starter_code or not problem.entry_point:
        return ""
    preamble = _preamble(problem.starter_code, problem.entry_point.partition("().")[0])
    if preamble is None:
        raise ungradable(problem, "its starter code is not Python before the entry point")
    return preamble


@functools.lru_cache(maxsize=1024)
def _preamble(starter: str, name: str) -> str | None:
    entry = re.compile(
        rf"^(?:(?:async[ \t]+)?def[ \t]+{re.escape(name)}|class[ \t]+(?:Solution|{re.escape(name)}))\b",
        re.MULTILINE,
    )
    places = [match.start() for match in entry.finditer(starter)]
    for place in places:  # the first may stand in a docstring
        tree = _parsed(f"{starter[:place]}def _(): pass")
        if tree is not None and isinstance(definition := tree.body[-1], ast.FunctionDef):
            first = min(
                [definition.lineno, *(decorator.lineno for decorator in definition.decorator_list)]
            )
            return "".join(io.StringIO(starter[:place], newline="").readlines()[: first - 1])
    return None if places else ""


@functools.lru_cache(maxsize=1024)
def _is_python(source: str) -> bool:
    return is_python(source)


def _parsed(source: str) -> ast.Module | None:
    return ast.parse(source) if _is_python(source) else None


def _loads(problem: Problem, field: str, text: str) -> object:
    try:
        return wire.loads(text)
    except wire.MalformedError as error:
        raise UserError(
            f"problem {problem.problem_id}: a test's {field} is not a wire text: {error}"
        ) from error
