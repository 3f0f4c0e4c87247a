"""Repeated trainings on the same problems: their spread, apart from that of problems.

A table of differences has a row for each training and a column for each problem. Its variance has
three parts (two-way random effects without repetition, Searle, Casella and McCulloch 1992):

- problems: some are easier to gain on;
- trainings: some seeds do better on all problems;
- the rest: a training does better on this problem, and the draw of the answers.

An interval over problems alone holds for these trainings. One over both also holds for another
seed: its half is the root of the squared halves over problems and over trainings. So it is never
too narrow, and with two trainings (Student's t with one degree of freedom) it is wide.

Pure functions on arrays, without I/O.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from ssd_ray.errors import UserError
from ssd_ray.statistics.metrics import Interval, Values

MIN_TRAININGS = 2
_MIN_PROBLEMS = 2
_RATIO_FLOOR = 1e-12
"""Smaller mean squares are rounding errors of equal values."""


@dataclass(frozen=True, kw_only=True)
class TrainingSpread:
    """The mean over trainings and problems, with the spread of both."""

    trainings: int
    problems: int
    by_training: tuple[float, ...]
    """Mean over problems of each training."""
    over_problems: Interval
    """Holds for these trainings on other problems."""
    over_both: Interval
    """Holds for other trainings as well."""
    training_sd: float
    """Standard deviation of the mean of one training, beyond the spread of the rest; at least 0."""
    training_p_value: float | None
    """Chance of trainings as different as these if all were equal; None if nothing varies."""


def spread_of_trainings(values: Values, *, confidence: float) -> TrainingSpread:
    """Separate the spread of trainings from that of problems.

    Args:
        values: float64 [trainings, problems], without NaN: scores, or differences to a baseline.
        confidence: level of both intervals.

    Raises:
        UserError: fewer than two trainings or problems.
    """
    trainings, problems = values.shape
    if trainings < MIN_TRAININGS:
        raise UserError(
            f"train.seeds={trainings} gives no spread of trainings: use train.seeds=2 or more"
        )
    if problems < _MIN_PROBLEMS:
        raise UserError(
            f"a spread of trainings needs at least {_MIN_PROBLEMS} problems graded in all of them, "
            f"not {problems}: raise evaluate.limit"
        )
    mean = float(values.mean())
    rows = values.mean(axis=1)
    columns = values.mean(axis=0)
    rest = values - rows[:, None] - columns[None, :] + mean
    free = (trainings - 1, problems - 1, (trainings - 1) * (problems - 1))
    # Mean squares of trainings, problems and the rest.
    squares = (
        problems * float(((rows - mean) ** 2).sum()) / free[0],
        trainings * float(((columns - mean) ** 2).sum()) / free[1],
        float((rest**2).sum()) / free[2],
    )
    cells = trainings * problems
    # An estimate of a variance may be negative where trainings hardly differ.
    between = max(0.0, squares[0] - squares[2])
    problem_half = _student(free[1], confidence) * math.sqrt(squares[1] / cells)
    training_half = _student(free[0], confidence) * math.sqrt(squares[0] / cells)
    is_spread = between > _RATIO_FLOOR * squares[1]
    return TrainingSpread(
        trainings=trainings,
        problems=problems,
        by_training=tuple(rows.tolist()),
        over_problems=_interval(mean, problem_half),
        over_both=_interval(mean, math.hypot(problem_half, training_half)),
        training_sd=math.sqrt(between / problems) if is_spread else 0.0,
        training_p_value=_p_value(squares[0], squares[2], free[0], free[2]),
    )


def _student(freedom: int, confidence: float) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, (1 + confidence) / 2))


def _interval(mean: float, half: float) -> Interval:
    return Interval(estimate=mean, low=mean - half, high=mean + half)


def _p_value(trainings: float, rest: float, first: int, second: int) -> float | None:
    from scipy.special import fdtrc

    if rest < _RATIO_FLOOR:
        return None
    return float(fdtrc(first, second, trainings / rest))
