"""The chaos table: its cases on a played training, its counts, its bars."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import psutil
import pytest

from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.work.jobs import JobSpan
from tests.support import played_training
from tests.support.processes import kill_all
from tests.support.sample_rows import completion, write_samples, write_unit

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import chaos  # noqa: E402
import chaos_cases  # noqa: E402
import chaos_nodes  # noqa: E402
import chaos_record  # noqa: E402
import chaos_recovery  # noqa: E402
import chaos_target  # noqa: E402
import chaos_watch  # noqa: E402
from chaos_recovery import Sample  # noqa: E402


class PlayedTarget:
    """A target whose commands are played trainings, with one place named after their worker."""

    def __init__(self) -> None:
        self._drivers: list[psutil.Popen] = []
        self._stopped: list[psutil.Process] = []

    def places(self, role: str) -> list[str]:
        return ["only"]

    def workers(self, role: str) -> list[psutil.Process]:
        return [worker for driver in self._drivers for worker in chaos_target.children_of(driver)]

    def workers_at(self, place: str) -> list[psutil.Process]:
        return self.workers("")

    def kill(self, place: str) -> None:
        kill_all(self.workers(""))

    def add(self, role: str) -> None:
        """The driver starts a worker by itself."""

    def restore(self) -> None:
        """The only place is never lost for good."""

    def cut_off(self, place: str) -> None:
        self._stopped = self.workers("")
        chaos_target.send(self._stopped, signal.SIGSTOP)

    def rejoin(self, place: str) -> None:
        chaos_target.send(self._stopped, signal.SIGCONT)

    def start(self, verb: str, recipe: Path, out: Path, log: Path) -> chaos_target.ProcessCommand:
        command = [sys.executable, str(ROOT / "tests/support/played_training.py"), str(out)]
        out.mkdir(exist_ok=True)
        with log.open("ab") as handle:
            process = psutil.Popen(command, stdout=handle, stderr=handle)
        self._drivers.append(process)
        return chaos_target.ProcessCommand(process, log)

    submit = start

    def leftovers(self) -> chaos_target.Leftovers:
        alive = [str(driver.pid) for driver in self._drivers if driver.poll() is None]
        return chaos_target.Leftovers(processes=tuple(alive))

    def close(self) -> None:
        kill_all(chaos_target.family(self._drivers))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chaos.Bench]:
    """The cases on a played training, with its undisturbed run."""
    directory = tmp_path_factory.mktemp("chaos")
    (directory / "chaos.yaml").write_text("played")
    target = PlayedTarget()
    bench = chaos.Bench(directory, target, argparse.Namespace(seed=1, minute=1.0))
    bench.prepare({"train"})
    for name in chaos_watch.STAGES["train"].inputs:
        (directory / "reference" / name).mkdir()
    yield bench
    target.close()


@pytest.mark.parametrize(
    ("name", "commands", "repeats"),
    [
        ("worker-kill", 1, True),
        ("worker-stop", 1, False),
        ("node-kill", 1, True),
        ("cut-off", 1, False),
        ("driver-kill", 2, True),
        ("job-stop", 2, False),
    ],
)
@pytest.mark.slow
def test_cases_measure_a_played_training(
    bench: chaos.Bench, name: str, commands: int, repeats: bool
) -> None:
    """A minute has a second here."""
    row = bench.measure(chaos_cases.CASES[name], "train")
    assert row.misses() == []
    assert row.commands == commands
    # Up to three steps may be logged between the last look and the strike.
    since_state = [(row.at + later) % played_training.EVERY for later in range(4)]
    assert row.steps_again in (since_state if repeats else [0])
    assert row.role_back_s is not None
    if name == "worker-stop":
        assert 1 <= row.pause_s <= 10
    if name == "cut-off":
        assert 1.5 <= row.role_back_s <= 10


@pytest.mark.skipif(os.getuid() != 0, reason="mounts need root")
@pytest.mark.parametrize("name", ["volume-full", "volume-read-only"])
def test_a_volume_is_full_or_read_only_for_a_while(tmp_path: Path, name: str) -> None:
    failures = []

    def look(_: float) -> None:
        try:
            (run / "file").write_text("x" * 5000)
        except OSError as error:
            failures.append(error.errno)

    with chaos_cases.volume(tmp_path / "volume") as place, pytest.MonkeyPatch.context() as patch:
        run = place / "run"
        run.mkdir()
        # Threads of earlier tests sleep by the real clock.
        patch.setattr(chaos_cases, "time", Mock(wraps=time, sleep=look))
        scene = argparse.Namespace(run=run, minute=3, lose_all=lambda: None)
        chaos_cases.CASES[name].act(scene)
        (run / "file").write_text("after")
    assert len(failures) == 1
    assert not place.exists()


ROW: dict[str, Any] = {
    "case": "worker-kill",
    "stage": "train",
    "seed": 0,
    "moment": 0.5,
    "at": 20,
    "role_back_s": 1.0,
    "pause_s": 1.0,
    "worker_seconds_lost": 1.0,
    "seconds": 2.0,
    "commands": 1,
    "answers_again": 4,
    "answers_lost_from_disk": 0,
    "steps_again": 5,
    "verdicts_again": 16,
    "verdicts_rewritten": 0,
    "lost": 0,
    "doubled": 0,
    "different": 0,
    "equal": True,
    "left": (),
    "notes": (),
    "minute": 60.0,
    "date": "2026-01-01",
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lost", 1),
        ("doubled", 1),
        ("different", 1),
        ("answers_lost_from_disk", 1),
        ("verdicts_rewritten", 16),
        ("left", ("actor GraderActor ALIVE",)),
        ("equal", False),
        ("steps_again", 6),
        ("commands", 2),
    ],
)
def test_every_zero_is_a_bar(field: str, value: object) -> None:
    row = chaos_record.Row(**ROW)
    assert row.misses() == []
    assert len(replace(row, **{field: value}).misses()) == 1


def test_no_step_is_done_again_after_a_notice() -> None:
    row = chaos_record.Row(**{**ROW, "case": "node-notice", "steps_again": 1})
    assert row.misses() == ["steps again 1, at most 0"]


def test_the_table_has_a_cell_for_each_column() -> None:
    table = chaos_record.markdown([chaos_record.Row(**ROW)]).splitlines()
    assert len({line.count("|") for line in table}) == 1
    cells = [cell.strip() for cell in table[2].split("|")[1:-1]]
    assert cells[2:7] == ["50%", "1.0", "1.0", "1", "4, 5, 16"]


def test_a_row_takes_the_place_of_an_earlier_failure(tmp_path: Path) -> None:
    record = chaos_record.Record(path=tmp_path / "figures.json")
    failure = chaos_record.Failure(
        case="worker-kill", stage="train", seed=0, sentence="no end", date="2026-01-01"
    )
    record.add(failure)
    again = chaos_record.Record.read(record.path)
    assert again.failures == [failure]
    assert chaos_record.verdict(failure) == "failed: no end"
    again.add(chaos_record.Row(**ROW))
    last = chaos_record.Record.read(record.path)
    assert (last.rows, last.failures) == ([chaos_record.Row(**ROW)], [])


def test_rows_on_record_are_not_measured_again() -> None:
    options = argparse.Namespace(only=["worker-kill", "volume-slow"], stages=["train"], seed=0)
    pairs = chaos.wanted(options, [])
    assert [(case.name, stage) for case, stage in pairs] == [
        ("worker-kill", "train"),
        ("volume-slow", "train"),
    ]
    assert [case.name for case, _ in chaos.wanted(options, [chaos_record.Row(**ROW)])] == [
        "volume-slow"
    ]
    options.seed = 1
    assert len(chaos.wanted(options, [chaos_record.Row(**ROW)])) == 2


def _samples(*looks: tuple[float, int, str]) -> list[Sample]:
    """Return samples of a time, the units on disk and the workers, one a letter."""
    return [
        Sample(at=at, done=done, workers=frozenset(map(ord, workers)))
        for at, done, workers in looks
    ]


def test_a_recovery_is_timed_from_the_strike() -> None:
    looks = _samples((0, 4, "ab"), (2, 4, "a"), (5, 6, "a"), (9, 7, "ac"), (10, 8, "ac"))
    before = looks[0].workers
    assert chaos_recovery.role_back_s(looks, 1, before) == 8
    assert chaos_recovery.worker_seconds_lost(looks, 1, before) == 7
    assert chaos_recovery.longest_pause_s(looks, 1, 4) == 4


def test_a_role_that_never_left_or_never_came_back_has_no_time() -> None:
    stayed = _samples((0, 4, "ab"), (2, 8, "ab"), (3, 8, ""))
    assert chaos_recovery.role_back_s(stayed, 1, stayed[0].workers) == 0
    left = _samples((0, 4, "ab"), (2, 6, "a"), (3, 8, "a"))
    assert chaos_recovery.role_back_s(left, 1, left[0].workers) is None
    assert chaos_recovery.worker_seconds_lost(left, 1, left[0].workers) == 1


def test_steps_done_again_are_no_progress() -> None:
    looks = _samples((1, 7, "a"), (2, 5, "b"), (6, 7, "b"), (7, 8, "b"))
    assert chaos_recovery.longest_pause_s(looks, 0, 7) == 7


def test_helpers_of_ray_data_are_no_leftovers_once() -> None:
    names = ["_StatsActor", "GraderActor", "_StatsActor"]
    actors = [{"class_name": name} for name in names]
    assert chaos_nodes.but_ray_data(actors) == actors[1:]


def test_answers_in_flight_are_those_of_the_batch(tmp_path: Path) -> None:
    span = Span("prompts-00000000", 0, 6)
    reporter = Reporter(tmp_path / ".engines" / "base", "actor")
    with reporter.drawing(JobSpan(job="samples", span=span)):
        assert chaos_watch.in_flight(tmp_path, [os.getpid()], most=4) == 4
        write_unit(tmp_path / "samples", Span("prompts-00000000", 0, 3))
        assert chaos_watch.in_flight(tmp_path, [os.getpid()], most=4) == 3
        assert chaos_watch.in_flight(tmp_path, [1], most=4) == 0


def test_lost_doubled_and_different_rows_are_counted(tmp_path: Path) -> None:
    stage = chaos_watch.STAGES["sample"]
    rows = [completion(f"p{number}") for number in range(4)]
    calm, disturbed = (tmp_path / name for name in ("calm", "disturbed"))
    write_samples(calm / "samples", rows)
    write_samples(disturbed / "samples", rows[::-1])
    compared = chaos_watch.compare(stage, disturbed, calm)
    assert (compared.lost, compared.doubled, compared.different) == (0, 0, 0)
    assert compared.digests_equal
    write_samples(tmp_path / "bad" / "samples", [*rows[:2], rows[1], completion("p2", seed=9)])
    (tmp_path / "bad" / "samples" / ".part.tmp").touch()
    compared = chaos_watch.compare(stage, tmp_path / "bad", calm)
    assert (compared.lost, compared.doubled, compared.different) == (1, 1, 1)
    assert not compared.digests_equal
    assert compared.files_left == ("samples/.part.tmp",)


def test_slow_storage_can_delay_renames_alone(tmp_path: Path) -> None:
    library = tmp_path / "slow.so"
    source = ROOT / "benchmarks" / "slow_storage.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    program = (
        "import os, time\n"
        "begin = time.monotonic()\n"
        "open('a', 'w').close()\n"
        "middle = time.monotonic()\n"
        "os.rename(os.path.abspath('a'), os.path.abspath('b'))\n"
        "print(middle - begin, time.monotonic() - middle)\n"
    )
    environment = os.environ | {
        "LD_PRELOAD": str(library),
        "SLOW_DIRECTORY": f"{tmp_path}/",
        "SLOW_MS": "300",
        "SLOW_OPERATIONS": "rename",
    }
    shown = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    opened, renamed = map(float, shown.split())
    assert opened < 0.3 <= renamed


def test_the_page_lists_every_case_as_it_is() -> None:
    page = (ROOT / "docs/chaos.md").read_text()
    for case in chaos_cases.CASES.values():
        assert f"| `{case.name}` | {', '.join(case.stages)} | {case.how} |" in page


def test_the_page_shows_the_rows_on_record_and_names_the_others() -> None:
    page = (ROOT / "docs/chaos.md").read_text()
    record = chaos_record.Record.read(ROOT / "docs/figures/chaos.json")
    assert chaos_record.markdown(record.rows) in page
    measured = {(row.case, row.stage) for row in record.rows}
    cases = chaos_cases.CASES.values()
    others = {(case.name, stage) for case in cases for stage in case.stages} - measured
    never_run = page.partition("**Never run:**")[2].partition("\n\nOf the")[0]
    assert set(re.findall(r"^- `([\w-]+)` in (\w+)", never_run, re.M)) == others
    for row in record.rows:
        for miss in row.misses():
            assert f"`{row.case}` in {row.stage} misses a bar: {miss}" in page.replace("\n  ", " ")
