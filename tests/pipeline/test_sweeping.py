"""A sweep end to end with played samples, trainings and verdicts: shared, extended, resumed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ssd_ray.errors import UserError
from ssd_ray.pipeline.sweep_run import SweepRun, cost_lines
from ssd_ray.progress import LineProgress
from ssd_ray.recipes.sweeps import design
from ssd_ray.reporting.numbers.sweep_document import SweepDocument, read_sweep
from ssd_ray.reporting.sweep import sweep_page, terminal
from ssd_ray.reporting.sweep_findings import findings
from tests.support.browser import BROWSER, assert_fits
from tests.support.played import CHOICES, Played

OVERRIDES = (*CHOICES, "evaluate.limit=12", "evaluate.controls=[]", "prompts.limit=4")
TRAIN = "sample.temperature=0.8,1.5"
EVAL = "evaluate.temperature=0.2,0.6,1"


def _run(out: Path, *over: str, chosen: tuple[str, ...] = ()) -> SweepRun:
    return SweepRun(design("quickstart", [*OVERRIDES, *chosen], over), out, LineProgress())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A finished sweep; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "sweep"
    with pytest.MonkeyPatch.context() as patch:
        Played(patch, tiny_llama)
        _run(out, TRAIN, EVAL).make_sweep()
    return out


@pytest.fixture
def document(made: Path) -> SweepDocument:
    """The contents of its sweep.json."""
    return read_sweep(made / "sweep" / "sweep.json")


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """A copy of it to extend."""
    shutil.copytree(made, tmp_path / "sweep")
    return tmp_path / "sweep"


def _of(names: list[str], kind: str) -> list[str]:
    return sorted(name for name in names if name.startswith(f"{kind}/"))


def test_every_cell_is_made_once(
    made: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    cut = "_k=20_p=0.8"
    students = (f"T=0.8{cut}", f"T=1.5{cut}", "T=1")
    names = {path.parent.relative_to(made).as_posix() for path in made.rglob("manifest.json")}
    cells = {f"{model}@T={t}{cut}" for model in ("base", *students) for t in ("0.2", "0.6", "1")}
    assert names == {
        *("benchmark", "prompts", "eval-prompts", "contamination", "sweep"),
        *(f"{kind}/{name}" for kind in ("samples", "dataset", "checkpoint") for name in students),
        *(f"{kind}/{cell}" for kind in ("generations", "verdicts") for cell in cells),
    }
    played = Played(monkeypatch, tiny_llama)
    _run(made, TRAIN, EVAL).make_sweep()
    assert played.made == []


def test_a_larger_sweep_makes_the_new_cells_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    played = Played(monkeypatch, tiny_llama)
    _run(copy, TRAIN, EVAL + ",1.3").make_sweep()
    assert _of(played.made, "samples") == _of(played.made, "checkpoint") == []
    new = _of(played.made, "generations")
    assert len(new) == 4
    assert all("@T=1.3" in name for name in new)
    played.made.clear()
    _run(copy, "sample.temperature=0.8,1.5,2", EVAL + ",1.3").make_sweep()
    assert _of(played.made, "samples") == ["samples/T=2_k=20_p=0.8"]
    assert _of(played.made, "checkpoint") == ["checkpoint/T=2_k=20_p=0.8"]
    assert len(_of(played.made, "generations")) == 4


def test_a_smaller_sweep_makes_its_page_alone(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    played = Played(monkeypatch, tiny_llama)
    _run(copy, TRAIN, "evaluate.temperature=0.6,1").make_sweep()
    assert played.made == []
    assert len(read_sweep(copy / "sweep" / "sweep.json").columns) == 2


def test_a_killed_sweep_resumes_at_its_cell(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    lost = copy / "verdicts" / "T=1@T=0.6_k=20_p=0.8"
    (lost / "manifest.json").unlink()
    shutil.rmtree(copy / "sweep")
    played = Played(monkeypatch, tiny_llama)
    _run(copy, TRAIN, EVAL).make_sweep()
    assert played.made == ["verdicts/T=1@T=0.6_k=20_p=0.8"]


def test_the_cost_is_told_before_the_work(made: Path, tmp_path: Path) -> None:
    designed = design("quickstart", OVERRIDES, [TRAIN, EVAL])
    new = list(cost_lines(designed, SweepRun(designed, tmp_path, LineProgress()).states()))
    assert new[0] == "sweep: 2 × 1 × 3 cells cost 3 samplings, 3 trainings and 12 sets of answers"
    assert "T_train 1 without truncation" in new[1]
    assert len(new) == 2
    larger = design("quickstart", OVERRIDES, [TRAIN, EVAL + ",1.3"])
    left = list(cost_lines(larger, SweepRun(larger, made, LineProgress()).states()))
    assert left[2].endswith("left 0 samplings, 0 trainings and 4 sets of answers")


def test_numbers_agree_with_each_other(document: SweepDocument) -> None:
    (measures,) = document.sets.values()
    (measure,) = measures
    assert measure.problems == 12
    assert len(measure.cells) == 12
    for cell in measure.cells:
        assert cell.value is not None
        assert cell.value.low <= cell.value.estimate <= cell.value.high
        assert (cell.difference is None) == (cell.cell == document.reference)
        reference = next(each for each in measure.cells if each.cell == document.reference)
        if cell.difference is not None and reference.value is not None:
            gap = cell.value.estimate - reference.value.estimate
            assert cell.difference.estimate == pytest.approx(gap, abs=1e-9)
    (group,) = measure.fits
    assert len(group.cells) == 6
    assert not any(cell.startswith("T=1@") for cell in group.cells)
    assert {luck.control for luck in measure.luck} == {"base", "naive"}
    for luck in measure.luck:
        values = {cell.cell: cell.value for cell in measure.cells}
        best, control = values[luck.best_cell], values[luck.control_cell]
        assert best is not None
        assert control is not None
        assert luck.best == pytest.approx(best.estimate - control.estimate, abs=1e-9)
        assert luck.luck == pytest.approx(luck.best - luck.chosen.estimate, abs=1e-9)


def test_the_page_and_the_summary_state_every_finding(document: SweepDocument) -> None:
    page = sweep_page(document)
    shown = " ".join(str(part) for part in terminal(document))
    listed = list(findings(document))
    assert len(listed) == 3
    for finding in listed:
        assert finding.what in shown
        assert f'<span class="what">{finding.what}</span>' in page
    assert page.count("<td") == 12
    assert "<script" not in page


def test_checkpoints_are_exports_of_one_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    played = Played(monkeypatch, tiny_llama)
    with pytest.raises(UserError, match=r"has no export of step 2, .*: delete it to train again"):
        _run(tmp_path / "out", "checkpoint=2,5").make_sweep()
    assert _of(played.made, "checkpoint") == ["checkpoint/T=0.8_k=20_p=0.8"]


def test_a_sweep_of_other_samples_is_refused(
    copy: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    Played(monkeypatch, tiny_llama)
    with pytest.raises(UserError, match=r"sample.max_tokens: 256 there, 128 here.*another --out"):
        _run(copy, TRAIN, EVAL, chosen=("sample.max_tokens=128",)).make_sweep()


@pytest.mark.parametrize("name", ["samples", "checkpoint"])
def test_the_directory_of_a_run_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "fingerprint.json").write_text("{}")
    with pytest.raises(UserError, match=r"holds a run, and a sweep needs .*: choose another"):
        _run(tmp_path, TRAIN, EVAL)


def test_a_finished_sweep_loads_nothing_heavy(made: Path) -> None:
    options = [text for choice in OVERRIDES for text in ("--set", choice)]
    over = ["--over", TRAIN, "--over", EVAL]
    arguments = ["sweep", "quickstart", "--out", str(made), *over, *options]
    heavy = ("torch", "transformers", "matplotlib", "scipy", "ray", "jinja2")
    code = (
        "import sys\nfrom ssd_ray.cli.app import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "gain over the base" in shown.stdout
    assert shown.stdout.splitlines()[-1] == "[]"


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_overflows_at(width: int, made: Path, tmp_path: Path) -> None:
    assert_fits(made / "sweep" / "sweep.html", width, tmp_path, images=0)


def test_no_room_for_all_students_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_llama: Path
) -> None:
    played = Played(monkeypatch, tiny_llama)
    # One model of the tiny size fits, and three do not.
    size = (tiny_llama / "model.safetensors").stat().st_size
    monkeypatch.setattr("ssd_ray.pipeline.sweep_space.free_bytes", lambda _: 2 * size)
    with pytest.raises(UserError, match=r"models of 3 students need .* GiB: free some, give fewer"):
        _run(tmp_path / "out", TRAIN, EVAL).make_sweep()
    assert played.made == []


def test_the_cost_of_gpus_is_that_of_every_training(tmp_path: Path) -> None:
    def line(*over: str) -> str:
        designed = design("qwen3-4b-instruct", [], over, fit=False)
        lines = cost_lines(designed, SweepRun(designed, tmp_path, LineProgress()).states())
        return next(each for each in lines if "planner" in each)

    def hours(text: str) -> float:
        return float(text.split(" expects ")[1].split(" hours")[0].replace(",", ""))

    # T_train 1 without truncation is one training more: 3 and 5.
    two = hours(line("sample.temperature=1.2,1.6"))
    four = hours(line("sample.temperature=1.2,1.4,1.6,1.8"))
    assert four == pytest.approx(5 / 3 * two, rel=0.02)
