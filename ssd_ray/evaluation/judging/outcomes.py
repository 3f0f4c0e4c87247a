"""What became of one program, as both profiles say it; pure."""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.errors import UserError
from ssd_ray.evaluation.sandbox import Status
from ssd_ray.schema import Outcome

MAX_DETAIL = 300
"""Characters of a verdict's detail."""

OUTCOMES: dict[Status, Outcome] = {
    "runtime_error": "runtime_error",
    "time_limit": "time_limit",
    "memory_limit": "memory_limit",
    "output_limit": "output_limit",
    "infrastructure_error": "infrastructure_error",
}
"""The outcome that each status of an execution but "ok" means."""


UNGRADABLE = "cannot be graded:"
"""Words of a detail that blames the problem: grading again, on another machine, would not help."""


class UngradableError(UserError):
    """A problem on which no program can be graded, whatever it does; the message names it and says why."""


@dataclass(frozen=True, kw_only=True)
class Graded:
    """The outcome of one program; `time_s` is wall time over the tests that were run, without the sandbox's start.

    `failed_test` is the index of the first test that was not passed, -1 where none failed. `peak_bytes` is the largest
    resident size of its processes. `outcome_base` is that of EvalPlus's base tests alone, empty for other problems.
    """

    outcome: Outcome
    num_passed: int
    time_s: float
    detail: str
    failed_test: int = -1
    peak_bytes: int = 0
    outcome_base: str = ""
