"""What a problem expects, where its file does not say: the values that its reference solution returns in the sandbox.

EvalPlus's files bring inputs only. The reference is data as well, so it runs where programs run. Reads and writes nothing.
"""

from __future__ import annotations

import dataclasses

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.judging.strict import entry_points, ungradable
from ssd_ray.evaluation.sandbox import Limits, Sandbox, Unsupported, call
from ssd_ray.schema import Problem
from ssd_ray.wire import restored


def needs_expected(problem: Problem) -> bool:
    """Whether a problem has a test without its expected value."""
    return problem.kind == "function" and any(not test.output for test in problem.tests)


def with_expected(
    problem: Problem, sandbox: Sandbox, limits: Limits, *, left_out: list[str] | None = None
) -> Problem:
    """The problem with an expected value in every test: what its reference returned, all tests in one process, in their order.

    For `evalplus-not-none` that is whether it returned anything. `limits` are those of one call; EvalPlus's tests need 32 MiB
    of output. A test whose expected value cannot leave the sandbox (five of Mbpp/255, of up to a gigabyte) is left out where a
    list is given to say so in.

    Raises:
        UngradableError: no reference, or one that fails, or returns what cannot leave the sandbox.
        InfrastructureError: the sandbox failed.
    """
    left_out_here: list[str] = []
    if not needs_expected(problem):
        return problem
    if problem.reference is None or problem.entry_point is None:
        raise ungradable(
            problem, "a test has no expected value, and there is no reference to take it from"
        )
    cpu_s = limits.time_s * len(problem.tests)
    tests = []
    with sandbox.converse(
        "calls", [problem.reference], limits, entry_point=entry_points(problem), cpu_s=cpu_s
    ) as conversation:
        for index, test in enumerate(problem.tests, start=1):
            execution = call(conversation, test.input)
            if execution.status == "infrastructure_error":
                raise InfrastructureError(
                    f"problem {problem.problem_id}, reference: {execution.detail}"
                )
            if execution.status != "ok":
                reason = f"its reference solution ends test {index} with {execution.status} ({execution.detail})"
                raise ungradable(problem, f"{reason}, so nothing is known to be right")
            value = _comparable(execution.result)
            if problem.comparison == "evalplus-not-none":
                value = value is not None
            if isinstance(value, Unsupported):
                left_out_here.append(
                    f"problem {problem.problem_id}, test {index}: its reference returns {value.reason}"
                )
            else:
                tests.append(dataclasses.replace(test, output=wire.dumps(value)))
    if left_out_here and (left_out is None or not tests):
        raise ungradable(problem, f"{left_out_here[0]}, so nothing can be compared with it")
    if left_out is not None:
        left_out += left_out_here
    return dataclasses.replace(problem, tests=tuple(tests))


def _comparable(value: object) -> object:
    """A returned value; an iterator, which equals nothing, cannot be expected."""
    return (
        Unsupported(reason=f"a value of type {value.name}")
        if isinstance(value, restored.Iterated)
        else value
    )
