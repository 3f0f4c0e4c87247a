"""The complete pipeline on a tiny model: killed anywhere and run again, it ends the same."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest

from ssd_ray import cluster
from ssd_ray.artifacts import files, shards
from ssd_ray.schema import Completion, Example, Prompt, Verdict
from ssd_ray.training.observe.heldout import read_held_out
from tests.support import surroundings
from tests.support.browser import BROWSER
from tests.support.commands import exit_status
from tests.support.drawn_tokens import (
    largest_mass_before,
    largest_rank,
    smallest_adaptive_ratio,
)
from tests.support.processes import command_of, is_starting, workers_of
from tests.support.tiny_run import completions, engine_starts, finish, start, write_recipe
from tests.view.followed import Followed, followed

pytestmark = pytest.mark.real

BASE_ARMS = {
    "base": "{model: base, temperature: 0.7}",
    "greedy": "{model: base, temperature: 0.0}",
    "cut": "{model: base, temperature: 1.3, top_k: 5, top_p: 0.8}",
    "adaptive": "{model: base, temperature: 0.9, entropy_theta: 0.3, min_p: 0.1}",
}
SSD_ARMS = {
    "ssd": "{model: ssd, temperature: 0.9, top_k: 20}",
    "warm": "{model: ssd, temperature: 1.2}",
}
CONTROLS: dict[str, dict[str, Any]] = {
    "compression": {"temperature": 1.0, "top_k": 20, "top_p": 0.95},
    "reshaping": {"temperature": 1.2, "top_k": None, "top_p": 1.0},
    "bad-data": {"temperature": 2.0, "top_k": None, "top_p": 1.0},
}
"""Trained controls, with the decoding of their samples."""
FOLLOWED = Followed()
"""The uninterrupted run as its page showed it."""
STAGES = ("samples", *(f"generations/{arm}" for arm in BASE_ARMS | SSD_ARMS))


def _until(condition: Callable[[], object], process: subprocess.Popen[str], what: str) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, (
            f"the run ended before {what}: {process.communicate()[1][-3000:]}"
        )
        assert time.monotonic() < deadline, f"waited too long for {what}"
        time.sleep(0.005)


def _kill(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """SIGKILL the driver alone; engines and workers must end by themselves.

    Ray's own two agents notice later, as does a worker that has just been started for one of Ray
    Train's helpers. They hold no engine and no core. The starting workers are returned.
    """
    workers = workers_of(process.pid)
    starting = [worker for worker in workers if is_starting(worker)]
    working = [worker for worker in workers if worker not in starting]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(working, timeout=20)
    assert not alive, f"processes outlived their driver: {[command_of(p)[:80] for p in alive]}"
    return starting


def _digests(directory: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in shards.shard_paths(directory)
    }


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


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory, tiny_qwen3: Path) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "tiny.yaml"
    return write_recipe(path, tiny_qwen3, BASE_ARMS | SSD_ARMS)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A working folder and an environment that would end a careless program."""
    parent = tmp_path_factory.mktemp("odd")
    return surroundings.folder_of_traps(parent), surroundings.odd_environment(parent)


