"""Busy and idle seconds of engines, by the heartbeats of each job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from ssd_ray.artifacts.device_use import StageUse, read_use
from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference.crashes.engine_status import Counts, EngineStatus
from ssd_ray.inference.engine_use import EngineUse
from ssd_ray.inference.work.jobs import JobSpan

ENGINE = EngineStatus(engine="e", actor="actor", pid=1, state="ready", began=0.0, node="node")


class Job:
    """The meter of one job, with a clock and a list of live actors."""

    def __init__(self, out: Path, key: str = "a", gpus: int = 2) -> None:
        self.out = out
        self.now = 0.0
        self.alive = {"actor"}
        out.mkdir(exist_ok=True)
        self.use = EngineUse(out, key, gpus, lambda: self.alive, lambda: self.now)

    def mark(
        self,
        *statuses: EngineStatus,
        after: float = 1.0,
        leads: bool = True,
        between_s: float = 0.0,
    ) -> None:
        self.now += after
        self.use.mark(statuses, leads=leads, between_s=between_s)

    @property
    def recorded(self) -> StageUse:
        self.use.close()
        return read_use(self.out) or StageUse()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(tmp_path)


def drawing(*jobs: str) -> EngineStatus:
    spans = tuple(JobSpan(key, Span("prompts", 0, 4)) for key in jobs)
    return replace(ENGINE, drawing=spans)


def test_an_engine_is_busy_with_answers_in_flight(job: Job) -> None:
    job.mark(ENGINE)
    job.mark(ENGINE, after=3.0)
    job.mark(drawing("a"), after=5.0)
    job.mark(drawing("a"), after=2.0)
    (use,) = job.recorded.devices
    assert (use.busy_s, use.idle_s, use.gpus) == (7.0, 3.0, 2)
    assert use.name == "engine actor on node node"


def test_jobs_in_flight_share_their_time(tmp_path: Path) -> None:
    first, second = Job(tmp_path / "a"), Job(tmp_path / "b", "b")
    for each in (first, second):
        leads = each is first
        each.mark(ENGINE, leads=leads)
        each.mark(drawing("a", "b"), after=4.0, leads=leads)
        each.mark(drawing("b"), after=1.0, leads=leads)
        each.mark(ENGINE, after=6.0, leads=leads)
    seconds = [(use.busy_s, use.idle_s) for job in (first, second) for use in job.recorded.devices]
    assert seconds == [(2.0, 6.0), (3.0, 0.0)]


STARTING = replace(ENGINE, state="starting", spawned=100.0, began=104.0)
READY = replace(STARTING, state="ready", ready=130.0)


def test_an_engine_is_idle_from_its_start_to_its_end(job: Job) -> None:
    """4 s of imports, 26 s of loading, 10 s of answers, and 3 s until it is gone."""
    job.mark()
    job.mark(STARTING, after=0.0)
    job.mark(READY, after=26.0)
    job.mark(replace(READY, drawing=drawing("a").drawing), after=10.0)
    job.use.released(3.0)
    (use,) = job.recorded.devices
    assert (use.busy_s, use.idle_s, use.load_s) == (10.0, 4.0 + 26.0 + 3.0, 30.0)
    assert job.recorded.idle_gpu_s == 2 * 33.0
    assert job.recorded.longest_load_s == 30.0


def test_a_wait_between_two_jobs_is_idle_time_of_the_second(tmp_path: Path) -> None:
    """The engine drew for 5 s, waited 40 s without an open job, and draws for 2 s."""
    first, second = Job(tmp_path / "a"), Job(tmp_path / "b", "b")
    first.mark(READY)
    first.mark(drawing("a"), after=5.0)
    second.mark(READY, between_s=40.0)
    second.mark(drawing("b"), after=2.0)
    seconds = [(use.busy_s, use.idle_s) for job in (first, second) for use in job.recorded.devices]
    assert seconds == [(5.0, 0.0), (2.0, 40.0)]


def test_one_job_counts_the_start_of_an_engine(tmp_path: Path) -> None:
    """The second job leads once the first one is complete, and a third one begins after that."""
    first, second, third = (Job(tmp_path / key, key) for key in "abc")
    for each in (first, second):
        each.mark(STARTING, leads=each is first)
        each.mark(READY, leads=each is first)
    second.mark(READY)
    third.mark(READY)
    loads = [use.load_s for job in (first, second, third) for use in job.recorded.devices]
    assert loads == [30.0, None]
    assert first.recorded.devices[0].idle_s == 4.0 + 1.0
    assert second.recorded.devices[0].idle_s == 1.0


def test_dead_engines_hold_no_device(job: Job) -> None:
    job.mark(ENGINE)
    job.mark(replace(drawing("a"), crashed=True))
    job.mark(replace(ENGINE, state="ended"))
    job.alive = {"another"}
    job.mark(drawing("a"), after=20.0)
    assert job.recorded.devices == ()
    # A starting actor is not alive yet for Ray.
    job.mark(replace(ENGINE, state="starting"))
    assert job.recorded.devices[0].idle_s == 1.0
    # Ray cannot tell while its control service is away.
    job.alive = set()
    job.mark(drawing("a"), after=11.0)
    assert job.recorded.devices[0].busy_s == 11.0


def test_a_paused_driver_does_not_count_the_pause(job: Job) -> None:
    job.mark(drawing("a"))
    job.mark(drawing("a"), after=3600.0)
    assert job.recorded.devices[0].busy_s == 30.0


def test_engines_taken_away_and_answers_drawn_again_count_once(job: Job) -> None:
    lost = replace(ENGINE, engine="lost", crashed=True, unattributed=True)
    crashed = replace(ENGINE, engine="crashed", crashed=True)
    retried = replace(ENGINE, jobs={"a": Counts(retries=7), "b": Counts(retries=9)})
    job.mark(ENGINE)
    job.mark(lost, crashed, replace(ENGINE, engine="notice", state="draining"), retried)
    job.mark(lost, crashed, replace(ENGINE, engine="notice", state="ended"), retried)
    use = job.recorded
    assert (use.preemptions, use.redone) == (2, 7)


def test_only_the_leading_job_counts_an_engine_taken_away(tmp_path: Path) -> None:
    second = Job(tmp_path, "b")
    lost = replace(ENGINE, engine="lost", crashed=True, unattributed=True)
    second.mark(drawing("b"), leads=False)
    second.mark(drawing("b"), lost, leads=False)
    # It leads once the first job is complete, and the loss was that job's.
    second.mark(drawing("b"), lost)
    assert second.recorded.preemptions == 0
