"""Promises of the statistics, by simulation: coverage, valid p-values, power, selection.

The truth is known because the problems are synthetic. A problem's chance of being solved
comes from a beta distribution with the true score as its mean. With one answer to each of
few problems, scores lie on a coarse grid and coverage jumps with the true score. Coverage
is therefore averaged over a window, as in Brown, Cai and DasGupta (2001).
"""

import itertools
import sys
from pathlib import Path

import numpy as np
import pytest

from ssd_ray.statistics import selection
from ssd_ray.statistics.metrics import score_interval
from ssd_ray.statistics.paired import difference_interval, discordance
from ssd_ray.statistics.significance import p_value, smallest_detectable_effect, standard_error

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from interval_coverage import CHANGES, KINDS, changed, coverage, few

LOW, HIGH = 0.93, 0.97
DATA_SETS = 1000
SCORE_DATA_SETS = 3000


def beta_problems(mean, likeness, shape, rng):
    """Draw chances with the given mean; `likeness` correlates two answers to one problem."""
    if likeness == 0:
        return np.broadcast_to(mean, shape)
    size = 1 / likeness - 1
    return rng.beta(mean * size, (1 - mean) * size, shape)


def noise(data_sets):
    """Return two standard errors of a coverage near 95 % over so many data sets."""
    return 2 * (0.05 * 0.95 / data_sets) ** 0.5


def score_coverage(problems, samples, likeness, mean, rng):
    means = rng.uniform(mean - 0.02, mean + 0.02, SCORE_DATA_SETS)
    chances = beta_problems(means[:, None], likeness, (SCORE_DATA_SETS, problems), rng)
    covered = 0
    for truth, values in zip(means, rng.binomial(samples, chances) / samples, strict=True):
        result = score_interval(values, confidence=0.95)
        covered += result.low <= truth <= result.high
    return covered / SCORE_DATA_SETS


def assert_near_95(shares, data_sets):
    """Assert coverage of 93 to 97 % in every case, within simulation noise.

    Nearly all cases meet it without noise, and the mean is 94 to 96.5 %.
    """
    values = np.array(list(shares.values()))
    outside = {
        case: share
        for case, share in shares.items()
        if not LOW - noise(data_sets) <= share <= HIGH + noise(data_sets)
    }
    assert not outside
    assert np.mean((values >= LOW) & (values <= HIGH)) >= 0.9
    assert 0.94 <= values.mean() <= 0.965


@pytest.mark.slow
@pytest.mark.parametrize("problems", [30, 64, 131, 500])
def test_score_intervals_cover_the_truth_in_93_to_97_percent(problems):
    rng = np.random.default_rng(problems)
    cases = itertools.product((1, 3, 10), (0.0, 0.3, 0.6), (0.05, 0.1, 0.3, 0.5, 0.8, 0.95))
    kept = [
        case for case in cases if case[0] > 1 or case[1] == 0
    ]  # with one answer a problem, likeness changes nothing
    assert_near_95({case: score_coverage(problems, *case, rng) for case in kept}, SCORE_DATA_SETS)


def paired_data(problems, samples, likeness, change, rng, data_sets):
    """Draw shares of the trained model and of the base, float64[data_sets, problems] each."""
    data = changed(problems, samples, likeness, change, rng, data_sets)
    return data.trained, data.base


FEW = 6
"""Least effective number of differing problems with intervals of about 95 %."""


@pytest.mark.slow
@pytest.mark.parametrize("problems", [30, 131, 500])
def test_paired_intervals_cover_the_truth_in_93_to_97_percent(
    problems,
):
    rng = np.random.default_rng(1000 + problems)
    shares = {}
    for samples, likeness, change in itertools.product(
        (1, 4, 10), (0.1, 0.6) if problems < 500 else (0.4,), CHANGES
    ):
        share, differing = coverage(
            changed(problems, samples, likeness, change, rng, DATA_SETS), samples
        )
        if differing >= FEW:
            shares[samples, likeness, change] = share
        else:
            assert LOW - noise(DATA_SETS) <= share <= 0.98 + noise(DATA_SETS), (
                samples,
                likeness,
                change,
                share,
            )
    assert_near_95(shares, DATA_SETS)


@pytest.mark.slow
@pytest.mark.parametrize("problems", [30, 131, 500])
@pytest.mark.parametrize("samples", [1, 4, 10])
def test_the_interval_covers_where_0_to_6_problems_differ(problems, samples):
    rng = np.random.default_rng([problems, samples])
    for band, kind in itertools.product(range(6), KINDS):
        share, _ = coverage(few(problems, samples, band, kind, rng, DATA_SETS), samples)
        assert share >= LOW - noise(DATA_SETS), (band, kind, share)
        if band >= 4 and "better" in kind:
            assert share <= 0.985 + noise(DATA_SETS), (band, kind, share)


