"""The GPU benchmark reports a missing GPU, and its parts run on a CPU."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.machine.gpus import Gpus
from ssd_ray.machine.installed import TorchBuild
from tests.support.machines import gpu, gpus

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def gpu_process(*arguments: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def rows_of(result: subprocess.CompletedProcess[str], out: Path) -> dict[str, dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return {f"{row['part']}: {row['name']}": row for row in json.loads(out.read_text())["rows"]}


def test_a_missing_gpu_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = gpu_process("--out", tmp_path / "gpu.json")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("skipped: ")
    assert not (tmp_path / "gpu.json").exists()


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu")


CUDA_13 = TorchBuild(version="2.13.0+cu130", cuda="13.0")
FOR_CPU = TorchBuild(version="2.13.0+cpu", cuda=None)


@pytest.mark.parametrize(
    ("here", "torch", "ended", "word"),
    [
        (gpus(1), CUDA_13, None, ""),
        (gpus(0, failure="no NVIDIA driver was found", no_driver=True), CUDA_13, 0, "skipped: "),
        (gpus(0, failure="no NVIDIA driver was found", no_driver=True), FOR_CPU, 0, "skipped: "),
        (gpus(0), CUDA_13, 0, "skipped: "),
        (gpus(8, chosen=""), CUDA_13, 0, "skipped: "),
        (gpus(8, chosen="9"), CUDA_13, 2, "fault: "),
        (gpus(0, failure="Driver/library version mismatch"), CUDA_13, 2, "fault: "),
        (gpus(0, failure="nvidia-smi gave no answer in 5 s"), CUDA_13, 2, "fault: "),
        (gpus(1, driver="570.1", cuda=(12, 8)), CUDA_13, 2, "fault: "),
        (gpus(2, installed=(gpu(0), gpu(1, total=24 << 30))), CUDA_13, 2, "fault: "),
        (gpus(1, installed=(gpu(0, free=0, processes=(9,)),)), CUDA_13, 2, "fault: "),
        (gpus(1), FOR_CPU, 2, "fault: "),
    ],
)
def test_a_faulty_gpu_is_no_success(
    benchmark: Any,
    capsys: pytest.CaptureFixture[str],
    here: Gpus,
    torch: TorchBuild,
    ended: int | None,
    word: str,
) -> None:
    assert benchmark.gpu_status(here, torch, "vllm 0.32.0") == ended
    shown = capsys.readouterr().out
    assert shown.startswith(word)
    assert shown.count("\n") == (ended is not None)


@pytest.mark.parametrize("part", ["operator", "reference", "variants", "resume", "speed"])
def test_a_failed_case_ends_with_the_code_of_a_fault(
    part: str, benchmark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"

    def fail(*_: object, **__: object) -> None:
        raise benchmark.CaseError("status 1: CUDA error: an illegal memory access")

    # `variants` compares with a plain training.
    monkeypatch.setattr(benchmark.Setup, "plain", [])
    monkeypatch.setattr(benchmark.Setup, "run", fail)
    monkeypatch.setattr(benchmark.Setup, "dataset", lambda *_, **__: tmp_path)
    monkeypatch.setattr(benchmark.Setup, "model", tmp_path)
    command = ["gpu.py", "--device", "cpu", "--tiny", "--parts", part, "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    assert benchmark.main() == 2
    verdicts = [row["bar_held"] for row in json.loads(out.read_text())["rows"]]
    assert "FAILED" in verdicts


def test_the_exit_code_is_that_of_the_worst_row(benchmark: Any) -> None:
    held = benchmark.Row(part="a", name="held", value=1.0, at_most=2)
    free = benchmark.Row(part="a", name="free", value=1.0)
    skipped = benchmark.Row(part="a", name="skipped", value=None, at_most=2, note="no time left")
    missed = benchmark.Row(part="a", name="missed", value=3.0, at_most=2)
    failed = benchmark.Row(part="a", name="failed", value=None, failed=True)
    assert benchmark.status([]) == 0
    assert benchmark.status([held, free, skipped]) == 0
    assert benchmark.status([held, missed, skipped]) == 1
    assert benchmark.status([failed, missed, held]) == 2


def test_the_help_has_the_exit_codes() -> None:
    shown = gpu_process("--help").stdout
    assert "Exit codes:" in shown
    assert re.findall(r"^- (\d): ", shown, re.MULTILINE) == ["0", "1", "2"]


def test_a_verdict_compares_a_value_with_its_bar(benchmark: Any) -> None:
    Row = benchmark.Row  # noqa: N806
    rows = [
        Row(part="a", name="inside", value=0.5, at_least=0.4, at_most=0.6),
        Row(part="a", name="above", value=0.7, at_most=0.6),
        Row(part="a", name="below", value=0.3, at_least=0.4),
        Row(part="a", name="not a number", value=float("nan"), at_most=0.4),
        Row(part="a", name="free", value=0.3),
        Row(part="a", name="skipped", value=None, at_most=1, note="needs a GPU"),
        Row(part="a", name="failed", value=None, note="status 1: no memory", failed=True),
    ]
    assert [row.verdict for row in rows] == ["yes", "NO", "NO", "NO", "", "-", "FAILED"]
    lines = benchmark.table(rows).splitlines()
    assert lines[1].split()[:4] == ["a", "yes", "0.5", ">="]
    assert lines[-1].endswith("failed (status 1: no memory)")


def test_no_part_starts_after_the_time_limit(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    result = gpu_process("--device", "cpu", "--tiny", "--minutes", "0", "--out", out)
    rows = rows_of(result, out)
    assert {row["note"] for row in rows.values()} == {"no time left"}
    assert len(rows) == 6


@pytest.mark.slow
def test_the_operator_meets_its_bar_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ("--device", "cpu", "--tiny", "--parts", "operator", "--out", out)
    (row,) = rows_of(gpu_process(*arguments, timeout_s=300), out).values()
    assert (row["bar_held"], row["value"]) == ("yes", 1.0)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_training_parts_meet_their_bars_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    parts = ("reference", "variants", "resume", "speed")
    arguments = ("--device", "cpu", "--tiny", "--parts", *parts, "--out", out)
    rows = rows_of(gpu_process(*arguments, timeout_s=880), out)
    assert [name for name, row in rows.items() if row["bar_held"] == "NO"] == []
    assert [name for name in rows if name.endswith(": failed")] == []
    held = {name for name, row in rows.items() if row["bar_held"] == "yes"}
    assert len(held) == 10
    skipped = {name: row["note"] for name, row in rows.items() if row["bar_held"] == "-"}
    assert set(skipped) == {
        "variants: packed, flash attention",
        "variants: Liger",
        "variants: offloaded optimizer",
        "speed: MFU, recomputation not counted",
    }


@pytest.mark.real
@pytest.mark.timeout(900)
def test_sampling_runs_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ("--device", "cpu", "--tiny", "--parts", "sampling", "--out", out)
    rows = rows_of(gpu_process(*arguments, timeout_s=880), out)
    assert len(rows) == 3
    assert all(row["value"] > 0 for name, row in rows.items() if "tokens/s" in name)
    # Both samplers draw the same tokens on a CPU.
    (same,) = [row for name, row in rows.items() if "equal with both samplers" in name]
    assert same["value"] == 1.0
