"""LiveCodeBench's official grader: the version behind `lcb-compat`, its effects on verdicts.

Does no I/O.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

GRADER: Mapping[str, str] = {
    "repository": "LiveCodeBench/LiveCodeBench",
    "commit": "28fef95ea8c9f7a547c8329f2cd3d32b92c1fa24",
    "date": "2025-07-16",
}
"""The version of the official grader behind verdicts of `lcb-compat`; the date is in UTC.

Its testing_util.py was last changed by 16de2a1 of 23 May 2025, which brought the stand-in for
sys.stdin.
"""

# Part of details on disk: the report reads older verdicts by these words.
_PREFIX = "by the stand-in for sys.stdin: "
_REASON = re.compile(rf"(?:loading|test [0-9]+): official -[0-9], {_PREFIX}([^;]*);")


def with_reason(detail: str, reason: str) -> str:
    """Return a detail with the effect of the stand-in for sys.stdin after its official code."""
    code, _, rest = detail.partition(":")
    return f"{code}, {_PREFIX}{reason};{rest}"


def reason_of(detail: str) -> str:
    """Return the effect of the official grader in a verdict's detail, empty if there is none."""
    match = _REASON.match(detail)
    return f"official stand-in for sys.stdin: {match[1]}" if match else ""
