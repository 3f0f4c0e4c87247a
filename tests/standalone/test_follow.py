"""Grading apart from a run, as its answers arrive: kills, hostile answers, walls."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from ssd_ray.artifacts import shards
from ssd_ray.errors import UserError
from ssd_ray.evaluation import orders
from ssd_ray.evaluation.sandbox.inside import landlock
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion
from ssd_ray.standalone.follow import FollowJob, follow
from tests.support import confined, graded_run
from tests.support.commands import exit_status
from tests.support.graded_run import GradedRun, settled
from tests.support.processes import descendants, kill_all
from tests.support.sample_rows import completion

TIMEOUT_S = 300


def _until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def _graded(run: Path) -> int:
    return len(list((run / "graded").rglob("*.parquet")))


@contextmanager
def _running(*command: str) -> Iterator[psutil.Popen]:
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        kill_all([*descendants(process.pid), process])


def _follow(run: Path) -> tuple[str, ...]:
    words = ("grade", "--follow", str(run), "--workers", "2", "--quiet")
    return (sys.executable, "-m", "ssd_ray", *words)


def _grade_in_this_process(made: GradedRun) -> dict[str, bytes]:
    """Grade complete answers by one grader, in the way of graders on Ray; return its shards."""
    from ssd_ray.evaluation.ray_pool import grade
    from ssd_ray.standalone.workers import local_pool

    out = made.run / "undisturbed"
    out.mkdir()
    with local_pool(1) as pool:
        grade(
            made.answers(),
            made.order.spec(made.run, out),
            pool,
            stage="undisturbed",
            progress=LineProgress(),
        )
    return settled(out)


@pytest.mark.slow
def test_kills_of_graders_and_run_change_no_byte_of_a_verdict(tmp_path: Path) -> None:
    """Graders, one of their processes, and the run that waits get SIGKILL while answers arrive."""
    made = GradedRun(tmp_path / "run", problems=6, samples=16, pause_s=0.1)
    run = made.run
    made.publish()
    driver = (sys.executable, graded_run.__file__, str(run))
    made.draw(0, 32)
    with _running(*_follow(run)) as graders, _running(*driver) as waiting:
        _until(lambda: _graded(run) >= 1)
        kill_all([graders, waiting])
        assert graders.wait() == -signal.SIGKILL
    made.draw(32, 64)
    with _running(*_follow(run)) as graders:
        _until(lambda: _graded(run) >= 3)
        workers = [each for each in descendants(graders.pid) if "spawn_main" in _command(each)]
        kill_all(workers[:1])
        made.draw(64, 80)
        made.draw(80, 96)
        made.finish()
        with _running(*driver) as waiting:
            assert graders.wait(TIMEOUT_S) == 0, graders.stderr.read()[-3000:]
            assert waiting.wait(TIMEOUT_S) == 0, waiting.stderr.read()[-3000:]
    verdicts = settled(made.verdicts)
    assert len(verdicts) == 6
    assert verdicts == _grade_in_this_process(made)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


@pytest.mark.slow
def test_graders_apart_need_no_ray_no_network_and_no_other_path(tmp_path: Path) -> None:
    if not landlock.abi_version():
        pytest.skip("the kernel has no Landlock")
    made = GradedRun(tmp_path / "run", problems=2, samples=8)
    made.draw(0, 16)
    made.finish()
    order = made.publish()
    for name in ("checkpoint", "verdicts", "logs"):
        (made.run / name).mkdir()
    (made.run / "graded").mkdir()
    walls = [sys.executable, confined.__file__, str(made.run), str(made.run / "graded"), "--"]
    ended = confined.run([*walls, *_follow(made.run)[3:]], tmp_path / "tmp")
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert ended.stdout == f"{made.run / order.place}\n"
    assert graded_run.collect(made.run).rows == 16


def _link(made: GradedRun) -> Path:
    path = made.generations / "eval-prompts-00000000.00000008-00000016.parquet"
    path.symlink_to(made.run / "benchmark" / "problems.parquet")
    return path


def _linked_shard(made: GradedRun) -> Path:
    path = made.draw(8, 16)
    path.symlink_to(path.rename(made.run / "elsewhere.parquet"))
    return path


def _pipe(made: GradedRun) -> Path:
    path = made.generations / "ledger" / "other.jsonl"
    os.mkfifo(path)
    return path


def _linked_directory(made: GradedRun) -> Path:
    made.generations.rename(made.run / "elsewhere")
    made.generations.symlink_to(made.run / "elsewhere")
    return made.generations


def _other_prompts(made: GradedRun) -> Path:
    """Write rows of the first prompt under the name and the record of the second."""
    made._prompts[1] = made._prompts[0]
    return made.draw(8, 16)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_link, "is a symbolic link, and graders read regular files alone"),
        (_linked_shard, "is a symbolic link, and graders read regular files alone"),
        (_pipe, "is not a regular file, and graders read regular files alone"),
        (_linked_directory, "is a symbolic link, and graders apart follow none"),
        (_other_prompts, "holds a row of prompt 'double/0', sample 0, which is none of its own"),
    ],
)
def test_hostile_answers_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[GradedRun], Path], reason: str
) -> None:
    made = GradedRun(tmp_path / "run", problems=2, samples=8)
    made.draw(0, 8)
    path = spoil(made)
    made.publish()
    with pytest.raises(UserError) as error:
        follow(FollowJob(run=made.run), LineProgress())
    assert f"{path} {reason}" in str(error.value)


@pytest.mark.slow
def test_rows_of_unknown_prompts_without_a_ledger_are_refused(tmp_path: Path) -> None:
    made = GradedRun(tmp_path / "run", problems=2, samples=8)
    for rows, reason in (
        ([completion("triple")], "holds a row of prompt 'triple', sample 0"),
        ([completion("double/0", sample_index=8)], "holds a row of prompt 'double/0', sample 8"),
        ([completion("double/0")] * 2, "holds two rows of prompt 'double/0', sample 0"),
    ):
        shards.write_shard(made.generations, "part", rows, Completion)
        made.publish()
        with pytest.raises(UserError, match=reason):
            follow(FollowJob(run=made.run), LineProgress())


@pytest.mark.slow
def test_a_half_written_shard_is_not_graded(tmp_path: Path) -> None:
    made = GradedRun(tmp_path / "run", problems=2, samples=8)
    made.draw(0, 16)
    made.publish()
    (made.generations / "half.parquet").write_bytes(b"PAR1 and then the disk was full")
    with (made.generations / "manifest.json").open("w") as manifest:
        manifest.write('{"fingerprint": "", "facts": {"rows": 16}, "shards": []}')
    with pytest.raises(UserError, match="not in the manifest"):
        follow(FollowJob(run=made.run), LineProgress())


def test_an_order_of_another_fingerprint_is_not_worked_on(tmp_path: Path) -> None:
    made = GradedRun(tmp_path / "run", problems=2, samples=8)
    made.draw(0, 16)
    made.finish()
    made.publish()
    orders.announce(made.run, {"verdicts/base": "another"})
    thread = threading.Thread(
        target=lambda: follow(FollowJob(run=made.run), LineProgress()), daemon=True
    )
    thread.start()
    time.sleep(0.5)
    assert _graded(made.run) == 0
    orders.announce(made.run, {})
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def test_options_of_the_run_are_refused_with_follow(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert exit_status("grade", "--follow", tmp_path, "--profile", "strict") == 2
    assert "with --follow, profile come from the run" in capfd.readouterr().err
    assert exit_status("grade", "--follow", tmp_path / "nowhere") == 2
    assert "there is no such run directory" in capfd.readouterr().err
