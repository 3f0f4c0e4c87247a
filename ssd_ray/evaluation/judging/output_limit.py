"""Output limits with space for right answers.

The output limit of a test is never below the need of its expected output:

- Printed text may be twice as long as expected: `6.0` for `6`, blanks at line ends.
- A value may be eight times as long on the wire: tuples for lists, numpy's numbers, 17 digits
  of a float.
- A check's own text counts as expected: it spells out values and arguments.
- Limits end at MOST_OUTPUT_KIB. A test that expects more is refused before grading: no program
  could pass it.

Pure functions on problems and limits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from ssd_ray import wire
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.schema import Problem, Test

MOST_OUTPUT_KIB = 256 << 10
"""The largest limit. A grader holds an output several times: as bytes, text and lines."""
_SPARE_KIB = 64
_PRINTED = 2
"""Bytes of a right output per byte of the expected one, as printed text."""
_ON_THE_WIRE = 8
"""The same for a value on the wire."""


def fitting_limits(limits: Limits, problem: Problem, tests: Sequence[Test]) -> Limits:
    """Return limits with space for a right answer to each of the tests."""
    return _raised(limits, max((_needed_bytes(problem, test, limits) for test in tests), default=0))


def fitting_limits_for_replies(limits: Limits, tests: Sequence[Test]) -> Limits:
    """Return limits with space for printed texts on the wire, at up to 12 bytes a character."""
    most = limits.output_kib << 10
    longest = 0
    for test in tests:
        bound = 12 * len(test.output)
        longest = max(longest, bound if _PRINTED * bound <= most else len(wire.dumps(test.output)))
    return _raised(limits, _PRINTED * longest)


def too_large(problem: Problem) -> str:
    """Return the reason if no program could pass a test within any limit, else an empty text."""
    for index, test in enumerate(problem.tests, start=1):
        size = _bytes_of(test.output, MOST_OUTPUT_KIB << 10)
        if size > MOST_OUTPUT_KIB << 10:
            return (
                f"its test {index} expects {size >> 20:,} MiB of output, "
                f"more than the {MOST_OUTPUT_KIB >> 10} MiB that a grader holds, "
                "so no program can pass it: leave the test out"
            )
    return ""


def _raised(limits: Limits, needed_bytes: int) -> Limits:
    """Return limits with space for so many bytes, capped at MOST_OUTPUT_KIB."""
    needed_kib = -(-needed_bytes >> 10)
    if needed_kib <= limits.output_kib:
        return limits
    return dataclasses.replace(
        limits, output_kib=max(limits.output_kib, min(needed_kib + _SPARE_KIB, MOST_OUTPUT_KIB))
    )


def _needed_bytes(problem: Problem, test: Test, limits: Limits) -> int:
    """Return an upper bound on the bytes of a right answer to a test."""
    if problem.kind == "stdin":
        return _PRINTED * _bytes_of(test.output, (limits.output_kib << 10) // _PRINTED)
    return _ON_THE_WIRE * len(test.input if problem.kind == "asserts" else test.output)


def _bytes_of(text: str, most: int) -> int:
    """Return the length of a text in UTF-8, or an upper bound of at most `most` bytes."""
    # A character takes four bytes at most, so only texts that could exceed `most` are encoded.
    return 4 * len(text) if 4 * len(text) <= most else len(text.encode("utf-8", "surrogatepass"))
