"""Columns of prompt files that select rows or complete a statement.

- `is_passed` states if the stored solution of a row passed, as in rStar-Coder.
  `prompts.only_passed` reads it in every source.
- A statement in several columns, as in open-r1/codeforces, is refused, as the prompt would lack a
  part of it.
- A column with the name of a function makes the problem one of kind `function`, and the prompt asks
  for that function.

Does no I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from ssd_ray.problems.benchmarks.files import Row, RowError, entry_point, optional_text, shown

PASSED = "is_passed"
NOT_PASSED = "stored solution did not pass"
_ALIKE = frozenset({"accepted", "correct", "correctness", "passed", "verified"})
_WORDS = re.compile(r"[^a-z]+")
_BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
_PARTS = tuple(
    f"{side}_{part}"
    for side in ("input", "output", "interaction")
    for part in ("format", "description", "spec", "specification")
)
"""Columns with a part of a statement."""
_FUNCTIONS = ("entry_point", "fn_name", "func_name", "function_name", "test_entry_point")
"""Columns with the name of the function to write."""

Placed = tuple[str, Row | RowError]
"""Place of a row, for error messages, and the row."""


def passed(rows: Iterable[Placed], dropped: Counter[str]) -> Iterator[Placed]:
    """Yield the rows whose stored solution passed. Count the others in `dropped`.

    - Without a column `is_passed` all rows stay.
    - A null value means that the solution did not pass.
    - A row becomes a RowError if its value is neither null nor a truth value, or if it differs from
      the first row in having the column.
    - A row becomes a RowError if another column looks like `is_passed`.
    """
    has_column: bool | None = None
    for place, row in rows:
        if isinstance(row, RowError):
            yield place, row
            continue
        # The first row decides for the source; a row that differs is an error.
        has_column = PASSED in row if has_column is None else has_column
        try:
            kept = _has_passed(row, has_column)
        except RowError as error:
            yield place, error
            continue
        if kept:
            yield place, row
        else:
            dropped[NOT_PASSED] += 1


def _has_passed(row: Row, has_column: bool) -> bool:
    if (PASSED in row) != has_column:
        raise RowError(
            f"field {PASSED!r} is in some rows and not in others; "
            "prompts.only_passed=false keeps all rows"
        )
    if not has_column:
        _refuse_alike(row)
        return True
    value = row[PASSED]
    verdict = _boolean(value)
    if value is not None and verdict is None:
        raise RowError(
            f"field {PASSED!r} must be true or false, not {shown(value)}; "
            "prompts.only_passed=false keeps all rows"
        )
    # A null is not a solution that passed.
    return verdict is True


def _refuse_alike(row: Row) -> None:
    # Without this, a misnamed column would let every wrong solution through.
    for column, value in row.items():
        if _ALIKE & set(_WORDS.split(column.lower())) and str(value).casefold() in (
            "true",
            "false",
        ):
            raise RowError(
                f"field {column!r} looks like {PASSED!r}, which prompts.only_passed=true reads: "
                f"rename it to {PASSED}, or set prompts.only_passed=false to keep all rows"
            )


def _boolean(value: object) -> bool | None:
    """Return a truth value in the forms of JSON, Parquet and CSV, or None for any other value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    return _BOOLEANS.get(value.strip().casefold()) if isinstance(value, str) else None


def require_complete_statement(row: Row, statement: str, column: str) -> None:
    """Refuse a row with a part of its statement in a separate column.

    Raises:
        RowError: Such a part is not contained in `statement`, which is from `column`.
    """
    present = " ".join(statement.split())
    for part in _PARTS:
        value = row.get(part)
        if part != column and isinstance(value, str) and " ".join(value.split()) not in present:
            raise RowError(
                f"field {part!r} holds a part of the statement that {column!r} lacks: join them "
                "into one column and name it in prompts.statement_column"
            )


def named_function(row: Row) -> str | None:
    """Return the name of the function to write, from a column of the row, or None.

    Raises:
        RowError: The column does not hold a valid name.
    """
    for column in _FUNCTIONS:
        if optional_text(row, column) is not None:
            return entry_point(row, column)
    return _kodcode_function(row.get("test_info"))


def _kodcode_function(info: object) -> str | None:
    """Return the function called by KodCode's tests: the first of `test_info`."""
    first = info[0] if isinstance(info, list) and info else None
    name = first.get("function_name") if isinstance(first, Mapping) else None
    return name if isinstance(name, str) and name.isidentifier() else None