@pytest.fixture(scope="module")
def uninterrupted(
    recipe: Path, odd: tuple[Path, dict[str, str]]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run without a disturbance, in odd surroundings and an odd directory, and its output."""
    folder, environment = odd
    out = folder.parent / "T=1.2 k=20" / "run #1 (100%) ü?"
    command = [surroundings.COMMAND, "run", str(recipe), "--out", str(out), "--quiet"]
    out.parent.mkdir()
    with followed(out.parent) if BROWSER else nullcontext(FOLLOWED) as seen:
        process = surroundings.run(command, folder, 580, **environment)
    vars(FOLLOWED).update(vars(seen))
    return out, process


@pytest.fixture(scope="module")
def reference(uninterrupted: tuple[Path, subprocess.CompletedProcess[str]]) -> Path:
    """The directory of the uninterrupted run."""
    out, process = uninterrupted
    assert process.returncode == 0, process.stdout + process.stderr
    return out


def test_a_run_works_in_odd_surroundings(
    uninterrupted: tuple[Path, subprocess.CompletedProcess[str]],
    odd: tuple[Path, dict[str, str]],
) -> None:
    """Files named like libraries, a long TMPDIR, no passwd entry, and an odd run directory."""
    out, process = uninterrupted
    shown = process.stdout + process.stderr
    assert process.returncode == 0, shown
    assert f"TMPDIR={odd[1]['TMPDIR']} cannot hold its sockets" in shown
    assert "was imported" not in shown
    assert "(raylet)" not in shown
    unwrapped = process.stdout.replace("\n", "")
    assert str(out / "report" / "report.html") in unwrapped
    assert {path.name for path in odd[0].parent.iterdir()} >= {"T=1.2 k=20", "notes"}


@pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH")
def test_the_view_follows_a_run_from_start_to_end(reference: Path) -> None:
    assert FOLLOWED.first_page.startswith("Not shown\n\nno run below")
    assert (FOLLOWED.states[0], FOLLOWED.states[-1]) == ("running", "complete")
    assert {"samples", "train", "generations/base"} <= FOLLOWED.bars.keys()
    # The first answers take the start of an engine, so several states of a bar are seen.
    assert max(map(len, FOLLOWED.bars.values())) > 2
    assert len(FOLLOWED.logs["progress.log"]) > 5
    assert any(name.startswith("engine-") for name in FOLLOWED.logs)
    assert FOLLOWED.faults == []


def test_sampled_ids_are_the_ids_trained_on(reference: Path) -> None:
    prompts = {
        prompt.prompt_id: prompt.token_ids
        for prompt in shards.read_rows(reference / "prompts", Prompt)
    }
    samples = {
        (row.prompt_id, row.sample_index): row
        for row in shards.read_rows(reference / "samples", Completion)
    }
    examples = list(shards.read_rows(reference / "dataset", Example))
    assert len(samples) == 80
    assert examples
    for example in examples:
        sample = samples[example.prompt_id, example.sample_index]
        assert sample.prompt_token_ids == prompts[example.prompt_id]
        assert example.input_ids == sample.prompt_token_ids + sample.output_token_ids
        assert example.num_prompt_tokens == len(sample.prompt_token_ids)


def test_a_finished_run_is_a_no_op(
    reference: Path, recipe: Path, odd: tuple[Path, dict[str, str]]
) -> None:
    def stamps() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for path in reference.rglob("*")
            if path.is_file() and path.name not in {"recipe.yaml", "owner.json", "progress.log"}
        }

    before, began = stamps(), time.monotonic()
    command = [surroundings.COMMAND, "run", str(recipe), "--out", str(reference), "--quiet"]
    again = surroundings.run(command, odd[0], 60, **odd[1])
    assert again.returncode == 0, again.stderr
    assert time.monotonic() - began < 10
    assert stamps() == before


def test_training_changed_the_weights(reference: Path, tiny_qwen3: Path) -> None:
    from safetensors.torch import load_file

    before, after = (
        load_file(directory / "model.safetensors")
        for directory in (tiny_qwen3, reference / "checkpoint")
    )
    assert before.keys() == after.keys()
    assert any((before[name] != after[name]).any() for name in before)
    assert [line["step"] for line in read_held_out(reference / "checkpoint")] == [0, 4, 8, 12]


def test_a_run_starts_the_engines_once_for_each_model(reference: Path) -> None:
    """Samples and arms of the base share one pool, arms of the trained model another."""
    assert engine_starts(reference) == 2
    assert not (reference / ".engines").exists()
    for stage in STAGES:
        facts = files.read_json(reference / stage / "manifest.json")["facts"]
        assert (facts["failed"], facts["engine_losses"]) == ([], 0)
        assert not list((reference / stage).glob(".*"))
    trained = files.read_json(reference / "checkpoint" / "manifest.json")["finished_at"]
    for arm in BASE_ARMS:
        manifest = files.read_json(reference / "generations" / arm / "manifest.json")
        assert manifest["finished_at"] <= trained, "its engines are gone before training"


def test_other_commands_draw_the_same_rows_and_those_of_controls(
    reference: Path, recipe: Path, tiny_qwen3: Path, tmp_path: Path
) -> None:
    # Commands of one process share its Ray; each starts engines of its own.
    with cluster.connected():
        _draw_two_arms(reference, tiny_qwen3, tmp_path)
        _add_controls(reference, recipe, tmp_path / "arms")
    _check_tokens(tmp_path / "arms", tiny_qwen3)


def _draw_two_arms(reference: Path, model: Path, directory: Path) -> None:
    """Draw two arms alone: a pool for fewer steps draws the same rows."""
    names = ("greedy", "cut")
    alone = write_recipe(directory / "alone.yaml", model, {name: BASE_ARMS[name] for name in names})
    out = directory / "alone"
    assert exit_status("generate", alone, "--out", out, "--quiet") == 0
    assert engine_starts(out) == 1
    for stage in (f"generations/{name}" for name in names):
        assert completions(out / stage) == completions(reference / stage)
        assert _claim(out / stage)["fingerprint"] == _claim(reference / stage)["fingerprint"]


def _add_controls(reference: Path, recipe: Path, out: Path) -> None:
    """Sample again with all controls in one pool, then train and evaluate one of them.

    Training takes the time: that of one control proves the steps of all.
    """
    shutil.copytree(reference, out)
    shutil.rmtree(out / "samples")
    command = (recipe, "--out", out, "--quiet", "--set", "cluster.train_workers=1", "--set")
    every = f"evaluate.controls=[{', '.join(CONTROLS)}]"
    assert exit_status("sample", *command, every) == 0
    assert engine_starts(out) == engine_starts(reference) + 1
    assert completions(out / "samples") == completions(reference / "samples")
    assert exit_status("run", *command, "evaluate.controls=[bad-data]") == 0
    assert engine_starts(out) == engine_starts(reference) + 2
    # Equal samples change nothing behind them.
    for stage in (*STAGES[1:], "dataset", "checkpoint"):
        assert _claim(out / stage) == _claim(reference / stage), "an artifact was made again"
    # Each sample of the control is trained on, whatever its health, and each answer graded.
    assert len(list(shards.read_rows(out / "dataset-bad-data", Example))) == 80
    assert set(_claim(out / "checkpoint-bad-data")["inputs"]) == {"dataset-bad-data"}
    weights = [out / name / "model.safetensors" for name in ("checkpoint", "checkpoint-bad-data")]
    assert files.digest([weights[0]]) != files.digest([weights[1]])
    answers = completions(out / "generations" / "bad-data")
    verdicts = list(shards.read_rows(out / "verdicts" / "bad-data", Verdict))
    assert len(answers) == len(verdicts) == 32


def _check_tokens(out: Path, base: Path) -> None:
    """Hold the rows of each arm against its decoding, by the logits of the base."""
    rows = {}
    for control, decoding in CONTROLS.items():
        choices = _claim(out / f"samples-{control}")["choices"]["sample"]
        assert {name: choices[name] for name in decoding} == decoding
        rows[control] = completions(out / f"samples-{control}")
        assert len(rows[control]) == 80
    assert rows["reshaping"] != rows["bad-data"]
    assert largest_rank(base, rows["compression"][:40]) < 20
    assert largest_mass_before(base, rows["compression"][:40], t=1.0, k=20) < 0.951
    assert largest_rank(base, rows["reshaping"][:10]) > 100
    assert largest_rank(base, rows["bad-data"][:10]) > 100
    adaptive = completions(out / "generations" / "adaptive")
    assert smallest_adaptive_ratio(base, adaptive, t=0.9, theta=0.3) > 0.099


def _claim(directory: Path) -> dict[str, Any]:
    return files.read_json(directory / "fingerprint.json")


def test_a_run_killed_in_every_stage_ends_with_the_same_numbers(
    reference: Path, recipe: Path, tmp_path: Path
) -> None:
    out = tmp_path / "killed"
    samples = out / "samples"

    drawn = [samples, *(out / "generations" / arm for arm in BASE_ARMS)]
    process = start("run", recipe, out)
    _until(lambda: any(map(shards.shard_paths, drawn)), process, "a shard of answers")
    process.send_signal(signal.SIGSTOP)  # the driver hands out work; most of it stays
    starting = _kill(process)
    assert not any((stage / "manifest.json").exists() for stage in drawn), (
        "a stage was over before the kill: the test proves nothing"
    )
    kept = [_digests(stage) for stage in drawn]
    assert any(kept)

    process = start("run", recipe, out)
    # An engine crashes too, with answers of two steps in flight: the pool restarts it.
    _until(lambda: _engine_with_two_jobs(out), process, "answers of two steps in one engine")
    os.kill(_engine_with_two_jobs(out), signal.SIGKILL)
    losses = out / "checkpoint" / "loss.jsonl"
    _until(losses.exists, process, "a step of training")
    process.send_signal(signal.SIGSTOP)  # the driver writes the manifest; its workers go on
    _until(
        lambda: len(losses.read_text().splitlines()) >= 5,
        process,
        "five steps of training",
    )
    starting += _kill(process)
    assert not (out / "checkpoint" / "manifest.json").exists(), (
        "training was over before the kill: the test proves nothing"
    )
    for before, stage in zip(kept, drawn, strict=True):
        assert before.items() <= _digests(stage).items(), "a row that was drawn was touched"
    assert engine_starts(out) == 3
    crashes = [
        files.read_json(out / stage / "manifest.json")["facts"]["engine_losses"]
        for stage in ("samples", *(f"generations/{arm}" for arm in BASE_ARMS))
    ]
    assert sum(crashes) >= 2, "the crash counts in each step that had answers in flight"
    sampled = (samples / "manifest.json").stat().st_mtime_ns

    process = start("run", recipe, out)
    # The verdicts of the base were complete before training.
    verdicts = out / "verdicts" / "ssd"
    _until(lambda: len(shards.shard_paths(verdicts)) >= 1, process, "a shard of verdicts")
    starting += _kill(process)
    assert not (verdicts / "manifest.json").exists(), (
        "grading was over before the kill: the test proves nothing"
    )
    graded = _digests(verdicts)

    finish(start("run", recipe, out))
    assert (samples / "manifest.json").stat().st_mtime_ns == sampled
    assert graded.items() <= _digests(verdicts).items()
    first, second = (
        json.loads((run / "report" / "scores.json").read_text()) for run in (reference, out)
    )
    assert first == second
    measured = [read_held_out(run / "checkpoint") for run in (reference, out)]
    assert measured[0] == measured[1]
    for stage in STAGES:
        assert completions(out / stage) == completions(reference / stage)
    keys = list(shards.read_columns(samples, "prompt_id", "sample_index"))
    assert len(keys) == len(set(keys)) == 80
    assert not psutil.wait_procs(starting, timeout=60)[1], "processes outlived their driver"


def test_ctrl_c_ends_cleanly_and_prints_how_to_resume(recipe: Path, tmp_path: Path) -> None:
    process = start("run", recipe, tmp_path / "run")
    _until(lambda: len(shards.shard_paths(tmp_path / "run" / "samples")) >= 1, process, "a shard")
    family = workers_of(process.pid)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "To resume: ssd-ray run" in stderr
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(family, timeout=40)[1]
