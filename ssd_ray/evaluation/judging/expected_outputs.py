"""Expected values by reference: the return values of a problem's own solution.

EvalPlus's files bring inputs only. The reference is untrusted data too, so it runs in the sandbox.
Accesses no files.
"""

from __future__ import annotations

import dataclasses

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.judging.outcomes import ungradable
from ssd_ray.evaluation.judging.source_texts import entry_points
from ssd_ray.evaluation.sandbox import Execution, Limits, Sandbox, Unsupported, call
from ssd_ray.schema import Problem, Test
from ssd_ray.wire import restored


def needs_expected(problem: Problem) -> bool:
    """Return True if a test of the problem has no expected value."""
    return problem.kind == "function" and any(not test.output for test in problem.tests)


def with_expected(
    problem: Problem, sandbox: Sandbox, limits: Limits, *, left_out: list[str] | None = None
) -> Problem:
    """Return the problem with the return value of its reference in every test.

    - One process runs all tests in their order. `limits` are those of one call; EvalPlus's tests
      need 32 MiB of output.
    - For `evalplus-not-none` the expected value is True if the reference returned a value.
    - With `left_out`, a test whose expected value cannot leave the sandbox is dropped and named
      there. These are five of Mbpp/255, with values of up to a gigabyte.

    Raises:
        UngradableError: no reference, one that fails, or one whose values cannot leave the sandbox.
        InfrastructureError: the sandbox failed.
    """
    if not needs_expected(problem):
        return problem
    if problem.reference is None or problem.entry_point is None:
        raise ungradable(
            problem, "a test has no expected value, and there is no reference to take it from"
        )
    cpu_s = limits.time_s * len(problem.tests)
    tests: list[Test] = []
    dropped: list[str] = []
    with sandbox.converse(
        "calls", [problem.reference], limits, entry_point=entry_points(problem), cpu_s=cpu_s
    ) as conversation:
        for index, test in enumerate(problem.tests, start=1):
            value = _returned(problem, index, call(conversation, test.input))
            if isinstance(value, Unsupported):
                dropped.append(
                    f"problem {problem.problem_id}, test {index}: "
                    f"its reference returns {value.reason}"
                )
            else:
                tests.append(dataclasses.replace(test, output=wire.dumps(value)))
    if dropped and (left_out is None or not tests):
        raise ungradable(problem, f"{dropped[0]}, so nothing can be compared with it")
    if left_out is not None:
        left_out += dropped
    return dataclasses.replace(problem, tests=tuple(tests))


def _returned(problem: Problem, index: int, execution: Execution) -> object:
    """Return the expected value by one call of the reference; raise an error if it failed."""
    if execution.status == "infrastructure_error":
        raise InfrastructureError(f"problem {problem.problem_id}, reference: {execution.detail}")
    if execution.status != "ok":
        raise ungradable(
            problem,
            f"its reference solution ends test {index} with {execution.status} "
            f"({execution.detail}), so nothing is known to be right",
        )
    value = _comparable(execution.result)
    # The comparison only asks if there is a value, and not every value can leave the sandbox.
    return value is not None if problem.comparison == "evalplus-not-none" else value


def _comparable(value: object) -> object:
    """Return the value, or `Unsupported` for an iterator: it equals nothing."""
    return (
        Unsupported(reason=f"a value of type {value.name}")
        if isinstance(value, restored.Iterated)
        else value
    )