def test_zero_of_n_and_n_of_n_have_an_interval_of_some_width():
    for problems in (30, 131, 500):
        none, every = (
            score_interval(np.full(problems, value), confidence=0.95) for value in (0.0, 1.0)
        )
        assert none.low == 0.0
        assert none.high == pytest.approx(1.96**2 / (problems + 1.96**2), rel=1e-3)
        assert (every.low, every.high) == pytest.approx((1 - none.high, 1.0))


def test_one_answer_a_problem_gives_wilsons_interval():
    for right, problems in ((3, 30), (50, 131), (499, 500)):
        values = np.array([1.0] * right + [0.0] * (problems - right))
        result = score_interval(values, confidence=0.95)
        p, z = right / problems, 1.959963984540054
        half = z * (p * (1 - p) / problems + z * z / (4 * problems**2)) ** 0.5
        ends = [
            (p + z * z / (2 * problems) + way * half) / (1 + z * z / problems) for way in (-1, 1)
        ]
        assert [result.low, result.high] == pytest.approx(ends, rel=1e-9)


def test_only_independent_answers_narrow_the_interval():
    rng = np.random.default_rng(5)
    agreeing = np.repeat([0.0, 1.0], 200)
    assert score_interval(agreeing, confidence=0.95) == score_interval(
        rng.permutation(agreeing), confidence=0.95
    )
    loose = score_interval(rng.binomial(10, 0.5, 400) / 10, confidence=0.95)
    tight = score_interval(agreeing, confidence=0.95)
    assert (tight.high - tight.low) / (loose.high - loose.low) == pytest.approx(10**0.5, rel=0.1)


@pytest.mark.parametrize(("problems", "samples"), [(12, 4), (40, 1), (131, 10)])
def test_false_positives_stay_below_5_percent(problems, samples):
    rng = np.random.default_rng(problems)
    after, before = paired_data(problems, samples, 0.5, (0.4, 0.4, 0.0), rng, 2000)
    values = [
        p_value(discordance(a, b, answers=samples)) for a, b in zip(after, before, strict=True)
    ]
    assert np.mean(np.array(values) <= 0.05) <= 0.05 + noise(2000)


@pytest.mark.parametrize(("problems", "samples"), [(60, 10), (131, 10), (300, 2)])
def test_a_detectable_difference_is_found_in_8_of_10_runs(problems, samples):
    rng = np.random.default_rng(problems)
    after, before = paired_data(problems, samples, 0.4, (0.5, 0.5, 0.6), rng, 400)
    pairs = [discordance(a, b, answers=samples) for a, b in zip(after, before, strict=True)]
    errors = [
        standard_error(difference_interval(pair, confidence=0.95), confidence=0.95)
        for pair in pairs
    ]
    effect = smallest_detectable_effect(float(np.mean(errors)), confidence=0.95)
    chances = 0.5 + effect / 2, 0.5 - effect / 2
    after, before = paired_data(
        problems, samples, 0.4, (chances[1], chances[1] + effect / 0.6, 0.6), rng, 400
    )
    rejections = [
        p_value(discordance(a, b, answers=samples)) <= 0.05
        for a, b in zip(after, before, strict=True)
    ]
    assert 0.72 < np.mean(rejections) < 0.88


def sweeps(problems, gains, rng, data_sets, samples=10):
    """Draw two models over len(gains) temperatures, near 0.5; the second is better by gains[t]."""
    chances = rng.beta(1.2, 1.2, (data_sets, problems, 1)) * 0.8 + 0.1
    shapes = (data_sets, problems, len(gains))
    control = rng.binomial(samples, np.broadcast_to(chances, shapes)) / samples
    treated = rng.binomial(samples, np.clip(chances + np.asarray(gains), 0, 1)) / samples
    return treated, control


def cut(problems, seed=0, splits=12):
    names = [f"p{index}" for index in range(problems)]
    return selection.halves(names, ["all"] * problems, seed=seed, splits=splits)


def brute_gain(treated, control, split):
    """Return the same estimate by plain loops."""
    gains = []
    for mask in split:
        for choosing in (mask, ~mask):
            score = []
            for values in (treated, control):
                sums = [round(sum(values[choosing, t]), 9) for t in range(values.shape[1])]
                best = [t for t, total in enumerate(sums) if total == max(sums)]
                score.append(np.mean([values[~choosing, t].mean() for t in best]))
            gains.append(score[0] - score[1])
    return np.mean(gains)


def test_the_selection_free_gain_is_what_plain_loops_give():
    rng = np.random.default_rng(0)
    treated, control = sweeps(31, [0.0, 0.05, 0.02], rng, 4, samples=2)
    for one, other in zip(treated, control, strict=True):
        split = cut(31, splits=5)
        gain = selection.Sweep(one, other, split).gain(samples=200, answers=2, seed=0)
        assert gain.pair.estimate == pytest.approx(brute_gain(one, other, split))
        assert gain.best_cell == pytest.approx(one.mean(axis=0).max() - other.mean(axis=0).max())
        assert gain.chosen_treated.sum() == pytest.approx(1.0)


