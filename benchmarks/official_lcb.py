"""LiveCodeBench's own grader, loaded from a checkout for comparison.

No part of it belongs to this project. Reads the modules of `lcb_runner.evaluation` under the
given directory (LiveCodeBench/LiveCodeBench, MIT). The package's own imports are skipped,
since they need the libraries of a model server.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

from ssd_ray import wire
from ssd_ray.schema import Problem

Check = Callable[[Problem, str], bool]


def load(checkout: Path, timeout_s: int) -> Check:
    """Return the official grader as a function, each call in a separate process.

    `timeout_s` limits each test.
    """
    for name in ("lcb_runner", "lcb_runner.evaluation"):
        package = types.ModuleType(name)
        package.__path__ = [str(checkout / name.replace(".", "/"))]
        sys.modules[name] = package
    grader = importlib.import_module("lcb_runner.evaluation.compute_code_generation_metrics")

    def check(problem: Problem, code: str) -> bool:
        # A crashed program leaves no metadata. The official code then raises an IndexError and
        # counts a failure.
        try:
            results, _ = grader.check_correctness(
                sample(problem), code, timeout=timeout_s, debug=False
            )
        except IndexError:
            return False
        return all(bool(result > 0) for result in results)

    return check


def sample(problem: Problem) -> dict[str, str]:
    """Return a problem in the form that the official grader takes."""
    if problem.kind == "stdin":
        inputs, outputs = (
            [test.input for test in problem.tests],
            [test.output for test in problem.tests],
        )
    else:
        inputs = [
            "\n".join(json.dumps(argument) for argument in _arguments(test.input))
            for test in problem.tests
        ]
        outputs = [json.dumps(wire.loads(test.output)) for test in problem.tests]
    entry_point = problem.entry_point if problem.kind == "function" else None
    return {
        "input_output": json.dumps({"inputs": inputs, "outputs": outputs, "fn_name": entry_point})
    }


def _arguments(text: str) -> list[object]:
    arguments = wire.loads(text)
    assert isinstance(arguments, list)
    return arguments
