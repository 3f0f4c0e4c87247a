"""The page for GPUs: its commands run until they need a GPU, and its figures are the plan's."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path

import pytest

from ssd_ray import recipes
from ssd_ray.cli import doctor
from ssd_ray.machine.findings import GIB, Finding
from ssd_ray.pipeline import preflight
from tests.support.commands import exit_status
from tests.support.machines import machine

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/gpu.md").read_text()
COMMANDS = re.findall(r"^    ((?:ssd-ray|python|pip) .+)$", PAGE, re.MULTILINE)
OURS = [shlex.split(command)[1:] for command in COMMANDS if command.startswith("ssd-ray ")]
ROWS = re.findall(
    r"^\| (\d×[\d×]*H100)[^|]*\| `([\w.-]+)` \| (\d+) GiB \| (\d+) GiB[^|]*\| ([\d.]+) h \|$",
    PAGE,
    re.MULTILINE,
)
TOLERANCE = 0.2
"""Largest difference between hours of the page and the plan, as a share; memory is rounded up."""


@pytest.mark.parametrize("command", OURS, ids=" ".join)
def test_a_command_runs_until_it_needs_a_gpu(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    # Its self-test takes seconds, and has tests of its own.
    monkeypatch.setattr(doctor, "_sandbox", lambda: Finding(subject="sandbox", state="ok", text=""))
    refused = command[0] == "run"
    assert exit_status(*command) == (2 if refused else 0)
    if refused:
        stderr = capfd.readouterr().err
        assert re.match(r"error: (no GPU is visible|CUDA_VISIBLE_DEVICES='' leaves)", stderr)
        # Nothing was rendered, downloaded, sampled or left on disk.
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("cluster", "name", "gpu", "host", "hours"), ROWS)
def test_the_figures_are_those_of_the_plan(
    cluster: str,
    name: str,
    gpu: str,
    host: str,
    hours: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_status("plan", name, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    workers = recipes.load(name).cluster.train_workers
    sizes = [int(number) for number in re.findall(r"\d+", cluster.removesuffix("H100"))]
    assert workers == sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    (planned,) = [each for each in document["training"]["clusters"] if each["workers"] == workers]
    assert planned["fits"]
    assert float(hours) == pytest.approx(planned["hours"], rel=TOLERANCE)
    assert int(gpu) == math.ceil(planned["bytes_needed"] / GIB)
    kept = planned["host_bytes"] + planned["host_bytes_for_held_out_samples"]
    on_host = min(workers, 8) * kept + planned["host_bytes_of_the_export"]
    assert int(host) == math.ceil(on_host / GIB)


def test_every_machine_of_the_page_has_its_recipe() -> None:
    assert [row[0] for row in ROWS] == ["1×H100", "8×H100", "8×H100", "2×8×H100"]
    ran = {command[1] for command in OURS if command[0] in {"run", "plan"}}
    assert {row[1] for row in ROWS} == ran


@pytest.mark.parametrize("row", ROWS[:3], ids=lambda row: row[1])
def test_doctor_agrees_that_the_recipe_runs(
    row: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preflight, "hub_failure", lambda _: "")
    monkeypatch.setattr(preflight, "free_bytes", lambda _: 1_000 * GIB)
    num_gpus = int(row[0].partition("×")[0])
    here = {line.recipe: line for line in doctor.outlooks(machine(num_gpus), ())}
    assert here[row[1]].runs, here[row[1]].text


def test_files_and_lock_of_the_install_exist() -> None:
    installs = [command for command in COMMANDS if command.startswith("pip ")]
    assert len(installs) == 2
    named = [each for command in COMMANDS for each in shlex.split(command) if "/" in each]
    paths = [each for each in named if each.endswith((".lock", ".py"))]
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_page_shows_lines_as_doctor_prints_them() -> None:
    from ssd_ray.machine.findings import build_finding, gpu_findings

    here = machine(8)
    lines = [
        build_finding(here.torch, here.engine),
        *gpu_findings(here.gpus, here.torch, 0.9),
    ]
    for line in lines:
        assert f"{line.subject:<18} {line.state:<7} {line.text}\n" in PAGE