def test_a_one_temperature_sweep_is_the_paired_difference():
    rng = np.random.default_rng(1)
    treated, control = (values[0] for values in sweeps(60, [0.1], rng, 1))
    gain = selection.Sweep(treated, control, cut(60)).gain(samples=4000, answers=10, seed=0)
    plain = discordance(treated[:, 0], control[:, 0], answers=10)
    for name in ("better", "worse", "size"):
        assert getattr(gain.pair, name) == pytest.approx(getattr(plain, name))
    assert gain.best_cell == pytest.approx(plain.estimate)
    assert gain.better == (treated > control).sum()
    assert gain.worse == (treated < control).sum()


@pytest.mark.parametrize("problems", [9, 32, 131])
def test_a_sweep_in_which_nothing_differs_keeps_tangos_interval(problems):
    same = np.repeat((np.arange(problems) % 2).astype(float)[:, None], 4, axis=1)
    gain = selection.Sweep(same, same, cut(problems)).gain(samples=200, answers=1, seed=0)
    plain = difference_interval(discordance(same[:, 0], same[:, 0], answers=1), confidence=0.95)
    swept = difference_interval(gain.pair, confidence=0.95)
    assert (swept.low, swept.high) == pytest.approx((plain.low, plain.high))


def test_group_gains_choose_the_temperature_on_all_problems():
    rng = np.random.default_rng(2)
    treated, control = (values[0] for values in sweeps(40, [0.0, 0.3], rng, 1))
    inside = np.arange(40) < 10
    strata = ["a" if chosen else "b" for chosen in inside]
    split = selection.halves([str(index) for index in range(40)], strata, seed=0, splits=8)
    gain = selection.Sweep(treated, control, split, inside).gain(samples=200, answers=10, seed=0)
    gains = []
    for mask in [*split, *~split]:
        best = [values[mask].mean(axis=0) for values in (treated, control)]
        cells = [np.flatnonzero(means >= means.max() - 1e-12) for means in best]
        gains.append(
            treated[~mask & inside][:, cells[0]].mean()
            - control[~mask & inside][:, cells[1]].mean()
        )
    assert gain.pair.estimate == pytest.approx(np.mean(gains))


def test_selection_inflates_the_best_cell_and_not_the_gain():
    rng = np.random.default_rng(4)
    free, best = [], []
    for one, other in zip(*sweeps(60, [0.0] * 8, rng, 300, samples=2), strict=True):
        once = other[:, [0] * 8]  # a baseline that was not swept, as it is often done
        gain = selection.Sweep(one, once, cut(60)).gain(samples=2, answers=2, seed=0)
        free.append(gain.pair.estimate)
        best.append(gain.best_cell)
    assert abs(np.mean(free)) < 3 * np.std(free) / 300**0.5
    assert np.mean(best) > 0.02


@pytest.mark.slow
@pytest.mark.parametrize("gains", [[0.0] * 5, [-0.1, 0.0, 0.05, 0.08, -0.2]])
def test_selection_free_intervals_cover_the_true_gain(gains):
    rng = np.random.default_rng(8)
    pairs = [
        selection.Sweep(one, other, cut(100)).gain(samples=300, answers=10, seed=0).pair
        for one, other in zip(*sweeps(100, gains, rng, 300), strict=True)
    ]
    truth = np.mean([pair.estimate for pair in pairs])
    intervals = [difference_interval(pair, confidence=0.95) for pair in pairs]
    covered = np.mean([each.low <= truth <= each.high for each in intervals])
    # Coverage is higher for equal temperatures: resamples choose more erratically than the data.
    assert covered >= LOW
    if not any(gains):
        assert np.mean([p_value(pair) <= 0.05 for pair in pairs]) <= 0.05 + noise(300)


def test_halves_are_even_in_every_stratum_and_reproducible():
    names = [f"p{index}" for index in range(47)]
    strata = ["easy"] * 10 + ["medium"] * 15 + ["hard"] * 22
    halves = selection.halves(names, strata, seed=3)
    for stratum in set(strata):
        inside = np.array([name == stratum for name in strata])
        assert set(halves[:, inside].sum(axis=1)) <= {inside.sum() // 2, (inside.sum() + 1) // 2}
    order = np.random.default_rng(0).permutation(47)
    again = selection.halves([names[i] for i in order], [strata[i] for i in order], seed=3)
    assert (again == halves[:, order]).all()
    assert (selection.halves(names, strata, seed=4) != halves).any()
    assert len({tuple(row) for row in halves}) == selection.SPLITS


def test_the_detectable_effect_is_2_8_standard_errors():
    assert smallest_detectable_effect(0.1, confidence=0.95) == pytest.approx(0.28016, abs=1e-5)
    assert smallest_detectable_effect(0.9, confidence=0.95) == 1.0, (
        "no effect is larger than 100 points"
    )
