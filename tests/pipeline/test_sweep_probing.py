"""A sweep of distributions: planted students are read back, each from one forward pass."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ssd_ray.analysis import forward
from ssd_ray.artifacts.facts import CheckpointFacts, Facts
from ssd_ray.errors import UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.sweep_run import SweepRun, cost_lines
from ssd_ray.pipeline.training import Checkpoint
from ssd_ray.progress import LineProgress
from ssd_ray.recipes.sweeps import design
from ssd_ray.reporting.numbers.sweep_document import CellValue, SweepDocument, read_sweep
from ssd_ray.reporting.numbers.sweep_probes import DISTANCE, EFFECTIVE, ENTROPY
from ssd_ray.reporting.sweep import sweep_page
from ssd_ray.reporting.sweep_findings import findings
from tests.support.browser import BROWSER, assert_fits
from tests.support.played import CHOICES, Played

OVERRIDES = (
    *CHOICES,
    "model.dtype=float32",
    "prompts.limit=10",
    "train.heldout_samples=6",
    "sample.top_k=null",
    "sample.top_p=1",
    "evaluate.controls=[]",
)
OVER = ("sample.temperature=1,1.5", "evaluate.temperature=0.5,0.75,1,1.5")


def _run(out: Path, *over: str, chosen: tuple[str, ...] = ()) -> SweepRun:
    designed = design("quickstart", [*OVERRIDES, *chosen], over)
    return SweepRun(designed, out, LineProgress(), "probe")


def _plant(patch: pytest.MonkeyPatch, base: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Make students with the tempered logits of the base; return the batches of each model."""

    def tempered(step: Checkpoint, out: Path, _: RunContext) -> Facts:
        model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        head = torch.nn.Linear(*reversed(model.lm_head.weight.shape), bias=False)
        head.weight.data = model.lm_head.weight.data / step.branch.sample.temperature
        model.lm_head = head
        model.config.tie_word_embeddings = False
        model.save_pretrained(out)
        AutoTokenizer.from_pretrained(base).save_pretrained(out)
        return CheckpointFacts(steps=1)

    passes: list[tuple[str, tuple[int, ...]]] = []
    states = forward.states

    def counted(model: forward.ScoredModel, contexts: Any, batch: Any) -> torch.Tensor:
        passes.append((model.name, tuple(batch)))
        return states(model, contexts, batch)

    patch.setattr(Checkpoint, "make", tempered)
    patch.setattr(forward, "states", counted)
    return passes


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A finished sweep; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        Played(patch, tiny_llama)
        passes = _plant(patch, tiny_llama)
        _run(out, *OVER).make_sweep()
        # Each of three models sees each batch once.
        batches = {batch for _, batch in passes}
        assert len(passes) == len(set(passes)) == 3 * len(batches)
    return out


@pytest.fixture
def document(made: Path) -> SweepDocument:
    """The contents of its sweep.json."""
    return read_sweep(made / "sweep-probe" / "sweep.json")


def _cells(document: SweepDocument, metric: str) -> dict[tuple[str, float], CellValue]:
    (measures,) = document.sets.values()
    measure = next(each for each in measures if each.metric == metric)
    t_eval = {column.name: column.temperature for column in document.columns}
    return {(cell.row, t_eval[cell.column or ""]): cell for cell in measure.cells}


def test_no_student_answers_anything(made: Path) -> None:
    names = {path.parent.relative_to(made).as_posix() for path in made.rglob("manifest.json")}
    assert {name for name in names if "/" in name} == {
        *(
            f"{kind}/{name}"
            for kind in ("samples", "dataset", "checkpoint", "states", "probes")
            for name in ("T=1", "T=1.5")
        ),
        "states/base",
    }


def test_planted_temperatures_compose_in_every_cell(document: SweepDocument) -> None:
    effective = _cells(document, EFFECTIVE)
    assert len(effective) == 8
    for (row, t_eval), cell in effective.items():
        assert cell.value is not None
        t_train = float(row.removeprefix("T="))
        assert cell.value.estimate == pytest.approx(t_train * t_eval, rel=0.02)
        assert cell.value.estimate == pytest.approx(cell.t_eff, rel=0.02)


def test_planted_students_are_the_ideal_ones(document: SweepDocument) -> None:
    for cell in _cells(document, DISTANCE).values():
        assert cell.value is not None
        assert cell.value.estimate < 1e-4
    entropies = _cells(document, ENTROPY)
    # T 1.5 decoded at 0.5 has the T_eff of T 1 decoded at 0.75, and the base is T 1 itself.
    pairs = ((("T=1.5", 0.5), ("T=1", 0.75)), (("T=1", 1.0), ("base", 1.0)))
    for first, second in pairs:
        one, two = entropies[first].value, entropies[second].value
        assert one is not None
        assert two is not None
        assert one.estimate == pytest.approx(two.estimate, abs=1e-4)


def test_rounding_is_no_difference(document: SweepDocument) -> None:
    """The student at T_train 1 is the base."""
    (measures,) = document.sets.values()
    own = [cell for each in measures for cell in each.cells if cell.row == "T=1"]
    assert len(own) == 16
    assert {cell.difference.reading for cell in own if cell.difference} == {"cannot tell"}
    others = [cell for cell in measures[0].cells if cell.row == "T=1.5"]
    assert {cell.difference.reading for cell in others if cell.difference} == {"higher"}


def test_cells_of_equal_t_eff_agree(document: SweepDocument) -> None:
    (measures,) = document.sets.values()
    for measure in measures:
        for group in measure.fits:
            assert group.fit is not None
            assert group.fit.agreement is not None
            assert group.fit.agreement.p_value == 1
    page = sweep_page(document)
    for finding in findings(document):
        assert f'<span class="what">{finding.what}</span>' in page
    assert "temperature reached by training" in page


def test_a_further_t_eval_costs_no_forward_pass(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    shutil.copytree(made, tmp_path / "sweep")
    played = Played(monkeypatch, tiny_llama)
    passes = _plant(monkeypatch, tiny_llama)
    _run(tmp_path / "sweep", OVER[0], OVER[1] + ",2").make_sweep()
    assert played.made == passes == []
    assert len(read_sweep(tmp_path / "sweep" / "sweep-probe" / "sweep.json").columns) == 5


def test_the_cost_names_the_forward_passes(tmp_path: Path) -> None:
    designed = design("quickstart", OVERRIDES, OVER)
    run = SweepRun(designed, tmp_path, LineProgress(), "probe")
    (line,) = cost_lines(designed, run.states())
    assert line == "sweep: 2 × 1 × 4 cells cost 2 samplings, 2 trainings and 3 forward passes"


def test_too_few_held_out_prompts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.heldout_samples 0 holds 0 prompts .* set it to 24"):
        _run(tmp_path, *OVER, chosen=("train.heldout_samples=0",))


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_at(width: int, made: Path, tmp_path: Path) -> None:
    assert_fits(made / "sweep-probe" / "sweep.html", width, tmp_path, images=0)
