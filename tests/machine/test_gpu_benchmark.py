"""The GPU benchmark reports a missing GPU, and its parts run on a CPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def gpu(*arguments: str | Path, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / "gpu.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)


def rows_of(result: subprocess.CompletedProcess[str], out: Path) -> dict[str, dict[str, Any]]:
    assert result.returncode == 0, result.stderr
    return {f"{row['part']}: {row['name']}": row for row in json.loads(out.read_text())["rows"]}


def test_a_missing_gpu_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    result = gpu("--out", tmp_path / "gpu.json")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("skipped: ")
    assert not (tmp_path / "gpu.json").exists()


def test_a_verdict_compares_a_value_with_its_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu import Row, table  # type: ignore[import-not-found]

    rows = [
        Row(part="a", name="inside", value=0.5, at_least=0.4, at_most=0.6),
        Row(part="a", name="above", value=0.7, at_most=0.6),
        Row(part="a", name="below", value=0.3, at_least=0.4),
        Row(part="a", name="not a number", value=float("nan"), at_most=0.4),
        Row(part="a", name="free", value=0.3),
        Row(part="a", name="failed", value=None, at_most=1, note="status 1: no memory"),
    ]
    assert [row.verdict for row in rows] == ["yes", "NO", "NO", "NO", "", "-"]
    lines = table(rows).splitlines()
    assert lines[1].split()[:4] == ["a", "yes", "0.5", ">="]
    assert lines[-1].endswith("failed (status 1: no memory)")


def test_no_part_starts_after_the_time_limit(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    result = gpu("--device", "cpu", "--tiny", "--minutes", "0", "--out", out)
    rows = rows_of(result, out)
    assert {row["note"] for row in rows.values()} == {"no time left"}
    assert len(rows) == 6


@pytest.mark.slow
def test_the_operator_meets_its_bar_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    arguments = ("--device", "cpu", "--tiny", "--parts", "operator", "--out", out)
    (row,) = rows_of(gpu(*arguments, timeout_s=300), out).values()
    assert (row["bar_held"], row["value"]) == ("yes", 1.0)


@pytest.mark.real
@pytest.mark.timeout(900)
def test_training_parts_meet_their_bars_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    parts = ("reference", "variants", "resume", "speed")
    arguments = ("--device", "cpu", "--tiny", "--parts", *parts, "--out", out)
    rows = rows_of(gpu(*arguments, timeout_s=880), out)
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
    rows = rows_of(gpu(*arguments, timeout_s=880), out)
    assert len(rows) == 3
    assert all(row["value"] > 0 for name, row in rows.items() if "tokens/s" in name)
    # Both samplers draw the same tokens on a CPU.
    (same,) = [row for name, row in rows.items() if "equal with both samplers" in name]
    assert same["value"] == 1.0
