"""Problems on which two arms differ, with the paired interval that rests on them.

Each side is an arm of a run; the two runs may differ. Pure functions on the counts of an index.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ssd_ray.errors import UserError
from ssd_ray.statistics.differences import Difference

Way = Literal["better", "worse", "equal"]
Counts = Mapping[str, tuple[str, str, int, int]]
"""Benchmark, difficulty, graded and accepted answers by problem."""
_EQUAL = 1e-9
_CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Flip:
    """A problem with graded answers of both arms."""

    problem_id: str
    benchmark: str
    difficulty: str
    graded: tuple[int, int]
    accepted: tuple[int, int]

    @property
    def change(self) -> float:
        """Share of accepted answers of the second arm, minus that of the first."""
        return self.accepted[1] / self.graded[1] - self.accepted[0] / self.graded[0]

    @property
    def way(self) -> Way:
        """Direction of the change."""
        if abs(self.change) < _EQUAL:
            return "equal"
        return "better" if self.change > 0 else "worse"


@dataclass(frozen=True, kw_only=True)
class Changes:
    """Two arms problem by problem."""

    flips: tuple[Flip, ...]
    unpaired: int
    """Problems graded on one side alone."""
    paired: Difference

    def going(self, way: str) -> list[Flip]:
        """Return the problems that changed in a way, or in any; largest changes first."""
        chosen = [flip for flip in self.flips if flip.way == way or (not way and flip.change)]
        return sorted(chosen, key=lambda flip: (-abs(flip.change), flip.problem_id))


def paired_by_problem(first: Counts, second: Counts, benchmark: str) -> Changes:
    """Pair the problems of two arms, of one benchmark or of all ("").

    Raises:
        UserError: no problem is graded on both sides.
    """
    from ssd_ray.statistics import paired
    from ssd_ray.statistics.differences import judged, pass_at_values

    sides = [
        {name: each for name, each in side.items() if each[2] and benchmark in ("", each[0])}
        for side in (first, second)
    ]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise UserError(
            "no problem is graded on both sides: they answer different benchmarks, "
            "or one has no verdicts yet"
        )
    flips = tuple(_flip(name, sides[0][name], sides[1][name]) for name in common)
    values = [
        pass_at_values([(flip.graded[side], flip.accepted[side]) for flip in flips], 1)
        for side in (0, 1)
    ]
    # The design effect is bounded by the largest number of answers to a problem.
    most = max(max(flip.graded) for flip in flips)
    ways = [flip.way for flip in flips]
    return Changes(
        flips=flips,
        unpaired=len(sides[0].keys() ^ sides[1].keys()),
        paired=judged(
            paired.discordance(values[1], values[0], answers=most),
            ways.count("better"),
            ways.count("worse"),
            problems=len(flips),
            confidence=_CONFIDENCE,
        ),
    )


def _flip(name: str, first: tuple[str, str, int, int], second: tuple[str, str, int, int]) -> Flip:
    return Flip(
        problem_id=name,
        benchmark=second[0],
        difficulty=second[1],
        graded=(first[2], second[2]),
        accepted=(first[3], second[3]),
    )
