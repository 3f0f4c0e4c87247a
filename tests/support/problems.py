"""Problems of one test, by their kind, for programs with a function `f`."""

from __future__ import annotations

from typing import Any

from ssd_ray import wire
from ssd_ray.schema import Problem, Test

_FIELDS = {"problem_id": "p", "source": "test", "statement": "", "entry_point": "f"}


def function_problem(argument: object, expected: object, **fields: Any) -> Problem:
    """Return a problem with a call of one argument."""
    test = Test(input=wire.dumps([argument]), output=wire.dumps(expected))
    return Problem(**{**_FIELDS, "kind": "function", "tests": (test,), **fields})


def check_problem(check: str, **fields: Any) -> Problem:
    """Return a problem with a check in the form `check(candidate)`."""
    test = Test(input=check, output="")
    return Problem(**{**_FIELDS, "kind": "asserts", "tests": (test,), **fields})


def condition_problem(condition: str, **fields: Any) -> Problem:
    """Return a problem whose check asserts one condition on `candidate`."""
    return check_problem(f"def check(candidate):\n    assert {condition}\n", **fields)
