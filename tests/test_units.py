"""Units, suspects and streaks, without Ray: pacing, what is handed back, and what deaths say."""

from __future__ import annotations

import dataclasses
import heapq
import itertools
import random
import shutil
import threading
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from doubles import InstantEngine
from test_ledger import write

from ssd_ray import artifacts, ledger
from ssd_ray.inference import pool, presence, source, status, worker
from ssd_ray.inference.deaths import Deaths
from ssd_ray.inference.engine import Answer
from ssd_ray.inference.monitor import Streak
from ssd_ray.inference.placement import Resources
from ssd_ray.inference.source import Plan
from ssd_ray.inference.status import EngineStatus, Reporter
from ssd_ray.inference.turns import Calls, Gate
from ssd_ray.inference.unit import Unit, groups
from ssd_ray.ledger import Span
from ssd_ray.schema import Prompt


def _prompts(directory: Path, start: int, stop: int) -> None:
    rows = [Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n,)) for n in range(start, stop)]
    artifacts.write_shard(directory, f"prompts-{start:08}", rows, Prompt)


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    _prompts(tmp_path / "prompts", 0, 5)
    (tmp_path / "out").mkdir()
    return Plan(prompts=tmp_path / "prompts", out=tmp_path / "out", samples=2, shard_rows=4, window=2)


def _take(units: Iterator[Span], count: int) -> list[tuple[str, int, int]]:
    return [(span.source, span.start, span.stop) for span in itertools.islice(units, count)]


