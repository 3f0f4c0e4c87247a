"""One pool of engines for several jobs: joining, ending, failing."""

from __future__ import annotations

import dataclasses
import threading
import time
import types
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ssd_ray import recipes
from ssd_ray.artifacts import shards
from ssd_ray.artifacts.device_use import read_use
from ssd_ray.config import Decoding
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.inference import gauges, pool, worker
from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.engines import EnginePools, EngineSettings
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.engine import Answer, Request
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import queue
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.work.queue import QueuePlan
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.schema import Completion, Prompt
from tests.support.doubles import InstantEngine
from tests.support.progress import Lines

PROMPTS, SAMPLES = 10, 2


class DecodingEngine(InstantEngine):
    """Answers with the decoding of the request; may refuse a temperature."""

    refuses: float | None = None

    def submit(self, request: Request) -> Future[Answer]:
        """Answer now."""
        future: Future[Answer] = Future()
        if request.decoding.temperature == self.refuses:
            future.set_exception(ValueError("no answer"))
            return future
        text = f"T {request.decoding.temperature:g}, {request.max_tokens}, seed {request.seed}"
        ids = (*request.prompt_token_ids, request.seed % 1000)
        future.set_result(Answer(output_token_ids=ids, text=text, finish_reason="stop"))
        return future


