"""Steps of one model share its engines: fewer starts, and the rows of a pool for each step."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ssd_ray.artifacts import files, shards
from ssd_ray.schema import Completion
from tests.support.tiny_run import RECIPE

pytestmark = pytest.mark.real

BASE_ARMS = {
    "base": "{model: base, temperature: 0.7}",
    "greedy": "{model: base, temperature: 0.0}",
    "cut": "{model: base, temperature: 1.3, top_k: 5, top_p: 0.8}",
}
SSD_ARMS = {
    "ssd": "{model: ssd, temperature: 0.9, top_k: 20}",
    "warm": "{model: ssd, temperature: 1.2}",
}


def _recipe(path: Path, model: Path, arms: dict[str, str]) -> Path:
    short = RECIPE.replace("limit: 40", "limit: 16").replace("steps: 12", "steps: 4")
    head, _, rest = short.partition("  arms:\n")
    _, _, tail = rest.partition("  samples_per_problem")
    lines = "".join(
        f"    {name}: {arm.replace('{', '{{').replace('}', '}}')}\n" for name, arm in arms.items()
    )
    baseline = f"  baseline: {next(iter(arms))}\n"
    text = f"{head}  arms:\n{lines}{baseline}  samples_per_problem{tail}"
    path.write_text(text.format(model=model))
    return path


def _start(verb: str, recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ssd_ray", verb, str(recipe), "--out", str(out), "--quiet"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    _, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-4000:]


def _starts(run: Path) -> int:
    return sum(
        path.read_text(errors="replace").count("engine ready at")
        for path in (run / "logs").glob("engine-*.log")
    )


def _rows(out: Path) -> list[Completion]:
    rows = shards.read_rows(out, Completion)
    return sorted(rows, key=lambda row: (row.prompt_id, row.sample_index))


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    return _recipe(path, tiny_qwen3, BASE_ARMS | SSD_ARMS)


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """A run that draws samples and three arms of the base, then two arms of the student."""
    out = tmp_path_factory.mktemp("runs") / "together"
    _finish(_start("generate", recipe, out))
    return out


def test_a_run_starts_the_engines_once_for_each_model(together: Path) -> None:
    assert _starts(together) == 2
    assert not (together / ".engines").exists()
    stages = ["samples", *(f"generations/{arm}" for arm in BASE_ARMS | SSD_ARMS)]
    for stage in stages:
        facts = files.read_json(together / stage / "manifest.json")["facts"]
        assert (facts["failed"], facts["engine_losses"]) == ([], 0)
        assert not list((together / stage).glob(".*"))
    trained = files.read_json(together / "checkpoint" / "manifest.json")["finished_at"]
    for arm in BASE_ARMS:
        manifest = files.read_json(together / "generations" / arm / "manifest.json")
        assert manifest["finished_at"] <= trained, "its engines are gone before training"


def test_a_pool_for_each_step_draws_the_same_rows(
    together: Path, tiny_qwen3: Path, recipe: Path, tmp_path: Path
) -> None:
    _finish(_start("sample", recipe, tmp_path / "samples"))
    assert _rows(tmp_path / "samples" / "samples") == _rows(together / "samples")
    for name in ("greedy", "cut"):
        arm = BASE_ARMS[name]
        alone = _recipe(tmp_path / f"{name}.yaml", tiny_qwen3, {name: arm})
        _finish(_start("generate", alone, tmp_path / name))
        assert _starts(tmp_path / name) == 1
        stage = f"generations/{name}"
        assert _rows(tmp_path / name / stage) == _rows(together / stage)
        fingerprints = [
            files.read_json(run / stage / "fingerprint.json")["fingerprint"]
            for run in (tmp_path / name, together)
        ]
        assert fingerprints[0] == fingerprints[1]


def test_a_killed_engine_with_two_jobs_changes_no_row(
    together: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    recipe = _recipe(tmp_path / "base.yaml", tiny_qwen3, BASE_ARMS)
    out = tmp_path / "killed"
    process = _start("generate", recipe, out)
    deadline = time.monotonic() + 300
    victim = 0
    while not victim:
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "two jobs were never in flight together"
        victim = _engine_with_two_jobs(out)
        time.sleep(0.005)
    os.kill(victim, signal.SIGKILL)
    _finish(process)
    losses = 0
    for stage in (f"generations/{arm}" for arm in BASE_ARMS):
        assert _rows(out / stage) == _rows(together / stage)
        losses += files.read_json(out / stage / "manifest.json")["facts"]["engine_losses"]
    assert losses >= 2, "the crash counts in each job that had answers in flight"
    assert _starts(out) == 2


def _engine_with_two_jobs(run: Path) -> int:
    """Return the process of an engine with answers of two jobs in flight, 0 if there is none."""
    for path in (run / ".engines").glob("*/*.json"):
        try:
            status = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if len({unit["job"] for unit in status["drawing"]}) > 1:
            return int(status["pid"])
    return 0
