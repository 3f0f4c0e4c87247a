"""Commands in one run directory: one works, others attach, take over or are refused."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd_ray.errors import InfrastructureError, LastingError, OutsideError, UserError
from ssd_ray.progress import RecordedProgress
from ssd_ray.submissions import owner as owners
from ssd_ray.submissions import turn as turns
from ssd_ray.submissions.owner import Outcome, Owner
from ssd_ray.submissions.turn import turn
from tests.support.commands_at_work import start, until_working, work
from tests.support.progress import Lines


@pytest.fixture
def first(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A command at work in `tmp_path`."""
    process = start(tmp_path)
    until_working(process)
    yield process
    process.kill()
    process.communicate()


def _attach(out: Path, lines: Lines, choice: str = "a") -> None:
    progress = RecordedProgress(lines)
    with turn(out, work(choice), progress):
        progress.say("at work")


def _when_attached(lines: Lines, act: object) -> threading.Thread:
    """Call `act` in a thread, once the command has attached."""

    def run() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any("attached" in line for line in lines.lines):
            time.sleep(0.02)
        assert callable(act)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("end", "expected"),
    [("1", InfrastructureError), ("2", UserError), ("130", KeyboardInterrupt)],
)
def test_an_attached_command_ends_as_the_owner_does(
    first: subprocess.Popen[str], tmp_path: Path, end: str, expected: type[BaseException]
) -> None:
    lines = Lines()
    ending = _when_attached(lines, lambda: (tmp_path / "end").write_text(end))
    with pytest.raises(expected) as error:
        _attach(tmp_path, lines)
    ending.join()
    if end != "130":
        assert str(error.value) == "no seed a: use another"
    shown = "\n".join(lines.lines)
    assert f"attached to process {first.pid} on " in lines.lines[0]
    assert "(ssd-ray report tiny, begun " in lines.lines[0]
    assert lines.lines[1:3] == ["working", "samples: 0/4 answers"]
    assert "at work" not in shown


def test_an_attached_command_shows_a_bug_as_a_failure(
    first: subprocess.Popen[str], tmp_path: Path
) -> None:
    lines = Lines()
    _when_attached(lines, lambda: (tmp_path / "end").write_text("bug"))
    with pytest.raises(InfrastructureError, match="ZeroDivisionError: no seed a"):
        _attach(tmp_path, lines)


def test_after_a_success_an_attached_command_does_its_own_part(
    first: subprocess.Popen[str], tmp_path: Path
) -> None:
    lines = Lines()
    _when_attached(lines, lambda: (tmp_path / "end").write_text("0"))
    began = time.monotonic()
    _attach(tmp_path, lines)
    assert time.monotonic() - began < 60
    assert lines.lines[-1] == "at work"
    assert lines.lines[-2].startswith("samples: done, 4/4 answers in ")
    owner, _ = owners.read(tmp_path)
    assert owner is not None
    assert (owner.pid, owner.outcome) == (os.getpid(), Outcome(status=0))
    assert (tmp_path / turns.LOG).read_text().endswith("at work\n")


def test_a_command_with_another_recipe_is_refused_at_once(
    first: subprocess.Popen[str], tmp_path: Path
) -> None:
    lines = Lines()
    with pytest.raises(UserError) as error:
        _attach(tmp_path, lines, "b")
    assert f"{tmp_path} is in use by process {first.pid} on " in str(error.value)
    assert 'choices (sample.seed: "a" there, "b" here): wait for it, or choose another --out' in (
        str(error.value)
    )
    assert lines.lines == []
    assert first.poll() is None


def test_the_work_of_a_killed_command_is_taken_over(
    first: subprocess.Popen[str], tmp_path: Path
) -> None:
    lines = Lines()
    _when_attached(lines, first.kill)
    _attach(tmp_path, lines)
    assert f"taking over from process {first.pid} on " in lines.lines[-2]
    assert lines.lines[-2].endswith("which ended without a result")
    assert lines.lines[-1] == "at work"
    # Nothing is left to take over.
    again = Lines()
    _attach(tmp_path, again)
    assert again.lines == ["at work"]


def test_a_failed_command_is_tried_again_by_the_next_one(tmp_path: Path) -> None:
    lines = Lines()
    with pytest.raises(InfrastructureError), turn(tmp_path, work(), RecordedProgress(lines)):
        raise InfrastructureError("the node is lost")
    owner, _ = owners.read(tmp_path)
    assert owner is not None
    assert owner.outcome == Outcome(status=1, sentence="the node is lost")
    _attach(tmp_path, lines)
    assert lines.lines == ["at work"]


def _lock(out: Path) -> object:
    """Hold the lock of a directory, as a client of network storage whose machine is gone."""
    handle = (out / ".lock").open("a")
    fcntl.flock(handle, fcntl.LOCK_EX)
    return handle


def _lost_owner(host: str) -> Owner:
    return Owner(work=work(), log_start=0, host=host, pid=7)


def test_a_lock_of_a_lost_node_is_waited_for_then_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "SILENT_S", 0.3)
    monkeypatch.setattr(owners, "BEAT_S", 0.1)
    lock = _lock(tmp_path)
    owners.write(tmp_path, _lost_owner("node-that-left"))
    lines = Lines()

    def lease_ends() -> None:
        while not any("silent" in line for line in lines.lines):
            time.sleep(0.02)
        lock.close()  # type: ignore[attr-defined]

    _when_attached(lines, lease_ends)
    _attach(tmp_path, lines)
    assert "attached to process 7 on node-that-left" in lines.lines[0]
    assert (
        "silent for 0.3 s: waiting up to 300 s for the storage to drop its lock" in (lines.lines[1])
    )
    assert "taking over from process 7 on node-that-left" in lines.lines[2]