class Engines:
    """A double of `pool.run`: engines in this process, one per start."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.starts = 0
        self.ends = 0
        self.start_s = 0.0
        self.make_engine: Callable[[], Any] = DecodingEngine
        self.before_unit: Callable[[Any], None] = lambda unit: None

    def run(self, spec: EngineSpec, size: Pool, watch: Callable[[], None]) -> None:
        """Draw units until the queue ends."""
        self.starts += 1

        def sleep(seconds: float) -> None:
            time.sleep(seconds)
            watch()

        # Ray Data calls the watch in a thread of its own.
        self._monkeypatch.setattr(queue, "time", Mock(wraps=time, sleep=sleep))
        try:
            queue.begin(spec.control)
            report = Reporter(spec.control, f"actor-{self.starts}", attempt=spec.attempt)
            ready_at = time.monotonic() + self.start_s
            while time.monotonic() < ready_at:
                sleep(0.05)
            report.become("ready")
            drawing = worker.EngineWorker.__new__(worker.EngineWorker)
            drawing.__dict__ |= {
                "_spec": spec,
                "_actor": f"actor-{self.starts}",
                "_jobs": {},
                "_ledgers": {},
                "_calls": ConcurrencyLimiter(1),
                "_engine_lock": SharedExclusiveLock(),
                "_engine": self.make_engine(),
                "_report": report,
            }
            for unit in queue.paced(QueuePlan(control=spec.control, window=4)):
                watch()
                self.before_unit(unit)
                try:
                    drawing._draw_and_write(unit)
                except worker.ClosedJobError:
                    continue
        finally:
            self.ends += 1


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> Engines:
    double = Engines(monkeypatch)
    monkeypatch.setattr(pool, "run", double.run)
    monkeypatch.setattr(pool, "check_room", lambda *_: None)
    monkeypatch.setattr(gauges, "_gauge", lambda *_: types.SimpleNamespace(set=lambda *_, **__: 0))
    monkeypatch.setattr("ssd_ray.inference.crashes.cluster_state.actors", lambda: ())
    return double


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    rows = [
        Prompt(prompt_id=f"p{number}", source="s", difficulty="d", text="t", token_ids=(number, 3))
        for number in range(PROMPTS)
    ]
    shards.write_shard(tmp_path / "prompts", "prompts-00000000", rows, Prompt)
    (tmp_path / "prompts" / "manifest.json").touch()
    return tmp_path / "prompts"


def _pool(tmp_path: Path, *expected: str, max_failures: int = 2) -> EnginePool:
    spec = EngineSpec(
        make_engine=DecodingEngine, control=tmp_path / ".engines" / "base", logs=tmp_path
    )
    size = Pool(
        min_engines=1, max_engines=1, concurrent_units=2, resources=Resources(1, 0, {"num_cpus": 1})
    )
    return EnginePool(
        spec, size, max_failures=max_failures, progress=Lines(), expected=set(expected)
    )


def _run(
    drawing: EnginePool,
    prompts: Path,
    name: str,
    temperature: float,
    ended: Callable[[], bool] = lambda: True,
    progress: Lines | None = None,
) -> SamplingRun:
    out = prompts.parent / name
    out.mkdir(exist_ok=True)
    job = JobSpec(
        stage=name,
        key=name,
        prompts=prompts,
        out=out,
        samples=SAMPLES,
        seed=5,
        decoding=Decoding(temperature=temperature),
        max_tokens=64,
        shard_rows=3,
    )
    return SamplingRun(job=job, engines=drawing, ended=ended, progress=progress or Lines())


class Draws:
    """Runs in threads, with their facts or errors by name."""

    def __init__(self, **runs: SamplingRun) -> None:
        self.results: dict[str, Any] = {}
        self._threads = [
            threading.Thread(target=self._draw, args=item, daemon=True) for item in runs.items()
        ]
        for thread in self._threads:
            thread.start()

    def _draw(self, name: str, run: SamplingRun) -> None:
        try:
            self.results[name] = run.draw()
        # Handed to the test, which looks at its type.
        except Exception as error:
            self.results[name] = error

    def join(self) -> dict[str, Any]:
        """Wait for all of them."""
        for thread in self._threads:
            thread.join(60)
        assert not any(thread.is_alive() for thread in self._threads)
        return self.results


def _rows(out: Path) -> list[Completion]:
    rows = shards.read_rows(out, Completion)
    return sorted(rows, key=lambda row: (row.prompt_id, row.sample_index))


@pytest.fixture
def apart(engines: Engines, prompts: Path) -> dict[str, list[Completion]]:
    """The rows of two jobs, each in a pool of its own."""
    for name, temperature in (("cold", 0.5), ("warm", 1.5)):
        with _pool(prompts.parent) as drawing:
            _run(drawing, prompts, f"{name}-apart", temperature).draw()
    assert engines.starts == 2
    engines.starts = engines.ends = 0
    return {name: _rows(prompts.parent / f"{name}-apart") for name in ("cold", "warm")}


def test_two_jobs_in_one_pool_draw_the_rows_of_two_pools(
    engines: Engines, prompts: Path, apart: dict[str, list[Completion]]
) -> None:
    with _pool(prompts.parent, "cold", "warm") as drawing:
        runs = {"cold": 0.5, "warm": 1.5}
        results = Draws(
            **{name: _run(drawing, prompts, name, value) for name, value in runs.items()}
        ).join()
        assert {name: facts.rows for name, facts in results.items()} == {"cold": 20, "warm": 20}
        assert (engines.starts, engines.ends) == (1, 1), "the engines are gone when steps return"
    for name, rows in apart.items():
        assert _rows(prompts.parent / name) == rows
        assert {row.text.partition(",")[0] for row in rows} == {f"T {runs[name]:g}"}
    assert not (prompts.parent / ".engines" / "base").exists()


def test_engines_wait_for_a_stage_that_is_expected(engines: Engines, prompts: Path) -> None:
    with _pool(prompts.parent, "cold", "warm", "done") as drawing:
        _run(drawing, prompts, "cold", 0.5).draw()
        assert (engines.starts, engines.ends) == (1, 0)
        drawing.forgo("done")
        _run(drawing, prompts, "warm", 1.5).draw()
        assert (engines.starts, engines.ends) == (1, 1)


def test_all_time_of_an_engine_is_busy_or_idle(
    engines: Engines, prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also its start, the wait between two stages, and its end."""
    monkeypatch.setattr(heartbeat, "_process_start", lambda: time.time() - 3.0)
    # A job looks twice a second, so it sees the engine start.
    engines.start_s = 1.2
    began = time.monotonic()
    with _pool(prompts.parent, "cold", "warm") as drawing:
        _run(drawing, prompts, "cold", 0.5).draw()
        time.sleep(1.5)
        _run(drawing, prompts, "warm", 1.5).draw()
    total_s = 3.0 + time.monotonic() - began
    first, second = (read_use(prompts.parent / name) for name in ("cold", "warm"))
    assert first is not None
    assert second is not None
    ((before,), (after,)) = first.devices, second.devices
    assert before.load_s == pytest.approx(3.0 + engines.start_s, abs=0.5)
    assert after.load_s is None
    assert after.idle_s >= 1.5
    counted_s = before.busy_s + before.idle_s + after.busy_s + after.idle_s
    # A job looks twice a second, so each may miss half a second before its first look.
    assert total_s - 1.2 <= counted_s <= total_s + 0.2


