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
    change: float
    """pass@k of the second arm, minus that of the first."""

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
    k: int

    def going(self, way: str) -> list[Flip]:
        """Return the problems that changed in a way, or in any; largest changes first."""
        ways = {way} if way else {"better", "worse"}
        chosen = [flip for flip in self.flips if flip.way in ways]
        return sorted(chosen, key=lambda flip: (-abs(flip.change), flip.problem_id))


@dataclass(frozen=True, kw_only=True)
class Part:
    """Problems to compare; "" takes all."""

    benchmark: str = ""
    difficulty: str = ""
    k: int = 1
    """The k of pass@k."""

    def has(self, problem: tuple[str, str, int, int]) -> bool:
        """Return True for a problem of this part with at least k graded answers."""
        benchmark, difficulty, graded, _ = problem
        return (
            graded >= self.k
            and self.benchmark in ("", benchmark)
            and self.difficulty in ("", difficulty)
        )


def paired_by_problem(first: Counts, second: Counts, part: Part) -> Changes:
    """Pair the problems of two arms.

    Raises:
        UserError: no problem is graded on both sides.
    """
    from ssd_ray.statistics import paired
    from ssd_ray.statistics.differences import judged, pass_at_values

    sides = [
        {name: each for name, each in side.items() if each[2] and part.has(each)}
        for side in (first, second)
    ]
    common = sorted(sides[0].keys() & sides[1].keys())
    if not common:
        raise UserError(
            "no problem is graded on both sides: they answer different benchmarks, "
            "or one has no verdicts yet"
        )
    values = [
        pass_at_values([(side[name][2], side[name][3]) for name in common], part.k)
        for side in sides
    ]
    changes = (values[1] - values[0]).tolist()
    flips = tuple(
        _flip(name, sides[0][name], sides[1][name], change)
        for name, change in zip(common, changes, strict=True)
    )
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
        k=part.k,
    )


def _flip(
    name: str,
    first: tuple[str, str, int, int],
    second: tuple[str, str, int, int],
    change: float,
) -> Flip:
    return Flip(
        problem_id=name,
        benchmark=second[0],
        difficulty=second[1],
        graded=(first[2], second[2]),
        accepted=(first[3], second[3]),
        change=change,
    )