def test_a_lock_that_is_never_dropped_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "LEASE_S", 0.3)
    lock = _lock(tmp_path)
    owners.write(tmp_path, _lost_owner("gone"))
    with pytest.raises(InfrastructureError, match=r"process 7 on gone .* delete .*\.lock if its"):
        _attach(tmp_path, Lines())
    # The remedy works although the other process still has the old file locked.
    (tmp_path / ".lock").unlink()
    monkeypatch.setattr(owners, "BEAT_S", 0.1)
    lines = Lines()
    _attach(tmp_path, lines)
    assert lines.lines[-1] == "at work"
    lock.close()  # type: ignore[attr-defined]


def test_storage_that_grants_the_lock_on_each_node_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without `nolock` the grant would mean that the owner is gone, but its record still beats."""
    monkeypatch.setattr(owners, "BEAT_S", 0.2)
    owners.write(tmp_path, _lost_owner("other-node"))
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(0.05):
            os.utime(tmp_path / owners.FILE)

    beats = threading.Thread(target=beat)
    beats.start()
    try:
        with pytest.raises(UserError, match="grants the lock to this machine too: mount it with"):
            _attach(tmp_path, Lines())
    finally:
        stop.set()
        beats.join()


def test_a_lock_without_a_record_belongs_to_an_unknown_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "UNKNOWN_S", 0.2)
    lock = _lock(tmp_path)
    for text in (None, "{}", "torn", json.dumps({"work": {}})):
        if text is not None:
            (tmp_path / owners.FILE).write_text(text)
        with pytest.raises(UserError, match="another process is using"):
            _attach(tmp_path, Lines())
    lock.close()  # type: ignore[attr-defined]


def test_a_record_of_a_later_version_is_read(tmp_path: Path) -> None:
    owner = _lost_owner("there")
    owners.write(tmp_path, owner)
    record = json.loads((tmp_path / owners.FILE).read_text())
    (tmp_path / owners.FILE).write_text(json.dumps(record | {"color": "blue"}))
    assert owners.read(tmp_path)[0] == owner


def test_lines_of_progress_outlive_a_log_without_room() -> None:
    """A full disk ends the run where rows would be lost."""
    lines = Lines()
    progress = RecordedProgress(lines)
    with progress.kept_in(Path("/dev/full")):
        progress.say("on")
    assert lines.lines == ["on"]


BEFORE = {
    "nothing": (),
    "an empty directory": ("run/",),
    "a file of the user": ("run/notes.txt",),
    "logs of the user": ("run/logs/mine.txt",),
    "an earlier run": ("run/.lock", "run/owner.json", "run/logs/progress.log", "run/recipe.yaml"),
    "a part of an earlier run": ("run/.lock", "run/prompts/fingerprint.json"),
    "a file next to it": ("notes.txt",),
}


def _entries(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def _end(out: Path, made: str, error: BaseException) -> None:
    """Hold the turn, say a line, make a file, and end with an error."""
    progress = RecordedProgress(Lines())
    with turn(out, work(), progress):
        progress.say("connecting")
        if made:
            (out / made).parent.mkdir(exist_ok=True)
            (out / made).write_text("")
        raise error


@pytest.mark.parametrize("present", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize(
    "error", [UserError("no GPU"), OutsideError("full"), LastingError("no locks")], ids=repr
)
def test_a_refused_command_leaves_a_directory_as_it_was(
    tmp_path: Path, present: tuple[str, ...], error: UserError
) -> None:
    out = tmp_path / "new" / "run"
    if present:
        out = tmp_path / "run"
    for name in present:
        path = tmp_path / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("")
    before = _entries(tmp_path)
    with pytest.raises(type(error)):
        _end(out, "logs/ray.log", error)
    assert _entries(tmp_path) == before


@pytest.mark.parametrize(
    ("made", "error"),
    [
        ("recipe.yaml", UserError("no seed")),
        ("prompts/fingerprint.json", UserError("no seed")),
        ("logs/engine-1.log", UserError("no seed")),
        ("", InfrastructureError("the node is lost")),
        ("", KeyboardInterrupt()),
        ("", ZeroDivisionError()),
    ],
)
def test_any_other_end_keeps_its_records(tmp_path: Path, made: str, error: BaseException) -> None:
    out = tmp_path / "run"
    with pytest.raises(type(error)):
        _end(out, made, error)
    assert {".lock", "owner.json", "logs/progress.log", made} - {""} <= _entries(out)


def test_a_command_that_waits_goes_on_after_a_refusal(tmp_path: Path) -> None:
    out = tmp_path / "run"
    lines = Lines()
    waiting = threading.Thread(target=_attach, args=(out, lines))

    def refuse() -> None:
        with turn(out, work(), RecordedProgress(Lines())):
            waiting.start()
            deadline = time.monotonic() + 30
            while not lines.lines and time.monotonic() < deadline:
                time.sleep(0.02)
            raise UserError("no GPU")

    with pytest.raises(UserError, match="no GPU"):
        refuse()
    waiting.join(30)
    assert lines.lines[0].startswith("attached to process ")
    assert lines.lines[-1] == "at work"
    owner, _ = owners.read(out)
    assert owner is not None
    assert owner.outcome == Outcome(status=0)
