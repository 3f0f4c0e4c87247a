"""Storage operations of a unit and of an answer: each is a round trip on network storage."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TypeAlias

import pytest

ROOT = Path(__file__).parents[2]
MOST_OF_A_UNIT = 30
"""Operations of an engine for one unit, without the lines of its journal."""
MOST_OF_THE_QUEUE = 3
"""Operations of the queue for one unit, on average."""
ROWS = 16
Operations: TypeAlias = dict[str, list[list[str]]]


@pytest.fixture(scope="module")
def operations(tmp_path_factory: pytest.TempPathFactory) -> Operations:
    """The operations of queue and worker, a list for each unit."""
    directory = tmp_path_factory.mktemp("operations")
    library, log = directory / "slow_storage.so", directory / "log"
    source = ROOT / "benchmarks" / "slow_storage.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    environment = {
        "LD_PRELOAD": str(library),
        "PYTHONPATH": str(ROOT),
        "SLOW_DIRECTORY": f"{directory / 'run'}/",
        "SLOW_MS": "0",
        "SLOW_LOG": str(log),
    }
    program = ROOT / "tests" / "support" / "storage_operations.py"
    done = subprocess.run(
        [sys.executable, str(program), str(directory / "run"), str(log), str(ROWS)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    result: Operations = json.loads(done.stdout)
    assert len(result["worker"]) == 32
    return result


def test_an_answer_is_one_operation(operations: Operations) -> None:
    for unit in operations["worker"]:
        lines = [each for each in unit if each.startswith("write ") and "/.journal/" in each]
        assert len(lines) == ROWS


def test_a_unit_takes_few_operations_of_an_engine(operations: Operations) -> None:
    for unit in operations["worker"]:
        assert len(unit) - ROWS <= MOST_OF_A_UNIT, "\n".join(unit)


def test_the_queue_takes_few_operations_for_a_unit(operations: Operations) -> None:
    most = MOST_OF_THE_QUEUE * len(operations["worker"])
    assert sum(map(len, operations["queue"])) <= most, operations["queue"]
