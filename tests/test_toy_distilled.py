"""The toy as a real model, end to end: sampled, distilled, and near its known answer.

At a smaller size than `make toy-model`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ssd_ray.analysis.operator import Setting
from tests.support.commands import exit_status
from tests.support.toy_run import distil, make_base

pytestmark = pytest.mark.real


def test_the_student_of_the_toy_comes_near_its_known_answer(tmp_path: Path) -> None:
    base_model = make_base(tmp_path, steps=450)
    run = distil(base_model, tmp_path, samples=512, steps=60, export_every=20)
    base = run.settings.base()
    student = base.decoded(run.settings.samples)
    decoding = Setting(1.0, None, run.settings.grid.top_p)
    own, trained = run.at(1.0)
    _probe_the_curve(tmp_path / "run")
    assert run.base.largest_error() < 0.002
    assert own == pytest.approx(base.success_at(decoding), abs=0.003)
    # The base succeeds in 6.45 % of the cases, and the ideal student in 10.62 %.
    assert trained == pytest.approx(student.success_at(decoding), abs=0.012)
    assert run.kept_mass_at_locks() > 0.97


def _probe_the_curve(run: Path) -> None:
    """Probe the exported steps: the gap closes, and the last model is near the ideal fit."""
    out = run.parent / "probe"
    arguments = ["--contexts", run / "samples", "--out", out, "--quiet"]
    assert exit_status("probe", run / "checkpoint" / "steps", *arguments) == 0
    students = json.loads((out / "probe.json").read_text())["students"]
    assert [student["step"] for student in students] == [*range(20, 61, 20)]
    signals = [student["signals"][0] for student in students]
    closed, removed = (
        [each[name]["estimate"] for each in signals] for name in ("gap_closed", "tail_removed")
    )
    assert closed[0] < closed[-1]
    assert closed[-1] > 0.95
    assert removed[-1] > 0.95