def test_a_complete_job_starts_no_engine(engines: Engines, prompts: Path) -> None:
    for starts in (1, 0):
        engines.starts = 0
        with _pool(prompts.parent) as drawing:
            assert _run(drawing, prompts, "cold", 0.5).draw().rows == 20
        assert engines.starts == starts


def test_an_unexpected_stage_joins_or_opens_a_pool(engines: Engines, prompts: Path) -> None:
    with _pool(prompts.parent, "cold") as drawing:
        for number, name in enumerate(("cold", "warm"), start=1):
            _run(drawing, prompts, name, 0.5).draw()
            assert engines.starts == number


@pytest.mark.slow
def test_a_job_that_fails_leaves_the_rows_of_others(
    engines: Engines, prompts: Path, apart: dict[str, list[Completion]]
) -> None:
    stopped = threading.Event()

    def ended() -> bool:
        if stopped.is_set():
            raise InfrastructureError("prompts was stopped")
        return True

    def slowly(unit: Any) -> None:
        time.sleep(0.1)
        if unit.job == "warm":
            stopped.set()

    engines.before_unit = slowly
    with _pool(prompts.parent, "cold", "warm", "third") as drawing:
        (prompts / "manifest.json").unlink()
        draws = Draws(
            cold=_run(drawing, prompts, "cold", 0.5, ended),
            warm=_run(drawing, prompts, "warm", 1.5),
        )
        stopped.wait(30)
        (prompts / "manifest.json").touch()
        drawing.forgo("third")
        results = draws.join()
    assert str(results["cold"]) == "prompts was stopped"
    assert results["warm"].rows == 20
    assert _rows(prompts.parent / "warm") == apart["warm"]
    kept = {(row.prompt_id, row.sample_index): row for row in apart["cold"]}
    for row in _rows(prompts.parent / "cold"):
        assert kept[row.prompt_id, row.sample_index] == row


@pytest.mark.parametrize("late", [False, True])
def test_a_mistake_of_the_engine_ends_all_jobs(engines: Engines, prompts: Path, late: bool) -> None:
    """A job that comes after the end of the engines has the same error."""

    def no_model() -> None:
        raise UserError("vLLM does not take this model")

    engines.make_engine = no_model
    with _pool(prompts.parent, "cold", "warm") as drawing:
        cold, warm = _run(drawing, prompts, "cold", 0.5), _run(drawing, prompts, "warm", 1.5)
        if late:
            results = Draws(cold=cold).join() | Draws(warm=warm).join()
        else:
            results = Draws(cold=cold, warm=warm).join()
    assert {str(error) for error in results.values()} == {"vLLM does not take this model"}
    assert {type(error) for error in results.values()} == {UserError}


def test_the_error_of_a_refused_decoding_names_its_job(engines: Engines, prompts: Path) -> None:
    engines.make_engine = type("Refusing", (DecodingEngine,), {"refuses": 1.5})
    engines.before_unit = lambda unit: time.sleep(0.2 if unit.job == "warm" else 0)
    with _pool(prompts.parent, "cold", "warm") as drawing:
        results = Draws(
            cold=_run(drawing, prompts, "cold", 0.5), warm=_run(drawing, prompts, "warm", 1.5)
        ).join()
    assert "warm: the engine refuses every prompt" in str(results["warm"])
    assert str(prompts.parent / "warm") in str(results["warm"])


def test_a_run_that_stops_ends_engines_without_work(engines: Engines, prompts: Path) -> None:
    with _pool(prompts.parent, "cold", "later") as drawing:
        _run(drawing, prompts, "cold", 0.5).draw()
        assert engines.ends == 0
    assert engines.ends == 1
    with pytest.raises(InfrastructureError, match="the run was stopped"):
        _run(drawing, prompts, "later", 0.5).draw()


def test_settings_of_engines_decide_who_shares_a_pool(tmp_path: Path) -> None:
    recipe = recipes.load("quickstart")
    longer = recipe.model.model_copy(update={"max_model_len": 2048})
    adapted = recipe.engine.model_copy(update={"extra": {"enable_lora": True}})
    usual = EngineSettings(
        directory=tmp_path, model=recipe.model, engine=recipe.engine, device="cpu"
    )
    others = [
        dataclasses.replace(usual, directory=tmp_path / "checkpoint"),
        dataclasses.replace(usual, model=longer),
        dataclasses.replace(usual, engine=adapted),
        dataclasses.replace(usual, device="cuda"),
    ]
    for _ in range(2):  # a run is made again in the same process
        with EnginePools(tmp_path / ".engines", tmp_path, Lines()) as pools:

            def pool_of(settings: EngineSettings) -> EnginePool:
                return pools.pool("base", settings, recipe.cluster, 4)

            distinct = [pool_of(settings) for settings in (usual, *others)]
            assert len({id(each) for each in distinct}) == 5
            controls = [each.spec.control.name for each in distinct]
            assert controls == ["base", "base-1", "base-2", "base-3", "base-4"]
            equal = dataclasses.replace(usual)
            assert pools.pool("base", equal, recipe.cluster, 4) is distinct[0]


