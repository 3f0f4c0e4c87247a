"""Work units without Ray: pacing, returned units, and engines that yield or exit."""

from __future__ import annotations

import contextlib
import dataclasses
import heapq
import itertools
import json
import random
import shutil
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ssd_ray.artifacts import audit, ledger, shards
from ssd_ray.artifacts.ledger import Span
from ssd_ray.config import Decoding
from ssd_ray.config.section import AdaptiveDecoding
from ssd_ray.errors import UserError
from ssd_ray.inference import pool, worker
from ssd_ray.inference.concurrency import ConcurrencyLimiter, SharedExclusiveLock
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import jobs, queue
from ssd_ray.inference.work.jobs import JobSpan, JobSpec, OpenJob
from ssd_ray.inference.work.queue import QueuePlan
from ssd_ray.inference.work.unit import WorkUnit, groups
from ssd_ray.schema import Prompt
from tests.support.doubles import InstantEngine
from tests.support.sample_rows import write_unit


def _prompts(directory: Path, start: int, stop: int) -> None:
    rows = [
        Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n,))
        for n in range(start, stop)
    ]
    shards.write_shard(directory, f"prompts-{start:08}", rows, Prompt)


def _job(tmp_path: Path, name: str = "out", number: int = 0, **covered: Any) -> OpenJob:
    (tmp_path / name).mkdir(exist_ok=True)
    spec = JobSpec(
        stage=name,
        key=f"{name}.",
        prompts=tmp_path / "prompts",
        out=tmp_path / name,
        samples=2,
        seed=0,
        decoding=Decoding(temperature=0.5, top_k=7),
        max_tokens=9,
        shard_rows=4,
    )
    return OpenJob(number=number, spec=spec, covered=covered)


@pytest.fixture
def job(tmp_path: Path) -> OpenJob:
    """A job of ten answers, the only one of a closed pool."""
    _prompts(tmp_path / "prompts", 0, 5)
    control = tmp_path / "control"
    jobs.begin(control)
    opened = _job(tmp_path)
    jobs.open_job(control, opened)
    jobs.close(control)
    return opened


@pytest.fixture
def control(job: OpenJob, tmp_path: Path) -> Path:
    return tmp_path / "control"


def _spans(units: Iterator[JobSpan], count: int) -> list[tuple[str, int, int]]:
    taken = [unit.span for unit in itertools.islice(units, count)]
    return [(span.source, span.start, span.stop) for span in taken]


