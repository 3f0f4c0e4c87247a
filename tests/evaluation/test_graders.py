"""Grading on real Ray: during generation, and through crashes of graders."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from ssd_ray import cluster
from ssd_ray.artifacts import shards, slices
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.following import Answers
from ssd_ray.evaluation.grader import Grader, GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.ray_pool import grade, pool_on_ray
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Problem, Test, Verdict
from tests.support.processes import kill

pytestmark = pytest.mark.real
CLUSTER = ClusterConfig(device="cpu", grader_cpus=1, max_failures=3)
RULES = Rules(limits=Limits(time_s=5, memory_mib=256, output_kib=64))
SHARDS, ROWS = 12, 32


@pytest.fixture(scope="module", autouse=True)
def connected() -> Iterator[None]:
    with cluster.connected():
        yield


@pytest.fixture
def order(tmp_path: Path) -> GradingSpec:
    tests = tuple(Test(input=f"{number}\n", output=f"{2 * number}\n") for number in range(3))
    problem = Problem(problem_id="double", source="test", statement="Double it.", tests=tests)
    problems = list(store_problems([problem], tmp_path / "benchmark" / "tests", "L1", []))
    shards.write_shard(tmp_path / "benchmark", "problems", problems, Problem)
    (tmp_path / "verdicts").mkdir()
    return GradingSpec(
        benchmark=tmp_path / "benchmark", rules=RULES, floor="L1", out=tmp_path / "verdicts"
    )


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
    """A slow generation: a shard every `pause_s`."""

    def __init__(self, out: Path, pause_s: float) -> None:
        self._out, self._pause_s, self.ended_at = out, pause_s, 0.0
        out.mkdir()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        for number in range(SHARDS):
            time.sleep(self._pause_s)
            shards.write_shard(self._out, f"part-{number:03}", _shard(number), Completion)
        self.ended_at = time.monotonic()

    def ended(self) -> bool:
        return not self._thread.is_alive()


def _grade(
    order: GradingSpec, generations: Path, writer: _Writer, progress: LineProgress | None = None
) -> dict[str, object]:
    with pool_on_ray(CLUSTER, order.out.parent / "logs") as pool:
        return grade(
            Answers(directory=generations, total=SHARDS * ROWS, ended=writer.ended),
            order,
            pool,
            stage="verdicts",
            progress=progress or LineProgress(),
        )


def _outcomes(order: GradingSpec) -> dict[int, str]:
    rows = list(shards.read_rows(order.out, Verdict))
    assert len(rows) == SHARDS * ROWS
    return {row.sample_index: row.outcome for row in rows}


EXPECTED = {index: ("accepted", "wrong_answer")[index % 2] for index in range(SHARDS * ROWS)}


def test_grading_keeps_up_with_generation(order: GradingSpec, tmp_path: Path) -> None:
    writer = _Writer(tmp_path / "generations", pause_s=0.8)
    facts = _grade(order, tmp_path / "generations", writer)
    assert time.monotonic() - writer.ended_at < 6
    assert _outcomes(order) == EXPECTED
    assert facts.outcomes == {"accepted": SHARDS * ROWS // 2, "wrong_answer": SHARDS * ROWS // 2}
    assert str(facts.sandbox_level) >= "L1"


def test_killed_graders_and_zygotes_change_no_verdict(order: GradingSpec, tmp_path: Path) -> None:
    writer = _Writer(tmp_path / "generations", pause_s=0.3)
    killed = []

    def kill_each() -> None:
        for name in ("ray::GraderActor", "python"):
            while not any(kill(one) for one in psutil.process_iter() if _is(one, name)):
                time.sleep(0.02)
            killed.append(name)
            time.sleep(1)

    threading.Thread(target=kill_each, daemon=True).start()
    _grade(order, tmp_path / "generations", writer)
    assert killed == ["ray::GraderActor", "python"]
    assert _outcomes(order) == EXPECTED


def _is(process: psutil.Process, name: str) -> bool:
    """Return True for a grader, or for a zygote below one."""
    try:
        words = process.cmdline()
        if name == "ray::GraderActor":
            return bool(words) and words[0].startswith("ray::GraderActor.grade")
        parent = process.parent()
        return (
            "sys.modules" in " ".join(words)
            and parent is not None
            and "ray::GraderActor" in " ".join(parent.cmdline())
        )
    except psutil.Error:
        return False


def test_a_completion_of_an_unknown_problem_is_refused_by_name(
    order: GradingSpec, tmp_path: Path
) -> None:
    (tmp_path / "generations").mkdir()
    rows = [Completion(**{**vars(row), "prompt_id": "triple"}) for row in _shard(0)]
    shards.write_shard(tmp_path / "generations", "part", rows, Completion)
    writer = _Writer(tmp_path / "elsewhere", pause_s=0)
    with pytest.raises(UserError, match="'triple', which the benchmark does not have"):
        _grade(order, tmp_path / "generations", writer)


def test_a_generation_that_fails_ends_its_grading(order: GradingSpec, tmp_path: Path) -> None:
    (tmp_path / "generations").mkdir()

    class Failing:
        def ended(self) -> bool:
            raise InfrastructureError("generations were stopped")

    with pytest.raises(InfrastructureError, match="stopped"):
        _grade(order, tmp_path / "generations", Failing())  # type: ignore[arg-type]


BURN = "import time\nuntil = time.process_time() + 0.4\nwhile time.process_time() < until: pass\n"
SWEEP = {
    f"{profile}/arm{arm}": profile for profile in ("strict", "lcb-compat") for arm in range(11)
}
SWEEP_ROWS = 4


@pytest.fixture
def sweep(tmp_path: Path) -> dict[str, GradingSpec]:
    """Write generations of eleven arms; return the gradings of their missing verdicts."""
    tests = (Test(input="7\n", output="14\n"),)
    problem = Problem(
        problem_id="double", source="test", statement="Double it.", tests=tests, comparison="lcb"
    )
    shards.write_shard(
        tmp_path / "benchmark",
        "problems",
        list(store_problems([problem], tmp_path / "benchmark" / "tests", "L1", [])),
        Problem,
    )
    codes = (
        f"{BURN}print(2 * int(input()))",
        f"{BURN}print(int(input()))",
        "print(",
        "import sys; sys.exit(1)",
    )
    rows = [
        dataclasses.replace(row, text=f"```python\n{codes[row.sample_index]}\n```")
        for row in _shard(0)[:SWEEP_ROWS]
    ]
    # Other tests share the machine; the number of graders below is what bounds the load.
    limits = Limits(time_s=20, memory_mib=256, output_kib=64)
    orders = {}
    for name, profile in SWEEP.items():
        shards.write_shard(tmp_path / "generations" / name, "part", rows, Completion)
        (tmp_path / "verdicts" / name).mkdir(parents=True)
        rules = Rules(limits=limits, profile=profile)  # type: ignore[arg-type]
        orders[name] = GradingSpec(
            benchmark=tmp_path / "benchmark",
            rules=rules,
            floor="L1",
            out=tmp_path / "verdicts" / name,
        )
    return orders


def _alive() -> int:
    """Count graders of this process's Ray, without their freshly forked children."""
    named = {
        process.pid: process
        for process in psutil.Process().children(recursive=True)
        if _is_grader(process)
    }
    return sum(process.ppid() not in named for process in named.values() if process.is_running())


