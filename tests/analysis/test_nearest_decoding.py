"""Decoding alone explains a tempered base, and not a support that depends on the context."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ssd_ray.analysis import measures, nearest_decoding, operator
from ssd_ray.analysis.measures import Measures, Settings
from ssd_ray.analysis.nearest_decoding import Heads, Nearest
from ssd_ray.analysis.operator import Setting
from tests.support.planted import (
    Rule,
    against_decoding,
    ideal,
    random_logits,
    tempered,
    two_types,
)

T_TRAIN = 1.6


def _heads(result: Measures) -> Heads:
    return Heads(
        log_probabilities=result.head_log_probabilities.numpy(),
        base_log_probabilities=result.base_log_probabilities.numpy(),
        tail_log_masses=result.tail_log_masses.numpy(),
    )


def _nearest(base: Tensor, rule: Rule, evaluation: Setting) -> Nearest:
    settings = Settings(training=Setting(temperature=T_TRAIN), evaluation=evaluation)
    tokens = base.argmax(1)
    result = measures.measure((base, rule(base)), tokens, settings)
    return nearest_decoding.nearest(_heads(result[0]), _heads(result[1]), evaluation)


def _explained(result: Nearest) -> float:
    return float(1 - result.distances.sum() / result.changes.sum())


def _of_tokens(result: Nearest) -> float:
    return float(1 - result.variations.sum() / result.variations_of_change.sum())


@pytest.mark.parametrize(
    "evaluation",
    [Setting(temperature=1.1, top_k=20, top_p=0.8), Setting(top_k=12), Setting(temperature=0.9)],
)
def test_a_tempered_base_is_explained_by_its_temperature(evaluation: Setting) -> None:
    result = _nearest(random_logits(300, 200), tempered(T_TRAIN), evaluation)
    assert result.setting.temperature == pytest.approx(T_TRAIN * evaluation.temperature, abs=0.02)
    assert _explained(result) > 0.999


def test_an_ideal_student_is_the_decoding_of_its_samples() -> None:
    """So a truncated support alone, the same rule everywhere, is no effect beyond decoding."""
    training = Setting(temperature=T_TRAIN, top_k=20, top_p=0.8)
    result = _nearest(random_logits(300, 200), ideal(training), Setting())
    assert result.changes.mean() > 0.1
    assert _explained(result) > 0.999
    assert _of_tokens(result) > 0.99
    assert result.setting.temperature == pytest.approx(T_TRAIN, abs=0.02)


@pytest.mark.parametrize(
    "evaluation",
    [Setting(), Setting(temperature=1.1, top_k=20, top_p=0.8), Setting(top_p=0.95)],
)
def test_supports_that_contradict_one_policy_are_not_explained(evaluation: Setting) -> None:
    logits = random_logits(300, 200)
    result = _nearest(two_types(logits), lambda _: against_decoding(logits), evaluation)
    assert result.changes.mean() > 0.1
    assert _explained(result) < 0.25
    assert _of_tokens(result) < 0.25


def test_distances_are_those_of_the_distributions() -> None:
    base = random_logits(60, 150)
    student = base / 1.3 + 0.4 * random_logits(60, 150, seed=5)
    evaluation = Setting(temperature=1.1, top_k=20, top_p=0.8)
    result = _nearest(base, lambda _: student, evaluation)
    first = operator.distribution(student, evaluation)
    for setting, distances, variations in (
        (result.setting, result.distances, result.variations),
        (evaluation, result.changes, result.variations_of_change),
    ):
        second = operator.distribution(base, setting)
        apart = (first - second).abs().sum(1) / 2
        torch.testing.assert_close(torch.from_numpy(variations), apart, rtol=1e-3, atol=1e-3)
        middle = (first + second) / 2
        entropies = [torch.special.entr(each).sum(1) for each in (middle, first, second)]
        expected = entropies[0] - (entropies[1] + entropies[2]) / 2
        torch.testing.assert_close(torch.from_numpy(distances), expected, rtol=1e-3, atol=1e-4)
    assert result.distances.mean() < result.changes.mean()
