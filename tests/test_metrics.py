"""Scores and intervals, against brute force."""

import itertools
import math

import numpy as np
import pytest

from ssd_ray.errors import UserError
from ssd_ray.evaluation.metrics import (
    effective_number,
    imagined_difference,
    paired_bootstrap,
    pass_at_k,
    pass_at_k_matrix,
    problem_weights,
    score_interval,
)


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


def test_the_weights_of_a_resample_are_those_of_the_bayesian_bootstrap():
    weights = problem_weights(7, 40_000, 3)
    shares = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 7, atol=0.003)
    np.testing.assert_allclose(shares.var(axis=0), (1 / 7) * (6 / 7) / 8, rtol=0.06)  # Dirichlet(1, ..., 1)


def test_a_paired_interval_is_that_of_the_differences_and_two_imagined_problems():
    rng = np.random.default_rng(1)
    a, b = rng.random(400), rng.random(400)
    found = paired_bootstrap(a, b, samples=20_000, confidence=0.9, seed=3)
    error = (a - b).std(ddof=1) / 20
    assert found.estimate == pytest.approx((a - b).mean())
    assert [found.low, found.high] == pytest.approx(
        [found.estimate - 1.645 * error, found.estimate + 1.645 * error], abs=0.1 * error
    )


def test_pairing_removes_what_the_problems_have_in_common():
    difficulty = np.random.default_rng(2).random(200) * 0.9
    found = paired_bootstrap(difficulty + 0.01, difficulty, samples=1000, confidence=0.95, seed=0)
    apart = score_interval(difficulty, confidence=0.95)
    assert (found.low, found.high) == pytest.approx((0.01, 0.01), abs=0.001)
    assert apart.high - apart.low > 0.05


def test_effective_numbers_count_equal_values_and_discount_unequal_ones():
    assert effective_number(np.zeros(5)) == 0
    assert effective_number(np.array([0.0, 0.3, 0.3, -0.3])) == pytest.approx(3)
    assert 1 < effective_number(np.array([1.0, 0.01, 0.01])) < 1.1


def test_an_imagined_difference_is_the_size_of_the_real_ones_and_all_there_can_be_where_none_is_known():
    assert imagined_difference(np.zeros(30)) == 1.0
    assert imagined_difference(np.array([0.0, 0.1] * 40)) == pytest.approx(0.1)
    assert 0.1 < imagined_difference(np.array([0.1] + [0.0] * 29)) < 1.0


def test_a_seed_gives_the_same_interval_again_and_large_inputs_fit():
    values = np.random.default_rng(0).random((2, 3_000))
    first = paired_bootstrap(*values, samples=2_000, confidence=0.95, seed=5)
    assert first == paired_bootstrap(*values, samples=2_000, confidence=0.95, seed=5)
    assert first != paired_bootstrap(*values, samples=2_000, confidence=0.95, seed=6)


def test_an_interval_holds_its_estimate_and_stays_within_what_is_possible():
    rng = np.random.default_rng(4)
    for size, chance in itertools.product((1, 2, 5, 40), (0.0, 0.02, 0.5, 0.98, 1.0)):
        a, b = rng.binomial(4, chance, (2, size)) / 4
        one, two = score_interval(a, confidence=0.95), paired_bootstrap(a, b, samples=200, confidence=0.95, seed=0)
        assert 0 <= one.low <= one.estimate <= one.high <= 1
        assert one.low < one.high
        assert -1 <= two.low <= two.estimate <= two.high <= 1
        assert two.low < two.high


def test_what_has_no_interval_is_the_users_mistake():
    for values in (np.array([]), np.array([0.5, math.nan]), np.array([0.5, 1.5]), np.zeros((2, 2))):
        with pytest.raises(UserError):
            score_interval(values, confidence=0.95)
    with pytest.raises(UserError):
        score_interval(np.array([0.5]), confidence=1.0)
    for a, samples, confidence in (
        (np.array([]), 100, 0.95),
        (np.array([math.nan]), 100, 0.95),
        (np.zeros(3), 0, 0.95),
        (np.zeros(3), 9, 0),
    ):
        with pytest.raises(UserError):
            paired_bootstrap(a, a, samples=samples, confidence=confidence, seed=0)
    with pytest.raises(UserError):
        paired_bootstrap(np.zeros(3), np.zeros(2), samples=100, confidence=0.95, seed=0)
