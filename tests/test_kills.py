"""Kills of engines, a node and the driver: a short run of `benchmarks/sampling_kills.py`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.real, pytest.mark.slow]
PROGRAM = Path(__file__).parent.parent / "benchmarks" / "sampling_kills.py"


def test_kills_of_engine_node_and_driver_change_no_row(
    tmp_path: Path,
) -> None:
    figures = tmp_path / "figures.json"
    command = [
        sys.executable,
        str(PROGRAM),
        "--kills",
        "3",
        "--prompts",
        "60",
        "--tokens",
        "100",
        "--out",
        str(figures),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert figures.exists(), done.stdout + done.stderr[-4000:]
    results = json.loads(figures.read_text())
    assert [each["victim"] for each in results["each"]] == ["engine", "node", "driver"]
    assert (
        results["answers"],
        results["missing"],
        results["doubled"],
        results["different"],
        results["failed"],
    ) == (120, 0, 0, 0, 0)
    assert results["left_running"] == 0
    assert results["slowest_to_go_s"] <= 10