def test_at_most_a_window_of_units_is_in_flight(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def record(seconds: float) -> None:
        waited.append(seconds)
        write_unit(
            job.spec.out, Span("prompts-00000000", 4 * (len(waited) - 1), min(4 * len(waited), 10))
        )

    monkeypatch.setattr(queue, "time", Mock(wraps=time, sleep=record))
    (job.spec.prompts / "manifest.json").touch()
    units = queue.paced(QueuePlan(control=control, window=2))
    assert _spans(units, 2) == [("prompts-00000000", 0, 4), ("prompts-00000000", 4, 8)]
    assert waited == []
    assert _spans(units, 1) == [("prompts-00000000", 8, 10)]
    assert len(waited) == 1
    assert not queue.all_out(control).exists()
    assert not jobs.is_drained(control, job.name)
    assert list(units) == []
    assert len(waited) == 3, "the last unit came on record, and with it the end"
    assert queue.all_out(control).exists()
    assert jobs.is_drained(control, job.name)


@pytest.mark.parametrize(("window", "polls"), [(4, 3), (40, 1)])
def test_one_poll_serves_a_quarter_of_the_window(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch, window: int, polls: int
) -> None:
    """A poll takes operations for each engine; the queue has to keep up with all of them."""
    names, polled = jobs.names, list[Path]()
    monkeypatch.setattr(jobs, "names", lambda at: (polled.append(at), names(at))[1])
    units = queue.paced(QueuePlan(control=control, window=window))
    assert len(_spans(units, 3)) == 3
    assert len(polled) == polls


def test_units_come_before_the_prompts_are_complete(
    job: OpenJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(seconds: float) -> None:
        _prompts(job.spec.prompts, 5, 6)
        (job.spec.prompts / "manifest.json").touch()

    units = queue.units(dataclasses.replace(job, covered={"prompts-00000000": [(0, 9)]}))
    monkeypatch.setattr(queue, "time", Mock(wraps=time, sleep=render))
    assert next(units) == Span("prompts-00000000", 9, 10)
    assert next(units) is None
    render(0)
    assert list(units) == [Span("prompts-00000005", 0, 2)]


@pytest.mark.parametrize("handed_out", [1, 3])
def test_a_returned_unit_comes_again_even_after_the_last(
    job: OpenJob, control: Path, handed_out: int
) -> None:
    (job.spec.prompts / "manifest.json").touch()
    units = queue.paced(QueuePlan(control=control, window=3))
    first, *_ = list(itertools.islice(units, handed_out))
    queue.give_back(control, "a", first)
    assert next(units) == first


def test_units_of_the_job_opened_first_go_out_first(job: OpenJob, control: Path) -> None:
    """Another job's units go out only where the first has none; a job may come at any time."""
    jobs.reopen(control)
    units = queue.paced(QueuePlan(control=control, window=5))
    assert [unit.job for unit in itertools.islice(units, 2)] == ["out.", "out."]
    later = _job(job.spec.out.parent, "later", 1)
    jobs.open_job(control, later)
    # Two of the first job's units are out; it waits for further prompts after the third.
    assert [unit.job for unit in itertools.islice(units, 3)] == ["out.", "later.", "later."]


def test_each_job_is_drained_by_its_own_records(job: OpenJob, control: Path) -> None:
    (job.spec.prompts / "manifest.json").touch()
    later = _job(job.spec.out.parent, "later", 1)
    jobs.open_job(control, later)
    handed_out = []
    for unit in queue.paced(QueuePlan(control=control, window=7)):
        handed_out.append(unit)
        write_unit(job.spec.out if unit.job == "out." else later.spec.out, unit.span)
        if len(handed_out) > 4:
            assert jobs.is_drained(control, job.name)
    assert [unit.job for unit in handed_out] == ["out."] * 3 + ["later."] * 3
    assert jobs.is_drained(control, later.name)


def test_a_closed_job_is_handed_out_no_more(job: OpenJob, control: Path) -> None:
    (job.spec.prompts / "manifest.json").touch()
    later = _job(job.spec.out.parent, "later", 1)
    jobs.open_job(control, later)
    units = queue.paced(QueuePlan(control=control, window=7))
    assert next(units).job == "out."
    jobs.close_job(control, job.spec.key)
    assert not jobs.is_open(control, job.spec.key)
    assert [unit.job for unit in itertools.islice(units, 3)] == ["later."] * 3


def test_a_job_comes_from_its_file_as_it_was_written(job: OpenJob, control: Path) -> None:
    opened = dataclasses.replace(job, covered={"prompts-00000000": [(0, 4), (6, 8)]}, number=12)
    decodings = (Decoding(temperature=0.5, top_k=7), AdaptiveDecoding(entropy_theta=0.1, min_p=0.2))
    for name, decoding in zip(
        ("generations/base@T=0.5", "generations/a [b]*"), decodings, strict=True
    ):
        spec = dataclasses.replace(
            opened.spec, key=jobs.key_of(name, opened.spec.out), decoding=decoding
        )
        written = dataclasses.replace(opened, spec=spec)
        jobs.open_job(control, written)
        assert jobs.read(control, written.name) == written
        assert jobs.is_open(control, spec.key)
        jobs.close_job(control, spec.key)
        assert not jobs.is_open(control, spec.key)
    assert jobs.names(control) == [job.name]


def test_an_artifact_made_again_gets_another_key(tmp_path: Path) -> None:
    """Crashes do not count against the prompts of an artifact made again."""
    keys = set()
    for claim in ("one", "two"):
        (tmp_path / "fingerprint.json").write_text(json.dumps({"claim": claim}))
        keys.add(jobs.key_of("generations/base", tmp_path))
    assert keys == {"generations+base.one", "generations+base.two"}


@pytest.mark.parametrize(
    ("max_num_seqs", "shard_rows"), [(256, 16), (64, 16), (64, 4), (64, 1), (8, 256)]
)
def test_enough_units_keep_the_batch_full_at_varied_lengths(
    max_num_seqs: int, shard_rows: int
) -> None:
    rng = random.Random(0)
    units = [[rng.expovariate(1) for _ in range(shard_rows)] for _ in range(20_000 // shard_rows)]
    free, inside, arrival = [0.0] * max_num_seqs, list[float](), 0.0
    for unit in units:
        if len(inside) == pool.concurrent_units(max_num_seqs, shard_rows):
            arrival = heapq.heappop(inside)
        ends = []
        for length in unit:
            ends.append(max(arrival, free[0]) + length)
            heapq.heapreplace(free, ends[-1])
        heapq.heappush(inside, max(ends))
    busy = sum(map(sum, units)) / max_num_seqs
    assert busy / max(free) > 0.93


def test_an_engine_with_all_its_units_makes_the_pool_grow() -> None:
    """Ray Data adds engines once units in flight reach a share of the capacity."""
    for number in range(1, 100):
        in_hand = pool.Pool(
            min_engines=1, max_engines=2, concurrent_units=number, resources=Resources(1, 0, {})
        ).units_in_hand
        assert number < (number + 1) <= in_hand


def test_suspects_are_tried_in_ever_smaller_groups() -> None:
    answer = Answer(output_token_ids=(1,), text="", finish_reason="stop")
    prompts = {
        at: Prompt(prompt_id=f"p{at // 3}", source="", difficulty="", text="", token_ids=(1,))
        for at in range(2, 11)
    }
    unit = WorkUnit(Span("s", 2, 11), prompts, 3, {4: answer, 7: answer})
    missing = list(unit.missing())
    assert [(span.start, span.stop) for span in missing] == [
        (2, 3),
        (3, 4),
        (5, 6),
        (6, 7),
        (8, 9),
        (9, 11),
    ]
    assert [len(group) for group in groups(missing, 2)] == [2, 2, 2]
    assert [len(group) for group in groups(missing, 3)] == [1] * 6
    unit.quarantine(frozenset({"p2"}))
    assert [(failure.prompt_id, failure.sample_index) for failure in unit.failures()] == [
        ("p2", 0),
        ("p2", 2),
    ]


def _late_worker(control: Path, monkeypatch: pytest.MonkeyPatch) -> worker.EngineWorker:
    """Return a worker of attempt `one` that answers at once."""
    late = worker.EngineWorker.__new__(worker.EngineWorker)
    late.__dict__ |= {
        "_spec": types.SimpleNamespace(control=control, attempt="one"),
        "_actor": "a",
        "_jobs": {},
        "_ledgers": {},
        "_calls": ConcurrencyLimiter(1),
        "_engine_lock": SharedExclusiveLock(),
        "_engine": InstantEngine(),
        "_report": Reporter(control, "a"),
    }
    monkeypatch.setattr("ssd_ray.inference.crashes.cluster_state.actors", lambda: ())

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    return late


def test_an_engine_of_an_attempt_that_is_over_writes_no_shard(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disconnected node or paused machine may return during the next attempt, or later."""
    out = job.spec.out
    unit = JobSpan(job.spec.key, Span("prompts-00000000", 0, 4))
    late = _late_worker(control, monkeypatch)
    heartbeat.begin(control, "two")
    with pytest.raises(SystemExit):
        late._draw_and_write(unit)
    assert shards.shard_paths(out) == []
    heartbeat.end_attempts(control.parent)
    assert not heartbeat.is_current(control, "one"), "the pool has ended"
    heartbeat.begin(control, "one")
    write_table = shards.write_table

    def replaced_meanwhile(*arguments: Any) -> Any:
        written = write_table(*arguments)
        heartbeat.begin(control, "two")
        return written

    monkeypatch.setattr(shards, "write_table", replaced_meanwhile)
    with pytest.raises(SystemExit):
        late._draw_and_write(unit)
    assert audit.audit(out).moved == (f"{unit.span.name}.parquet is in no ledger",)
    monkeypatch.setattr(shards, "write_table", write_table)
    heartbeat.begin(control, "one")
    assert late._draw_and_write(unit) == 4
    assert audit.audit(out).positions == 4


def test_a_unit_is_read_before_it_has_a_place(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On slow storage, a place would be empty while prompts are read."""
    engine = _late_worker(control, monkeypatch)
    heartbeat.begin(control, "one")
    was_read, at_work = threading.Event(), list[bool]()
    read = worker.read_prompts

    def note(*arguments: Any) -> Any:
        was_read.set()
        return read(*arguments)

    monkeypatch.setattr(worker, "read_prompts", note)
    unit = JobSpan(job.spec.key, Span("prompts-00000000", 0, 4))
    rows: list[int] = []
    with engine._calls.one():
        thread = threading.Thread(target=lambda: rows.append(engine._draw_and_write(unit)))
        thread.start()
        assert was_read.wait(20)
        at_work.append(bool(rows))
    thread.join(20)
    assert at_work == [False]
    assert rows == [4]


def test_a_unit_gives_its_place_away_before_it_is_written(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _late_worker(control, monkeypatch)
    heartbeat.begin(control, "one")
    writing, may_write = threading.Event(), threading.Event()
    write = shards.write_table

    def wait(*arguments: Any) -> Any:
        writing.set()
        may_write.wait(20)
        return write(*arguments)

    monkeypatch.setattr(shards, "write_table", wait)
    unit = JobSpan(job.spec.key, Span("prompts-00000000", 0, 4))
    thread = threading.Thread(target=engine._draw_and_write, args=(unit,))
    thread.start()
    assert writing.wait(20)
    with engine._calls.one() as admitted:
        assert admitted
    may_write.set()
    thread.join(20)
    assert audit.audit(job.spec.out).positions == 4


class _Execution:
    """A double of a running data set, with one watch."""

    num_results = 0
    killed = False

    def setting(self, name: str) -> str:
        return "watch"

    def kill_actors(self) -> None:
        self.killed = True


@pytest.fixture
def execution(monkeypatch: pytest.MonkeyPatch) -> _Execution:
    double = _Execution()
    monkeypatch.setattr(pool, "Execution", lambda _: double)
    return double


def test_a_slow_watch_delays_no_step(
    execution: _Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, may_return = threading.Event(), threading.Event()

    def slow() -> None:
        called.set()
        may_return.wait(20)

    watch = pool._Watch(slow, tmp_path)
    monkeypatch.setitem(pool._watches, "watch", watch)
    with watch:
        assert called.wait(20)
        pool._Watched().on_execution_step(None)
        assert not may_return.is_set()
        may_return.set()


def test_an_error_of_the_watch_ends_the_execution(
    execution: _Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake() -> None:
        raise UserError("the model is no good")

    watch = pool._Watch(mistake, tmp_path)
    monkeypatch.setitem(pool._watches, "watch", watch)
    with watch:
        watch._thread.join(20)
        with pytest.raises(UserError, match="the model is no good"):
            pool._Watched().on_execution_step(None)
    assert execution.killed


@pytest.mark.parametrize("restarting", [False, True])
def test_an_engine_without_a_node_delays_no_end(
    execution: _Execution, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarting: bool
) -> None:
    """All units are on record, and one of them is still a call of an engine of a lost node."""
    monkeypatch.setattr(execution, "keep_idle_actors", lambda: None, raising=False)
    engines = Mock(
        num_restarting_actors=lambda: int(restarting), current_size=lambda: 1, min_size=lambda: 1
    )
    monkeypatch.setattr(execution, "actor_pools", lambda: [(engines, 0)], raising=False)
    monkeypatch.setattr(execution, "allow_more_actors", lambda _: None, raising=False)
    queue.all_out(tmp_path).parent.mkdir()
    queue.all_out(tmp_path).touch()
    queue.all_drawn(tmp_path).touch()
    watch = pool._Watch(lambda: None, tmp_path)
    monkeypatch.setitem(pool._watches, "watch", watch)
    with watch:
        while not watch.all_drawn:
            time.sleep(0.01)
        with pytest.raises(pool._AllDrawn) if restarting else contextlib.nullcontext():
            pool._Watched().on_execution_step(None)
    assert execution.killed is restarting


def test_nothing_is_written_for_a_closed_job(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine goes on with the units of other jobs."""
    unit = JobSpan(job.spec.key, Span("prompts-00000000", 0, 4))
    late = _late_worker(control, monkeypatch)
    heartbeat.begin(control, "one")
    write_table = shards.write_table

    def closed_meanwhile(*arguments: Any) -> Any:
        written = write_table(*arguments)
        jobs.close_job(control, job.spec.key)
        return written

    monkeypatch.setattr(shards, "write_table", closed_meanwhile)
    for _ in range(2):
        with pytest.raises(worker.ClosedJobError):
            late._draw_and_write(unit)
    assert audit.audit(job.spec.out).positions == 0


def test_a_crashing_engine_retries_one_unit_if_others_answer(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    healthy = EngineStatus(engine="h", actor="h", pid=1, state="ready", began=0.0, rows=9)
    tried = JobSpan("j", Span("p", 0, 4))
    died = [
        EngineStatus(
            engine="", actor="a", pid=1, state="ready", began=0.0, crashed=True, drawing=(tried,)
        )
    ] * 4
    doubting = CrashHistory([healthy, *died], lambda: "ha")
    for started in range(2):
        engine = worker.EngineWorker.__new__(worker.EngineWorker)
        engine.__dict__ |= {
            "_spec": types.SimpleNamespace(control=control),
            "_actor": "a",
            "_trial": threading.Lock(),
        }
        assert engine._is_for_others(doubting, tried, ())
        assert engine._is_for_others(doubting, JobSpan("j", Span("p", 4, 8)), ()) == (
            started == 1
        ), "in the second process, all is handed out"
        assert engine._is_for_others(doubting, JobSpan("j", Span("p", 8, 12)), ())
        assert not engine._is_for_others(
            CrashHistory([healthy, *died, dataclasses.replace(healthy, actor="a")], lambda: "ha"),
            tried,
            (),
        )
        queue.begin(control)
        queue.all_out(control).touch()


def test_an_engine_stays_busy_once_it_has_given_a_unit_back(
    control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Data would hand the unit to the same engine again, as the last one to become idle."""
    engine = _late_worker(control, monkeypatch)
    unit = JobSpan("out.", Span("prompts-00000000", 0, 4))
    waits: list[tuple[float, int]] = []

    def wait(seconds: float) -> None:
        returned = control / "returned" / f"{engine._report.engine}.jsonl"
        waits.append((seconds, len(returned.read_text().splitlines())))

    engine.__dict__ |= {"_prompt_returns": 2, "_leaving": types.SimpleNamespace(wait=wait)}
    for _ in range(40):
        engine._give_back(unit)
    assert [count for _, count in waits] == list(range(1, 41)), "it is given back before the wait"
    assert [seconds for seconds, _ in waits[:6]] == [2, 2, 2, 2, 3, 4]
    assert waits[-1][0] == 30


def test_an_unreachable_control_service_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose watch had ended would never end itself on notice."""
    import ray

    def away(*_: object) -> None:
        raise ConnectionError("the control service is being started anew")

    monkeypatch.setattr(
        ray, "get_runtime_context", lambda: types.SimpleNamespace(get_job_id=lambda: "01000000")
    )
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", away)
    monkeypatch.setattr(ray._private.state.state, "actor_table", away)
    assert not cluster_state.is_draining("n")
    assert cluster_state.actors() == frozenset()


def test_storage_that_a_node_does_not_share_is_named(job: OpenJob, control: Path) -> None:
    spec: Any = types.SimpleNamespace(control=control)
    assert worker._misplaced(spec) == ""
    shutil.rmtree(job.spec.prompts)
    assert "prompts is not there on node" in worker._misplaced(spec)
    assert "--out must lie on storage that every node sees" in worker._misplaced(spec)
    shutil.rmtree(control)
    assert "control is not there on node" in worker._misplaced(spec)


def test_a_unit_on_record_is_reported_again_to_move_the_window(
    job: OpenJob, control: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine may outlive its driver, and record a unit between two reads of the next."""
    unit = Span("prompts-00000000", 0, 4)
    write_unit(job.spec.out, unit)
    records = ledger.tail(job.spec.out)
    list(records.new())
    late = _late_worker(control, monkeypatch)
    assert late._draw_and_write(JobSpan(job.spec.key, unit)) == 0
    assert [record.span for record in records.new()] == [unit]
    assert audit.audit(job.spec.out).positions == 4