def test_no_more_units_are_out_than_the_window_until_one_is_on_record(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []

    def record(seconds: float) -> None:
        waited.append(seconds)
        write(plan.out, Span("prompts-00000000", 4 * (len(waited) - 1), min(4 * len(waited), 10)))

    monkeypatch.setattr("time.sleep", record)
    (plan.prompts / "manifest.json").touch()
    units = source.paced(plan, {})
    assert _take(units, 2) == [("prompts-00000000", 0, 4), ("prompts-00000000", 4, 8)]
    assert waited == []
    assert _take(units, 1) == [("prompts-00000000", 8, 10)]
    assert len(waited) == 1
    assert not source.all_out(plan.out).exists()
    assert list(units) == []
    assert len(waited) == 3, "the last unit came on record, and with it the end"
    assert source.all_out(plan.out).exists()


def test_units_come_before_the_prompts_are_whole(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    def render(seconds: float) -> None:
        _prompts(plan.prompts, 5, 6)
        (plan.prompts / "manifest.json").touch()

    units = source.units(plan, {"prompts-00000000": [(0, 9)]})
    monkeypatch.setattr("time.sleep", render)
    assert next(units) == Span("prompts-00000000", 9, 10)
    assert next(units) is None
    render(0)
    assert list(units) == [Span("prompts-00000005", 0, 2)]


@pytest.mark.parametrize("handed_out", [1, 3])
def test_a_unit_that_is_given_back_comes_again_also_after_the_last_one(plan: Plan, handed_out: int) -> None:
    (plan.prompts / "manifest.json").touch()
    plan = dataclasses.replace(plan, window=3)
    units = source.paced(plan, {})
    first, *_ = list(itertools.islice(units, handed_out))
    source.give_back(plan.out, "a", first)
    assert next(units) == first


def test_a_death_is_known_by_the_process_that_comes_after(tmp_path: Path) -> None:
    first = Reporter(tmp_path, "actor")
    other = Reporter(tmp_path, "other")
    with other.drawing(Span("p", 8, 12)):
        pass
    drawing = first.drawing(Span("p", 0, 4), alone="p1")
    drawing.__enter__()  # and it never comes out
    Reporter(tmp_path, "actor").become("ended")
    dead = [one for one in status.read(tmp_path) if one.dead]
    assert [(one.engine, one.drawing, one.alone) for one in dead] == [(first.engine, (Span("p", 0, 4),), "p1")]
    assert _deaths(*dead).suspicion(Span("p", 3, 5)) == 1
    assert _deaths(*dead).suspicion(Span("p", 4, 5)) == _deaths(*dead).suspicion(Span("q", 0, 4)) == 0
    assert _deaths(*dead).was_begun(Span("p", 3, 5))
    status.begin(tmp_path, "next")
    assert [one.engine for one in status.read(tmp_path)] == [first.engine]


def test_what_ended_with_its_node_speaks_against_no_prompt(tmp_path: Path) -> None:
    kept = []
    for node in ("gone", "there"):
        kept.append(Reporter(tmp_path, node, node=node, attempt="one").drawing(Span("p", 0, 4), alone="p1"))
        kept[-1].__enter__()  # and it never comes out
        Reporter(tmp_path, node, node="other", is_alive=lambda name: name != "gone").become("ended")
    assert [(one.node, one.attempt, one.excused) for one in status.read(tmp_path) if one.dead] == [
        ("gone", "one", True),
        ("there", "one", False),
    ]
    deaths = _deaths(*status.read(tmp_path))
    assert deaths.suspicion(Span("p", 0, 4)) == 1
    assert deaths.was_begun(Span("p", 0, 4))
    status.absolve(tmp_path, {one.engine for one in status.read(tmp_path) if one.dead})
    assert _deaths(*status.read(tmp_path)).suspicion(Span("p", 0, 4)) == 0


def test_a_group_of_suspects_that_ended_the_stage_is_not_absolved(tmp_path: Path) -> None:
    """Else the next attempt would look for the one among them from the beginning, and end as this one did."""
    kept = []
    for group, alone in ((Span("p", 0, 4), ""), (Span("p", 4, 5), "p4")):
        kept.append(Reporter(tmp_path, "a").drawing(group, alone, testing=True))
        kept[-1].__enter__()  # and it never comes out
    Reporter(tmp_path, "a")
    status.absolve(tmp_path, {one.engine for one in status.read(tmp_path)})
    assert [one.excused for one in status.read(tmp_path) if one.dead] == [False, True]


def test_starts_that_fail_in_a_row_are_tried_ever_more_rarely(tmp_path: Path) -> None:
    def failed() -> int:
        Reporter(tmp_path, "actor")
        return _deaths(*status.read(tmp_path)).fruitless_starts("actor")

    assert [failed() for _ in range(7)] == list(range(7))
    Reporter(tmp_path, "actor").become("ready")
    assert failed() == 0
    assert [worker._pause_s(number) for number in (0, 3, 4, 5, 20)] == [0, 0, 10, 20, 300]


@pytest.mark.parametrize(("max_num_seqs", "shard_rows"), [(64, 16), (64, 4), (64, 1), (8, 256)])
def test_units_enough_are_in_to_keep_the_batch_full_where_lengths_are_exponential(max_num_seqs: int, shard_rows: int) -> None:
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
    """Ray Data starts more engines where units in flight reach a share of those that engines take at a time."""
    for number in range(1, 100):
        given = pool.Pool(min_engines=1, max_engines=2, concurrent_units=number, resources=Resources(1, 0, {})).units_in_hand
        assert number < (number + 1) <= given


def _status(
    engine: str,
    *,
    actor: str = "a",
    rows: int = 0,
    dead: bool = False,
    alone: str = "",
    refused: int = 0,
    testing: bool = False,
    drawing: tuple[Span, ...] = (),
) -> EngineStatus:
    return EngineStatus(
        engine=engine,
        actor=actor,
        pid=1,
        state="ready",
        began=0.0,
        ready=1.0,
        rows=rows,
        dead=dead,
        alone=alone,
        refused=refused,
        testing=testing or bool(alone),
        drawing=drawing,
    )


def _deaths(*statuses: EngineStatus, up: str = "abcdefgh") -> Deaths:
    return Deaths(statuses, lambda: set(up))


def _died(actor: str, *, times: int = 1, alone: str = "", rows: int = 0, at: int = 0) -> list[EngineStatus]:
    """Deaths of an engine, each with the four positions from `at` on."""
    span = Span("p", at, at + 4)
    return [_status(f"{actor}{n}", actor=actor, rows=rows, dead=True, alone=alone, drawing=(span,)) for n in range(times)]


def test_only_deaths_without_an_answer_between_them_are_a_streak() -> None:
    seen = [_status("earlier", dead=True)]
    streak = Streak(_deaths(*seen))
    for number in range(3):
        seen.append(_status(f"d{number}", dead=True))
        streak.take(_deaths(*seen))
    assert streak.deaths == 3
    seen.append(_status("e", rows=1, dead=True))
    streak.take(_deaths(*seen))
    assert streak.deaths == 1


def test_engines_that_die_together_as_with_their_node_are_no_streak() -> None:
    streak, seen = Streak(_deaths()), []
    for times in (1, 2):
        seen += [_status(f"{actor}-{times}", actor=actor, dead=True) for actor in "abcdefgh"]
        streak.take(_deaths(*seen))
        assert streak.deaths == times


def test_only_refusals_without_an_answer_between_them_are_a_streak() -> None:
    streak = Streak(_deaths(_status("earlier", refused=5)))
    for rows, refused, expected in ((0, 5, 0), (0, 7, 2), (0, 8, 3), (1, 9, 0), (1, 10, 1)):
        streak.take(_deaths(_status("earlier", refused=5), _status("own", rows=rows, refused=refused - 5)))
        assert streak.refusals == expected


def test_a_prompt_that_was_alone_at_two_deaths_is_left_out_and_is_no_streak_of_engines() -> None:
    streak, seen = Streak(_deaths()), list[EngineStatus]()
    for left_out in (set[str](), {"p"}):
        seen += _died("a", alone="p")
        assert _deaths(*seen).left_out() == left_out
        assert streak.take(_deaths(*seen)) == left_out
    assert (streak.deaths, streak.prompts) == (0, 1)
    assert streak.take(_deaths(*seen)) == frozenset()


def test_finding_poison_prompts_is_no_streak_of_engines() -> None:
    """Two deaths with all, then one with a group of each of three units: with the default of three, the stage goes on."""
    streak, seen = Streak(_deaths()), list[EngineStatus]()
    for testing in (False, False, True, True, True):
        seen.append(_status(f"d{len(seen)}", dead=True, testing=testing))
        streak.take(_deaths(*seen))
    assert streak.deaths == 3
    streak.take(_deaths(*seen, *_died("a", times=2, alone="p")))
    assert streak.deaths == 0, "a prompt that is left out is a step on"
    assert streak.prompts == 1


def test_an_engine_that_only_dies_beside_one_that_answers_condemns_no_prompt() -> None:
    healthy = _status("h", actor="h", rows=9)
    seen = [*_died("a", times=3), *_died("a", times=4, alone="p1")]
    bad = _deaths(healthy, *seen)
    assert bad.doubted == {"a": 7}
    assert bad.left_out() == frozenset()
    assert bad.suspicion(Span("p", 0, 4)) == 0
    assert bad.fruitless_starts("a") == 7, "and is tried ever more rarely"
    assert bad.fruitless_starts("h") == 0
    streak = Streak(_deaths(healthy))
    streak.take(bad)
    assert streak.deaths == 0, "nor is it the end of the stage, however long the others take for their next answer"
    for alone in (_deaths(*seen), _deaths(healthy, *seen, up="a")):
        assert alone.doubted == {}, "where no other engine answers, or is there, it may be the prompts"
        assert alone.left_out() == {"p1"}
        assert alone.suspicion(Span("p", 0, 4)) == 7
        assert alone.fruitless_starts("a") == 0
    recovered = _deaths(healthy, *seen, _status("a", rows=1))
    assert recovered.doubted == {}


def test_engines_that_answer_have_to_agree_on_a_prompt_that_is_left_out() -> None:
    others = [_status("h", actor="h", rows=9), _status("a", actor="a", rows=9)]
    twice = _died("a", times=2, alone="p1", rows=1)
    assert _deaths(*others, *twice).left_out() == frozenset()
    assert _deaths(*others, *twice, *_died("h", alone="p1", rows=1)).left_out() == {"p1"}
    assert _deaths(*others, *twice, up="a").left_out() == {"p1"}, "nobody else is there to try it"
    assert _deaths(*others, *twice, *twice).left_out() == {"p1"}, "nobody else came to try it"
    bad = [*_died("b", times=4), *_died("c", times=4), *_died("b", alone="p2"), *_died("c", alone="p2")]
    assert _deaths(*others, *bad).left_out() == frozenset(), "two machines that are no good are not two witnesses"


def test_a_unit_that_an_engine_died_with_is_for_others_where_they_have_not_tried_it() -> None:
    unit, ids = Span("p", 0, 4), {"p1", "p2"}
    healthy = _status("h", actor="h", rows=9)
    assert not _deaths(healthy, *_died("a", times=3)).is_for_others("a", unit, ids), "it looks for the prompt itself"
    died = _deaths(healthy, *_died("a", rows=1), *_died("a", alone="p1"))
    assert died.is_for_others("a", unit, ids)
    assert not died.is_for_others("a", unit, ids - {"p1"}), "what is left out need not be tried again"
    assert not died.is_for_others("h", unit, ids)
    assert not _deaths(healthy, *_died("a", alone="p1"), *_died("h", alone="p1")).is_for_others("a", unit, ids)
    doubted = _deaths(healthy, *_died("a", times=4), *_died("h", alone="p1"))
    assert doubted.is_for_others("a", unit, ids)
    assert not doubted.is_for_others("a", Span("p", 4, 8), ids), "what it did not die with, it tries"
    assert not doubted.is_for_others("h", unit, ids), "it is not handed round between one that is no good and the last"


def test_what_is_missing_is_cut_by_prompt_and_suspects_are_tried_in_ever_smaller_groups() -> None:
    answer = Answer(output_token_ids=(1,), text="", finish_reason="stop")
    prompts = {at: Prompt(prompt_id=f"p{at // 3}", source="", difficulty="", text="", token_ids=(1,)) for at in range(2, 11)}
    unit = Unit(Span("s", 2, 11), prompts, 3, {4: answer, 7: answer})
    missing = list(unit.missing())
    assert [(span.start, span.stop) for span in missing] == [(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 11)]
    assert [len(group) for group in groups(missing, 2)] == [2, 2, 2]
    assert [len(group) for group in groups(missing, 3)] == [1] * 6
    unit.leave_out(frozenset({"p2"}))
    assert [(failure.prompt_id, failure.sample_index) for failure in unit.failures()] == [("p2", 0), ("p2", 2)]


def test_whoever_wants_the_engine_alone_gets_it_and_nobody_beside() -> None:
    gate, inside, most = Gate(), [], []

    def work(alone: bool) -> None:
        with gate.alone() if alone else gate.shared():
            inside.append(alone)
            most.append(list(inside))
            threading.Event().wait(0.005)
            inside.remove(alone)

    threads = [threading.Thread(target=work, args=(number % 5 == 0,)) for number in range(25)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(most) == 25
    assert all(len(held) == 1 for held in most if True in held)


def test_calls_take_turns_in_their_order_and_are_told_at_once_when_there_are_no_more() -> None:
    calls, began, end = Calls(2), list[tuple[int, bool]](), threading.Event()

    def call(number: int) -> None:
        with calls.one() as came:
            began.append((number, came))
            if came:
                end.wait(10)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(5)]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    assert began == [(0, True), (1, True)]
    calls.close()
    for thread in threads[2:]:
        thread.join(10)
    assert sorted(began) == [(0, True), (1, True), (2, False), (3, False), (4, False)]
    end.set()
    calls.wait_for_work()
    calls.wait_for_all()


def test_a_turn_that_ends_is_the_next_ones() -> None:
    calls, began = Calls(1), list[int]()
    with calls.one():
        threads = []
        for number in range(3):
            threads.append(threading.Thread(target=lambda number=number: _begin(calls, began, number)))
            threads[-1].start()
            time.sleep(0.02)
    for thread in threads:
        thread.join(10)
    assert began == [0, 1, 2]


def _begin(calls: Calls, began: list[int], number: int) -> None:
    with calls.one() as came:
        assert came
        began.append(number)


def test_an_engine_of_an_attempt_that_is_over_writes_no_shard(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that was cut off, or a machine that was paused, comes back while the next attempt is at work, or later."""
    unit, out = Span("prompts-00000000", 0, 4), plan.out
    order = types.SimpleNamespace(out=out, prompts=plan.prompts, samples=2, seed=0, attempt="one")
    instant = types.SimpleNamespace(submit=lambda request: InstantEngine().submit(request))
    late = worker.EngineWorker.__new__(worker.EngineWorker)
    late.__dict__ |= {"_order": order, "_actor": "a", "_gate": Gate(), "_engine": instant, "_report": Reporter(out, "a")}
    monkeypatch.setattr("ssd_ray.inference.presence.actors", lambda: ())

    def leave(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("os._exit", leave)
    status.begin(out, "two")
    with pytest.raises(SystemExit):
        late._draw_unit(unit)
    assert artifacts.shard_paths(out) == []
    shutil.rmtree(out / ".engines")
    assert not status.is_current(out, "one"), "the stage is whole"
    status.begin(out, "one")
    write_table = artifacts.write_table

    def replaced_meanwhile(*arguments: Any) -> Any:
        written = write_table(*arguments)
        status.begin(out, "two")
        return written

    monkeypatch.setattr(artifacts, "write_table", replaced_meanwhile)
    with pytest.raises(SystemExit):
        late._draw_unit(unit)
    assert ledger.audit(out).set_aside == (f"{unit.name}.parquet is in no ledger",)
    monkeypatch.setattr(artifacts, "write_table", write_table)
    status.begin(out, "one")
    assert late._draw_unit(unit) == 4
    assert ledger.audit(out).positions == 4


def test_a_control_service_that_is_away_ends_no_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine whose watch had ended would never end itself on notice."""
    import ray

    def away(*_: object) -> None:
        raise ConnectionError("the control service is being started anew")

    monkeypatch.setattr(ray, "get_runtime_context", lambda: types.SimpleNamespace(get_job_id=lambda: "01000000"))
    monkeypatch.setattr(ray._private.state.state, "get_draining_nodes", away)
    monkeypatch.setattr(ray._private.state.state, "actor_table", away)
    assert not presence.is_draining("n")
    assert presence.actors() == frozenset()


def test_storage_that_a_node_does_not_see_is_named_and_nothing_is_written_there(plan: Plan) -> None:
    order = types.SimpleNamespace(out=plan.out, prompts=plan.prompts)
    assert "out/.engines is not there on node" in worker._misplaced(order)  # type: ignore[arg-type]
    status.begin(plan.out, "one")
    assert worker._misplaced(order) == ""  # type: ignore[arg-type]
    shutil.rmtree(plan.prompts)
    assert "--out must lie on storage that every node sees" in worker._misplaced(order)  # type: ignore[arg-type]


def test_a_unit_that_is_on_record_already_is_told_again_so_that_the_window_moves(plan: Plan) -> None:
    """An engine that outlives its driver may put a unit on record after the next driver looked and before its source did."""
    unit = Span("prompts-00000000", 0, 4)
    write(plan.out, unit)
    records = ledger.tail(plan.out)
    list(records.new())
    late = types.SimpleNamespace(_order=types.SimpleNamespace(out=plan.out), _report=types.SimpleNamespace(engine="late"))
    assert worker.EngineWorker._draw_unit(late, unit) == 0  # type: ignore[arg-type]
    assert [record.span for record in records.new()] == [unit]
    assert ledger.audit(plan.out).positions == 4


def test_a_status_that_a_power_cut_left_empty_says_nothing(tmp_path: Path) -> None:
    report = Reporter(tmp_path, "a")
    (tmp_path / ".engines" / "torn.dead").touch()
    assert [one.engine for one in status.read(tmp_path)] == [report.engine]


def test_what_a_dead_process_left_is_read_once(tmp_path: Path) -> None:
    first = Reporter(tmp_path, "a")
    Reporter(tmp_path, "a").become("ended")
    assert first.engine in {one.engine for one in status.read(tmp_path)}
    (tmp_path / ".engines" / f"{first.engine}.dead").write_text("{")
    assert first.engine in {one.engine for one in status.read(tmp_path)}
