"""GSM8K rows (Cobbe et al. 2021, arXiv 2110.14168): a word problem and its final number.

The answer ends in `#### number`. No program is run: the final number of a completion, by the rules
of `evaluation/judging/final_number.py`, is compared with the gold number. Does no I/O.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation

from ssd_ray.problems.benchmarks.files import Row, RowError, optional_text, shown, text
from ssd_ray.schema import Problem, Test


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row, of kind `numeric`, with the gold number as its one test.

    Raises:
        RowError: A field is missing, or no number follows `####`.
    """
    answer = text(row, "answer")
    return Problem(
        problem_id=optional_text(row, "task_id") or f"gsm8k/{number}",
        source="gsm8k",
        statement=text(row, "question"),
        kind="numeric",
        reference=answer,
        tests=(Test(input="", output=gold_number(answer)),),
    )


def gold_number(answer: str) -> str:
    """Return the number after the last `####`, without thousands separators.

    Raises:
        RowError: There is none.
    """
    _, mark, tail = answer.rpartition("####")
    # Published answers are also written as 1,000 and $20.
    digits = tail.strip().replace(",", "").removeprefix("$")
    try:
        finite = Decimal(digits).is_finite()
    except InvalidOperation:
        finite = False
    if not mark or not finite:
        raise RowError(f"field 'answer' must end in '#### number', not {shown(answer[-40:])}")
    return digits
