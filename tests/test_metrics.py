"""Scores and intervals, against brute force."""

import itertools
import math

import numpy as np
import pytest

from ssd_ray.errors import UserError
from ssd_ray.evaluation.metrics import bootstrap, paired_bootstrap, pass_at_k, pass_at_k_matrix


def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n in range(1, 8):
        for c in range(n + 1):
            answers = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                subsets = list(itertools.combinations(answers, k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, subsets)) / len(subsets), abs=1e-15)


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4, rel=1e-12)
    assert pass_at_k(2000, 0, 1000) == 0.0
    assert pass_at_k(2000, 1001, 1000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_impossible_counts_are_the_users_mistake(n, c, k):
    with pytest.raises(UserError):
        pass_at_k(n, c, k)


def test_the_matrix_has_a_row_a_problem_and_a_column_a_k():
    matrix = pass_at_k_matrix(np.array([4, 2]), np.array([1, 2]), (1, 2))
    np.testing.assert_allclose(matrix, [[0.25, 0.5], [1.0, 1.0]])
    assert pass_at_k_matrix(np.array([], dtype=np.int64), np.array([], dtype=np.int64), (1,)).shape == (0, 1)
    with pytest.raises(UserError):
        pass_at_k_matrix(np.array([4, 2]), np.array([1]), (1,))
    with pytest.raises(UserError):
        pass_at_k_matrix(np.array([4, 1]), np.array([1, 1]), (2,))


@pytest.mark.parametrize("values", [[0.3], [0.0, 1.0], [0.1, 0.5, 0.9], [0.0, 0.0, 1.0, 0.37], [0.2, 0.9, 0.4, 0.1, 0.75]])
def test_the_interval_is_that_of_all_resamples(values):
    every = np.array([np.mean(resample) for resample in itertools.product(values, repeat=len(values))])
    interval = bootstrap(np.array(values), samples=200_000, confidence=0.8, seed=0)
    assert interval.estimate == pytest.approx(np.mean(values))
    for end, share in ((interval.low, 0.1), (interval.high, 0.9)):
        least, most = np.quantile(every, [share - 0.006, share + 0.006], method="inverted_cdf")
        assert least - 1e-9 <= end <= most + 1e-9


def test_a_paired_interval_is_that_of_the_differences():
    rng = np.random.default_rng(1)
    a, b = rng.random(40), rng.random(40)
    paired = paired_bootstrap(a, b, samples=2000, confidence=0.9, seed=3)
    assert paired == bootstrap(a - b, samples=2000, confidence=0.9, seed=3)
    assert paired.low < paired.estimate < paired.high


def test_pairing_removes_what_the_problems_have_in_common():
    difficulty = np.random.default_rng(2).random(200)
    interval = paired_bootstrap(difficulty + 0.01, difficulty, samples=1000, confidence=0.95, seed=0)
    assert interval.low == pytest.approx(0.01)
    assert interval.high == pytest.approx(0.01)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(7)
    covered = 0
    for seed in range(400):
        interval = bootstrap(rng.binomial(10, 0.3, size=100) / 10, samples=400, confidence=0.9, seed=seed)
        covered += interval.low <= 0.3 <= interval.high
    error = 3 * math.sqrt(0.9 * 0.1 / 400)
    assert abs(covered / 400 - 0.9) < error + 0.01


def test_a_seed_gives_the_same_interval_again_and_large_inputs_fit():
    values = np.random.default_rng(0).random(3_000)
    first = bootstrap(values, samples=2_000, confidence=0.95, seed=5)
    assert first == bootstrap(values, samples=2_000, confidence=0.95, seed=5)
    assert first != bootstrap(values, samples=2_000, confidence=0.95, seed=6)


def test_what_cannot_be_resampled_is_the_users_mistake():
    with pytest.raises(UserError):
        bootstrap(np.array([]), samples=100, confidence=0.95, seed=0)
    with pytest.raises(UserError):
        bootstrap(np.array([0.5, math.nan]), samples=100, confidence=0.95, seed=0)
    with pytest.raises(UserError):
        bootstrap(np.array([0.5]), samples=0, confidence=0.95, seed=0)
    with pytest.raises(UserError):
        bootstrap(np.array([0.5]), samples=100, confidence=1.0, seed=0)
    with pytest.raises(UserError):
        paired_bootstrap(np.zeros(3), np.zeros(2), samples=100, confidence=0.95, seed=0)
