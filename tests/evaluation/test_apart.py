"""Graders apart from Ray: the run takes over verdicts in a right form alone."""

from __future__ import annotations

import dataclasses
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.artifacts import manifests, shards, slices
from ssd_ray.errors import UserError
from ssd_ray.evaluation import apart, orders
from ssd_ray.evaluation.grader import Grader
from ssd_ray.evaluation.sandbox.inside import landlock
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Verdict
from tests.support import confined
from tests.support.graded_run import GradedRun, collect

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> GradedRun:
    """A complete run of 16 answers whose verdicts lie in `graded/`; tests work on copies."""
    made = GradedRun(tmp_path_factory.mktemp("graded") / "run", problems=2, samples=8)
    shard = made.draw(0, 16)
    made.finish()
    order = made.publish()
    grader = Grader(order.spec(made.run, made.run / order.place))
    for piece in slices.slices_of(shard, set(), 16):
        grader.grade(piece)
    grader.close()
    return made


@pytest.fixture
def run(graded: GradedRun, tmp_path: Path) -> Path:
    command = ["cp", "-r", str(graded.run), str(tmp_path / "run")]
    subprocess.run(command, check=True)
    return tmp_path / "run"


def _returned(run: Path) -> Path:
    (path,) = (run / "graded").rglob("*.parquet")
    return path


def _change(**values: Any) -> Spoil:
    """Return a change of the second row of the returned shard."""

    def spoil(path: Path) -> None:
        rows = list(shards.from_table(shards.read_table(path), Verdict))
        rows[1] = dataclasses.replace(rows[1], **values)
        shards.write_shard(path.parent, path.stem, rows, Verdict)

    return spoil


def _rewrite(change: Callable[[list[Verdict]], list[Verdict]]) -> Spoil:
    def spoil(path: Path) -> None:
        rows = list(shards.from_table(shards.read_table(path), Verdict))
        shards.write_shard(path.parent, path.stem, change(rows), Verdict)

    return spoil


def _other_columns(path: Path) -> None:
    shards.write_table(path.parent, path.stem, shards.read_table(path).drop_columns(["code"]))


def _null(path: Path) -> None:
    import pyarrow as pa

    table = shards.read_table(path)
    nulls = pa.nulls(table.num_rows, pa.string())
    shards.write_table(path.parent, path.stem, table.set_column(4, table.schema.field(4), nulls))


def _link(path: Path) -> None:
    target = path.rename(path.with_suffix(".moved"))
    path.symlink_to(target)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def test_verdicts_of_graders_apart_become_those_of_the_run(run: Path) -> None:
    facts = collect(run)
    assert facts.outcomes == {"accepted": 4, "runtime_error": 8, "wrong_answer": 4}
    (path,) = shards.shard_paths(run / "verdicts" / "base")
    assert path.read_bytes() == _returned(run).read_bytes()
    assert [level.stem for level in (path.parent / "sandbox").iterdir()] == [facts.sandbox_level]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_change(prompt_id="double/1"), "prompt_id 'double/1' in place of 'double/0'"),
        (_change(sample_index=0), "sample_index 0 in place of 1"),
        (_change(source="other"), "source 'other' in place of 'test'"),
        (_change(difficulty="hard"), "difficulty 'hard' in place of 'unknown'"),
        (_change(outcome="perfect"), "outcome 'perfect', which no verdict has"),
        (_change(outcome="accepted", failed_test=-1), "num_passed 0, which"),
        (_change(num_tests=1, num_passed=1), "num_tests 1, which"),
        (_change(num_passed=-1), "num_passed -1, which"),
        (_change(failed_test=2), "failed_test 2, which"),
        (_change(time_s=float("nan")), "time_s nan, which"),
        (_change(peak_bytes=-1), "peak_bytes -1, which"),
        (_change(sandbox_level="L0"), "sandbox_level 'L0', which"),
        (_change(sandbox_level="L9"), "sandbox_level 'L9', which"),
        (_change(outcome_base="yes"), "outcome_base 'yes', which"),
        (_change(reasoning="deep"), "reasoning 'deep', which"),
        (_change(detail="x" * 5000), "detail 'xxx"),
        (_rewrite(lambda rows: rows[:-1]), "has 15 rows and not 16"),
        (_rewrite(lambda rows: [*rows, rows[0]]), "has 17 rows"),
        (_rewrite(lambda rows: rows[::-1]), "prompt_id 'double/1' in place of 'double/0'"),
        (_other_columns, "does not have the columns of a Verdict"),
        (_null, "has outcome None, which"),
        (_link, "cannot be opened"),
        (_pipe, "is not a regular file"),
        (lambda path: path.write_bytes(path.read_bytes()[:-9]), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
    ],
)
def test_a_returned_shard_in_a_wrong_form_is_refused(run: Path, spoil: Spoil, reason: str) -> None:
    spoil(_returned(run))
    with pytest.raises(UserError) as error:
        collect(run)
    assert str(_returned(run)) in str(error.value)
    assert reason in str(error.value)
    assert "delete it, and start the graders and the run again" in str(error.value)
    assert shards.shard_paths(run / "verdicts" / "base") == []


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
def test_a_link_in_place_of_a_directory_is_not_followed(run: Path, depth: int) -> None:
    place = _returned(run).parent
    spoilt = (place.parents[2], place.parents[1], place.parent, place)[depth]
    spoilt.rename(run / "elsewhere")
    spoilt.symlink_to(run / "elsewhere")
    with pytest.raises(UserError, match="links of graders are never followed: delete"):
        collect(run)


