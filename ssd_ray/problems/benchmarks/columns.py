"""Check for columns that no reader knows and that may change the meaning of a score.

Published files exist in several forms under one name. A column such as `test` next to `test_list`
decides the meaning of a score, so an unknown one is an error with its name. Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Set

from ssd_ray.problems.benchmarks.files import Row, RowError

_GRADING_WORDS = frozenset(
    {
        *(
            "accepted",
            "correct",
            "correctness",
            "eval",
            "passed",
            "reward",
            "verification",
            "verified",
            "verifier",
        ),
        *("answer", "answers", "expected", "gold", "oracle", "output", "outputs", "truth"),
        *(
            "assert",
            "assertion",
            "assertions",
            "asserts",
            "case",
            "cases",
            "check",
            "checker",
            "checks",
            "grader",
            "judge",
        ),
        *("test", "testcase", "testcases", "tests", "unittest", "unittests"),
        *("fixture", "import", "imports", "input", "inputs", "io", "setup", "teardown"),
        *("atol", "limit", "rtol", "timeout", "tolerance"),
    }
)
"""Words in column names that indicate a role in grading."""
_LANGUAGES = frozenset({"lang", "language", "programming_language"})
_PYTHON = frozenset({"", "python", "python3", "py"})
_WORDS = re.compile(r"[^a-z]+")
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")


def require_known(row: Row, known: Set[str], name: str, instead: str) -> None:
    """Refuse a row with a value in a column that affects grading and is not in `known`.

    Args:
        row: The row.
        known: Columns that the format's reader handles.
        name: Name of the format.
        instead: Advice on published files of the format, for the message.

    Raises:
        RowError: There is such a column, or the programs are in another language.
    """
    # An empty column cannot change a score: exporters write null where others have tests.
    for column, value in row.items():
        if column in known or _is_nothing(value):
            continue
        if column in _LANGUAGES and str(value).casefold() not in _PYTHON:
            raise RowError(f"field {column!r} holds {str(value)[:40]!r}: only Python is graded")
        if _GRADING_WORDS & set(_WORDS.split(_CAMEL.sub("_", column).lower())):
            raise RowError(
                f"field {column!r} is not read in format {name}, and by its name it changes what "
                f"is graded: {instead}, or drop the column to grade without it"
            )


def _is_nothing(value: object) -> bool:
    """Return True for null, NaN, 0, and empty text, lists and objects."""
    # Only NaN differs from itself.
    return value is None or (
        not isinstance(value, bool) and (value in ("", 0, [], {}) or value != value)
    )
