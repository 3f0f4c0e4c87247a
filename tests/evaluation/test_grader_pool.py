"""The pool of graders without Ray: bounded by cores, fair to steps, tolerant of crashes."""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import ray.exceptions
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.artifacts.slices import Slice
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation import pool as pools
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.grader_actors import RayBackend
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.pool import GraderPool, LostGraderError
from ssd_ray.evaluation.sandbox import Limits

Result = Callable[[], int]
Outcome = Callable[[str, int], Exception | None]


def _order(name: str) -> GradingSpec:
    limits = Limits(time_s=1, memory_mib=64, output_kib=1)
    return GradingSpec(
        benchmark=Path("benchmark"), rules=Rules(limits=limits), floor="L1", out=Path(name)
    )


class FakeBackend:
    """Graders that take `seconds` per slice; `outcome` sets the end of a slice or a start."""

    def __init__(
        self, cores: int, seconds: float = 0.002, outcome: Outcome = lambda name, number: None
    ) -> None:
        self.cores, self.seconds, self.outcome = cores, seconds, outcome
        self.alive: set[int] = set()
        self.most_alive = 0
        self.started = 0
        self.starts_hang = False
        self.graded: list[tuple[str, int]] = []
        self._numbers = itertools.count()
        self._calls: dict[int, tuple[float, Result]] = {}

    def size(self) -> int:
        return self.cores

    def start(self) -> tuple[int, int]:
        actor = next(self._numbers)
        self.alive.add(actor)
        self.started += 1
        self.most_alive = max(self.most_alive, len(self.alive))
        number = self.started
        return actor, self._call(
            lambda: self._result("start", number, 0), 1e9 if self.starts_hang else self.seconds
        )

    def grade(self, actor: int, order: GradingSpec, piece: Slice) -> int:
        assert actor in self.alive
        return self._call(
            lambda: self._result(str(order.out), int(piece.file.name), len(piece.rows)),
            self.seconds,
        )

    def _call(self, result: Result, seconds: float) -> int:
        reference = next(self._numbers)
        self._calls[reference] = time.monotonic() + seconds, result
        return reference

    def _result(self, name: str, number: int, rows: int) -> int:
        error = self.outcome(name, number)
        if error is not None:
            raise error
        if name != "start":
            self.graded.append((name, number))
        return rows

    def finished(self, references: list[int], timeout_s: float) -> list[int]:
        until = time.monotonic() + min(timeout_s, 0.05)
        while time.monotonic() < until:
            if ready := [each for each in references if self._calls[each][0] <= time.monotonic()]:
                return ready[:1]
            time.sleep(0.0005)
        return []

    def result(self, reference: int) -> int:
        return self._calls.pop(reference)[1]()

    def end(self, actor: int) -> None:
        self.alive.discard(actor)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_POLL_S", 0.01)
    monkeypatch.setattr(pools, "_PATIENCE_S", 0.1)


def _pieces(count: int) -> list[Slice]:
    return [Slice(file=Path(str(number)), rows=tuple(range(16))) for number in range(count)]


def _graded(pool: GraderPool, name: str, slices: int) -> int:
    """Grade in a thread, as a step does, and return the rows."""
    with pool.work(_order(name), name) as work:
        work.put(_pieces(slices))
        while work.remaining:
            work.wait(1.0)
        return work.wait(0)


