"""The toy reproduces numbers computed from the paper's equations alone, and the operator.

`toy_answers.json` has the cases by equation. Grids are written as `LOW to HIGH by STEP`.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.analysis.decode_only import decode_interval
from ssd_ray.analysis.operator import Setting, distribution
from ssd_ray.analysis.toy import Automaton, Ranked, ToySettings, Vector, grid, interval
from ssd_ray.analysis.toy_figures import Best
from ssd_ray.analysis.toy_study import best, normal_form_bound, rounds, study

CASES = {
    case["id"]: case
    for case in json.loads(Path(__file__).with_name("toy_answers.json").read_text())
}
SETTINGS = ToySettings()
BASE = SETTINGS.base()
STUDENT = BASE.decoded(SETTINGS.samples)
TOP_P = np.array([0.8])


def _cases(kind: str) -> list[str]:
    outcome = [name for name in CASES if name.startswith(kind)]
    assert outcome, f"no case of {kind}"
    return outcome


def _grid(text: str) -> Vector:
    low, _, high, _, step = text.split()
    return grid(float(low), float(high), float(step))


def _same(outcome: Any, case: dict[str, Any]) -> None:
    assert outcome == pytest.approx(case["expected"], abs=case["tolerance"])


def _check_best(outcome: Best, expected: dict[str, Any], tolerance: float) -> None:
    assert outcome.success == pytest.approx(expected["P"], abs=tolerance)
    # The maximum lies where a nucleus changes, so its place depends on the grid.
    assert outcome.temperature == pytest.approx(expected["T"], abs=0.005)


def _models(case: dict[str, Any]) -> dict[str, Automaton]:
    locks = case["given"].get("locks", 3)
    return {"base": BASE.with_locks(locks), "student": STUDENT.with_locks(locks)}


def test_states_have_the_entropies_of_the_paper() -> None:
    case = CASES["toy/states"]
    for name, state in BASE.states.items():
        assert state.probabilities == pytest.approx(case["expected"][name], abs=1e-6)
        bits = state.entropy / math.log(2)
        assert bits == pytest.approx(case["expected"]["entropy_bits"][name], abs=1e-6)


def test_the_student_is_the_distribution_of_the_samples() -> None:
    case = CASES["toy/student"]
    for name, state in STUDENT.states.items():
        assert state.probabilities == pytest.approx(case["expected"][name], abs=1e-6)
        assert state.support == case["expected"]["supports"][name]


@pytest.mark.parametrize("name", _cases("toy/P/"))
def test_success_has_a_closed_form(name: str) -> None:
    settings = CASES[name]["given"]
    train = Setting(settings["T_train"], None, settings["train_top_p"])
    model = BASE.decoded(train) if settings["model"] == "student" else BASE
    outcome = model.success_at(Setting(settings["T"], settings["top_k"], settings["top_p"]))
    _same({"P": outcome}, CASES[name])


@pytest.mark.parametrize("name", ["toy/best at top-p 0.80", *_cases("toy/1 locks")])
def test_the_best_temperature_at_a_fixed_top_p(name: str) -> None:
    case = CASES[name]
    top_p = np.array([case["given"].get("top_p", 0.8)])
    for model, automaton in _models(case).items():
        outcome = best(automaton, _grid(case["given"]["T"]), top_p)
        _check_best(outcome, case["expected"][model], case["tolerance"])


def test_top_p_tuned_alone_reaches_the_student() -> None:
    case = CASES["toy/decode-only/top_k none"]
    for model, automaton in _models(case).items():
        outcome = best(automaton, _grid(case["given"]["T"]), _grid(case["given"]["top_p"]))
        _check_best(outcome, case["expected"][model], case["tolerance"])
        assert outcome.top_p == pytest.approx(case["expected"][model]["top_p"])


def test_no_normal_form_passes_the_bound() -> None:
    case = CASES["toy/normal-form bound"]
    outcome = normal_form_bound(BASE, np.append(1 / grid(0.1, 10.0, 0.01), 0.0))
    assert outcome.success == pytest.approx(case["expected"]["bound"], abs=case["tolerance"])
    assert outcome.prefixes == case["expected"]["prefixes_root_fork_lock"]
    frontier = study(SETTINGS).frontier
    assert frontier.tuned_top_k_too.base.success < outcome.success


@pytest.mark.parametrize("name", _cases("toy/other student"))
def test_other_samples_make_other_students(name: str) -> None:
    case = CASES[name]
    settings = case["given"]
    student = BASE.decoded(Setting(settings["T_train"], settings["top_k"], settings["top_p"]))
    outcome = best(student, _grid(settings["T"]), np.array([settings["eval_top_p"]]))
    _check_best(outcome, case["expected"], case["tolerance"])
    assert [state.support for state in student.states.values()] == case["expected"]["supports"]


def test_rounds_only_shrink_the_support() -> None:
    case = CASES["toy/rounds/T0.9/p0.85"]
    for outcome, expected in zip(rounds(BASE, SETTINGS), case["expected"]["rounds"], strict=True):
        assert outcome.supports == expected["supports"]
        assert outcome.entropies == pytest.approx(expected["entropies"], abs=case["tolerance"])
        assert outcome.best.success == pytest.approx(expected["P_best"], abs=case["tolerance"])
        assert outcome.best.temperature == pytest.approx(expected["T_best"], abs=0.005)
        assert outcome.at_one == pytest.approx(expected["P_at_T_1"], abs=case["tolerance"])


@pytest.mark.parametrize("name", _cases("interval/"))
def test_the_interval_of_one_policy_for_fork_and_lock(name: str) -> None:
    case = CASES[name]
    ranks = case["given"]["rank_fork"], case["given"]["rank_lock"]
    for temperature, expected in case["expected"].items():
        outcome = {}
        for model, automaton in _models(case).items():
            low, high = interval(automaton, float(temperature), ranks)
            outcome |= {f"{model}_low": low, f"{model}_high": high, f"{model}_width": high - low}
            fork, lock = (
                torch.tensor(state.probabilities).log()
                for state in (automaton.fork, automaton.lock)
            )
            same = decode_interval((fork, ranks[0]), (lock, ranks[1]), float(temperature))
            assert (low, high) == pytest.approx((same.low, same.high), abs=1e-12)
        assert outcome == pytest.approx(expected, abs=case["tolerance"])


@given(
    # Floats that differ in the last digit have equal logarithms: ties for the operator alone.
    weights=st.lists(st.integers(1, 1000), min_size=2, max_size=16, unique=True),
    temperature=st.floats(0.1, 4.0),
    top_k=st.none() | st.integers(1, 20),
    top_p=st.floats(0.05, 1.0),
)
def test_a_decoded_state_is_that_of_the_operator(
    weights: list[int], temperature: float, top_k: int | None, top_p: float
) -> None:
    probabilities = np.array(weights) / sum(weights)
    setting = Setting(temperature, top_k, top_p)
    expected = distribution(torch.tensor(probabilities).log()[None], setting)[0].numpy()
    outcome = Ranked(probabilities).decoded(setting).probabilities
    # At the border of top-p rounding decides: the engine's top-p is a float32.
    reached = np.cumsum(
        np.sort(Ranked(probabilities).decoded(Setting(temperature, top_k)).probabilities)[::-1]
    )
    if np.abs(reached - top_p).min() > 1e-6:
        assert outcome == pytest.approx(expected, abs=1e-12)


def test_ties_are_cut_as_by_the_operator() -> None:
    probabilities = np.array([0.2, 0.3, 0.2, 0.1, 0.2])
    logits = torch.tensor(probabilities).log()[None]
    for setting in (Setting(1.3, 2, 1.0), Setting(1.0, None, 0.45), Setting(0.7, 3, 0.6)):
        outcome = Ranked(probabilities).decoded(setting).probabilities
        assert outcome == pytest.approx(distribution(logits, setting)[0].numpy(), abs=1e-12)


def test_a_prefix_of_exactly_top_p_is_enough() -> None:
    assert BASE.lock.decoded(Setting(1.0, None, 0.75)).support == 1
    assert BASE.lock.decoded(Setting(1.0, None, 0.7500001)).support == 2


def test_the_frontier_contains_what_it_is_compared_with() -> None:
    outcome = study(ToySettings.model_validate({"locks": 5, "grid": {"step": 0.05}}))
    for model in ("base", "student"):
        fixed, tuned, wider = (
            getattr(pair, model).success
            for pair in (
                outcome.frontier.fixed_top_p,
                outcome.frontier.tuned_top_p,
                outcome.frontier.tuned_top_k_too,
            )
        )
        assert fixed <= tuned + 0.01
        assert tuned <= wider <= outcome.bound.success
    assert outcome.curves.base_tuned >= outcome.curves.base
    assert asdict(outcome)["settings"] == outcome.settings
