"""Intervals of means over problems of unequal size have their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ssd_ray.analysis import measures
from ssd_ray.analysis.measures import Settings
from ssd_ray.analysis.operator import Setting
from ssd_ray.errors import UserError
from ssd_ray.statistics.means import jackknife_interval, ratio_interval
from tests.support.planted import random_logits


def _coverage(draws: int, problems: int) -> float:
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(draws):
        sizes = random.integers(20, 300, problems).astype(float)
        means = random.normal(0.4, 1.0, problems)
        interval = ratio_interval(sizes * means, sizes, confidence=0.95)
        hits += interval.low <= 0.4 <= interval.high
    return hits / draws


@pytest.mark.parametrize("problems", [8, 40])
def test_nineteen_of_twenty_intervals_hold_the_mean(problems: int) -> None:
    assert 0.93 <= _coverage(2000, problems) <= 0.97


def test_equal_sizes_give_the_interval_of_student() -> None:
    values = np.array([1.0, 2.0, 4.0, 7.0])
    interval = ratio_interval(3 * values, np.full(4, 3.0), confidence=0.95)
    half = 3.182446 * values.std(ddof=1) / 2
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.high - interval.estimate == pytest.approx(half, rel=1e-5)
    assert interval.estimate - interval.low == pytest.approx(half, rel=1e-5)
    same = jackknife_interval(
        lambda total: total[0] / total[1],
        np.stack([3 * values, np.full(4, 3.0)], axis=1),
        confidence=0.95,
    )
    assert same is not None
    assert same.high == pytest.approx(interval.high)


def test_one_problem_has_no_interval() -> None:
    with pytest.raises(UserError, match="at least 2 problems, not 1"):
        ratio_interval(np.ones(3), np.array([0.0, 5.0, 0.0]), confidence=0.95)


def test_an_undefined_function_has_no_interval() -> None:
    sums = np.array([[1.0, 0.0], [1.0, 2.0]])
    assert (
        jackknife_interval(
            lambda total: total[0] / total[1] if total[1] else None, sums, confidence=0.95
        )
        is None
    )


def test_intervals_of_changes_of_random_sign_hold_zero() -> None:
    problems, positions, vocabulary = 30, 8, 120
    base = random_logits(problems * positions, vocabulary)
    base = base[torch.randperm(len(base), generator=torch.Generator().manual_seed(0))]
    # Small, so that the changes of both signs cancel to first order.
    change = 0.005 * torch.randn(base.shape, generator=torch.Generator().manual_seed(1))
    settings = Settings(
        training=Setting(temperature=1.6, top_k=20, top_p=0.8), evaluation=Setting(top_k=20)
    )
    measured = measures.measure((base, base + change, base - change), base.argmax(1), settings)
    for name in ("kept_mass", "support_entropy"):
        own, plus, minus = (
            getattr(each, name).reshape(problems, positions).sum(1).numpy() for each in measured
        )
        sizes = np.full(problems, float(positions))
        random = np.random.default_rng(11)
        hits = 0
        for _ in range(1000):
            sums = np.where(random.random(problems) < 0.5, plus - own, minus - own)
            interval = ratio_interval(sums, sizes, confidence=0.95)
            hits += interval.low <= 0 <= interval.high
        assert 930 <= hits <= 970
