"""The panel finds planted regressions, and tells wrong formats from wrong answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssd_ray import recipes
from ssd_ray.analysis.likelihood import batches, choose, divergences
from ssd_ray.cli.app import main
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Verdict
from ssd_ray.standalone.panel import kind_of_answer, panel
from ssd_ray.standalone.panel_files import read_prompts, read_questions
from ssd_ray.statistics.differences import difference
from ssd_ray.statistics.means import ratio_interval
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.regression import divergence_regression, regression
from tests.support.synthetic_run import make_run, recipe, reported

QUESTIONS, TOLERANCE, RUNS = 400, 0.1, 500


def simulated(loss: float, seed: int) -> tuple[Values, Values]:
    """Return student and base, right or wrong on each question, with a mean loss."""
    rng = np.random.default_rng(seed)
    ability = rng.beta(2, 1, size=QUESTIONS)
    base = rng.random(QUESTIONS) < ability
    # Two thirds of the questions keep their answer: base and student resemble one another.
    again = rng.random(QUESTIONS) < np.clip(ability - 3 * loss, 0, 1)
    student = np.where(rng.random(QUESTIONS) < 2 / 3, base, again)
    return student.astype(float), base.astype(float)


def true_loss(loss: float) -> float:
    """Return the mean loss planted by `simulated`, by integration over abilities."""
    ability = np.linspace(0, 1, 20001)
    density = 2 * ability
    return float((density * (ability - np.clip(ability - 3 * loss, 0, 1))).mean() / 3)


def verdicts(loss: float) -> dict[str, float]:
    """Return the share of each verdict over many panels."""
    chosen = recipe()
    counts = {"regressed": 0, "no regression": 0, "cannot tell": 0}
    for seed in range(RUNS):
        paired = difference(chosen, *simulated(loss, seed), answers=1)
        assert paired is not None
        counts[regression(paired, TOLERANCE).verdict] += 1
    return {name: number / RUNS for name, number in counts.items()}


def test_no_loss_is_seldom_called_a_regression() -> None:
    shares = verdicts(0.0)
    assert shares["regressed"] <= 0.01
    assert shares["no regression"] >= 0.95


def test_a_loss_of_the_tolerance_is_seldom_called_tolerable() -> None:
    low, high = 0.0, 0.33
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if true_loss(middle) < TOLERANCE else (low, middle)
    assert true_loss(low) == pytest.approx(TOLERANCE, abs=1e-3)
    shares = verdicts(low)
    # Half of 1 - confidence, with three standard errors of the simulation.
    assert shares["no regression"] <= 0.025 + 3 * (0.025 * 0.975 / RUNS) ** 0.5


def test_a_planted_regression_is_reported() -> None:
    # A loss of 22 points, beyond the tolerance of 10.
    assert true_loss(0.33) == pytest.approx(0.22, abs=0.01)
    assert verdicts(0.33)["regressed"] >= 0.99


def test_the_bound_of_no_regression_holds() -> None:
    """No regression is larger than the bound in at least 97.5 % of panels, within error."""
    chosen = recipe()
    for loss in (0.0, 0.1):
        held = 0
        for seed in range(RUNS):
            paired = difference(chosen, *simulated(loss, seed), answers=1)
            assert paired is not None
            held += true_loss(loss) <= regression(paired, TOLERANCE).largest_loss
        assert held / RUNS >= 0.975 - 3 * (0.025 * 0.975 / RUNS) ** 0.5


def test_a_divergence_is_judged_on_both_sides() -> None:
    rng = np.random.default_rng(0)
    sums, sizes = rng.gamma(4, 0.5, size=80), np.full(80, 20.0)
    interval = ratio_interval(sums, sizes, confidence=0.95)
    assert divergence_regression(interval, 0.2).verdict == "no regression"
    assert divergence_regression(interval, 0.05).verdict == "regressed"
    assert divergence_regression(interval, interval.estimate).verdict == "cannot tell"


def verdict(outcome: Any) -> Verdict:
    return Verdict(
        prompt_id="p",
        sample_index=0,
        source="gsm8k",
        difficulty="easy",
        outcome=outcome,
        num_tests=1,
        num_passed=0,
        time_s=0.0,
        code="",
        detail="",
    )


@pytest.mark.parametrize(
    ("outcome", "text", "numeric", "program"),
    [
        ("accepted", "The answer is 4.", "right", "right"),
        ("wrong_answer", "The answer is 5.", "wrong", "wrong"),
        ("wrong_answer", "```python\nprint(5)\n```", "wrong_format", "wrong"),
        ("accepted", "```python\n4\n```", "right", "right"),
        ("no_code", "I cannot say.", "wrong_format", "wrong_format"),
        ("wrong_block", "```bash\nls\n```", "wrong_format", "wrong_format"),
        ("infrastructure_error", "", "ungraded", "ungraded"),
    ],
)
def test_a_wrong_format_is_no_wrong_answer(
    outcome: str, text: str, numeric: str, program: str
) -> None:
    assert kind_of_answer(verdict(outcome), text, is_numeric=True) == numeric
    assert kind_of_answer(verdict(outcome), text, is_numeric=False) == program


PLAIN = {"question": "A door at a what?", "choices": ["bank", "mall"], "answer": 1}
HUB = {
    "id": "x",
    "question": "A door at a what?",
    "choices": {"label": ["A", "B"], "text": ["bank", "mall"]},
    "answerKey": "B",
}
PUBLISHED = {
    "id": "x",
    "question": {
        "stem": "A door at a what?",
        "choices": [{"label": "A", "text": "bank"}, {"label": "B", "text": "mall"}],
    },
    "answerKey": "B",
}


def write_rows(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("row", [PLAIN, HUB, PUBLISHED], ids=["plain", "hub", "published"])
def test_questions_are_read_in_each_format(row: dict[str, Any], tmp_path: Path) -> None:
    (question,) = read_questions(write_rows(tmp_path / "q.jsonl", row), None)
    assert (question.choices, question.answer) == (("bank", "mall"), 1)
    assert question.prompt.splitlines() == [
        "A door at a what?",
        "A. bank",
        "B. mall",
        "Answer with the letter alone.",
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**PLAIN, "answer": 2}, "has no answer"),
        ({key: PLAIN[key] for key in ("question", "choices")}, "has no answer"),
        ({**HUB, "answerKey": ""}, "has no answer"),
        ({"question": "Why?", "answer": 0}, "has no question with choices"),
        ({**PLAIN, "choices": ["one"]}, "use 2 to 10"),
    ],
)
def test_a_question_without_an_answer_is_refused(
    row: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        read_questions(write_rows(tmp_path / "q.jsonl", row), None)
    with pytest.raises(UserError, match="has no text"):
        read_prompts(write_rows(tmp_path / "p.jsonl", {"other": 1}), None)


@pytest.mark.parametrize("read", [read_questions, read_prompts])
def test_a_file_without_rows_is_refused(read: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"empty.jsonl has no (question|text): add rows"):
        read(write_rows(tmp_path / "empty.jsonl"), None)


class Counter:
    """A model whose next token is the last one plus a step, for scoring."""

    def __init__(self, step: int, vocabulary: int = 30) -> None:
        self.table = torch.full((vocabulary, vocabulary), -4.0)
        for token in range(vocabulary):
            self.table[token, (token + step) % vocabulary] = 3.0
            self.table[token, (token + step + 1) % vocabulary] = 1.0

    def hidden(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(ids, len(self.table)).float()

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden @ self.table


def test_the_likeliest_label_is_chosen_whatever_the_batch() -> None:
    model: Any = Counter(step=1)
    prompts = [tuple(range(length)) for length in (9, 2, 5, 3)]
    # The next token after `length - 1` is `length`, then `length + 1`.
    labels = [(9, 20), (20, 2), (20, 6), (21, 22)]
    result = choose(model, prompts, labels)
    assert result.chosen.tolist()[:3] == [0, 1, 1]
    assert result.in_format.tolist() == [True, True, False, False]
    logits = model.table[4].double().log_softmax(0)
    assert result.mass[2] == pytest.approx(float(logits[[20, 6]].exp().sum()))
    assert sorted(row for rows in batches(prompts, 10) for row in rows) == [0, 1, 2, 3]
    assert all(
        len(rows) * max(len(prompts[row]) for row in rows) <= 10 or len(rows) == 1
        for rows in batches(prompts, 10)
    )


def test_the_divergence_is_that_of_the_distributions() -> None:
    base: Any = Counter(step=1)
    student: Any = Counter(step=2)
    texts = [(1, 2, 3), (4,)]
    sums, sizes = divergences(base, student, texts)
    log_p, log_base = (each.table.double().log_softmax(1) for each in (student, base))
    expected = (log_p.exp() * (log_p - log_base)).sum(1)
    assert sizes.tolist() == [3, 1]
    assert sums.tolist() == pytest.approx([float(expected[[1, 2, 3]].sum()), float(expected[4])])
    assert divergences(base, base, texts)[0].tolist() == [0.0, 0.0]


def lost(arm: str, answer: Any, rng: Any) -> str:
    """The student has lost every problem of one benchmark, and keeps the other."""
    if answer.source == "builtin":
        return "wrong_answer" if arm == "ssd" else "accepted"
    return "accepted"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = make_run(tmp_path_factory.mktemp("panel") / "run", recipe(), outcome=lost)
    reported(made)
    (made.path / "recipe.yaml").write_text(recipes.dump(made.recipe))
    return made.path


def with_panel(run: Path, *overrides: str) -> Recipe:
    return recipes.load(run / "recipe.yaml", list(overrides))


@pytest.mark.slow
def test_a_planted_regression_of_a_benchmark_fails_the_command(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "panel.code.kind=benchmark",
        "panel.code.source=builtin",
        "panel.code.tolerance=0.05",
        "panel.kept.kind=benchmark",
        "panel.kept.source=humaneval",
        "panel.kept.tolerance=0.5",
    ]
    options = [part for each in overrides for part in ("--set", each)]
    command = ["panel", str(finished), "--out", str(tmp_path / "out"), "--quiet", *options]
    with pytest.raises(SystemExit) as end:
        main([*command, "--fail-on-regression"])
    assert end.value.code == 3
    document = json.loads((tmp_path / "out" / "panel.json").read_text())
    measured = {each["name"]: each for each in document["capabilities"]}
    assert measured["code"]["regression"]["verdict"] == "regressed"
    assert measured["kept"]["regression"]["verdict"] == "no regression"
    assert measured["code"]["student"]["wrong"] == 12 * 6
    assert "regressed by" in (tmp_path / "out" / "panel.html").read_text()
    with pytest.raises(SystemExit) as end:
        main(command)
    assert end.value.code in (0, None)
    capsys.readouterr()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "has no panel"),
        (
            ["panel.x.kind=benchmark", "panel.x.source=mbpp", "panel.x.tolerance=0.1"],
            r"add it to\s+evaluate.benchmarks",
        ),
        (
            [
                "panel.x.kind=benchmark",
                "panel.x.source=builtin",
                "panel.x.tolerance=0.1",
                "panel.x.arm=other",
            ],
            "compares the arm 'other'",
        ),
        (
            ["panel.x.kind=choices", "panel.x.source=none.jsonl", "panel.x.tolerance=0.1"],
            "no JSONL or Parquet file there",
        ),
    ],
)
def test_a_panel_without_answers_is_refused(
    overrides: list[str], message: str, finished: Path, tmp_path: Path
) -> None:
    chosen = with_panel(finished, *overrides)
    with pytest.raises(UserError, match=message):
        panel(chosen, finished, tmp_path, LineProgress())


def test_a_panel_of_an_unfinished_run_is_refused(finished: Path, tmp_path: Path) -> None:
    overrides = ["panel.x.kind=benchmark", "panel.x.source=builtin", "panel.x.tolerance=0.1"]
    with pytest.raises(UserError, match=r"has no report, which panel.x reads: run ssd-ray run"):
        panel(with_panel(finished, *overrides), tmp_path, tmp_path / "out", LineProgress())


def test_a_panel_changes_no_artifact() -> None:
    from ssd_ray.pipeline import graph

    panel_of = ["panel.x.kind=kl", "panel.x.source=p.jsonl", "panel.x.tolerance=0.1"]
    plain, other = (
        {step.name: step.identity.fingerprint for step in graph.steps(each)}
        for each in (recipes.load("quickstart"), recipes.load("quickstart", panel_of))
    )
    assert plain == other
