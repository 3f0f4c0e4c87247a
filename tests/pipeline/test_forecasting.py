"""A forecast end to end: a tiny model scores samples, played like their verdicts."""

from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssd_ray import recipes
from ssd_ray.artifacts import manifests, shards
from ssd_ray.artifacts.facts import ForecastFacts
from ssd_ray.errors import UserError
from ssd_ray.pipeline.forecasting import VERB, forecast_recipe, forecast_steps
from ssd_ray.pipeline.run import Run
from ssd_ray.progress import LineProgress
from ssd_ray.reporting.forecast import forecast_page, terminal
from ssd_ray.reporting.forecast_findings import findings, setting
from ssd_ray.reporting.numbers.forecast import ForecastDocument, read_forecast
from ssd_ray.schema import Completion, Problem, Prompt
from tests.support.browser import BROWSER, assert_fits
from tests.support.played import CHOICES, Played


def _run(out: Path, *chosen: str, answers: int = 12) -> Run:
    loaded = recipes.load("quickstart", [*CHOICES, "model.dtype=float32", *chosen])
    recipe = forecast_recipe(loaded, answers)
    return Run(recipe, out, LineProgress(), forecast_steps(recipe))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A finished forecast; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "forecast"
    with pytest.MonkeyPatch.context() as patch:
        Played(patch, tiny_llama)
        _run(out).make(VERB)
    return out


@pytest.fixture
def document(made: Path) -> ForecastDocument:
    """The contents of its forecast.json."""
    return read_forecast(made / "forecast" / "forecast.json")


