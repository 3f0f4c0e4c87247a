"""Scores under each profile of grading, and every answer with a verdict that flips.

A reader should see on which answers two graders disagree, not only how often. Pure functions of
counted results: the part `profiles` of scores.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ssd_ray.config import Recipe, arms
from ssd_ray.lcb_official import GRADER
from ssd_ray.reporting.numbers.counts import Results
from ssd_ray.reporting.numbers.tables import only, refusals, score
from ssd_ray.statistics.differences import pass_at_values
from ssd_ray.statistics.metrics import Score

UNGRADED = "infrastructure_error"
KNOWN_FLIPS = (
    "The function of a problem may have the name of one that LiveCodeBench imports, such as gcd. "
    "If a program defines neither it nor a class Solution, lcb-compat calls the imported one, like "
    "the official grader; strict calls only what the program itself defines.",
    "lcb-compat, like the official grader, takes Infinity for inf; strict compares finite numbers.",
    "lcb-compat, like the official grader since 23 May 2025, has a stand-in for sys.stdin, which "
    "gives some programs what no file would give; their flips are marked.",
)
"""Differences of the profiles by rule, not by chance (docs/benchmarks.md has the table)."""


@dataclass(frozen=True, kw_only=True)
class Flip:
    """An answer accepted by one profile alone."""

    benchmark: str
    arm: str
    problem_id: str
    sample_index: int
    first: str
    """Outcome under the first profile."""
    second: str
    """Outcome under the other profile."""
    reason: str
    """Effect of the official grader behind the flip; empty if the program is the cause."""


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Profiles of grading, the first of which gives the scores of the run."""

    order: tuple[str, ...]
    scores: Mapping[str, Mapping[str, Mapping[str, Score | None]]]
    """Headline score by profile, graded benchmark and arm; empty for a single profile."""
    official_grader: Mapping[str, str] | None = None
    """Repository, commit and date of the grader behind `lcb-compat`; None without that profile."""
    flips: Mapping[str, tuple[Flip, ...]]
    """Flips against the first profile, by other profile."""


def profiles(
    recipe: Recipe, by_profile: Mapping[str, Results], benchmarks: Sequence[str]
) -> Profiles:
    """Return scores of every arm under each profile, and the answers with flipping verdicts.

    A profile has scores on the benchmarks that it graded.
    """
    first, *others = recipe.evaluate.profiles
    return Profiles(
        order=(first, *others),
        scores={
            profile: {
                name: _scores(recipe, graded)
                for name in benchmarks
                if (graded := only(by_profile[profile], benchmark=name))[arms.baseline(recipe)]
            }
            # A single profile has nothing to be compared with.
            for profile in (first, *others)
            if others
        },
        official_grader=dict(GRADER) if "lcb-compat" in recipe.evaluate.profiles else None,
        flips={profile: flips(by_profile[first], by_profile[profile]) for profile in others},
    )


def _scores(recipe: Recipe, results: Results) -> dict[str, Score | None]:
    """Return the headline pass@k of every arm on one benchmark, None if it is refused."""
    refused = refusals(recipe, results)
    k = min(recipe.evaluate.pass_at)
    values = {
        arm: pass_at_values([(p.graded, p.accepted) for p in problems.values()], k)
        for arm, problems in results.items()
    }
    return {arm: None if refused[arm] else score(recipe, values[arm]) for arm in results}


def flips(first: Results, second: Results) -> tuple[Flip, ...]:
    """List the answers accepted by one profile alone, by arm, problem and sample.

    Answers ungraded in one of them are left out.
    """
    rows: list[Flip] = []
    for arm, problems in second.items():
        for problem_id, problem in problems.items():
            pairs = zip(first[arm][problem_id].answers, problem.answers, strict=True)
            rows += [
                Flip(
                    benchmark=problem.benchmark,
                    arm=arm,
                    problem_id=problem_id,
                    sample_index=one.sample_index,
                    first=one.outcome,
                    second=other.outcome,
                    reason=one.reason or other.reason,
                )
                for one, other in pairs
                if _flips(one.outcome, other.outcome)
            ]
    return tuple(rows)


def _flips(first: str, second: str) -> bool:
    # An infrastructure error is not a verdict, so it cannot flip.
    if UNGRADED in (first, second):
        return False
    return (first == "accepted") != (second == "accepted")
