"""Conclusions of a forecast, and their sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from ssd_ray.analysis.outlook import crossing
from ssd_ray.analysis.outlook_figures import (
    Decoded,
    Estimate,
    Group,
    Outlook,
    Prediction,
    TrainingCell,
)
from ssd_ray.reporting.forecast_findings import findings, limits
from ssd_ray.reporting.numbers.forecast import (
    FORMAT,
    Choice,
    Cost,
    ForecastDocument,
    HealthAt,
    conclude,
    healthy_temperatures,
)

TRAIN = Choice(temperature=1.5, top_k=20, top_p=0.8)
BASELINE = Choice(temperature=0.5, top_k=20, top_p=0.8)
T_EVAL = (0.5, 1.0, 1.5)
BASE = (0.1, 0.4, 1.0)
"""Entropies of the base at T_EVAL."""


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


def _decoded(temperature: float, entropy: float, success: float, effective: float) -> Decoded:
    group = Group(answers=48, survived=3, tokens_kept=0.97, log_likelihood=-0.2)
    return Decoded(
        temperature=temperature,
        top_k=20,
        top_p=0.8,
        survivors=1.5,
        entropy=entropy,
        accepted=group,
        rejected=group,
        prediction=Prediction(success=_estimate(success), effective_answers=effective),
    )


def _curve(entropies: Sequence[float], effective: float) -> tuple[Decoded, ...]:
    pairs = zip(T_EVAL, entropies, (0.2, 0.5, 0.3), strict=True)
    return tuple(_decoded(t, entropy, success, effective) for t, entropy, success in pairs)


def _cell(temperature: float, one: float, gap: float, entropies: Sequence[float]) -> TrainingCell:
    return TrainingCell(
        temperature=temperature,
        top_k=20,
        top_p=0.8,
        size=2.0,
        one=_estimate(one),
        two=0.1,
        kept_mass=0.9,
        start=0.5 + gap,
        floor=0.5,
        gap=_estimate(gap),
        crossing=crossing(T_EVAL, entropies, BASE),
        student=_curve(entropies, 2.0),
    )


def _outlook(*cells: TrainingCell, effective: float = 2.0, accepted: int = 48) -> Outlook:
    return Outlook(
        answers=96,
        problems=32,
        positions=9600,
        entropy=0.7,
        accepted=accepted,
        training=cells,
        base=_curve(BASE, effective),
    )


def _health(temperature: float, unhealthy: int) -> HealthAt:
    return HealthAt(
        temperature=temperature,
        answers=32,
        tokens=3200,
        no_code=0,
        loop=0,
        cut_off=unhealthy,
        unhealthy=unhealthy,
    )


SHARPER = _cell(0.8, 0.7, 0.3, (0.05, 0.2, 0.4))
SPREADING = _cell(1.5, 0.4, 0.1, (0.3, 0.6, 0.8))
HOT = _cell(2.0, 0.2, 0.6, (0.5, 0.9, 1.2))
HEALTH = (_health(0.8, 3), _health(1.5, 5), _health(2.0, 30))


def _document(seen: Outlook) -> ForecastDocument:
    return ForecastDocument(
        format=FORMAT,
        recipe="quickstart",
        model="a model",
        train=TRAIN,
        evaluate=Choice(temperature=1.0, top_k=20, top_p=0.8),
        baseline=BASELINE,
        outlook=seen,
        health=HEALTH,
        cost=Cost(device="cuda", workers=8, hours=2.0, usd=40.0, refusal="", smallest=4),
        no_cost="",
        conclusion=conclude(seen, HEALTH, TRAIN, BASELINE),
        answers=(),
    )


def _said(seen: Outlook) -> str:
    return " ".join(f"{each.what}. {each.note}" for each in findings(_document(seen)))


def test_settings_with_unhealthy_samples_are_not_suggested() -> None:
    assert healthy_temperatures(HEALTH) == (0.8, 1.5)
    result = conclude(_outlook(SHARPER, SPREADING, HOT), HEALTH, TRAIN, BASELINE)
    assert result.healthy == (0.8, 1.5)
    # The sharper one is farther away, but its student never is more diverse than the base.
    assert result.suggested == 1.5
    assert result.matched is None
    assert result.crossing == pytest.approx(1.25)


@pytest.mark.parametrize(("unhealthy", "warns"), [(16, False), (17, True)])
def test_mostly_unhealthy_samples_are_a_warning(unhealthy: int, warns: bool) -> None:
    samples = (_health(0.8, unhealthy), _health(1.5, 32))
    document = replace(_document(_outlook(SHARPER, SPREADING)), health=samples)
    health = next(each for each in findings(document) if each.where == "Health of real samples")
    assert (health.warns, "at every T_train" in health.note) == (warns, warns)


def test_a_student_that_is_only_sharper_is_called_so() -> None:
    seen = _outlook(SHARPER, replace(SPREADING, crossing=0.0))
    result = conclude(seen, HEALTH, TRAIN, BASELINE)
    assert (result.suggested, result.crossing) == (0.8, 0.0)
    assert "only makes the model sharper" in _said(seen)


@pytest.mark.parametrize(("accepted", "leans"), [(0, False), (48, True), (96, False)])
def test_answers_of_one_verdict_show_no_direction(accepted: int, leans: bool) -> None:
    text = _said(_outlook(SHARPER, SPREADING, accepted=accepted))
    assert ("leans the right way" in text, "Without both kinds" in text) == (leans, not leans)


def test_locks_everywhere_leave_nothing_to_gain() -> None:
    locked = (replace(cell, one=_estimate(0.97)) for cell in (SHARPER, SPREADING))
    seen = _outlook(*locked, HOT)
    result = conclude(seen, HEALTH, TRAIN, BASELINE)
    assert result.nothing_to_gain
    assert result.suggested is None
    assert "Nothing to gain: 97.0\u00a0% of positions keep one token" in _said(seen)


def test_decodings_are_ranked_only_by_answers_that_count() -> None:
    few = _outlook(SHARPER, SPREADING)
    assert conclude(few, HEALTH, TRAIN, BASELINE).best_base == BASELINE
    assert "Too few answers count" in _said(few)
    many = _outlook(SHARPER, SPREADING, effective=30.0)
    result = conclude(many, HEALTH, TRAIN, BASELINE)
    assert result.ranked
    assert result.best_base == replace(BASELINE, temperature=1.0)
    assert "predicted success of 50.0\u00a0%" in _said(many)
    none = _outlook(SHARPER, SPREADING, effective=30.0, accepted=0)
    assert not conclude(none, HEALTH, TRAIN, BASELINE).ranked


def test_cost_and_limits_are_stated() -> None:
    document = _document(_outlook(SHARPER, SPREADING))
    assert "2\u00a0h 0\u00a0min on 8 GPU workers, about 40 USD" in _said(document.outlook)
    refused = replace(document, cost=replace(document.cost, refusal="too little memory"))
    assert any("does not fit 8 GPU workers" in each.what for each in findings(refused))
    unknown = replace(document, cost=None, no_cost="the architecture is unknown")
    assert any(each.note == "the architecture is unknown" for each in findings(unknown))
    assert {name for name, _ in limits(document)} >= {"Training is not ideal", "Other paths"}
