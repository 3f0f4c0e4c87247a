"""Records of crashed engines, and conclusions about prompts, machines and the stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from ssd_ray.artifacts import files
from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference import worker
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.engine_status import Counts, EngineStatus, Suspect
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.crashes.streak import Refusals, Streak
from ssd_ray.inference.work.jobs import JobSpan

JOB = "samples"


def _at(start: int, stop: int, source: str = "p", job: str = JOB) -> JobSpan:
    return JobSpan(job, Span(source, start, stop))


def _status(
    engine: str,
    *,
    actor: str = "a",
    rows: int = 0,
    crashed: bool = False,
    alone: str = "",
    refused: int = 0,
    testing: bool = False,
    drawing: tuple[JobSpan, ...] = (),
) -> EngineStatus:
    return EngineStatus(
        engine=engine,
        actor=actor,
        pid=1,
        state="ready",
        began=0.0,
        ready=1.0,
        rows=rows,
        crashed=crashed,
        alone=alone,
        jobs={JOB: Counts(rows=rows, refused=refused)},
        testing=testing or bool(alone),
        drawing=drawing,
    )


def _deaths(*statuses: EngineStatus, up: str = "abcdefgh") -> CrashHistory:
    return CrashHistory(statuses, lambda: set(up))


def _died(
    actor: str, *, times: int = 1, alone: str = "", rows: int = 0, at: int = 0
) -> list[EngineStatus]:
    """Return crashes of an engine, each with the four positions from `at` on in flight."""
    span = _at(at, at + 4)
    return [
        _status(f"{actor}{n}", actor=actor, rows=rows, crashed=True, alone=alone, drawing=(span,))
        for n in range(times)
    ]


def test_a_crash_is_known_by_the_successor_process(tmp_path: Path) -> None:
    first = Reporter(tmp_path, "actor")
    other = Reporter(tmp_path, "other")
    with other.drawing(_at(8, 12)):
        pass
    drawing = first.drawing(_at(0, 4), alone="p1")
    drawing.__enter__()  # never exited, as after a crash
    Reporter(tmp_path, "actor").become("ended")
    dead = [one for one in heartbeat.read(tmp_path) if one.crashed]
    assert [(one.engine, one.drawing, one.alone) for one in dead] == [
        (first.engine, (_at(0, 4),), "p1")
    ]
    assert _deaths(*dead).suspicion(_at(3, 5)) == 1
    assert _deaths(*dead).suspicion(_at(4, 5)) == _deaths(*dead).suspicion(_at(0, 4, "q")) == 0
    assert _deaths(*dead).was_begun(_at(3, 5))
    heartbeat.begin(tmp_path, "next")
    assert [one.engine for one in heartbeat.read(tmp_path)] == [first.engine]


def test_a_process_marked_as_crashed_after_the_listing_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise its answers would be missing from one poll, and a streak of crashes would end."""
    first = Reporter(tmp_path, "actor")
    listed = files.names(tmp_path)
    Reporter(tmp_path, "actor").become("ended")
    monkeypatch.setattr(files, "names", lambda directory: listed)
    assert [(one.engine, one.crashed) for one in heartbeat.read(tmp_path)] == [(first.engine, True)]


def test_statuses_are_read_for_attribution_only_after_a_crash(tmp_path: Path) -> None:
    Reporter(tmp_path, "other")
    Reporter(tmp_path, "actor")
    assert heartbeat.read_after_crashes(tmp_path) == []
    Reporter(tmp_path, "actor")
    assert heartbeat.read_after_crashes(tmp_path) == heartbeat.read(tmp_path)
    assert [one.crashed for one in heartbeat.read(tmp_path)] == [False, True, False]


