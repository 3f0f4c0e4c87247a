"""Two profiles of grading compared: every answer with a verdict that flips between them.

One idea: a reader should see on which answers two graders disagree, not only how often. Pure
functions of counted results: the part `profiles` of scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_ray.reporting.numbers.counts import ProblemResult

Results = Mapping[str, Mapping[str, ProblemResult]]
UNGRADED = "infrastructure_error"
KNOWN_FLIPS = (
    "A function problem may be named like something that LiveCodeBench's imports bring, such as "
    "gcd. lcb-compat, like the official grader, accepts a program without a class Solution that "
    "does not define it; strict calls only what the program itself defines.",
    "lcb-compat, like the official grader, takes Infinity for inf; strict compares finite numbers.",
    "lcb-compat, like the official grader since 23 May 2025, has a stand-in for sys.stdin, which "
    "gives some programs what no file would give; their flips are marked.",
)
"""Differences of the profiles by rule, not by chance (docs/benchmarks.md has the table)."""


def flips(first: Results, second: Results) -> list[dict[str, Any]]:
    """List the answers accepted by one profile alone, by arm, problem and sample.

    Answers ungraded in one of them are left out.
    """
    rows = []
    for arm, problems in second.items():
        for problem_id, problem in problems.items():
            pairs = zip(first[arm][problem_id].answers, problem.answers, strict=True)
            rows += [
                {
                    "benchmark": problem.benchmark,
                    "arm": arm,
                    "problem_id": problem_id,
                    "sample_index": one.sample_index,
                    "first": one.outcome,
                    "second": other.outcome,
                    "reason": one.reason or other.reason,
                }
                for one, other in pairs
                if _flips(one.outcome, other.outcome)
            ]
    return rows


def _flips(first: str, second: str) -> bool:
    # An infrastructure error is no verdict, so it cannot flip.
    if UNGRADED in (first, second):
        return False
    return (first == "accepted") != (second == "accepted")
