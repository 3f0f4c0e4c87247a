"""Measures of a position equal those of its complete distributions, for any chunk."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ssd_ray.analysis import measures, operator, theory
from ssd_ray.analysis.measures import HEAD, RANKS, TAIL_POWERS, TOP, Settings
from ssd_ray.analysis.operator import Setting
from tests.support.planted import random_logits

POSITIONS, VOCABULARY = 40, 300
SETTINGS = (
    Settings(
        training=Setting(temperature=1.6, top_k=20, top_p=0.8),
        evaluation=Setting(temperature=1.1, top_k=20, top_p=0.8),
    ),
    Settings(
        training=Setting(temperature=0.8, top_p=0.95),
        evaluation=Setting(temperature=0.7),
        temperatures=(0.5, 2.0),
    ),
    Settings(training=Setting(temperature=2.0), evaluation=Setting(top_k=70)),
)


def _inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    base = random_logits(POSITIONS, VOCABULARY)
    student = base / 1.2 + 0.3 * random_logits(POSITIONS, VOCABULARY, seed=1)
    tokens = torch.randint(VOCABULARY, (POSITIONS,), generator=torch.Generator().manual_seed(2))
    return base, student, tokens


def _close(measured: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(measured.double(), expected.double(), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("model", [0, 1])
def test_measures_are_those_of_the_distributions(settings: Settings, model: int) -> None:
    logits = _inputs()[:2]
    tokens = _inputs()[2]
    measured = measures.measure(logits, tokens, settings)[model]
    log_p = operator.log_normalize(logits[model].double())
    p, p0 = log_p.exp(), operator.log_normalize(logits[0].double()).exp()
    q = operator.distribution(logits[0], settings.training)
    kept = q > 0
    assert torch.equal(measured.support_size, kept.sum(1))
    _close(measured.kept_mass, (p * kept).sum(1))
    entropy = -(p * log_p).sum(1)
    _close(measured.entropy, entropy)
    _close(measured.entropy_gate + measured.entropy_head + measured.entropy_tail, entropy)
    within = p * kept / (p * kept).sum(1, keepdim=True)
    _close(measured.support_entropy, torch.special.entr(within).sum(1))
    _close(measured.cross_entropy, -(q * log_p).sum(1))
    parts = (
        measured.support_compression + measured.reshaping + measured.alignment + measured.constant
    )
    _close(parts, measured.cross_entropy)
    own = log_p.gather(1, tokens[:, None])
    _close(measured.log_probability, own[:, 0])
    assert torch.equal(measured.rank, 1 + (log_p > own).sum(1))
    ordered = p.sort(dim=1, descending=True).values.cumsum(1)
    _close(measured.top_mass, ordered[:, TOP - 1])
    _close(measured.rank_mass, ordered[:, [rank - 1 for rank in RANKS]])
    for place, setting in enumerate(settings.sweep):
        decoded = operator.distribution(logits[model], setting)
        assert torch.equal(measured.survivors[:, place], (decoded > 0).sum(1))
        _close(measured.truncated_entropy[:, place], torch.special.entr(decoded).sum(1))
        chance = decoded.gather(1, tokens[:, None])[:, 0]
        _close(measured.decode_log_probability[:, place].exp(), chance)
        assert torch.equal(measured.decode_log_probability[:, place] == -torch.inf, chance == 0)
    heads = log_p.sort(dim=1, descending=True)
    _close(measured.head_log_probabilities, heads.values[:, :HEAD])
    _close(measured.base_log_probabilities.exp(), p0.gather(1, measured.head_ids))
    for place, power in enumerate(TAIL_POWERS):
        tail = (power * heads.values[:, HEAD:]).exp().sum(1)
        _close(measured.tail_log_masses[:, place].exp(), tail)


def test_the_chunk_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    base, student, tokens = _inputs()
    expected = measures.measure((base, student), tokens, SETTINGS[0])
    for elements in (1, 7 * VOCABULARY):
        monkeypatch.setattr(operator, "_CHUNK_ELEMENTS", elements)
        monkeypatch.setattr(measures, "_BLOCK_ELEMENTS", elements)
        for before, after in zip(
            expected, measures.measure((base, student), tokens, SETTINGS[0]), strict=True
        ):
            for field in fields(before):
                _close(getattr(after, field.name).exp(), getattr(before, field.name).exp())


def test_a_model_equal_to_the_base_has_no_alignment() -> None:
    base, _, tokens = _inputs()
    measured = measures.measure((base, base), tokens, SETTINGS[0])[1]
    assert float(measured.alignment.abs().max()) == 0.0


def test_excluded_tokens_have_no_mass() -> None:
    base, student, tokens = _inputs()
    excluded = torch.cat([base, torch.full((POSITIONS, 5), -torch.inf)], dim=1)
    measured = measures.measure((excluded, student.new_zeros(excluded.shape)), tokens, SETTINGS[0])
    expected = measures.measure((base, student), tokens, SETTINGS[0])
    _close(measured[0].entropy, expected[0].entropy)
    _close(measured[0].kept_mass, expected[0].kept_mass)
    split = theory.entropy_split(
        operator.support(base, SETTINGS[0].training), theory.LogProbabilities(base)
    )
    _close(measured[0].entropy_tail, split.tail)
