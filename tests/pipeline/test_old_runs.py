"""Run directories of earlier versions are read as before, or refused with a remedy.

`data/run_018d326.tar.xz` is a run of `played.Played` by commit 018d326. It predates
revisions, and lacks tests of problems, pages and timings.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest

from ssd_ray.artifacts import files, identity
from ssd_ray.errors import UserError
from ssd_ray.pipeline.run import Run
from tests.support.played import SCORES, Played, rows
from tests.support.staged import snapshot

DATA = Path(__file__).parents[1] / "data"
GPU = (
    "samples",
    "checkpoint",
    "checkpoint-accepted",
    "generations/base",
    "generations/ssd",
    "generations/accepted",
)
ANSWERS = (
    "samples",
    "dataset",
    "dataset-accepted",
    "generations/base",
    "generations/ssd",
    "generations/accepted",
)
VERBS = ("render", "sample", "prepare", "train", "generate", "grade", "report")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A finished run of an earlier version."""
    with tarfile.open(DATA / "run_018d326.tar.xz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    return tmp_path / "old"


@pytest.fixture(scope="module")
def new(tmp_path_factory: pytest.TempPathFactory, tiny_llama: Path) -> Path:
    """A finished run of this version, made by the same doubles; tests only read it."""
    out = tmp_path_factory.mktemp("runs") / "new"
    with pytest.MonkeyPatch.context() as patch:
        Played(patch, tiny_llama).run(out).make()
    return out


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tiny_llama: Path) -> Played:
    """The doubles that made the old run."""
    return Played(monkeypatch, tiny_llama)


def shards(out: Path, *names: str) -> dict[str, bytes]:
    """Return bytes of all GPU results."""
    every = (
        path
        for name in names
        for path in (out / name).iterdir()
        if path.suffix in {".parquet", ".safetensors"}
    )
    return {str(path.relative_to(out)): path.read_bytes() for path in every}


def is_read(run: Run, verb: str = "report") -> bool:
    """Make the artifacts of a verb; return False for a refusal in one sentence."""
    try:
        run.make(verb)
    except UserError as error:
        text = str(error)
        if "\n" in text or "choose another --out, or delete" not in text:
            raise
        return False
    return True


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_reads_or_refuses_an_old_run(old: Path, played: Played, verb: str) -> None:
    before = shards(old, *GPU)
    is_read(played.run(old), verb)
    assert shards(old, *GPU) == before
    assert not {*GPU} & {*played.made}


@pytest.mark.slow
def test_an_old_run_that_is_read_ends_like_a_new_one(old: Path, new: Path, played: Played) -> None:
    if not is_read(played.run(old)):
        return
    played.made.clear()
    played.run(old).make()
    assert played.made == [], "once read, it behaves like a new one"
    assert list(rows(old, *ANSWERS)) == list(rows(new, *ANSWERS))
    scores = [json.loads((run / SCORES).read_text()) for run in (old, new)]
    assert scores[0]["benchmarks"] == scores[1]["benchmarks"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["prompts", "samples", "checkpoint", "verdicts/ssd"])
def test_an_old_run_that_was_interrupted_is_resumed_or_refused(
    old: Path, new: Path, played: Played, name: str
) -> None:
    (old / name / "manifest.json").unlink()
    (old / name / "made-from.json").unlink(missing_ok=True)
    if not is_read(played.run(old)):
        return
    assert list(rows(old, *ANSWERS)) == list(rows(new, *ANSWERS))


@pytest.mark.parametrize("kind", ["samples", "checkpoint", "generations"])
def test_old_gpu_work_with_another_meaning_is_refused_untouched(
    old: Path, played: Played, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(
        identity, "REVISIONS", {**identity.REVISIONS, kind: identity.REVISIONS[kind] + 1}
    )
    before = snapshot(old)
    with pytest.raises(
        UserError, match=r"by an earlier version of ssd_ray .*: choose another --out, or delete"
    ):
        played.run(old).make()
    assert snapshot(old) == before


def test_a_plan_of_an_old_run_lists_artifacts_to_remake(old: Path, played: Played) -> None:
    outlooks = {step.name: outlook for step, _, outlook, _ in played.run(old).outlooks()}
    for name, outlook in outlooks.items():
        assert outlook in ("keep", "make again", "refuse"), name
    is_read(played.run(old))
    kept = {name for name, outlook in outlooks.items() if outlook == "keep"}
    assert not kept & {*GPU} & {*played.made}


def test_an_old_run_and_a_new_one_are_compared(old: Path, tmp_path: Path, played: Played) -> None:
    from ssd_ray.reporting.comparison import compare

    played.run(tmp_path / "new", "evaluate.confidence=0.9").make()
    comparison = compare(old, tmp_path / "new")
    assert "evaluate.confidence" in [change.field for change in comparison.changes]
    assert comparison.pairs


def test_a_report_keeps_the_recipe_that_it_was_made_by(
    new: Path, tmp_path: Path, played: Played
) -> None:
    from ssd_ray.reporting.comparison import compare

    second = Path(shutil.copytree(new, tmp_path / "second"))
    played.run(second, "train.steps=7").make("sample")
    assert compare(new, second).changes == ()


def test_shards_without_recorded_columns_are_matched_by_rows(old: Path, played: Played) -> None:
    """Another Parquet version writes the same rows in other bytes; trained models stay."""
    before = shards(old, "checkpoint-accepted")
    manifest = files.read_json(old / "sample-verdicts" / "manifest.json")
    manifest["facts"]["infrastructure_errors"] = 1  # graded again, whatever the revision
    (old / "sample-verdicts" / "manifest.json").write_text(json.dumps(manifest))
    encoded = shards(old, "dataset-accepted")
    played.run(old).make("train")
    assert shards(old, "dataset-accepted") != encoded
    assert shards(old, "checkpoint-accepted") == before
    assert "checkpoint-accepted" not in played.made
