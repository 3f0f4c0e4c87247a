"""OutputRoom for right answers: the output limit of a test is never below what its expected output needs.

- Printed text may be twice as long as the expected one: `6.0` for `6`, blanks at line ends.
- A returned value may be eight times as long on the wire: tuples for lists, numpy's numbers, 17 digits of a float.
- A check's own text stands for the values that it expects and the arguments that it gives.
- What would need more than MOST_OUTPUT_KIB is refused before anything is graded: no program could pass.

Pure functions on problems and limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssd_ray import wire
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.schema import Problem, Test

MOST_OUTPUT_KIB = 256 << 10
"""A grader holds an output several times over: as bytes, as text and as lines."""
_SPARE_KIB = 64
_PRINTED, _ON_THE_WIRE = 2, 8


def with_room(limits: Limits, problem: Problem, tests: Sequence[Test]) -> Limits:
    """Return limits under which a right answer to each of the tests fits; the same where it does already."""
    return _raised(limits, max((_needed_bytes(problem, test, limits) for test in tests), default=0))


def with_room_for_replies(limits: Limits, tests: Sequence[Test]) -> Limits:
    """Return limits under which printed texts fit on the wire, where a character takes up to twelve bytes."""
    most = limits.output_kib << 10
    longest = 0
    for test in tests:
        bound = 12 * len(test.output)
        longest = max(longest, bound if _PRINTED * bound <= most else len(wire.dumps(test.output)))
    return _raised(limits, _PRINTED * longest)


def too_large(problem: Problem) -> str:
    """Return why no program could pass one of a problem's tests within any limit; empty where one could."""
    for index, test in enumerate(problem.tests, start=1):
        size = _bytes_of(test.output, MOST_OUTPUT_KIB << 10)
        if size > MOST_OUTPUT_KIB << 10:
            return (
                f"its test {index} expects {size >> 20:,} MiB of output, more than the {MOST_OUTPUT_KIB >> 10} MiB "
                "that a grader holds, so no program can pass it: leave the test out"
            )
    return ""


def _raised(limits: Limits, needed_bytes: int) -> Limits:
    needed_kib = -(-needed_bytes >> 10)
    if needed_kib <= limits.output_kib:
        return limits
    return dataclasses.replace(
        limits, output_kib=max(limits.output_kib, min(needed_kib + _SPARE_KIB, MOST_OUTPUT_KIB))
    )


def _needed_bytes(problem: Problem, test: Test, limits: Limits) -> int:
    if problem.kind == "stdin":
        return _PRINTED * _bytes_of(test.output, (limits.output_kib << 10) // _PRINTED)
    return _ON_THE_WIRE * len(test.input if problem.kind == "asserts" else test.output)


def _bytes_of(text: str, most: int) -> int:
    """Return the length of a text in UTF-8, or a bound that is no more than `most`."""
    return 4 * len(text) if 4 * len(text) <= most else len(text.encode("utf-8", "surrogatepass"))
