"""The quadratic fit over T_eff has the numbers of ordinary least squares."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.quadratic import Quadratic, quadratic

CASES = {
    case["id"]: case
    for case in json.loads(Path(__file__).with_name("fit_answers.json").read_text())
}
NAMES = {
    "n": "cells",
    "a": "a",
    "b": "b",
    "c": "c",
    "R2": "r2",
    "R2_adjusted": "r2_adjusted",
    "peak_T_eff": "peak",
    "value_at_peak": "value_at_peak",
    "peak_standard_error": "peak_error",
}


def _figure_10() -> tuple[Values, Values]:
    """Return effective temperatures and values of the paper's sweep."""
    settings = CASES["fit/figure 10 pass@1"]["given"]
    effective = np.outer(settings["T_train"], settings["T_eval"]).ravel()
    return effective, np.array(settings["values"], dtype=np.float64).ravel()


def _check(name: str, outcome: Quadratic) -> None:
    case = CASES[name]
    numbers = {key: getattr(outcome, NAMES[key]) for key in case["expected"]}
    assert numbers == pytest.approx(case["expected"], abs=case["tolerance"])


def test_the_published_sweep_has_its_peak_near_1_3() -> None:
    outcome = quadratic(*_figure_10())
    _check("fit/figure 10 pass@1", outcome)
    assert outcome.peak_inside


def test_seven_cells_carry_the_published_peak() -> None:
    effective, values = _figure_10()
    near = effective <= 2 + 1e-9
    outcome = quadratic(effective[near], values[near])
    _check("fit/figure 10 pass@1, T_eff at most 2", outcome)
    assert int((~near).sum()) == 7
    assert not outcome.peak_inside
    assert (outcome.cells_below, outcome.cells_above) == (43, 0)


def test_a_known_parabola_with_alternating_errors() -> None:
    effective = np.arange(1, 41) * 0.05
    values = 40 + 12 * effective - 5 * effective**2 + np.where(np.arange(40) % 2, -1.0, 1.0)
    outcome = quadratic(effective, values)
    _check("fit/synthetic/1.0", outcome)
    assert outcome.cells_below + outcome.cells_above == 40


def test_the_error_of_the_peak_covers_its_spread() -> None:
    generator = np.random.default_rng(0)
    effective = np.tile(np.linspace(0.2, 2.2, 11), 5)
    truth = 40 + 12 * effective - 5 * effective**2
    fits = [quadratic(effective, truth + generator.normal(0, 1.0, len(truth))) for _ in range(400)]
    spread = float(np.std([fit.peak for fit in fits]))
    assert np.mean([fit.peak_error for fit in fits]) == pytest.approx(spread, rel=0.1)


def test_a_fit_without_a_maximum_has_no_peak() -> None:
    effective = np.array([0.5, 1.0, 1.5, 2.0])
    outcome = quadratic(effective, effective**2)
    assert math.isnan(outcome.peak)
    assert not outcome.peak_inside
    assert outcome.cells_above == outcome.cells_below == 0


def test_two_temperatures_are_too_few() -> None:
    with pytest.raises(ValueError, match="three different"):
        quadratic(np.array([1.0, 2.0, 2.0]), np.array([1.0, 2.0, 3.0]))