def _is_grader(process: psutil.Process) -> bool:
    try:
        words = process.cmdline()
    except psutil.Error:
        return False
    return bool(words) and words[0].startswith("ray::GraderActor")


def test_a_resumed_sweep_uses_every_core_and_keeps_verdicts(
    sweep: dict[str, GradingSpec], tmp_path: Path
) -> None:
    """Generations are complete, so all steps grade at once. `grader_cpus: 0` reserves nothing."""
    chosen, most, over = ClusterConfig(device="cpu", grader_cpus=0), [0], threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            with contextlib.suppress(psutil.Error):
                most.append(_alive())

    watching = threading.Thread(target=watch)
    watching.start()
    with pool_on_ray(chosen, tmp_path / "logs") as pool, ThreadPoolExecutor(len(SWEEP)) as threads:
        steps = {
            name: threads.submit(
                grade,
                Answers(
                    directory=tmp_path / "generations" / name,
                    total=SWEEP_ROWS,
                    ended=lambda: True,
                ),
                order,
                pool,
                stage=name,
                progress=LineProgress(),
            )
            for name, order in sweep.items()
        }
        for step in steps.values():
            step.result()
    over.set()
    watching.join()
    assert 1 <= max(most) <= (os.cpu_count() or 1)
    verdicts = {name: _verdicts(order.out) for name, order in sweep.items()}
    alone = {
        profile: _graded_alone(sweep[f"{profile}/arm0"], tmp_path)
        for profile in ("strict", "lcb-compat")
    }
    assert verdicts == {name: alone[profile] for name, profile in SWEEP.items()}
    assert alone["strict"] == {
        0: "accepted",
        1: "wrong_answer",
        2: "runtime_error",
        3: "runtime_error",
    }


def _verdicts(out: Path) -> dict[int, str]:
    return {row.sample_index: row.outcome for row in shards.read_rows(out, Verdict)}


def _graded_alone(order: GradingSpec, directory: Path) -> dict[int, str]:
    """Grade the same answers by one grader in this process, one after another."""
    alone = dataclasses.replace(order, out=directory / "alone" / order.rules.profile)
    grader = Grader(alone)
    shard = directory / "generations" / "strict" / "arm0" / "part.parquet"
    for piece in slices.slices_of(shard, set(), SWEEP_ROWS):
        grader.grade(piece)
    grader.close()
    return _verdicts(alone.out)


@pytest.mark.parametrize("evicted", ["once", "always"])
def test_graders_that_rays_memory_monitor_evicts_lose_no_verdict(
    order: GradingSpec, tmp_path: Path, evicted: str
) -> None:
    """Real evictions arrive as OutOfMemoryError, not as a RayActorError."""
    for number in range(SHARDS):
        shards.write_shard(
            tmp_path / "generations", f"part-{number:03}", _shard(number), Completion
        )
    if psutil.virtual_memory().available < 6 << 30:
        pytest.skip("needs 6 GiB to fill")
    command = [
        sys.executable,
        str(Path(__file__).parents[1] / "support" / "evicted_graders.py"),
        str(tmp_path),
        evicted,
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    shown = json.loads(ended.stdout.splitlines()[-1])
    assert shown["lost"]
    assert set(shown["lost"]) == {"OutOfMemoryError"}
    if evicted == "once":
        assert shown["failed"] == ""
        assert _outcomes(order) == EXPECTED
    else:
        assert shown["failed"].startswith("graders kept crashing (OutOfMemoryError: ")
        assert "lower cluster.max_graders" in shown["failed"]
