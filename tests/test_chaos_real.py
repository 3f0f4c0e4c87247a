"""A grader of a real Ray node is killed while it grades played answers in the real sandbox."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd_ray.evaluation.verdicts import SLICE_ROWS
from tests.support import played_answers

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import chaos
import chaos_cases
import chaos_nodes

pytestmark = pytest.mark.real


@pytest.fixture
def target(tmp_path: Path) -> Iterator[chaos_nodes.LocalTarget]:
    """A head, and a node for one grader."""
    with chaos_nodes.local_target(tmp_path, {"grader": 1}, {}) as target:
        yield target


def test_a_killed_grader_costs_its_slice_alone(
    target: chaos_nodes.LocalTarget, tiny_qwen3: Path, tmp_path: Path
) -> None:
    played_answers.make(tmp_path, tiny_qwen3)
    bench = chaos.Bench(tmp_path, target, argparse.Namespace(seed=0, minute=1.0))
    row = bench.measure(chaos_cases.CASES["worker-kill"], "grade")
    assert row.misses() == []
    assert row.verdicts_again == SLICE_ROWS
    assert row.role_back_s is not None
