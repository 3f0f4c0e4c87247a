"""Signals of progress: the base, the ideal fit, and what lies between."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch import Tensor

from ssd_ray.analysis.operator import Setting, log_normalize, support
from ssd_ray.analysis.signals import NUM_SUMS, Progress, progress, progress_sums
from ssd_ray.analysis.theory import LogProbabilities, divergence

TRUNCATED = Setting(1.6, 20, 0.8)
SAMPLES = (TRUNCATED, Setting(0.9, None, 0.85), Setting(1.5), Setting(1.0, 10, 1.0))


def _logits(positions: int = 40, vocabulary: int = 300, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.5, 4, positions)[:, None]
    return torch.randn(positions, vocabulary, generator=generator, dtype=torch.float64) * scales


def _progress(base: Tensor, model: Tensor, setting: Setting) -> Progress:
    kept = support(base, setting)
    sums = progress_sums(kept, LogProbabilities(base), LogProbabilities(model))
    return progress(sums.sum(0))


@pytest.mark.parametrize("setting", SAMPLES)
def test_the_base_has_made_no_progress(setting: Setting) -> None:
    base = _logits()
    signals = _progress(base, base.clone(), setting)
    assert signals.gap_closed == 0
    assert signals.temperature_reached == pytest.approx(1, abs=1e-12)
    assert signals.tail_removed == (None if setting == Setting(1.5) else 0)


@pytest.mark.parametrize("setting", SAMPLES)
def test_the_ideal_fit_closes_the_gap_at_its_temperature(
    setting: Setting,
) -> None:
    base = _logits()
    # Far below all others: a softmax has no zero.
    ideal = support(base, setting).dense(base.shape[1]).clamp(min=-60)
    signals = _progress(base, ideal, setting)
    assert signals.gap_closed == pytest.approx(1, abs=1e-9)
    assert signals.temperature_reached == pytest.approx(setting.temperature, abs=1e-3)
    if signals.tail_removed is not None:
        assert signals.tail_removed == pytest.approx(1, abs=1e-9)


def test_removing_the_tail_is_no_change_of_temperature() -> None:
    base = _logits()
    kept = support(base, TRUNCATED).dense(base.shape[1]) > -torch.inf
    half = torch.where(kept, base, base - math.log(2))
    signals = _progress(base, half, TRUNCATED)
    assert signals.temperature_reached == pytest.approx(1, abs=1e-9)
    assert signals.tail_removed is not None
    assert signals.gap_closed is not None
    assert 0.2 < signals.tail_removed < 0.5
    assert 0 < signals.gap_closed < 1


@settings(max_examples=20)
@given(st.floats(0.6, 2.5), st.floats(0, 0.6), st.integers(0, 50), st.sampled_from(SAMPLES))
def test_the_temperature_reached_has_the_least_divergence(
    temperature: float, noise: float, seed: int, setting: Setting
) -> None:
    """By search: KL(Temper_T[p0 on S] || p on S), summed over positions."""
    base = _logits(seed=seed)
    model = base / temperature + noise * _logits(seed=seed + 1)
    reached = _progress(base, model, setting).temperature_reached
    kept = support(base, setting)
    log_p0, log_p = (LogProbabilities(logits).on(kept) for logits in (base, model))
    head = log_normalize(log_p)

    def gap(power: float) -> float:
        return float(divergence(log_normalize(power * log_p0), head).sum())

    least = minimize_scalar(gap, bounds=(0.1, 10), method="bounded")
    assert reached == pytest.approx(1 / least.x, rel=0.02)


def test_sums_over_chunks_and_workers_are_the_same() -> None:
    base, model = _logits(seed=3), _logits(seed=4)
    together = _progress(base, model, TRUNCATED)
    sums = torch.zeros(NUM_SUMS, dtype=torch.float64)
    for rows in torch.randperm(40, generator=torch.Generator().manual_seed(0)).split([1, 17, 22]):
        kept = support(base[rows], TRUNCATED)
        parts = progress_sums(kept, LogProbabilities(base[rows]), LogProbabilities(model[rows]))
        sums += parts.sum(0)
    apart = progress(sums)
    for name in ("gap_closed", "temperature_reached", "tail_removed"):
        assert getattr(apart, name) == pytest.approx(getattr(together, name), abs=1e-9), name


def test_signals_that_theory_leaves_undefined_are_none() -> None:
    base, model = _logits(), _logits(seed=1)
    plain = _progress(base, model, Setting())
    assert plain.gap_closed is None
    assert plain.tail_removed is None
    greedy = _progress(base, model, Setting(0))
    assert greedy.temperature_reached is None
    assert greedy.gap_closed is not None
    opposite = _progress(base, -base, Setting(1.5))
    assert opposite.temperature_reached is None