def test_a_forecast_draws_and_grades_once(
    made: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    samples = {f"samples/{name}" for name in ("base", "T=0.8", "T=1", "T=1.5", "T=2")}
    names = {path.parent.relative_to(made).as_posix() for path in made.rglob("manifest.json")}
    assert names == {"prompts", "training-problems", *samples, "sample-verdicts", "forecast"}
    assert manifests.load_facts(made / "forecast", ForecastFacts).answers == 4
    played = Played(monkeypatch, tiny_llama)
    _run(made).make(VERB)
    assert played.made == []


def test_its_answers_have_exact_likelihoods(made: Path, document: ForecastDocument) -> None:
    rows = {row.prompt_id: row for row in shards.read_rows(made / "samples/base", Completion)}
    assert {each.problem_id for each in document.answers} == set(rows)
    for each in document.answers:
        assert each.tokens == len(rows[each.problem_id].output_token_ids)
        assert each.log_base < 0
        assert each.log_student is None or each.log_student < 0
        assert each.accepted is not None


def test_numbers_agree_with_each_other(document: ForecastDocument) -> None:
    seen = document.outlook
    assert seen.accepted == sum(each.accepted or False for each in document.answers)
    assert {cell.temperature for cell in seen.training} == {0.8, 1.0, 1.5, 2.0}
    for cell in seen.training:
        assert cell.gap.value == pytest.approx(cell.start - cell.floor, abs=1e-8)
        assert cell.gap.low <= cell.gap.value <= cell.gap.high
        assert cell.size >= 1
    naive = next(c for c in seen.training if (c.temperature, c.top_k, c.top_p) == (1.0, None, 1.0))
    assert naive.gap.value == 0
    assert naive.start == pytest.approx(seen.entropy)
    for decoded in (*seen.base, *(each for cell in seen.training for each in cell.student)):
        assert decoded.accepted is not None
        assert decoded.rejected is not None
        assert decoded.accepted.answers + decoded.rejected.answers == seen.answers
    assert [each.answers for each in document.health] == [4, 4, 4, 4]


def test_the_grid_has_every_temperature_with_every_truncation(document: ForecastDocument) -> None:
    cells = document.outlook.training
    cuts = [*itertools.product([10, 20, 50], [0.8, 0.95, 1.0]), (None, 1.0)]
    wanted = {(temperature, *cut) for temperature in (0.8, 1.0, 1.5, 2.0) for cut in cuts}
    assert {(cell.temperature, cell.top_k, cell.top_p) for cell in cells} == wanted
    assert len(cells) == len(wanted)
    t_eval = [each.temperature for each in document.outlook.base[:10]]
    assert all([each.temperature for each in cell.student] == t_eval for cell in cells)
    page = forecast_page(document)
    for cell in cells:
        assert page.count(f'<th scope="row" class="fit">{setting(cell)}') >= 2


def test_references_are_scored_next_to_the_answers(
    made: Path, document: ForecastDocument, tiny_llama: Path
) -> None:
    """Their exact likelihood is that of transformers; no answer is among them."""
    references = document.references
    assert references is not None
    assert (references.solutions, references.left_out) == (4, 0)
    assert len(references.student) == len(document.outlook.training[0].student)
    assert len(references.base) == len(document.outlook.base)
    assert {group.answers for group in (*references.student, *references.base)} == {4}
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    prompts = {row.prompt_id: row.token_ids for row in shards.read_rows(made / "prompts", Prompt)}
    total, tokens = 0.0, 0
    for problem in shards.read_rows(made / "training-problems", Problem):
        text = f"```python\n{(problem.reference or '').strip()}\n```"
        answer = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        prompt = list(prompts[problem.problem_id])
        logits = model(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        chosen = logits.detach().double().log_softmax(1).gather(1, torch.tensor(answer)[:, None])
        total, tokens = total + float(chosen.sum()), tokens + len(answer)
    assert references.tokens == tokens
    assert references.log_likelihood == pytest.approx(total / tokens, abs=1e-5)
    page = forecast_page(document)
    assert "References: left" in page
    assert "They are not the model&#39;s path" in page


def test_a_finished_forecast_loads_nothing_heavy(made: Path) -> None:
    # Their imports alone take longer than the summary.
    options = [text for choice in (*CHOICES, "model.dtype=float32") for text in ("--set", choice)]
    arguments = ["forecast", "quickstart", "--answers", "12", "--out", str(made), *options]
    heavy = ("torch", "transformers", "matplotlib", "scipy", "ray", "jinja2")
    code = (
        "import sys\nfrom ssd_ray.cli.app import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "What SSD can change" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"


def test_the_page_and_the_summary_state_every_finding(document: ForecastDocument) -> None:
    page = forecast_page(document)
    shown = " ".join(str(part) for part in terminal(document))
    for finding in findings(document):
        assert finding.where.replace("’", "'") in shown
        assert f'<span class="where">{finding.where}</span>' in page
    assert "What this forecast cannot know" in page
    assert "<script" not in page


def test_prompts_without_tests_give_a_forecast_without_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text("".join(f'{{"question": "Print the number {n}."}}\n' for n in range(4)))
    Played(monkeypatch, tiny_llama)
    _run(tmp_path / "out", f"prompts.source={source}", "evaluate.controls=[]").make(VERB)
    document = read_forecast(tmp_path / "out" / "forecast" / "forecast.json")
    assert document.outlook.accepted is None
    assert {each.accepted for each in document.answers} == {None}
    assert not document.conclusion.ranked
    assert "no tests" in forecast_page(document)
    assert not (tmp_path / "out" / "sample-verdicts").exists()


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ("sample.top_k=5000", r"top_k 5000 is above the vocabulary of .* tokens: use a smaller"),
        ("sample.temperature=0", "sample.temperature 0 is greedy, .*: use 1e-05 or more"),
        ("prompts.limit=1", "prompts.limit 1 gives no interval over problems: use 2 or more"),
    ],
)
def test_a_bad_choice_is_one_sentence(
    chosen: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    played = Played(monkeypatch, tiny_llama)
    with pytest.raises(UserError, match=reason):
        _run(tmp_path / "out", chosen).make(VERB)
    assert played.made == []


def test_a_source_of_one_prompt_is_refused_before_engines_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    source = tmp_path / "prompts.jsonl"
    source.write_text('{"question": "Print the number 1."}\n')
    played = Played(monkeypatch, tiny_llama)
    with pytest.raises(UserError, match=r"gives 1 prompt, and .* needs 2: add problems"):
        _run(tmp_path / "out", f"prompts.source={source}", "evaluate.controls=[]").make(VERB)
    assert played.made == []
    assert not (tmp_path / "out" / "prompts" / "manifest.json").exists()


def test_a_damaged_forecast_is_refused(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "forecast.json"
    text = (made / "forecast" / "forecast.json").read_text()
    path.write_text(text.replace('"problems"', '"others"'))
    with pytest.raises(UserError, match=r"has no readable outlook\.problems .* delete"):
        read_forecast(path)


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
def test_a_browser_shows_the_page_without_complaints(made: Path, tmp_path: Path) -> None:
    command = [
        str(BROWSER),
        *("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"),
        f"--user-data-dir={tmp_path / 'profile'}",
        "--dump-dom",
        (made / "forecast" / "forecast.html").as_uri(),
    ]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    assert shown.stdout.count("<section") == 5


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_at(width: int, made: Path, tmp_path: Path) -> None:
    assert_fits(made / "forecast" / "forecast.html", width, tmp_path, images=2)


def test_the_report_shows_the_forecast_next_to_the_outcome(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    shutil.copytree(made, tmp_path / "run" / "forecast")
    played = Played(monkeypatch, tiny_llama)
    (report,) = played.run(tmp_path / "run").make()
    page = (report.path / "report.html").read_text()
    assert "Forecast and outcome" in page
    assert "Samples: cut off" in page
    (other,) = played.run(tmp_path / "other").make()
    assert "Forecast and outcome" not in (other.path / "report.html").read_text()


def test_a_forecast_of_other_samples_is_named_and_not_shown(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    shutil.copytree(made, tmp_path / "run" / "forecast")
    played = Played(monkeypatch, tiny_llama)
    (report,) = played.run(tmp_path / "run", "sample.temperature=0.9").make()
    page = (report.path / "report.html").read_text()
    assert "so it is not shown" in page
    assert "Samples: cut off" not in page
