"""Identities of the theory, for any logits and any decoding of the samples."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssd_ray.analysis.operator import Setting, Support, log_normalize, support
from ssd_ray.analysis.theory import (
    LogProbabilities,
    composition,
    cross_entropy,
    divergence,
    entropy,
    entropy_split,
    free_energy,
    logit_gradient,
    renyi_entropy,
    temperature_response,
    terms,
)
from tests.support.logit_strategies import (
    DISTINCT,
    SETTINGS,
    TEMPERATURES,
    TIED,
    VOCABULARY,
    near_border,
    row,
)

LOGITS = st.one_of(DISTINCT, TIED)
NAMES = ("support_compression", "reshaping", "alignment", "constant", "cross_entropy", "floor")


def _sum(parts: object) -> Tensor:
    return sum(getattr(parts, name) for name in NAMES[:4])  # type: ignore[return-value]


@settings(max_examples=300)
@given(LOGITS, LOGITS, SETTINGS)
def test_the_terms_sum_to_the_cross_entropy(
    base: list[float], model: list[float], setting: Setting
) -> None:
    kept, p0, p = support(row(base), setting), LogProbabilities(row(base)), row(model)
    parts = terms(kept, p0, LogProbabilities(p), setting.temperature)
    assert float(_sum(parts)) == pytest.approx(float(parts.cross_entropy), abs=1e-11)
    # By definition, and above the floor.
    q = kept.dense(VOCABULARY).exp()
    expected = -(q * p.log_softmax(1)).sum()
    assert float(parts.cross_entropy) == pytest.approx(float(expected), abs=1e-11)
    assert float(parts.cross_entropy) >= float(parts.floor) - 1e-12
    assert float(parts.alignment) >= 0
    assert float(parts.support_compression) >= 0


@settings(max_examples=200)
@given(LOGITS, SETTINGS, st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_what_is_zero_by_theory_is_exactly_zero(
    base: list[float], setting: Setting, dtype: torch.dtype
) -> None:
    """A model equal to the base is aligned; T 1 does not reshape; a complete S keeps all mass."""
    logits = row(base, dtype)
    kept, p = support(logits, setting), LogProbabilities(logits)
    parts = terms(kept, p, p, setting.temperature)
    split = entropy_split(kept, p)
    zeros = {"alignment": parts.alignment}
    if setting.temperature == 1:
        zeros["reshaping"] = parts.reshaping
    if int(kept.sizes) == VOCABULARY:
        zeros |= {"compression": parts.support_compression, "gate": split.gate, "tail": split.tail}
    if int(kept.sizes) == 1:
        zeros |= {"head": split.head, "reshaping": parts.reshaping, "floor": parts.floor}
    for name, zero in zeros.items():
        assert float(zero) == 0, name
        assert math.copysign(1, float(zero)) == 1, name


@settings(max_examples=100)
@given(DISTINCT, DISTINCT, SETTINGS, st.floats(-40, 40), st.permutations(range(VOCABULARY)))
def test_constants_and_the_order_of_tokens_change_no_term(
    base: list[float], model: list[float], setting: Setting, constant: float, order: list[int]
) -> None:
    assume(not near_border(base, setting))

    def of(p0: Tensor, p: Tensor) -> list[float]:
        kept, model = support(p0, setting), LogProbabilities(p)
        parts = terms(kept, LogProbabilities(p0), model, setting.temperature)
        split = entropy_split(kept, model)
        return [
            *(float(getattr(parts, name)) for name in NAMES),
            *(float(part) for part in (split.gate, split.head, split.tail, split.total)),
        ]

    plain = of(row(base), row(model))
    assert of(row(base) + constant, row(model) - constant) == pytest.approx(plain, abs=1e-9)
    assert of(row(base)[:, order], row(model)[:, order]) == pytest.approx(plain, abs=1e-9)


@settings(max_examples=60)
@given(DISTINCT, DISTINCT, st.sampled_from([None, 3]), st.sampled_from([1.0, 0.803]), st.booleans())
def test_temperature_one_is_no_jump(
    base: list[float], model: list[float], k: int | None, p: float, above: bool
) -> None:
    near = Setting(1 + (1e-7 if above else -1e-7), k, p)
    assume(not near_border(base, near))

    def of(setting: Setting) -> list[float]:
        kept = support(row(base), setting)
        p0, trained = LogProbabilities(row(base)), LogProbabilities(row(model))
        parts = terms(kept, p0, trained, setting.temperature)
        return [float(getattr(parts, name)) for name in NAMES]

    assert of(near) == pytest.approx(of(Setting(1.0, k, p)), abs=1e-5)


@settings(max_examples=60)
@given(DISTINCT, DISTINCT, SETTINGS)
def test_the_gradient_matches_finite_differences(
    base: list[float], model: list[float], setting: Setting
) -> None:
    kept, step = support(row(base), setting), 1e-5
    gradient = logit_gradient(kept, LogProbabilities(row(model)))[0]

    def loss(logits: Tensor) -> float:
        return float(cross_entropy(kept.log_q, LogProbabilities(logits).on(kept)))

    for token in range(VOCABULARY):
        moved = torch.zeros(1, VOCABULARY, dtype=torch.float64)
        moved[0, token] = step
        slope = (loss(row(model) + moved) - loss(row(model) - moved)) / (2 * step)
        assert float(gradient[token]) == pytest.approx(slope, abs=1e-8)
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-12)
    # Eq. 17: what lies outside of S is pushed down by its probability.
    outside = kept.dense(VOCABULARY)[0] == -torch.inf
    p = row(model).softmax(1)[0]
    torch.testing.assert_close(gradient[outside], p[outside])


@settings(max_examples=100)
@given(LOGITS, LOGITS, SETTINGS)
def test_the_parts_of_the_entropy_sum_to_it(
    base: list[float], model: list[float], setting: Setting
) -> None:
    kept, p = support(row(base), setting), row(model).softmax(1)[0]
    split = entropy_split(kept, LogProbabilities(row(model)))
    inside = kept.dense(VOCABULARY)[0] > -torch.inf
    assert float(split.total) == pytest.approx(float(torch.special.entr(p).sum()), abs=1e-12)
    assert float(split.gate + split.head + split.tail) == pytest.approx(float(split.total))
    for part, tokens in ((split.head, inside), (split.tail, ~inside)):
        mass = p[tokens].sum()
        within = torch.special.entr(p[tokens] / mass).sum() if bool(tokens.any()) else 0.0
        assert float(part) == pytest.approx(float(mass * within), abs=1e-12)
        assert float(part) >= 0


@settings(max_examples=100)
@given(LOGITS, SETTINGS, TEMPERATURES)
def test_the_gains_of_the_ideal_student_multiply(
    logits: list[float], setting: Setting, temperature: float
) -> None:
    """Prop. B.3, and its two limits."""
    kept = support(row(logits), setting).dense(VOCABULARY)
    event = (kept > -torch.inf) & (torch.arange(VOCABULARY) % 2 == 0)
    assume(bool(event.any()))
    parts = composition(row(logits), setting, temperature, event)
    student = log_normalize(kept / temperature).exp()
    assert float(parts.student) == pytest.approx(float(student[event].sum()))
    product = parts.compression_gain * parts.reshaping_gain * parts.base
    assert float(product) == pytest.approx(float(parts.student))
    assert float(parts.compression_gain) >= 1
    assert parts.effective_temperature == setting.temperature * temperature
    if setting.temperature == 1:
        assert float(parts.reshaping_gain) == 1
    if setting.top_k is None and setting.top_p == 1:
        assert float(parts.compression_gain) == 1


@settings(max_examples=60)
@given(LOGITS, TEMPERATURES)
def test_the_response_to_temperature_is_a_derivative(
    logits: list[float], temperature: float
) -> None:
    log_p = row(logits).log_softmax(1)
    step = 1e-5
    low, high = (
        float(temperature_response(log_p, temperature + change).entropy) for change in (-step, step)
    )
    response = temperature_response(log_p, temperature)
    assert float(response.derivative) == pytest.approx((high - low) / (2 * step), abs=1e-6)
    assert float(response.variance) >= 0


@settings(max_examples=60)
@given(LOGITS, TEMPERATURES)
def test_renyi_entropies_fall_with_their_order(logits: list[float], temperature: float) -> None:
    log_p = row(logits).log_softmax(1)
    orders = (0, 0.3, 1 - 1e-6, 1, 1 + 1e-6, 2, 40, math.inf)
    entropies = [float(renyi_entropy(log_p, order)) for order in orders]
    assert entropies == pytest.approx(sorted(entropies, reverse=True), abs=1e-5)
    assert entropies[2] == pytest.approx(entropies[3], abs=1e-5)
    assert entropies[3] == pytest.approx(float(entropy(log_p)))
    energy = (1 - temperature) * renyi_entropy(log_p, 1 / temperature)
    assert float(free_energy(log_p, temperature)) == pytest.approx(float(energy), abs=1e-9)


@settings(max_examples=60)
@given(LOGITS, LOGITS, SETTINGS)
def test_a_divergence_counts_all_mass_of_its_second_argument(
    left: list[float], right: list[float], setting: Setting
) -> None:
    log_q = support(row(left), setting).dense(VOCABULARY)
    log_p = row(right).log_softmax(1)
    q, inside = log_q.exp(), log_q > -torch.inf
    expected = (q * (log_q - log_p))[inside].sum()
    assert float(divergence(log_q, log_p)) == pytest.approx(float(expected), abs=1e-12)
    assert float(divergence(log_q, log_q)) == 0
    if not bool(inside.all()):
        assert float(divergence(log_p, log_q)) == math.inf


def test_positions_have_the_same_numbers_in_any_batch() -> None:
    generator = torch.Generator().manual_seed(5)
    base, model = (
        torch.randn(2, 12, 700, generator=generator) * torch.tensor([0.1, 1, 5, 9] * 3)[:, None]
    )
    setting = Setting(1.4, None, 0.9)

    def of(rows: slice | list[int]) -> Tensor:
        kept, p = support(base[rows], setting), LogProbabilities(model[rows])
        parts = terms(kept, LogProbabilities(base[rows]), p, setting.temperature)
        split = entropy_split(kept, p)
        return torch.stack([*parts.columns().values(), split.gate, split.tail], dim=1)

    together = of(slice(None))
    parted = torch.cat([of(slice(0, 5)), of(slice(5, 6)), of(slice(6, 12))])
    mixed = of([11, 3, 7])
    torch.testing.assert_close(parted, together, rtol=0, atol=1e-12)
    torch.testing.assert_close(mixed, together[[11, 3, 7]], rtol=0, atol=1e-12)


def test_excluded_tokens_have_no_part_in_any_measure() -> None:
    """A model may exclude tokens, such as those of padding, by minus infinity."""
    base, model = row([2.0, 1.0, 0.0, -1.0]), row([1.0, 2.0, 0.0, 0.0])
    setting = Setting(1.5, 3, 0.9)

    def of(p0: Tensor, p: Tensor) -> list[float]:
        kept, trained = support(p0, setting), LogProbabilities(p)
        parts = terms(kept, LogProbabilities(p0), trained, setting.temperature)
        split = entropy_split(kept, trained)
        return [float(x) for x in (*parts.columns().values(), split.gate, split.head, split.tail)]

    excluded = torch.full((1, 3), -math.inf, dtype=torch.float64)
    padded = of(torch.cat([base, excluded], 1), torch.cat([model, excluded], 1))
    assert padded == pytest.approx(of(base, model), abs=1e-12)
    everything = Support(ids=None, log_q=base.log_softmax(1), complete=torch.tensor([True]))
    assert float(LogProbabilities(model).log_kept_mass(everything)) == 0
