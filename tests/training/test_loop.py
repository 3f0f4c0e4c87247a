"""The training loop around its steps: states and exports at any interruption, with a double."""

from __future__ import annotations

import json
import math
import os
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training import loop
from ssd_ray.training.job import Job
from ssd_ray.training.state import export, saver
from ssd_ray.training.state.export import step_directory
from ssd_ray.training.worker import Worker
from ssd_ray.training.worker_group import STOP_REQUESTED

STEPS = 8
SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")


class Killed(BaseException):
    """Simulates the end of the process."""


def join_copies() -> None:
    """Wait for the copies of states; a simulated kill ends no thread."""
    for thread in threading.enumerate():
        if thread.name == "state-copy":
            thread.join()


class Machine:
    """One worker of the real loop with a counting engine and scheduled crashes."""

    def __init__(self, out: Path, local_states: str | None = None, **choices: Any) -> None:
        train = TrainConfig(steps=STEPS, warmup_steps=0, dtype="float32", zero_stage=2, **choices)
        cluster = ClusterConfig(device="cpu", local_states=local_states)
        self.job = Job(
            dataset=out,
            model=out,
            out=out / "checkpoint",
            logs=out,
            train=train,
            cluster=cluster,
            seed=0,
        )
        self.trained: list[int] = []
        self.saved: list[int] = []
        self.notice_at = self.drained_from = self.dies_exporting = 0

    def work(self) -> None:
        join_copies()
        self.trained.clear()
        self.saved.clear()
        loop.work({"job": self.job})

    def make_worker(self, job: Job, heartbeat: loop.Heartbeat) -> Any:
        self._weights = 0

        def save_checkpoint(folder: str, tag: str, **_: Any) -> None:
            (Path(folder) / tag).mkdir(parents=True)
            for name in SHARDS:
                torch.save(self._weights, Path(folder) / tag / name)
            self.saved.append(self._weights)

        def load_checkpoint(folder: str, tag: str, **_: Any) -> None:
            self._weights = torch.load(Path(folder) / tag / SHARDS[0])

        engine = SimpleNamespace(
            global_rank=0,
            world_size=1,
            device="cpu",
            module=torch.nn.Linear(1, 1),
            zero_optimization=lambda: True,
            zero_optimization_stage=lambda: 2,
            save_checkpoint=save_checkpoint,
            load_checkpoint=load_checkpoint,
        )
        observer = SimpleNamespace(begin=lambda step: None, close=lambda: None)
        return SimpleNamespace(
            engine=engine, step=self.step, observer=observer, examples=range(30), held_out=None
        )

    def step(self, step: int) -> dict[str, Any]:
        assert step == self._weights
        self._weights += 1
        self.trained.append(self._weights)
        if self._weights == self.notice_at:
            STOP_REQUESTED.set()
        return {"step": step + 1, "loss": 1 / (step + 1), "tokens": 3, "response_tokens": 2}

    def preemption(self) -> str | None:
        return "told" if self.drained_from and self._weights >= self.drained_from else None

    def export(self, engine: Any, base: Path, out: Path, *_: Any) -> None:
        out.mkdir(parents=True, exist_ok=True)
        if self._weights == self.dies_exporting:
            self.dies_exporting = 0
            raise Killed
        (out / "model").write_text(str(self._weights))

    @property
    def exported(self) -> dict[str, str]:
        return {path.parent.name: path.read_text() for path in sorted(self.job.out.rglob("model"))}


@pytest.fixture(params=["run directory", "local disk"])
def machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Machine:
    disk = str(tmp_path / "disk") if request.param == "local disk" else None
    machine = Machine(tmp_path, disk, checkpoint_every=4, export_every=2)
    alone = SimpleNamespace(
        get_world_size=lambda: 1, get_world_rank=lambda: 0, get_local_world_size=lambda: 1
    )
    monkeypatch.setattr(loop.ray.train, "get_context", lambda: alone)
    monkeypatch.setattr(loop.ray.train, "get_preemption_info", machine.preemption)
    monkeypatch.setattr(loop, "Worker", machine.make_worker)
    monkeypatch.setattr(loop, "prepare_process", lambda cluster: None)
    monkeypatch.setattr(loop, "_send_output", lambda log: None)
    monkeypatch.setattr(export, "export", machine.export)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda *_, **__: None)

    def end(code: int) -> None:
        STOP_REQUESTED.clear()
        raise Killed

    monkeypatch.setattr(os, "_exit", end)
    return machine


WHOLE = {"checkpoint": "8", "step-2": "2", "step-4": "4", "step-6": "6"}


