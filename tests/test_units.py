"""Units, suspects and streaks, without Ray: pacing, what is handed back, and what deaths say."""

from __future__ import annotations

import heapq
import itertools
import random
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger import write

from ssd_ray import artifacts, ledger
from ssd_ray.inference import pool, source, status, worker
from ssd_ray.inference.engine import Answer
from ssd_ray.inference.monitor import Streak
from ssd_ray.inference.source import Plan
from ssd_ray.inference.status import EngineStatus, Reporter
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
        write(plan.out, Span("prompts-00000000", 4 * (len(waited) - 1), 4 * len(waited)))

    monkeypatch.setattr("time.sleep", record)
    (plan.prompts / "manifest.json").touch()
    units = source.paced(plan, {})
    assert _take(units, 2) == [("prompts-00000000", 0, 4), ("prompts-00000000", 4, 8)]
    assert waited == []
    assert _take(units, 2) == [("prompts-00000000", 8, 10)]
    assert len(waited) == 1


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


def test_a_unit_that_is_given_back_comes_again(plan: Plan) -> None:
    (plan.prompts / "manifest.json").touch()
    units = source.paced(plan, {})
    first = next(units)
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
    assert status.suspicion(dead, Span("p", 3, 5)) == 1
    assert status.suspicion(dead, Span("p", 4, 5)) == status.suspicion(dead, Span("q", 0, 4)) == 0
    status.forget_living(tmp_path)
    assert [one.engine for one in status.read(tmp_path)] == [first.engine]


def test_what_ended_with_its_node_speaks_against_no_prompt(tmp_path: Path) -> None:
    kept = []
    for node in ("gone", "there"):
        kept.append(Reporter(tmp_path, node, node=node, attempt="one").drawing(Span("p", 0, 4), alone="p1"))
        kept[-1].__enter__()  # and it never comes out
        Reporter(tmp_path, node, node="other", is_alive=lambda name: name != "gone").become("ended")
    dead = [one for one in status.read(tmp_path) if one.dead]
    assert [(one.node, one.attempt, one.alone, len(one.drawing)) for one in dead] == [
        ("gone", "one", "", 0),
        ("there", "one", "p1", 1),
    ]
    status.absolve(tmp_path, {one.engine for one in dead})
    dead = [one for one in status.read(tmp_path) if one.dead]
    assert [(one.alone, one.drawing) for one in dead] == [("", ())] * 2


def test_starts_that_fail_in_a_row_are_tried_ever_more_rarely(tmp_path: Path) -> None:
    failed = [Reporter(tmp_path, "actor").failed_starts for _ in range(7)]
    assert failed == list(range(7))
    Reporter(tmp_path, "actor").become("ready")
    assert Reporter(tmp_path, "actor").failed_starts == 0
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


def _status(
    engine: str, *, actor: str = "a", rows: int = 0, dead: bool = False, alone: str = "", refused: int = 0
) -> EngineStatus:
    return EngineStatus(
        engine=engine, actor=actor, pid=1, state="ready", began=0.0, rows=rows, dead=dead, alone=alone, refused=refused
    )


def test_only_deaths_without_an_answer_between_them_are_a_streak() -> None:
    streak = Streak([_status("earlier", dead=True)])
    seen = [_status("earlier", dead=True)]
    for number in range(3):
        seen.append(_status(f"d{number}", dead=True))
        streak.take(seen)
    assert streak.deaths == 3
    seen.append(_status("e", rows=1, dead=True))
    streak.take(seen)
    assert streak.deaths == 1


def test_engines_that_die_together_as_with_their_node_are_no_streak() -> None:
    streak, seen = Streak([]), []
    for time in range(2):
        seen += [_status(f"{actor}-{time}", actor=actor, dead=True) for actor in "abcdefgh"]
        streak.take(seen)
        assert streak.deaths == time + 1


def test_only_refusals_without_an_answer_between_them_are_a_streak() -> None:
    streak = Streak([_status("earlier", refused=5)])
    for rows, refused, expected in ((0, 5, 0), (0, 7, 2), (0, 8, 3), (1, 9, 0), (1, 10, 1)):
        streak.take([_status("earlier", refused=5), _status("own", rows=rows, refused=refused - 5)])
        assert streak.refusals == expected


def test_a_prompt_that_was_alone_at_two_deaths_is_left_out_and_is_no_streak_of_engines() -> None:
    streak = Streak([])
    seen = [_status("a", dead=True, alone="p")]
    assert streak.take(seen) == frozenset()
    seen.append(_status("b", dead=True, alone="p"))
    assert streak.take(seen) == frozenset({"p"})
    assert (streak.deaths, streak.prompts) == (0, 1)
    assert streak.take(seen) == frozenset()


def test_what_is_missing_is_cut_by_prompt_and_suspects_are_tried_in_ever_smaller_groups() -> None:
    answer = Answer(output_token_ids=(1,), text="", finish_reason="stop")
    prompts = {at: Prompt(prompt_id=f"p{at // 3}", source="", difficulty="", text="", token_ids=(1,)) for at in range(2, 11)}
    unit = worker._Unit(Span("s", 2, 11), prompts, 3, {4: answer, 7: answer})
    missing = list(unit.missing())
    assert [(span.start, span.stop) for span in missing] == [(2, 3), (3, 4), (5, 6), (6, 7), (8, 9), (9, 11)]
    assert [len(group) for group in worker._groups(missing, 2)] == [2, 2, 2]
    assert [len(group) for group in worker._groups(missing, 3)] == [1] * 6
    unit.leave_out(frozenset({"p2"}))
    assert [(failure.prompt_id, failure.sample_index) for failure in unit.failures()] == [("p2", 0), ("p2", 2)]


def test_whoever_wants_the_engine_alone_gets_it_and_nobody_beside() -> None:
    import threading

    gate, inside, most = worker._Gate(), [], []

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