def test_a_suspect_leaves_the_heartbeat_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next crash must not count against it. Positions in the journal need no write."""
    monkeypatch.setattr(heartbeat, "PERIOD_S", 3600)
    report = Reporter(tmp_path, "a")
    for testing, left in ((True, ()), (False, (_at(0, 4),))):
        with report.drawing(_at(0, 4), alone="p1" if testing else "", testing=testing):
            (status,) = heartbeat.read(tmp_path)
            assert status.drawing == (_at(0, 4),)
        (status,) = heartbeat.read(tmp_path)
        assert (status.drawing, status.alone, status.testing) == (left, "", False)
    report.become("draining")
    (status,) = heartbeat.read(tmp_path)
    assert status.drawing == ()


def test_engines_lost_with_their_node_blame_no_prompt(tmp_path: Path) -> None:
    kept = []
    for node in ("gone", "there"):
        kept.append(
            Reporter(tmp_path, node, node=node, attempt="one").drawing(_at(0, 4), alone="p1")
        )
        kept[-1].__enter__()  # never exited, as after a crash
        Reporter(tmp_path, node, node="other", is_alive=lambda name: name != "gone").become("ended")
    assert [
        (one.node, one.attempt, one.unattributed) for one in heartbeat.read(tmp_path) if one.crashed
    ] == [
        ("gone", "one", True),
        ("there", "one", False),
    ]
    deaths = _deaths(*heartbeat.read(tmp_path))
    assert deaths.suspicion(_at(0, 4)) == 1
    assert deaths.was_begun(_at(0, 4))
    heartbeat.disregard(tmp_path, {one.engine for one in heartbeat.read(tmp_path) if one.crashed})
    assert _deaths(*heartbeat.read(tmp_path)).suspicion(_at(0, 4)) == 0


def test_suspects_that_ended_the_stage_stay_suspects(tmp_path: Path) -> None:
    """Otherwise the next attempt would restart the search and end in the same way."""
    kept = []
    for group, alone in ((_at(0, 4), ""), (_at(4, 5), "p4")):
        kept.append(Reporter(tmp_path, "a").drawing(group, alone, testing=True))
        kept[-1].__enter__()  # never exited, as after a crash
    Reporter(tmp_path, "a")
    heartbeat.disregard(tmp_path, {one.engine for one in heartbeat.read(tmp_path)})
    assert [one.unattributed for one in heartbeat.read(tmp_path) if one.crashed] == [False, True]


def test_starts_that_fail_in_a_row_are_tried_ever_more_rarely(tmp_path: Path) -> None:
    def failed() -> int:
        Reporter(tmp_path, "actor")
        return _deaths(*heartbeat.read(tmp_path)).fruitless_starts("actor")

    assert [failed() for _ in range(7)] == list(range(7))
    Reporter(tmp_path, "actor").become("ready")
    assert failed() == 0
    assert [worker._pause_s(number) for number in (0, 3, 4, 5, 20)] == [0, 0, 10, 20, 300]


def test_an_answer_ends_a_streak_of_crashes() -> None:
    seen = [_status("earlier", crashed=True)]
    streak = Streak(_deaths(*seen))
    for number in range(3):
        seen.append(_status(f"d{number}", crashed=True))
        streak.update(_deaths(*seen))
    assert streak.crashes == 3
    seen.append(_status("e", rows=1, crashed=True))
    streak.update(_deaths(*seen))
    assert streak.crashes == 1


def test_engines_lost_with_their_node_are_no_streak() -> None:
    streak, seen = Streak(_deaths()), []
    for times in (1, 2):
        seen += [_status(f"{actor}-{times}", actor=actor, crashed=True) for actor in "abcdefgh"]
        streak.update(_deaths(*seen))
        assert streak.crashes == times


def test_an_answer_ends_a_streak_of_refusals() -> None:
    refusals = Refusals([_status("earlier", refused=5)])
    for rows, refused, expected in ((0, 5, 0), (0, 7, 2), (0, 8, 3), (1, 9, 0), (1, 10, 1)):
        refusals.update(
            [_status("earlier", refused=5), _status("own", rows=rows, refused=refused - 5)]
        )
        assert refusals.in_a_row[JOB] == expected


def test_answers_of_another_job_end_no_streak_of_refusals() -> None:
    """Another job has another decoding, and the engine may refuse this one alone."""
    refusals = Refusals([])
    for number in range(1, 4):
        counts = {JOB: Counts(refused=number), "other": Counts(rows=number)}
        refusals.update([dataclasses.replace(_status("e"), jobs=counts)])
    assert refusals.in_a_row == {JOB: 3, "other": 0}


def test_crashes_of_one_job_suspect_no_rows_of_another() -> None:
    """Two arms draw answers to the same prompts, at the same positions."""
    died = _deaths(*_died("a", times=2, alone="p1"))
    assert died.quarantined_in(JOB) == {"p1"}
    assert died.quarantined_in("other") == frozenset()
    assert died.suspicion(_at(0, 4)) == 2
    assert died.suspicion(_at(0, 4, job="other")) == 0
    assert not died.was_begun(_at(0, 4, job="other"))
    healthy = _status("h", actor="h", rows=9)
    once = _deaths(healthy, *_died("a", rows=1), *_died("a", alone="p1"))
    assert once.is_for_others("a", _at(0, 4), {"p1"})
    assert not once.is_for_others("a", _at(0, 4, job="other"), {"p1"})


def test_counts_of_an_engine_are_sums_over_its_jobs(tmp_path: Path) -> None:
    report = Reporter(tmp_path, "a")
    with report.drawing(_at(0, 4)), report.drawing(_at(0, 2, job="other")):
        for job, tokens in ((JOB, 5), (JOB, 6), ("other", 7)):
            report.answered(job, tokens)
        report.recorded("other", failed=2)
        (status,) = heartbeat.read(tmp_path)
        assert status.of("other").drawing == (_at(0, 2, job="other"),)
    assert (status.rows, status.tokens, status.failed) == (3, 18, 2)
    assert (status.of(JOB).rows, status.of(JOB).tokens, status.of(JOB).failed) == (2, 11, 0)
    assert (status.of("other").rows, status.of("other").failed) == (1, 2)
    assert (status.of("third").rows, status.of("third").drawing) == (0, ())


def test_a_prompt_alone_at_two_crashes_is_quarantined() -> None:
    streak, seen = Streak(_deaths()), list[EngineStatus]()
    for left_out in (set[Suspect](), {Suspect(JOB, "p")}):
        seen += _died("a", alone="p")
        assert _deaths(*seen).quarantined() == left_out
        assert streak.update(_deaths(*seen)) == left_out
    assert (streak.crashes, streak.prompts) == (0, 1)
    assert streak.update(_deaths(*seen)) == frozenset()


def test_the_search_for_a_crashing_prompt_does_not_end_the_run() -> None:
    """Two crashes with all units and one with each group count as three, the default limit."""
    streak, seen = Streak(_deaths()), list[EngineStatus]()
    for testing in (False, False, True, True, True):
        seen.append(_status(f"d{len(seen)}", crashed=True, testing=testing))
        streak.update(_deaths(*seen))
    assert streak.crashes == 3
    streak.update(_deaths(*seen, *_died("a", times=2, alone="p")))
    assert streak.crashes == 0, "a prompt left out is progress"
    assert streak.prompts == 1


def test_a_broken_engine_among_working_ones_blames_no_prompt() -> None:
    healthy = _status("h", actor="h", rows=9)
    seen = [*_died("a", times=3), *_died("a", times=4, alone="p1")]
    bad = _deaths(healthy, *seen)
    assert bad.faulty == {"a": 7}
    assert bad.quarantined() == frozenset()
    assert bad.suspicion(_at(0, 4)) == 0
    assert bad.fruitless_starts("a") == 7, "and its starts become rarer"
    assert bad.fruitless_starts("h") == 0
    streak = Streak(_deaths(healthy))
    streak.update(bad)
    assert streak.crashes == 0, (
        "it does not end the stage, however long the others take for their next answer"
    )
    for alone in (_deaths(*seen), _deaths(healthy, *seen, up="a")):
        assert alone.faulty == {}, (
            "if no other engine answers or exists, the prompts may be the cause"
        )
        assert alone.quarantined_in(JOB) == {"p1"}
        assert alone.suspicion(_at(0, 4)) == 7
        assert alone.fruitless_starts("a") == 0
    recovered = _deaths(healthy, *seen, _status("a", rows=1))
    assert recovered.faulty == {}


def test_a_quarantine_needs_crashes_of_engines_that_answer() -> None:
    others = [_status("h", actor="h", rows=9), _status("a", actor="a", rows=9)]
    twice = _died("a", times=2, alone="p1", rows=1)
    assert _deaths(*others, *twice).quarantined() == frozenset()
    assert _deaths(*others, *twice, *_died("h", alone="p1", rows=1)).quarantined_in(JOB) == {"p1"}
    assert _deaths(*others, *twice, up="a").quarantined_in(JOB) == {"p1"}, (
        "no other engine exists to try it"
    )
    assert _deaths(*others, *twice, *twice).quarantined_in(JOB) == {"p1"}, (
        "no other engine tried it"
    )
    bad = [
        *_died("b", times=4),
        *_died("c", times=4),
        *_died("b", alone="p2"),
        *_died("c", alone="p2"),
    ]
    assert _deaths(*others, *bad).quarantined() == frozenset(), (
        "crashes of two faulty engines prove nothing against a prompt"
    )


def test_a_crashed_unit_goes_to_engines_that_have_not_tried_it() -> None:
    unit, ids = _at(0, 4), {"p1", "p2"}
    healthy = _status("h", actor="h", rows=9)
    assert not _deaths(healthy, *_died("a", times=3)).is_for_others("a", unit, ids), (
        "it searches for the prompt itself"
    )
    died = _deaths(healthy, *_died("a", rows=1), *_died("a", alone="p1"))
    assert died.is_for_others("a", unit, ids)
    assert not died.is_for_others("a", unit, ids - {"p1"}), "a prompt left out is not tried again"
    assert not died.is_for_others("h", unit, ids)
    assert not _deaths(healthy, *_died("a", alone="p1"), *_died("h", alone="p1")).is_for_others(
        "a", unit, ids
    )
    doubted = _deaths(healthy, *_died("a", times=4), *_died("h", alone="p1"))
    assert doubted.is_for_others("a", unit, ids)
    assert not doubted.is_for_others("a", _at(4, 8), ids), "it tries units that never crashed it"
    assert not doubted.is_for_others("h", unit, ids), (
        "a unit does not circulate between a faulty engine and the last other one"
    )


def test_a_status_emptied_by_a_power_cut_is_ignored(tmp_path: Path) -> None:
    report = Reporter(tmp_path, "a")
    (tmp_path / "torn.dead").touch()
    assert [one.engine for one in heartbeat.read(tmp_path)] == [report.engine]


def test_leftovers_of_a_crashed_process_are_read_once(tmp_path: Path) -> None:
    first = Reporter(tmp_path, "a")
    Reporter(tmp_path, "a").become("ended")
    assert first.engine in {one.engine for one in heartbeat.read(tmp_path)}
    (tmp_path / f"{first.engine}.dead").write_text("{")
    assert first.engine in {one.engine for one in heartbeat.read(tmp_path)}
