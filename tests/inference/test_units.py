"""Work units without Ray: pacing, returned units, and engines that yield or exit."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
import shutil
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.artifacts import audit, ledger, shards
from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference import pool, worker
from ssd_ray.inference.concurrency import SharedExclusiveLock
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.heartbeat import EngineStatus, Reporter
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import queue
from ssd_ray.inference.work.queue import SamplingPlan
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


@pytest.fixture
def plan(tmp_path: Path) -> SamplingPlan:
    _prompts(tmp_path / "prompts", 0, 5)
    (tmp_path / "out").mkdir()
    return SamplingPlan(
        prompts=tmp_path / "prompts", out=tmp_path / "out", samples=2, shard_rows=4, window=2
    )


def _take(units: Iterator[Span], count: int) -> list[tuple[str, int, int]]:
    return [(span.source, span.start, span.stop) for span in itertools.islice(units, count)]


def test_at_most_a_window_of_units_is_in_flight(
    plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []

    def record(seconds: float) -> None:
        waited.append(seconds)
        write_unit(
            plan.out, Span("prompts-00000000", 4 * (len(waited) - 1), min(4 * len(waited), 10))
        )

    monkeypatch.setattr(queue, "time", types.SimpleNamespace(sleep=record))
    (plan.prompts / "manifest.json").touch()
    units = queue.paced(plan, {})
    assert _take(units, 2) == [("prompts-00000000", 0, 4), ("prompts-00000000", 4, 8)]
    assert waited == []
    assert _take(units, 1) == [("prompts-00000000", 8, 10)]
    assert len(waited) == 1
    assert not queue.all_out(plan.out).exists()
    assert list(units) == []
    assert len(waited) == 3, "the last unit came on record, and with it the end"
    assert queue.all_out(plan.out).exists()


def test_units_come_before_the_prompts_are_complete(
    plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    def render(seconds: float) -> None:
        _prompts(plan.prompts, 5, 6)
        (plan.prompts / "manifest.json").touch()

    units = queue.units(plan, {"prompts-00000000": [(0, 9)]})
    monkeypatch.setattr(queue, "time", types.SimpleNamespace(sleep=render))
    assert next(units) == Span("prompts-00000000", 9, 10)
    assert next(units) is None
    render(0)
    assert list(units) == [Span("prompts-00000005", 0, 2)]


@pytest.mark.parametrize("handed_out", [1, 3])
def test_a_returned_unit_comes_again_even_after_the_last(
    plan: SamplingPlan, handed_out: int
) -> None:
    (plan.prompts / "manifest.json").touch()
    plan = dataclasses.replace(plan, window=3)
    units = queue.paced(plan, {})
    first, *_ = list(itertools.islice(units, handed_out))
    queue.give_back(plan.out, "a", first)
    assert next(units) == first


@pytest.mark.parametrize(("max_num_seqs", "shard_rows"), [(64, 16), (64, 4), (64, 1), (8, 256)])
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


def test_an_engine_with_all_its_units_has_the_pool_grow() -> None:
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


def test_an_engine_of_an_attempt_that_is_over_writes_no_shard(
    plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disconnected node or paused machine may return during the next attempt, or later."""
    unit, out = Span("prompts-00000000", 0, 4), plan.out
    order = types.SimpleNamespace(out=out, prompts=plan.prompts, samples=2, seed=0, attempt="one")
    instant = types.SimpleNamespace(submit=lambda request: InstantEngine().submit(request))
    late = worker.EngineWorker.__new__(worker.EngineWorker)
    late.__dict__ |= {
        "_spec": order,
        "_actor": "a",
        "_engine_lock": SharedExclusiveLock(),
        "_engine": instant,
        "_report": Reporter(out, "a"),
    }
    monkeypatch.setattr("ssd_ray.inference.crashes.cluster_state.actors", lambda: ())

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    heartbeat.begin(out, "two")
    with pytest.raises(SystemExit):
        late._draw_unit(unit)
    assert shards.shard_paths(out) == []
    shutil.rmtree(out / ".engines")
    assert not heartbeat.is_current(out, "one"), "the stage is whole"
    heartbeat.begin(out, "one")
    write_table = shards.write_table

    def replaced_meanwhile(*arguments: Any) -> Any:
        written = write_table(*arguments)
        heartbeat.begin(out, "two")
        return written

    monkeypatch.setattr(shards, "write_table", replaced_meanwhile)
    with pytest.raises(SystemExit):
        late._draw_unit(unit)
    assert audit.audit(out).moved == (f"{unit.name}.parquet is in no ledger",)
    monkeypatch.setattr(shards, "write_table", write_table)
    heartbeat.begin(out, "one")
    assert late._draw_unit(unit) == 4
    assert audit.audit(out).positions == 4


def test_a_crashing_engine_retries_one_unit_if_others_answer(
    plan: SamplingPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    healthy = EngineStatus(engine="h", actor="h", pid=1, state="ready", began=0.0, rows=9)
    tried = Span("p", 0, 4)
    died = [
        EngineStatus(
            engine="", actor="a", pid=1, state="ready", began=0.0, crashed=True, drawing=(tried,)
        )
    ] * 4
    doubting = CrashHistory([healthy, *died], lambda: "ha")
    for started in range(2):
        engine = worker.EngineWorker.__new__(worker.EngineWorker)
        engine.__dict__ |= {
            "_spec": types.SimpleNamespace(out=plan.out),
            "_actor": "a",
            "_trial": threading.Lock(),
        }
        assert engine._is_for_others(doubting, tried, ())
        assert engine._is_for_others(doubting, Span("p", 4, 8), ()) == (started == 1), (
            "in the second process, all is handed out"
        )
        assert engine._is_for_others(doubting, Span("p", 8, 12), ())
        assert not engine._is_for_others(
            CrashHistory([healthy, *died, dataclasses.replace(healthy, actor="a")], lambda: "ha"),
            tried,
            (),
        )
        (plan.out / ".returned").mkdir(exist_ok=True)
        queue.all_out(plan.out).touch()


def test_a_control_service_that_is_away_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_storage_that_a_node_does_not_share_is_named(
    plan: SamplingPlan,
) -> None:
    order = types.SimpleNamespace(out=plan.out, prompts=plan.prompts)
    assert "out/.engines is not there on node" in worker._misplaced(order)  # type: ignore[arg-type]
    heartbeat.begin(plan.out, "one")
    assert worker._misplaced(order) == ""  # type: ignore[arg-type]
    shutil.rmtree(plan.prompts)
    assert "--out must lie on storage that every node sees" in worker._misplaced(order)  # type: ignore[arg-type]


def test_a_unit_on_record_is_reported_again_to_move_the_window(
    plan: SamplingPlan,
) -> None:
    """An engine may outlive its driver, and record a unit between two reads of the next."""
    unit = Span("prompts-00000000", 0, 4)
    write_unit(plan.out, unit)
    records = ledger.tail(plan.out)
    list(records.new())
    late = types.SimpleNamespace(
        _spec=types.SimpleNamespace(out=plan.out), _report=types.SimpleNamespace(engine="late")
    )
    assert worker.EngineWorker._draw_unit(late, unit) == 0  # type: ignore[arg-type]
    assert [record.span for record in records.new()] == [unit]
    assert audit.audit(plan.out).positions == 4