def test_engines_of_earlier_drivers_write_no_more(tmp_path: Path) -> None:
    for name in ("base", "checkpoint"):
        heartbeat.begin(tmp_path / ".engines" / name, "one")
    with EnginePools(tmp_path / ".engines", tmp_path, Lines()):
        for name in ("base", "checkpoint"):
            assert not heartbeat.is_current(tmp_path / ".engines" / name, "one")
    assert not (tmp_path / ".engines").exists()


def test_executions_that_end_early_are_started_again(engines: Engines, prompts: Path) -> None:
    units = iter(range(100))

    def breaks(unit: Any) -> None:
        if next(units) % 3 == 2:
            raise RuntimeError("an object was lost")

    engines.before_unit = breaks
    messages = Lines()
    with _pool(prompts.parent, "cold", "warm", max_failures=0) as drawing:
        drawing._progress = messages
        results = Draws(
            cold=_run(drawing, prompts, "cold", 0.5), warm=_run(drawing, prompts, "warm", 1.5)
        ).join()
    assert [facts.rows for facts in results.values()] == [20, 20]
    assert engines.starts > 3
    assert any(
        "the pool of engines stopped (RuntimeError: an object was lost" in line
        or "an object was lost" in line
        for line in messages.lines
    )


def test_executions_without_a_new_answer_end_the_jobs(engines: Engines, prompts: Path) -> None:
    def breaks(unit: Any) -> None:
        raise RuntimeError("an object was lost")

    engines.before_unit = breaks
    with _pool(prompts.parent, "cold", max_failures=2) as drawing:
        results = Draws(cold=_run(drawing, prompts, "cold", 0.5)).join()
    assert isinstance(results["cold"], InfrastructureError)
    assert "cold: answers are missing after 3 attempts" in str(results["cold"])
    assert engines.starts == 3


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["changed", "lost"])
def test_damaged_shards_are_drawn_again_while_others_draw(
    engines: Engines, prompts: Path, apart: dict[str, list[Completion]], harm: str
) -> None:
    out = prompts.parent / "cold"
    harmed: list[Path] = []

    def damage(unit: Any) -> None:
        time.sleep(0.02)
        if unit.job == "cold" and unit.span.start >= 9 and not harmed:
            harmed.append(shards.shard_paths(out)[0])
            content = bytearray(harmed[0].read_bytes())
            content[len(content) // 2] ^= 1
            harmed[0].write_bytes(content) if harm == "changed" else harmed[0].unlink()

    engines.before_unit = damage
    with _pool(prompts.parent, "cold", "warm") as drawing:
        results = Draws(
            cold=_run(drawing, prompts, "cold", 0.5), warm=_run(drawing, prompts, "warm", 1.5)
        ).join()
    assert harmed
    assert [facts.rows for facts in results.values()] == [20, 20]
    for name, rows in apart.items():
        assert _rows(prompts.parent / name) == rows


@pytest.mark.slow
def test_only_the_first_job_names_the_start_of_engines(engines: Engines, prompts: Path) -> None:
    """Two bars must not both count the seconds of one start."""
    shown = {"cold": Lines(), "warm": Lines()}
    make_engine = engines.make_engine
    engines.make_engine = lambda: (time.sleep(2), make_engine())[1]
    with _pool(prompts.parent, "cold", "warm") as drawing:
        draws = Draws(cold=_run(drawing, prompts, "cold", 0.5, progress=shown["cold"]))
        time.sleep(0.3)
        others = Draws(warm=_run(drawing, prompts, "warm", 1.5, progress=shown["warm"]))
        draws.join()
        others.join()
    assert "starting engines" in shown["cold"].waits
    assert "starting engines" not in shown["warm"].waits
    assert "waiting for engines" in shown["warm"].waits
