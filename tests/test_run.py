"""The complete pipeline on a tiny model: killed anywhere and run again, it ends the same."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from ssd_ray.artifacts import shards
from ssd_ray.schema import Completion, Example, Prompt
from tests.support.processes import command_of, workers_of
from tests.support.tiny_run import RECIPE

pytestmark = pytest.mark.real


def _start(recipe: Path, out: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "ssd_ray", "run", str(recipe), "--out", str(out), "--quiet"]
    return subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def _finish(recipe: Path, out: Path) -> str:
    process = _start(recipe, out)
    stdout, stderr = process.communicate(timeout=600)
    assert process.returncode == 0, stderr[-4000:]
    return stdout


def _until(condition: Callable[[], bool], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (
            f"the run ended before {what}: {process.communicate()[1][-3000:]}"
        )
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.02)


def _kill(process: subprocess.Popen[str]) -> None:
    """SIGKILL the driver alone; engines and workers must end by themselves.

    Ray's own two agents notice later. They hold no engine and no core.
    """
    working = workers_of(process.pid)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(working, timeout=20)
    assert not alive, f"processes outlived their driver: {[command_of(p)[:80] for p in alive]}"


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in shards.shard_paths(directory)
    }


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    path.write_text(RECIPE.format(model=tiny_qwen3))
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, recipe: Path) -> Path:
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    shown = _finish(recipe, out)
    assert str(out / "report" / "report.html") in shown
    return out


def test_sampled_ids_are_the_ids_trained_on(whole: Path) -> None:
    prompts = {
        prompt.prompt_id: prompt.token_ids for prompt in shards.read_rows(whole / "prompts", Prompt)
    }
    samples = {
        (row.prompt_id, row.sample_index): row
        for row in shards.read_rows(whole / "samples", Completion)
    }
    examples = list(shards.read_rows(whole / "dataset", Example))
    assert len(samples) == 80
    assert examples
    for example in examples:
        sample = samples[example.prompt_id, example.sample_index]
        assert sample.prompt_token_ids == prompts[example.prompt_id]
        assert example.input_ids == sample.prompt_token_ids + sample.output_token_ids
        assert example.num_prompt_tokens == len(sample.prompt_token_ids)


def test_a_finished_run_is_a_no_op(whole: Path, recipe: Path) -> None:
    before = {
        path: path.stat().st_mtime_ns
        for path in whole.rglob("*")
        if path.is_file() and path.name != "recipe.yaml"
    }
    began = time.monotonic()
    _finish(recipe, whole)
    assert time.monotonic() - began < 10
    after = {
        path: path.stat().st_mtime_ns
        for path in whole.rglob("*")
        if path.is_file() and path.name != "recipe.yaml"
    }
    assert after == before


def test_training_changed_the_weights(whole: Path, tiny_qwen3: Path) -> None:
    from safetensors.torch import load_file

    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (tiny_qwen3, whole / "checkpoint")
    )
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)


def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(
    whole: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    samples = out / "samples"

    process = _start(recipe, out)
    _until(lambda: len(shards.shard_paths(samples)) >= 2, process, "two shards of samples")
    _kill(process)
    assert not (samples / "manifest.json").exists(), (
        "sampling was over before the kill: the test proves nothing"
    )
    kept = _digests(samples)

    process = _start(recipe, out)
    # An engine crashes too: the pool restarts it and the run continues.
    _until(
        lambda: len(shards.shard_paths(samples)) >= len(kept) + 2, process, "more shards of samples"
    )
    engine = max((out / "logs").glob("engine-*.log"), key=lambda path: path.stat().st_mtime)
    os.kill(int(engine.stem.rsplit("-", 1)[1]), signal.SIGKILL)
    losses = out / "checkpoint" / "loss.jsonl"
    _until(
        lambda: losses.exists() and len(losses.read_text().splitlines()) >= 5,
        process,
        "five steps of training",
    )
    _kill(process)
    assert not (out / "checkpoint" / "manifest.json").exists(), (
        "training was over before the kill: the test proves nothing"
    )
    assert kept.items() <= _digests(samples).items(), "a row that was already drawn was touched"
    sampled = (samples / "manifest.json").stat().st_mtime_ns

    process = _start(recipe, out)
    # Those of the base were complete before training.
    verdicts = out / "verdicts" / "ssd"
    _until(lambda: len(shards.shard_paths(verdicts)) >= 1, process, "a shard of verdicts")
    _kill(process)
    assert not (verdicts / "manifest.json").exists(), (
        "grading was over before the kill: the test proves nothing"
    )
    graded = _digests(verdicts)

    _finish(recipe, out)
    assert (samples / "manifest.json").stat().st_mtime_ns == sampled
    assert graded.items() <= _digests(verdicts).items()
    first, second = (
        json.loads((run / "report" / "scores.json").read_text()) for run in (whole, out)
    )
    assert first == second
    keys = list(shards.read_columns(samples, "prompt_id", "sample_index"))
    assert len(keys) == len(set(keys)) == 80


def test_ctrl_c_ends_cleanly_and_prints_how_to_resume(recipe: Path, tmp_path: Path) -> None:
    process = _start(recipe, tmp_path / "run")
    _until(lambda: len(shards.shard_paths(tmp_path / "run" / "samples")) >= 1, process, "a shard")
    family = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "To resume: ssd-ray run" in stderr
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(family, timeout=40)[1]
