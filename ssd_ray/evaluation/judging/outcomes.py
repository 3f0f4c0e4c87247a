"""Results of programs, with the same outcomes for every grading profile."""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.errors import UserError
from ssd_ray.evaluation.sandbox import Status
from ssd_ray.schema import Outcome, Problem

MAX_DETAIL = 300
"""Characters of a verdict's detail."""

OUTCOMES: dict[Status, Outcome] = {
    "runtime_error": "runtime_error",
    "time_limit": "time_limit",
    "memory_limit": "memory_limit",
    "output_limit": "output_limit",
    "infrastructure_error": "infrastructure_error",
}
"""The outcome for each status of an execution other than "ok"."""


# Part of details on disk: `verdicts.facts` and the report look for these words.
UNGRADABLE = "cannot be graded:"
"""Words of a detail that blames the problem; another machine would give the same verdict."""


class UngradableError(UserError):
    """A problem with tests no program can pass; the message names it and the reason."""


@dataclass(frozen=True, kw_only=True)
class Result:
    """Result of a program on one test, on some, or on all tests of its problem."""

    outcome: Outcome
    detail: str = ""
    """One line for a reader; empty if the outcome explains itself."""
    num_passed: int = 0
    """Tests passed, up to the first failure."""
    time_s: float = 0.0
    """Wall time of the tests, without the start of the sandbox."""
    peak_bytes: int = 0
    """Largest resident size of its processes."""
    failed_test: int = -1
    """Index of the first failed test, -1 if none failed or none ran."""
    outcome_base: str = ""
    """Outcome of EvalPlus's base tests alone, empty for other problems."""


def ungradable(problem: Problem, reason: str) -> UngradableError:
    """Return the error for a problem with tests no program can pass."""
    return UngradableError(
        f"problem {problem.problem_id} {UNGRADABLE} {reason}; correct it or leave it out"
    )
