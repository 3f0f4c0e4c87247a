"""Two profiles of grading side by side: the scores under both, and every answer whose verdict flips between them.

One idea: where two graders disagree the reader should see on what, answer by answer, and not only by how much. Pure
functions of counted results: the part `profiles` of scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ssd_ray.reporting.numbers.counts import ProblemResult

Results = Mapping[str, Mapping[str, ProblemResult]]
UNGRADED = "infrastructure_error"
KNOWN_FLIPS = (
    "A function problem may be named like something that LiveCodeBench's imports bring, such as gcd. lcb-compat, like the "
    "official grader, accepts a program without a class Solution that does not define it; strict calls only what the program "
    "itself defines.",
    "lcb-compat, like the official grader, takes Infinity for inf; strict compares finite numbers.",
    "lcb-compat, like the official grader since 23 May 2025, has a stand-in for sys.stdin, which gives some programs what no "
    "file would give; their flips say so.",
)
"""Differences between the profiles that are rules, not chance, for a reader of flips (docs/benchmarks.md has the table)."""


def flips(first: Results, second: Results) -> list[dict[str, Any]]:
    """The answers that one profile accepts and the other does not, both having graded them; by arm, problem and sample."""
    found = []
    for arm, problems in second.items():
        for problem_id, problem in problems.items():
            for here, there in zip(first[arm][problem_id].answers, problem.answers, strict=True):
                if UNGRADED not in (here.outcome, there.outcome) and (
                    here.outcome == "accepted"
                ) != (there.outcome == "accepted"):
                    found.append(
                        {
                            "benchmark": problem.benchmark,
                            "arm": arm,
                            "problem_id": problem_id,
                            "sample_index": here.sample_index,
                            "first": here.outcome,
                            "second": there.outcome,
                            "reason": here.reason or there.reason,
                        }
                    )
    return found
