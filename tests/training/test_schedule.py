"""The learning rate, against values computed by hand."""

from __future__ import annotations

import math

import pytest

from ssd_ray.config import TrainConfig
from ssd_ray.training.worker import learning_rate


def test_warm_up_rises_to_the_peak_and_cosine_ends_at_minimum() -> None:
    train = TrainConfig(steps=10, warmup_steps=2, learning_rate=8e-6, min_learning_rate=2e-6)
    assert learning_rate(train, 0) == pytest.approx(4e-6)
    assert learning_rate(train, 1) == pytest.approx(8e-6)
    # A quarter, a half and all of the way down: 2e-6 + 6e-6 * (1 + cos(pi/4)) / 2, middle, minimum.
    assert learning_rate(train, 3) == pytest.approx(2e-6 + 3e-6 * (1 + math.sqrt(0.5)))
    assert learning_rate(train, 5) == pytest.approx(5e-6)
    assert learning_rate(train, 9) == pytest.approx(2e-6)


def test_the_papers_instruct_schedule_has_its_published_ends() -> None:
    train = TrainConfig(steps=2500, warmup_steps=250, learning_rate=5e-6, min_learning_rate=1e-6)
    assert learning_rate(train, 0) == pytest.approx(2e-8)
    assert learning_rate(train, 249) == pytest.approx(5e-6)
    assert learning_rate(train, 250) < 5e-6
    assert learning_rate(train, 1374) == pytest.approx(3e-6)
    assert learning_rate(train, 2499) == pytest.approx(1e-6)


def test_without_warm_up_the_cosine_starts_at_once() -> None:
    train = TrainConfig(steps=4, warmup_steps=0, learning_rate=1.0, min_learning_rate=0.0)
    assert [round(learning_rate(train, step), 6) for step in range(4)] == [
        0.853553,
        0.5,
        0.146447,
        0.0,
    ]