@contextmanager
def _together(pool: GraderPool, steps: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    with pool, ThreadPoolExecutor(len(steps)) as threads:
        yield {name: threads.submit(_graded, pool, name, slices) for name, slices in steps.items()}


def test_twenty_two_steps_never_have_more_graders_than_cores() -> None:
    backend = FakeBackend(cores=2)
    steps = {f"verdicts{profile}/arm{arm}": 5 for profile in ("", "-lcb") for arm in range(11)}
    with _together(GraderPool(backend, 3), steps) as rows:
        assert {name: each.result() for name, each in rows.items()} == dict.fromkeys(steps, 80)
    assert (backend.most_alive, backend.started) == (2, 2), "graders go from step to step"
    assert Counter(backend.graded) == Counter(
        (name, number) for name in steps for number in range(5)
    )
    assert not backend.alive


def test_a_small_step_does_not_wait_for_a_large_one() -> None:
    backend = FakeBackend(cores=2)
    with GraderPool(backend, 3) as pool, ThreadPoolExecutor(4) as threads:
        large = threads.submit(_graded, pool, "large", 200)
        while len(backend.graded) < 20:
            time.sleep(0.001)
        small = [threads.submit(_graded, pool, f"small{number}", 10) for number in range(3)]
        assert [each.result() for each in small] == [160] * 3
        begun = backend.graded.index(("small0", 0))
        during = [
            name for name, _ in backend.graded[begun : backend.graded.index(("small2", 9)) + 1]
        ]
        assert during.count("large") <= 14, "four steps share the graders equally"
        assert not large.done()
        large.result()


@settings(max_examples=30)
@given(
    cores=st.integers(1, 5),
    steps=st.lists(st.integers(0, 12), min_size=1, max_size=6),
    dying=st.sets(st.tuples(st.integers(0, 5), st.integers(0, 11))),
)
def test_every_slice_is_graded_once_despite_crashes(
    cores: int, steps: list[int], dying: set[tuple[int, int]]
) -> None:
    deaths = {(f"s{step}", number) for step, number in dying}

    def outcome(name: str, number: int) -> Exception | None:
        if (name, number) in deaths:
            deaths.remove((name, number))
            return LostGraderError("killed")
        return None

    backend = FakeBackend(cores, 0.0005, outcome)
    named = {f"s{number}": slices for number, slices in enumerate(steps)}
    with _together(GraderPool(backend, 1), named) as rows:
        assert {name: each.result() for name, each in rows.items()} == {
            name: 16 * count for name, count in named.items()
        }
    assert Counter(backend.graded) == Counter(
        (name, number) for name, count in named.items() for number in range(count)
    )
    assert backend.most_alive <= cores


def test_idle_graders_end_and_come_back_when_there_is_work() -> None:
    backend = FakeBackend(cores=3)
    with GraderPool(backend, 3) as pool, pool.work(_order("step"), "step") as work:
        for round_ in (1, 2):
            work.put(_pieces(9))
            while work.remaining:
                work.wait(1.0)
            assert work.wait(0) == 9 * 16 * round_
            deadline = time.monotonic() + 5
            while backend.alive and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not backend.alive, "engines wait for the cores"


def test_a_trickle_keeps_one_grader_and_not_all() -> None:
    backend = FakeBackend(cores=4)
    with GraderPool(backend, 3) as pool, pool.work(_order("step"), "step") as work:
        work.put(_pieces(40))
        while work.remaining:
            work.wait(1.0)
        assert len(backend.alive) == 4
        for _ in range(20):
            time.sleep(0.02)
            work.put(_pieces(1))
        assert len(backend.alive) == 1


def test_requests_for_graders_end_with_the_work() -> None:
    backend = FakeBackend(cores=3)
    backend.starts_hang = True
    with GraderPool(backend, 3) as pool:
        with pool.work(_order("step"), "step") as work:
            work.put(_pieces(5))
            time.sleep(0.3)
            assert (len(backend.alive), backend.started) == (3, 3)
        deadline = time.monotonic() + 5
        while backend.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        assert not backend.alive


def test_a_slice_that_ends_graders_ends_its_step_and_no_other() -> None:
    deaths: dict[str, int] = defaultdict(int)

    def outcome(name: str, number: int) -> Exception | None:
        deaths[name] += (name, number) == ("bad", 3)
        return LostGraderError("ActorDiedError: killed") if (name, number) == ("bad", 3) else None

    with _together(GraderPool(FakeBackend(2, outcome=outcome), 3), {"bad": 6, "good": 30}) as rows:
        with pytest.raises(
            InfrastructureError,
            match=r"bad: graders kept crashing \(ActorDiedError: killed\); see the run's logs",
        ):
            rows["bad"].result()
        assert rows["good"].result() == 30 * 16
    assert deaths["bad"] == 4


def test_a_lost_node_takes_many_graders_and_ends_nothing() -> None:
    """Graders lost together, at work or starting, do not predict further losses."""
    lost: set[tuple[str, int]] = set()

    def outcome(name: str, number: int) -> Exception | None:
        if (name, number) in lost or (number > 16 if name == "start" else number % 2):
            return None
        lost.add((name, number))
        return LostGraderError("NodeDiedError: gone")

    backend = FakeBackend(cores=16, outcome=outcome)
    with _together(GraderPool(backend, 1), {"one": 40, "two": 40}) as rows:
        assert [each.result() for each in rows.values()] == [640, 640]
    assert backend.most_alive <= 16


def test_graders_that_never_come_up_end_every_step() -> None:
    def outcome(name: str, number: int) -> Exception | None:
        return LostGraderError("OutOfMemoryError: the node ran low on memory")

    backend = FakeBackend(2, outcome=outcome)
    with _together(GraderPool(backend, 2), {"one": 3, "two": 3}) as rows:
        for each in rows.values():
            with pytest.raises(
                InfrastructureError, match=r"graders kept crashing \(OutOfMemoryError: .*\); see"
            ):
                each.result()
    assert not backend.alive


def test_a_mistake_that_a_grader_finds_ends_its_step_alone() -> None:
    def outcome(name: str, number: int) -> Exception | None:
        return UserError("an answer to an unknown problem") if name == "wrong" else None

    with _together(
        GraderPool(FakeBackend(2, outcome=outcome), 3), {"wrong": 6, "right": 9}
    ) as rows:
        with pytest.raises(UserError, match="unknown problem"):
            rows["wrong"].result()
        assert rows["right"].result() == 144


def test_closing_ends_graders_and_their_waiters() -> None:
    backend = FakeBackend(cores=2, seconds=60)
    failures: list[Exception] = []

    def step() -> None:
        try:
            _graded(pool, "step", 4)
        except InfrastructureError as error:
            failures.append(error)

    with GraderPool(backend, 3) as pool:
        waiting = threading.Thread(target=step)
        waiting.start()
        while not backend.alive:
            time.sleep(0.001)
        time.sleep(0.1)
    waiting.join(5)
    assert [str(error) for error in failures] == ["the run was stopped"]
    assert not backend.alive
    with pytest.raises(InfrastructureError, match="the run was stopped"):
        pool.work(_order("late"), "late")
    backend.seconds = 0.001
    with pool:
        assert _graded(pool, "again", 2) == 32


def _kinds_of_death() -> list[type[Exception]]:
    """List Ray's exceptions, except the wrapper of errors of the grader's own code."""
    every = [each for each in vars(ray.exceptions).values() if isinstance(each, type)]
    every = [each for each in every if issubclass(each, ray.exceptions.RayError)]
    return [each for each in every if not issubclass(each, ray.exceptions.RayTaskError)]


@pytest.mark.parametrize("kind", _kinds_of_death(), ids=lambda kind: kind.__name__)
def test_every_ray_error_but_the_graders_own_counts_as_a_crash(
    kind: type[Exception], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = type(
        kind.__name__,
        (kind,),
        {"__init__": lambda self: None, "__str__": lambda self: "gone\nwith a traceback"},
    )

    def get(reference: Any) -> Any:
        raise made()

    monkeypatch.setattr(ray, "get", get)
    with pytest.raises(
        LostGraderError, match=rf"^{kind.__name__}: gone(; lower cluster.max_graders.*)?$"
    ):
        RayBackend(ClusterConfig(device="cpu"), tmp_path).result("reference")


@pytest.mark.parametrize(
    "cause",
    [UserError("a mistake"), InfrastructureError("no sandbox"), ValueError("a bug"), ValueError()],
)
def test_an_exception_of_the_grader_is_no_crash(
    cause: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def get(reference: Any) -> Any:
        raise ray.exceptions.RayTaskError("grade", "Traceback", cause).as_instanceof_cause()

    monkeypatch.setattr(ray, "get", get)
    message = {UserError: "^a mistake$", InfrastructureError: "^no sandbox$"}.get(
        type(cause), "^a grader failed: ValueError(: |$)"
    )
    with pytest.raises((UserError, InfrastructureError), match=message):
        RayBackend(ClusterConfig(device="cpu"), tmp_path).result("reference")


@pytest.mark.parametrize(
    ("cores", "grader_cpus", "max_graders", "size"),
    [
        ([2], 0, None, 2),
        ([2], 0, 22, 2),
        ([2], 0.5, None, 2),
        ([2], 1, None, 2),
        ([64, 8], 1, None, 72),
        ([64, 8], 2, None, 36),
        ([64, 8], 0, 7, 7),
        ([2], 1, 22, 22),  # Ray reserves a core for each, and may start more nodes for them
        ([2], 4, None, 1),
        ([0], 0, None, 1),
    ],
)
def test_there_are_no_more_graders_than_cores(
    cores: list[int],
    grader_cpus: float,
    max_graders: int | None,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    nodes = [
        {"Alive": True, "NodeID": str(number), "Resources": {"CPU": float(count)}}
        for number, count in enumerate(cores)
    ]
    monkeypatch.setattr(
        ray,
        "nodes",
        lambda: [*nodes, {"Alive": False, "NodeID": "gone", "Resources": {"CPU": 99.0}}],
    )
    cluster = ClusterConfig(device="cpu", grader_cpus=grader_cpus, max_graders=max_graders)
    assert RayBackend(cluster, tmp_path).size() == size
