"""The peak over T_eff: known, outside, absent; the coverage of its interval; equal T_eff."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ssd_ray.errors import UserError
from ssd_ray.statistics import peaks, t_eff_tests
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.quadratic import quadratic

T_TRAIN = np.repeat([0.5, 1.0, 1.5, 2.0], 6)
T_EVAL = np.tile([0.4, 0.6, 0.8, 1.0, 1.2, 1.4], 4)
T_EFF = np.round(T_TRAIN * T_EVAL, 9)
CASE = json.loads(Path(__file__).with_name("fit_answers.json").read_text())[0]["given"]
PUBLISHED = (
    np.repeat(CASE["T_train"], len(CASE["T_eval"])),
    np.tile(CASE["T_eval"], len(CASE["T_train"])),
    np.array(CASE["values"], dtype=np.float64).ravel(),
)


def _chances(
    generator: np.random.Generator, problems: int, center: float, spread: float, height: float
) -> Values:
    """Return chances of problems of any difficulty, each with a peak of its own."""
    level = 0.3 + 0.6 * generator.beta(0.8, 0.8, (problems, 1))
    own = center + spread * generator.normal(size=(problems, 1))
    return np.clip(level - height * ((T_EFF - own) ** 2 - 0.3), 0, 1)


def _answers(generator: np.random.Generator, chances: Values, number: int) -> Values:
    return generator.binomial(number, chances) / number


def _fit(values: Values) -> peaks.Fit:
    return peaks.fit(T_TRAIN, T_EVAL, values, confidence=0.95, seed=0)


def test_a_known_peak_is_within_its_interval() -> None:
    generator = np.random.default_rng(1)
    fit = _fit(_answers(generator, _chances(generator, 400, 1.2, 0.1, 0.2), 4))
    assert fit.peak.interval is not None
    assert fit.peak.interval.low < 1.2 < fit.peak.interval.high
    assert fit.peak.interval.high - fit.peak.interval.low < 0.3
    assert fit.peak.inside
    assert fit.peak.interval_inside
    assert fit.agreement is not None
    assert fit.agreement.p_value > 0.05


def test_a_peak_outside_of_the_cells_is_not_inside() -> None:
    generator = np.random.default_rng(2)
    fit = _fit(_answers(generator, _chances(generator, 800, 3.4, 0.1, 0.05), 4))
    assert fit.peak.interval is not None
    assert fit.peak.interval.estimate > fit.curve.high
    assert not fit.peak.inside
    assert not fit.peak.interval_inside


def test_noise_alone_has_no_peak() -> None:
    generator = np.random.default_rng(3)
    flat = _chances(generator, 60, 1.2, 0.0, 0.0)
    fits = [_fit(_answers(generator, flat, 1)) for _ in range(200)]
    accepted = [fit.peak.inside and fit.peak.interval_inside for fit in fits]
    # A curve bent downwards by chance alone: one side of a 95 % test, or less.
    assert np.mean(accepted) < 0.05


@pytest.mark.parametrize(
    ("problems", "answers", "spread", "height"),
    [(131, 1, 0.3, 0.1), (40, 4, 0.3, 0.1), (64, 1, 0.0, 0.2), (24, 10, 0.2, 0.2)],
)
@pytest.mark.slow
def test_the_interval_of_a_peak_covers_it_in_95_of_100_draws(
    problems: int, answers: int, spread: float, height: float
) -> None:
    generator = np.random.default_rng([problems, answers])
    truth = quadratic(T_EFF, _chances(generator, 40_000, 1.2, spread, height).mean(0)).peak
    covered = []
    for _ in range(1000):
        values = _answers(generator, _chances(generator, problems, 1.2, spread, height), answers)
        outcome = quadratic(T_EFF, values.mean(0))
        peak = peaks.peak(T_EFF, outcome, peaks.over_problems(T_EFF, values), confidence=0.95)
        if peak.interval is not None:
            covered.append(peak.interval.low <= truth <= peak.interval.high)
    assert len(covered) > 950
    assert 0.93 <= np.mean(covered) <= 0.97


@pytest.mark.parametrize("error", [0.5, 2.0])
@pytest.mark.slow
def test_without_problems_the_interval_covers_as_often(error: float) -> None:
    generator = np.random.default_rng(5)
    covered = []
    for _ in range(2000):
        means = 40 + 12 * T_EFF - 5 * T_EFF**2 + generator.normal(0, error, len(T_EFF))
        outcome = quadratic(T_EFF, means)
        peak = peaks.peak(T_EFF, outcome, peaks.of_residuals(T_EFF, means), confidence=0.95)
        if peak.interval is not None:
            covered.append(peak.interval.low <= 1.2 <= peak.interval.high)
    assert 0.93 <= np.mean(covered) <= 0.97


def test_seven_cells_carry_the_published_peak() -> None:
    t_train, t_eval, means = PUBLISHED
    effective = np.round(t_train * t_eval, 9)
    outcome = quadratic(effective, means)
    peak = peaks.peak(effective, outcome, peaks.of_residuals(effective, means), confidence=0.95)
    assert peak.interval is not None
    assert (peak.interval.low, peak.interval.high) == pytest.approx((1.229, 1.390), abs=1e-3)
    assert (peak.rests_on, peak.rests_above) == (7, True)
    assert peak.rests_on <= peaks.FEW * len(means)


def test_cells_of_equal_t_eff_reject_the_published_quadratic() -> None:
    t_train, t_eval, means = PUBLISHED
    lack = t_eff_tests.lack_of_fit(np.round(t_train * t_eval, 9), means)
    assert lack is not None
    assert lack.groups == 8
    assert (lack.statistic, lack.p_value) == pytest.approx((5.436, 0.0035), abs=1e-3)


def test_the_quadratic_in_both_temperatures_is_least_squares() -> None:
    t_train, t_eval, _ = PUBLISHED
    means = (
        5 - (t_train - 1.2) ** 2 - 2 * (t_eval - 0.9) ** 2 - 0.5 * (t_train - 1.2) * (t_eval - 0.9)
    )
    surface = t_eff_tests.surface(t_train, t_eval, means)
    assert surface is not None
    assert (surface.t_train, surface.t_eval) == pytest.approx((1.2, 0.9))
    assert surface.r2 == pytest.approx(1)
    assert t_eff_tests.surface(t_train, t_eval, -means) != surface
    other = t_eff_tests.surface(t_train, t_eval, -means)
    assert other is not None
    assert other.t_train is None


def test_two_t_train_give_no_surface() -> None:
    near = T_TRAIN < 1.2
    assert t_eff_tests.surface(T_TRAIN[near], T_EVAL[near], T_EVAL[near] ** 2) is None


def test_cells_of_equal_t_eff_differ_where_t_train_matters() -> None:
    generator = np.random.default_rng(6)
    chances = np.clip(_chances(generator, 200, 1.2, 0.1, 0.1) - 0.1 * (T_TRAIN > 1.2), 0, 1)
    test = t_eff_tests.agreement(T_EFF, _answers(generator, chances, 2), seed=0)
    assert test is not None
    assert test.p_value < 0.01


def test_the_test_of_equal_t_eff_keeps_its_level() -> None:
    generator = np.random.default_rng(7)
    p_values = []
    for _ in range(400):
        values = _answers(generator, _chances(generator, 60, 1.2, 0.2, 0.1), 1)
        test = t_eff_tests.agreement(T_EFF, values, seed=0)
        assert test is not None
        p_values.append(test.p_value)
    assert np.mean(np.array(p_values) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_three_t_eff_are_too_few() -> None:
    with pytest.raises(UserError, match=r"needs 4 different T_eff .*, not 3: add values"):
        peaks.fit(np.ones(3), np.array([0.5, 1, 1.5]), np.ones((5, 3)), confidence=0.95, seed=0)


def test_one_problem_has_no_error() -> None:
    with pytest.raises(UserError, match=r"needs 2 problems .*, not 1: raise evaluate.limit"):
        peaks.fit(T_TRAIN, T_EVAL, np.ones((1, 24)), confidence=0.95, seed=0)


def test_equal_values_everywhere_have_no_peak() -> None:
    fit = _fit(np.ones((5, 24)))
    assert fit.curve.r2 is None
    assert fit.peak.interval is None
    assert not fit.peak.inside
