"""Resume states by way of a local disk: complete or absent, at any speed of the storage."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssd_ray.artifacts.files import copy_file
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.state import disk_space, resume, saver
from ssd_ray.training.state.saver import Saver
from tests.support.state_engine import MODEL, SHARD, engine_of, job_of

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers of a test are objects of one process, without collectives."""
    monkeypatch.setattr(saver, "_POLL_S", 0.01)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(resume, "gather", lambda engine, value: [value])


class Gate:
    """A copy that waits until the storage is released."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.released = threading.Event()

    def copy(self, source: Path, target: Path) -> str:
        self.reached.set()
        assert self.released.wait(60)
        return copy_file(source, target)


def _states(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint" / "resume").glob("[!.]*"))


def _on_disk(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "disk").rglob("step-*"))


def test_training_goes_on_while_a_state_is_copied(tmp_path: Path) -> None:
    gate = Gate()
    states = Saver(engine_of(), job_of(tmp_path), gate.copy)
    states.save(4)
    assert gate.reached.wait(60)
    states.check()
    assert resume.latest(tmp_path / "checkpoint")[0] == 0
    assert _on_disk(tmp_path) == ["step-4"]
    gate.released.set()
    states.close()
    assert resume.latest(tmp_path / "checkpoint")[0] == 4
    assert not (tmp_path / "disk").exists() or not list((tmp_path / "disk").iterdir())
    directory = tmp_path / "checkpoint" / "resume" / "step-4"
    assert (directory / SHARD.format(0)).read_text() == "step-4, worker 0\n"
    files = json.loads((directory / "part-0.json").read_text())["files"]
    assert set(files) == {SHARD.format(0), MODEL}
    assert files[MODEL]["bytes"] == 17


def test_a_copied_state_waits_for_every_worker(tmp_path: Path) -> None:
    gate = Gate()
    job = job_of(tmp_path)
    workers = [
        Saver(engine_of(0, 2), job),
        Saver(engine_of(1, 2), job, gate.copy),
    ]
    # The first worker makes the directory, as before DeepSpeed's barrier.
    for worker in workers:
        worker._attempt = "one"
        worker.save(4)
    partial = job.out / "resume" / ".step-4.one.partial"
    assert gate.reached.wait(60)
    _until((partial / "part-0.json").exists)
    assert workers[0]._thread is not None
    workers[0]._thread.join(0.2)
    assert workers[0]._thread.is_alive()
    assert _states(tmp_path) == []
    gate.released.set()
    for worker in workers:
        worker.wait()
    assert _states(tmp_path) == ["step-4"]
    names = {path.name for path in (job.out / "resume" / "step-4").iterdir()}
    assert names == {
        SHARD.format(0),
        SHARD.format(1),
        MODEL,
        "part-0.json",
        "part-1.json",
        "state.json",
    }


def _until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("waited in vain")


def test_the_next_save_waits_for_the_copy(tmp_path: Path) -> None:
    gate = Gate()
    states = Saver(engine_of(), job_of(tmp_path), gate.copy)
    states.save(4)
    second = threading.Thread(target=states.save, args=(5,))
    second.start()
    second.join(0.2)
    assert second.is_alive()
    assert _on_disk(tmp_path) == ["step-4"]
    gate.released.set()
    second.join()
    states.wait()
    assert _states(tmp_path) == ["step-4", "step-5"]


def test_earlier_states_stay_until_the_copy_is_complete(tmp_path: Path) -> None:
    gate = Gate()
    gate.released.set()
    states = Saver(engine_of(), job_of(tmp_path, resume_states=2), gate.copy)
    for step in (4, 5):
        states.save(step)
    states.wait()
    gate.released.clear()
    states.save(6)
    assert _states(tmp_path) == ["step-4", "step-5"]
    gate.released.set()
    states.wait()
    assert _states(tmp_path) == ["step-5", "step-6"]


def test_a_failed_copy_names_path_and_remedy(tmp_path: Path) -> None:
    def full(source: Path, target: Path) -> str:
        raise OSError(28, "No space left on device")

    states = Saver(engine_of(), job_of(tmp_path), full)
    states.save(4)
    assert states._thread is not None
    states._thread.join()
    message = (
        rf"copying the state after step 4 from {tmp_path}/disk/.* to {tmp_path}/checkpoint/resume "
        r"failed: No space left on device; make room there .* and run again"
    )
    for call in (states.check, states.wait, lambda: states.save(5), states.close):
        with pytest.raises(UserError, match=message):
            call()
    assert _states(tmp_path) == []


@pytest.mark.parametrize("at_once", [True, False])
def test_a_full_disk_is_no_crash_to_retry(
    at_once: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save_checkpoint(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed")

    engine = engine_of()
    engine.save_checkpoint = save_checkpoint
    states = Saver(engine, job_of(tmp_path))
    with pytest.raises(RuntimeError, match="failed writing"):
        states.save(4, at_once=at_once)
    monkeypatch.setattr(resume, "free_bytes", lambda path: 4096)
    place = "checkpoint/resume" if at_once else "disk/.*/worker-0"
    with pytest.raises(UserError, match=rf"{place} is full \(RuntimeError: Pytorch.* run again"):
        states.save(4, at_once=at_once)


def test_a_bug_in_a_copy_keeps_its_error(tmp_path: Path) -> None:
    def broken(source: Path, target: Path) -> str:
        raise ZeroDivisionError

    states = Saver(engine_of(), job_of(tmp_path), broken)
    states.save(4)
    with pytest.raises(ZeroDivisionError):
        states.wait()


def test_a_copy_ends_where_another_attempt_has_begun(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    states = Saver(engine_of(0, 2), job)
    states.save(4)
    partial = next((job.out / "resume").glob(".*.partial"))
    _until((partial / "part-0.json").exists)
    resume.begin(job.out, 0)
    with pytest.raises(UserError, match="another attempt has deleted it"):
        states.wait()


def test_a_stop_is_met_by_a_state_that_is_complete_at_once(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    states = Saver(engine_of(), job)
    resume.request_stop(job.out)
    states.save(4)
    states.wait()
    # The request may be younger than the state.
    assert resume.stop_requested(job.out)
    states.save(5, at_once=True)
    assert not resume.stop_requested(job.out)
    assert resume.latest(job.out)[0] == 5


def test_without_a_local_disk_a_save_is_complete_on_return(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    Saver(engine_of(), replace(job, cluster=ClusterConfig(device="cpu"))).save(4)
    assert _states(tmp_path) == ["step-4"]
    assert not (tmp_path / "disk").exists()


def test_a_disk_that_cannot_be_written_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "disk").write_text("a file")
    with pytest.raises(UserError, match=r"disk/.* on a node: .*; set cluster\.local_states"):
        Saver(engine_of(), job_of(tmp_path))


def test_remains_of_an_earlier_attempt_leave_the_disk(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    directory = saver.local_directory(job)
    assert directory is not None
    (directory / "old" / "worker-3" / "step-2").mkdir(parents=True)
    Saver(engine_of(), job)
    assert _on_disk(tmp_path) == []


@contextmanager
def _killed(folder: Path, step: int, hangs: str) -> Iterator[None]:
    """Run a saver in another process and kill it after the block."""
    command = [sys.executable, "-m", "tests.support.state_engine", str(folder), str(step), hangs]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        wanted = "goes on" if hangs == "copying" else "complete"
        assert wanted in iter(lambda: process.stdout.readline().strip(), "")  # type: ignore
        yield
        process.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_a_kill_in_a_copy_goes_back_and_after_it_does_not(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    Saver(engine_of(), job).save(3, at_once=True)
    with _killed(tmp_path, 6, "copying"):
        _until(lambda: bool(list((job.out / "resume").rglob(".step-6.*/zero*"))))
    assert _states(tmp_path) == ["step-3"]
    assert _restored(job.out) == (3, [])
    resume.begin(job.out, 3)
    assert not list((job.out / "resume").glob(".*"))
    with _killed(tmp_path, 6, "complete"):
        pass
    assert _restored(job.out) == (6, [])


def _restored(out: Path) -> tuple[int, list[str]]:
    """The step of the restored state and the sentences about bad ones."""
    engine = engine_of()
    loaded: list[str] = []
    sentences: list[str] = []
    engine.zero_optimization = lambda: False
    engine.module = torch.nn.Linear(1, 1)
    engine.load_checkpoint = lambda *_, tag, **__: loaded.append(tag)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume.resharding, "check", lambda engine, directory: None)
        step = resume.restore(engine, out, sentences.append)
    assert loaded == ([f"step-{step}"] if step else [])
    return step, sentences


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda path: os.truncate(path / MODEL, 5), "has 5 of 17 bytes"),
    "changed": (lambda path: (path / MODEL).write_text("x" * 17), "has other contents than were"),
    "missing": (lambda path: (path / MODEL).unlink(), f"lacks the file {MODEL}"),
    "no part": (lambda path: (path / "part-0.json").unlink(), "lacks the file part-0.json"),
    "bad part": (lambda path: (path / "part-0.json").write_text("{"), "part-0.json is damaged"),
    "part of another kind": (
        lambda path: (path / "part-0.json").write_text('{"files": ["a"]}'),
        "part-0.json is damaged",
    ),
    "part with another value": (
        lambda path: (path / "part-0.json").write_text('{"files": {"a": 3}}'),
        "the record of",
    ),
    "empty record": (lambda path: os.truncate(path / "state.json", 0), "state.json is damaged"),
    "record of bytes": (
        lambda path: (path / "state.json").write_bytes(b"\xff\x00"),
        "state.json is damaged",
    ),
    "record of another kind": (
        lambda path: (path / "state.json").write_text("[1]"),
        "state.json is damaged",
    ),
    "record with a text for a number": (
        lambda path: (path / "state.json").write_text('{"num_workers": "1", "zero_stage": 2}'),
        "state.json is damaged",
    ),
    "record without a field": (
        lambda path: (path / "state.json").write_text('{"step": 6}'),
        "state.json has no field num_workers",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_training_goes_back_from_a_bad_state(kind: str, tmp_path: Path) -> None:
    damage, reason = DAMAGE[kind]
    job = job_of(tmp_path, resume_states=2)
    states = Saver(engine_of(), job)
    for step in (4, 5, 6):
        states.save(step)
    states.wait()
    assert _restored(job.out) == (6, [])
    damage(job.out / "resume" / "step-6")
    (job.out / "resume" / "step-abc").mkdir()
    (job.out / "resume" / "step-abc" / "state.json").touch()
    assert resume.latest(job.out)[0] in (5, 6)
    step, (sentence,) = _restored(job.out)
    assert step == 5
    assert sentence.startswith("the state after step 6 is bad, going back to step 5: ")
    assert reason in sentence
    assert _states(tmp_path) == ["bad-step-6", "step-5", "step-abc"]
    damage(job.out / "resume" / "step-5")
    with pytest.raises(UserError, match=rf"{reason}.*: delete .*resume to train from the first"):
        _restored(job.out)
    states.save(7)
    states.wait()
    assert _states(tmp_path) == ["step-5", "step-7"]


def test_a_state_of_an_earlier_version_has_no_records(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    Saver(engine_of(), job).save(4, at_once=True)
    directory = job.out / "resume" / "step-4"
    (directory / "part-0.json").unlink()
    (directory / "state.json").write_text('{"step": 4, "num_workers": 1, "zero_stage": 2}')
    assert _restored(job.out) == (4, [])


def test_every_worker_checks_its_share_of_the_files(tmp_path: Path) -> None:
    job = job_of(tmp_path)
    for rank in (1, 2, 0):
        engine_of(rank, 3).save_checkpoint(str(tmp_path), "written")
    directory = tmp_path / "written"
    for rank in range(3):
        files = {path.name: {"bytes": 1} for path in resume.own_files(directory, rank)}
        resume.write_part(directory, rank, files)
    (directory / "state.json").write_text('{"parts": 3, "num_workers": 3, "zero_stage": 2}')
    seen = [
        re.findall(r"rank_(\d)_mp", resume._fault(directory, rank, workers))
        for workers in (3, 2)
        for rank in range(workers)
    ]
    assert seen == [["0"], ["1"], ["2"], ["0"], ["1"]]
    assert job.out.exists()


def test_too_little_room_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gib = 1 << 30
    left = {"checkpoint": 9 * gib, "disk": 9 * gib}
    monkeypatch.setattr(disk_space, "free_bytes", lambda path: left[path.name])
    job = job_of(tmp_path, zero_stage=3, resume_states=2)
    engine = engine_of(1, 2)
    engine.zero_optimization_stage = lambda: 3
    parameter = torch.nn.Parameter(torch.zeros(0))
    parameter.ds_numel = gib // 3  # type: ignore[attr-defined]
    engine.module = torch.nn.ParameterList([parameter])
    # A state has 4 GiB, and the node of both workers holds all of it.
    disk_space.check_here(engine, job, 2)
    left["disk"] = 3 * gib
    disk_space.check_here(engine, job, 1)
    with pytest.raises(UserError, match=r"disk has 3\.0 GiB left on a node, .* needs 4\.0 GiB: .*"):
        disk_space.check_here(engine, job, 2)
    engine.global_rank = 0
    with pytest.raises(
        UserError, match=r"checkpoint has 9\.0 GiB left, and 3 more resume states .* 12\.0 GiB: .*"
    ):
        disk_space.check_here(engine, job, 1)
    Saver(engine_of(), job).save(4, at_once=True)
    disk_space.check_here(engine, job, 1)
    one = TrainConfig(resume_states=1, steps=1000)
    with pytest.raises(UserError, match=r"1 more .* 10\.0 GiB: free some or choose another --out"):
        disk_space.check(job.out, 10 * gib, one)
    # A training of few steps writes a single state.
    left["short"] = 9 * gib
    short = TrainConfig(steps=250)
    disk_space.check(tmp_path / "short", 9 * gib, short)
    with pytest.raises(UserError, match=r"2 more"):
        disk_space.check(tmp_path / "short", 9 * gib, short.model_copy(update={"steps": 251}))