def test_undisturbed_training_leaves_complete_models_only(machine: Machine) -> None:
    machine.work()
    assert machine.exported == WHOLE
    assert machine.saved == [4, 8]
    assert not list(machine.job.out.rglob(".*"))


def test_an_interrupted_export_is_made_on_resume(
    machine: Machine,
) -> None:
    machine.dies_exporting = 4
    with pytest.raises(Killed):
        machine.work()
    assert (machine.job.out / "steps" / ".step-4.partial").exists()
    machine.work()
    assert machine.trained == [5, 6, 7, 8]
    assert machine.exported == WHOLE
    assert not list(machine.job.out.rglob(".*"))


@pytest.mark.parametrize("step", [2, 3, 4, 5])
def test_sigterm_leaves_a_state_and_costs_no_export(step: int, machine: Machine) -> None:
    machine.notice_at = step
    with pytest.raises(Killed):
        machine.work()
    assert machine.saved == ([step] if step <= 4 else [4, step])
    machine.notice_at = 0
    machine.work()
    assert machine.trained == list(range(step + 1, STEPS + 1))
    assert machine.exported == WHOLE


def test_a_failed_copy_ends_training_after_the_step(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if machine.job.cluster.local_states is None:
        pytest.skip("nothing is copied")

    def full(source: Path, target: Path) -> str:
        raise OSError(28, "No space left on device")

    def step(step: int) -> dict[str, Any]:
        join_copies()
        return Machine.step(machine, step)

    monkeypatch.setattr(machine, "step", step)
    monkeypatch.setattr(loop, "Saver", partial(saver.Saver, copy=full))
    with pytest.raises(UserError, match=r"after step 4 from .*: No space left on device"):
        machine.work()
    assert machine.trained == [1, 2, 3, 4, 5]


def test_a_model_that_is_there_already_is_not_exported_again(machine: Machine) -> None:
    machine.dies_exporting = 6
    with pytest.raises(Killed):
        machine.work()
    before = step_directory(machine.job.out, 4).stat().st_ino
    machine.work()
    assert machine.trained == [5, 6, 7, 8]
    assert step_directory(machine.job.out, 4).stat().st_ino == before


def test_an_interrupted_last_export_repeats_no_step(machine: Machine) -> None:
    machine.job = replace(
        machine.job, train=machine.job.train.model_copy(update={"checkpoint_every": 5})
    )
    machine.dies_exporting = STEPS
    with pytest.raises(Killed):
        machine.work()
    assert machine.saved == [5, STEPS]
    machine.work()
    assert machine.trained == []
    assert machine.exported == WHOLE
    assert json.loads((machine.job.out / "training.json").read_text())["steps"] == STEPS


def test_a_draining_node_saves_the_state_once_after_the_step(machine: Machine) -> None:
    machine.drained_from = 3
    machine.work()
    assert machine.saved == [3, 4, 8]
    assert machine.exported == WHOLE


def test_partial_states_and_exports_are_cleared_at_the_start(machine: Machine) -> None:
    for half in ("resume/.step-3.partial", "steps/.step-2.partial"):
        (machine.job.out / half).mkdir(parents=True)
    machine.notice_at = 1
    with pytest.raises(Killed):
        machine.work()
    assert not list(machine.job.out.rglob(".*"))


def test_a_non_finite_loss_names_a_remedy_that_works(machine: Machine) -> None:
    state = machine.job.out / "resume" / "step-4" / "state.json"
    state.parent.mkdir(parents=True)
    state.write_text('{"step": 4, "num_workers": 1, "zero_stage": 2}')
    worker: Any = SimpleNamespace(
        job=machine.job, examples=SimpleNamespace(name=lambda row: f"p{row}/0")
    )
    batch: Any = SimpleNamespace(rows=np.arange(9))
    with pytest.raises(UserError) as failure:
        Worker._check(worker, math.nan, batch, 6, "gradient")
    message = str(failure.value)
    assert message.startswith(
        "training stopped at step 7: the gradient of its batch is nan; the batch was samples "
        "p0/0, p1/0"
    )
    assert (
        "and 1 more; the state after step 4 is kept, from which the same batch follows." in message
    )
    assert (
        f"with a lower train.learning_rate, choose another --out or delete {machine.job.out}"
        in message
    )
    exported = machine.job.out / "steps"
    assert str(exported) not in message
    (exported / "step-3").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"models of earlier steps are in {exported}\. Look"):
        Worker._check(worker, math.nan, batch, 6, "loss")
