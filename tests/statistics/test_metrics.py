"""Scores and intervals, against brute force."""

import itertools
import math

import numpy as np
import pytest

from ssd_ray.errors import UserError
from ssd_ray.statistics.metrics import (
    effective_number,
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
                assert pass_at_k(n, c, k) == pytest.approx(
                    sum(map(any, subsets)) / len(subsets), abs=1e-15
                )


def test_pass_at_k_stays_exact_for_many_samples():
    assert pass_at_k(10_000, 1, 1) == 1e-4
    assert pass_at_k(100_000, 1, 10) == pytest.approx(1e-4, rel=1e-12)
    assert pass_at_k(2000, 0, 1000) == 0.0
    assert pass_at_k(2000, 1001, 1000) == 1.0


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_impossible_counts_are_the_users_mistake(n, c, k):
    with pytest.raises(UserError):
        pass_at_k(n, c, k)


def test_the_matrix_has_a_row_per_problem_and_a_column_per_k():
    matrix = pass_at_k_matrix(np.array([4, 2]), np.array([1, 2]), (1, 2))
    np.testing.assert_allclose(matrix, [[0.25, 0.5], [1.0, 1.0]])
    assert pass_at_k_matrix(
        np.array([], dtype=np.int64), np.array([], dtype=np.int64), (1,)
    ).shape == (0, 1)
    with pytest.raises(UserError):
        pass_at_k_matrix(np.array([4, 2]), np.array([1]), (1,))
    with pytest.raises(UserError):
        pass_at_k_matrix(np.array([4, 1]), np.array([1, 1]), (2,))


def test_resample_weights_are_those_of_the_bayesian_bootstrap():
    weights = problem_weights(7, 40_000, 3)
    shares = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(shares.mean(axis=0), 1 / 7, atol=0.003)
    np.testing.assert_allclose(
        shares.var(axis=0), (1 / 7) * (6 / 7) / 8, rtol=0.06
    )  # Dirichlet(1, ..., 1)


def test_effective_numbers_discount_unequal_values():
    assert effective_number(np.zeros(5)) == 0
    assert effective_number(np.array([0.0, 0.3, 0.3, -0.3])) == pytest.approx(3)
    assert 1 < effective_number(np.array([1.0, 0.01, 0.01])) < 1.1


def test_an_interval_contains_its_estimate_and_stays_in_0_to_1():
    rng = np.random.default_rng(4)
    for size, chance in itertools.product((1, 2, 5, 40), (0.0, 0.02, 0.5, 0.98, 1.0)):
        one = score_interval(rng.binomial(4, chance, size) / 4, confidence=0.95)
        assert 0 <= one.low <= one.estimate <= one.high <= 1
        assert one.low < one.high


def test_scores_without_an_interval_are_a_user_error():
    for values in (np.array([]), np.array([0.5, math.nan]), np.array([0.5, 1.5]), np.zeros((2, 2))):
        with pytest.raises(UserError):
            score_interval(values, confidence=0.95)
    with pytest.raises(UserError):
        score_interval(np.array([0.5]), confidence=1.0)
    with pytest.raises(UserError, match="bootstrap samples=0 must be at least 1"):
        problem_weights(3, 0, 0)
