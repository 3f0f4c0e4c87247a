"""Each arm is next to the control that it answers, and repeated trainings have a spread."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.config import arms
from tests.support.synthetic_run import make_run, recipe, reported

CONTROLS = ["teacher", "adaptive", "naive", "compression", "bad-data", "sequence-mean"]
TRAINED_TWICE = {"steps": 40, "warmup_steps": 4, "seeds": 2}


def outcome(arm: str, answer: Any, rng: Any) -> str:
    """Only arms of the student solve problems with an even number; the others solve none."""
    number = int(answer.prompt_id[-2:])
    return "accepted" if arm.startswith("ssd") and number % 2 == 0 else "wrong_answer"


@pytest.fixture(scope="module", params=[[], [0.5]], ids=["arms", "sweep"])
def shown(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    evaluate = {"sweep": request.param, "sweep_top_p": [0.95], "controls": CONTROLS}
    chosen = recipe(evaluate=evaluate, train=TRAINED_TWICE)
    out = tmp_path_factory.mktemp("questions")
    made = make_run(out / "run", chosen, outcome=outcome)
    report, _, _ = reported(made)
    html = (report / "report.html").read_text()
    return chosen, json.loads((report / "questions.json").read_text()), html


@pytest.mark.slow
def test_every_arm_is_next_to_the_control_that_it_answers(shown: Any) -> None:
    chosen, document, html = shown
    rows = [row for row in document["answers"] if row["benchmark"] == "builtin"]
    pairs = {(row["question"]["treated"], row["question"]["control"]) for row in rows}
    assert pairs == {
        ("ssd", "base over top-p"),
        *(("ssd", name) for name in CONTROLS if name != "bad-data"),
        ("bad-data", "base"),
    }
    for row in rows:
        expected = 0.5 if row["question"]["treated"] == "ssd" else 0.0
        assert row["differences"]["pass@1"]["estimate"] == pytest.approx(expected)
        assert row["question"]["asks"].replace("'", "&#39;") in html
    over = next(row["question"] for row in rows if row["question"]["control"] == "base over top-p")
    grid = max(1, len(arms.temperatures(chosen)))
    assert (len(over["treated_cells"]), len(over["control_cells"])) == (grid, 2 * grid)


def test_the_share_without_code_is_next_to_the_papers(shown: Any) -> None:
    _, _, html = shown
    section = html[html.index('<section id="questions">') : html.index('<section id="limits">')]
    assert "have no program" in section
    assert "62\u00a0%" in section


def test_trainings_have_a_spread_of_their_own(shown: Any) -> None:
    _, document, html = shown
    (row,) = [
        each
        for each in document["trainings"]
        if (each["benchmark"], each["metric"]) == ("builtin", "pass@1")
    ]
    assert row["spread"]["by_training"] == [0.5, 0.5], "both seeds solve the same problems"
    assert row["spread"]["training_sd"] == 0
    assert "Standard deviation of trainings" in html


def test_a_run_of_base_and_student_alone_has_no_such_section(tmp_path: Path) -> None:
    made = make_run(tmp_path / "run", recipe())
    report, _, _ = reported(made)
    assert 'id="questions"' not in (report / "report.html").read_text()
    assert not (report / "questions.json").exists()
