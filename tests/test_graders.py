"""Grading on Ray for real: while answers are still being written, and through the deaths of graders."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ssd_ray import artifacts, cluster
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.grader import Order
from ssd_ray.evaluation.graders import grade
from ssd_ray.evaluation.grading import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.store import stored
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Problem, Test, Verdict

pytestmark = pytest.mark.real
CLUSTER = ClusterConfig(device="cpu", grader_cpus=1, max_failures=3)
RULES = Rules(limits=Limits(time_s=5, memory_mib=256, output_kib=64))
SHARDS, ROWS = 12, 32


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    with cluster.connected(CLUSTER):
        yield


@pytest.fixture
def order(tmp_path: Path) -> Order:
    tests = tuple(Test(input=f"{number}\n", output=f"{2 * number}\n") for number in range(3))
    problem = Problem(problem_id="double", source="test", statement="Double it.", tests=tests)
    problems = list(stored([problem], tmp_path / "benchmark" / "tests", "L1", []))
    artifacts.write_shard(tmp_path / "benchmark", "problems", problems, Problem)
    (tmp_path / "verdicts").mkdir()
    return Order(benchmark=tmp_path / "benchmark", rules=RULES, floor="L1", out=tmp_path / "verdicts")


def _shard(number: int) -> list[Completion]:
    codes = ("print(2 * int(input()))", "print(int(input()))")
    return [
        Completion(
            prompt_id="double",
            sample_index=number * ROWS + row,
            seed=0,
            source="test",
            difficulty="easy",
            prompt_token_ids=(1,),
            output_token_ids=(2,),
            text=f"```python\n{codes[row % 2]}\n```",
            finish_reason="stop",
        )
        for row in range(ROWS)
    ]


class _Writer:
    """A generation that takes its time: a shard every `pause_s`."""

    def __init__(self, out: Path, pause_s: float) -> None:
        self._out, self._pause_s, self.ended_at = out, pause_s, 0.0
        out.mkdir()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        for number in range(SHARDS):
            time.sleep(self._pause_s)
            artifacts.write_shard(self._out, f"part-{number:03}", _shard(number), Completion)
        self.ended_at = time.monotonic()

    def ended(self) -> bool:
        return not self._thread.is_alive()


def _grade(order: Order, generations: Path, writer: _Writer, progress: LineProgress | None = None) -> dict[str, object]:
    return grade(
        generations,
        order,
        CLUSTER,
        total=SHARDS * ROWS,
        ended=writer.ended,
        stage="verdicts",
        logs=order.out.parent / "logs",
        progress=progress or LineProgress(),
    )


def _outcomes(order: Order) -> dict[int, str]:
    rows = list(artifacts.read_rows(order.out, Verdict))
    assert len(rows) == SHARDS * ROWS
    return {row.sample_index: row.outcome for row in rows}


EXPECTED = {index: ("accepted", "wrong_answer")[index % 2] for index in range(SHARDS * ROWS)}


def test_grading_keeps_up_with_a_generation_and_ends_soon_after_it(order: Order, tmp_path: Path) -> None:
    writer = _Writer(tmp_path / "generations", pause_s=0.8)
    facts = _grade(order, tmp_path / "generations", writer)
    assert time.monotonic() - writer.ended_at < 6
    assert _outcomes(order) == EXPECTED
    assert facts["outcomes"] == {"accepted": SHARDS * ROWS // 2, "wrong_answer": SHARDS * ROWS // 2}
    assert str(facts["sandbox_level"]) >= "L1"


def test_killed_graders_and_zygotes_lose_no_verdict_and_change_none(order: Order, tmp_path: Path) -> None:
    writer = _Writer(tmp_path / "generations", pause_s=0.3)
    killed = []

    def kill() -> None:
        for name in ("ray::_Actor", "python"):
            while not (found := [process for process in psutil.process_iter() if _is(process, name)]):
                time.sleep(0.02)
            killed.append(name)
            found[0].kill()
            time.sleep(1)

    threading.Thread(target=kill, daemon=True).start()
    _grade(order, tmp_path / "generations", writer)
    assert killed == ["ray::_Actor", "python"]
    assert _outcomes(order) == EXPECTED


def _is(process: psutil.Process, name: str) -> bool:
    """A grader, or a zygote below one."""
    try:
        words = process.cmdline()
        if name == "ray::_Actor":
            return bool(words) and words[0].startswith("ray::_Actor.grade")
        parent = process.parent()
        return "sys.modules" in " ".join(words) and parent is not None and "ray::_Actor" in " ".join(parent.cmdline())
    except psutil.Error:
        return False


def test_a_completion_of_an_unknown_problem_is_a_mistake_and_names_it(order: Order, tmp_path: Path) -> None:
    (tmp_path / "generations").mkdir()
    rows = [Completion(**{**vars(row), "prompt_id": "triple"}) for row in _shard(0)]
    artifacts.write_shard(tmp_path / "generations", "part", rows, Completion)
    writer = _Writer(tmp_path / "elsewhere", pause_s=0)
    with pytest.raises(UserError, match="'triple', which the benchmark does not have"):
        _grade(order, tmp_path / "generations", writer)


def test_a_generation_that_fails_ends_its_grading(order: Order, tmp_path: Path) -> None:
    (tmp_path / "generations").mkdir()

    class Failing:
        def ended(self) -> bool:
            raise InfrastructureError("generations were stopped")

    with pytest.raises(InfrastructureError, match="stopped"):
        _grade(order, tmp_path / "generations", Failing())  # type: ignore[arg-type]
