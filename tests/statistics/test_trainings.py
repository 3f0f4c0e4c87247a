"""The spread of repeated trainings is kept apart from that of problems."""

from __future__ import annotations

import numpy as np
import pytest

from ssd_ray.errors import UserError
from ssd_ray.statistics.trainings import spread_of_trainings

TRAININGS, PROBLEMS, RUNS = 3, 60, 1000


def runs(training_sd: float, problem_sd: float, rest_sd: float, trainings: int) -> np.ndarray:
    """Return float64 [runs, trainings, problems] of differences with mean 0.05."""
    rng = np.random.default_rng(int(1000 * training_sd) + trainings)
    return (
        0.05
        + training_sd * rng.normal(size=(RUNS, trainings, 1))
        + problem_sd * rng.normal(size=(RUNS, 1, PROBLEMS))
        + rest_sd * rng.normal(size=(RUNS, trainings, PROBLEMS))
    )


@pytest.mark.parametrize("trainings", [2, 3, 5])
@pytest.mark.parametrize("training_sd", [0.0, 0.02, 0.1])
def test_the_interval_over_both_covers_another_seed(training_sd: float, trainings: int) -> None:
    """It is never too narrow; where trainings are alike it is too wide."""
    drawn = runs(training_sd, 0.2, 0.2, trainings)
    spreads = [spread_of_trainings(values, confidence=0.95) for values in drawn]
    covered = np.mean([each.over_both.low <= 0.05 <= each.over_both.high for each in spreads])
    assert covered >= 0.94
    if training_sd == 0.1:
        narrow = [each.over_problems.low <= 0.05 <= each.over_problems.high for each in spreads]
        assert np.mean(narrow) < 0.75, "problems alone say nothing about another seed"


def test_components_are_those_that_were_planted() -> None:
    drawn = runs(0.1, 0.2, 0.1, 5)
    spreads = [spread_of_trainings(values, confidence=0.95) for values in drawn]
    variance = np.mean([each.training_sd**2 for each in spreads])
    assert variance == pytest.approx(0.01, rel=0.1)
    quiet = [spread_of_trainings(v, confidence=0.95) for v in runs(0.0, 0.2, 0.1, 5)]
    false_alarms = np.mean([each.training_p_value <= 0.05 for each in quiet])
    assert 0.03 <= false_alarms <= 0.07


def test_equal_trainings_have_no_spread() -> None:
    row = np.random.default_rng(0).normal(size=40)
    spread = spread_of_trainings(np.stack([row, row]), confidence=0.95)
    assert (spread.training_sd, spread.training_p_value) == (0.0, None)
    assert spread.over_both.low == pytest.approx(spread.over_problems.low)


@pytest.mark.parametrize(("shape", "field"), [((1, 9), "train.seeds"), ((3, 1), "evaluate.limit")])
def test_too_few_are_refused(shape: tuple[int, int], field: str) -> None:
    with pytest.raises(UserError, match=field):
        spread_of_trainings(np.zeros(shape), confidence=0.95)