def test_verdicts_on_other_answers_are_not_read(run: Path) -> None:
    order = orders.read(run, "verdicts/base")
    assert order is not None
    other = dataclasses.replace(order, claim="another")
    assert other.place != order.place
    assert apart.Inbox(run, other.place).names() == set()


def test_returned_errors_of_the_machine_are_deleted_on_resume(run: Path) -> None:
    path = _returned(run)
    data = path.read_bytes()
    _change(outcome="infrastructure_error", num_passed=0, failed_test=-1)(path)
    assert collect(run).infrastructure_errors == 1
    manifests.reopen(run / "verdicts" / "base")

    def grade_again() -> None:
        while path.exists():
            time.sleep(0.05)
        path.write_bytes(data)

    thread = threading.Thread(target=grade_again)
    thread.start()
    assert collect(run).infrastructure_errors == 0
    thread.join()


def test_a_wait_names_the_command_that_is_due(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    moment = [0.0]
    monkeypatch.setattr("ssd_ray.evaluation.apart.time.monotonic", lambda: moment[0])
    lines = apart._Lines("verdicts/base", run, LineProgress())
    for seconds in range(0, 200, 5):
        moment[0] = float(seconds)
        lines.wait(3, 2)
    first, second, third = capsys.readouterr().err.splitlines()
    assert first == (
        "verdicts/base: waiting for verdicts of graders apart (3 are here, 2 slices are due); none "
        f"has come in 1:00: see that `ssd-ray grade --follow {run}` is at work and writes to "
        f"{run / 'graded'}"
    )
    assert "none has come in 2:00" in second
    assert "none has come in 3:00" in third
    lines.arrived()
    moment[0] += 70
    lines.wait(4, 0)
    assert capsys.readouterr().err == "", "answers are still to come"


def test_the_graders_of_an_actor_touch_their_mounts_alone(
    graded: GradedRun, run: Path, tmp_path: Path
) -> None:
    """The walls are the mounts of a grader's pod: no cache, no checkpoint, no logs."""
    if not landlock.abi_version():
        pytest.skip("the kernel has no Landlock")
    for name in ("checkpoint", "logs", "dataset"):
        (run / name).mkdir()
        (run / name).chmod(0o777)
    out = run / "verdicts" / "base"
    out.mkdir(parents=True)
    order = orders.read(run, "verdicts/base")
    assert order is not None
    (shard,) = shards.shard_paths(run / "generations" / "base")
    (run / "grading" / "spec").write_bytes(pickle.dumps(order.spec(run, out)))
    pieces = list(slices.slices_of(shard, set(), 16))
    (run / "grading" / "slices").write_bytes(pickle.dumps(pieces))
    inputs = [str(run / "grading" / "spec"), str(run / "grading" / "slices"), str(run / "logs")]
    command = [sys.executable, confined.__file__, str(run), str(out), "--", "actor", *inputs]
    ended = confined.run(command, tmp_path / "tmp")
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = list(shards.read_rows(out, Verdict))
    assert sum(row.outcome == "accepted" for row in rows) == 4
    assert list((run / "logs").iterdir()) == []
