"""Which version of LiveCodeBench's grader the profile `lcb-compat` follows, and what is owed to it and not to a program.

Reads and writes nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

GRADER: Mapping[str, str] = {
    "repository": "LiveCodeBench/LiveCodeBench",
    "commit": "28fef95ea8c9f7a547c8329f2cd3d32b92c1fa24",
    "date": "2025-07-16",
}
"""The state of the official grader that verdicts of `lcb-compat` follow; the date is that of the commit, in UTC.

Its testing_util.py was last changed by 16de2a1 of 23 May 2025, which brought the stand-in for sys.stdin."""

_PREFIX = "by the stand-in for sys.stdin: "
_REASON = re.compile(rf"(?:loading|test [0-9]+): official -[0-9], {_PREFIX}([^;]*);")


def with_reason(detail: str, reason: str) -> str:
    """Return a detail that begins with an official code, with what the stand-in for sys.stdin has to do with it put in."""
    code, _, rest = detail.partition(":")
    return f"{code}, {_PREFIX}{reason};{rest}"


def reason_of(detail: str) -> str:
    """Return what in a verdict's detail is owed to the official grader, empty where nothing is."""
    match = _REASON.match(detail)
    return f"official stand-in for sys.stdin: {match[1]}" if match else ""
