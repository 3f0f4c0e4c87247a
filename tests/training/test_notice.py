"""Crashes of workers and requests to stop: limits, retries and waiting times."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.progress import LineProgress


def _death() -> Any:
    from ray.train import WorkerGroupError

    return WorkerGroupError("gone", {0: RuntimeError("gone")})


@pytest.mark.parametrize("allowed", [0, 2])
def test_worker_crashes_count_since_the_last_state(allowed: int, tmp_path: Path) -> None:
    from ray.train import FailureConfig

    from ssd_ray.training.worker_group import ConsecutiveFailures

    policy = ConsecutiveFailures(FailureConfig(max_failures=allowed), tmp_path)
    for step in range(1, 6):
        decisions = [policy.make_decision(_death()).value for _ in range(allowed)]
        assert decisions == ["RETRY"] * allowed
        state = tmp_path / "resume" / f"step-{step}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text('{"num_workers": 1, "zero_stage": 3}')
    assert [policy.make_decision(_death()).value for _ in range(allowed + 1)] == [
        "RETRY"
    ] * allowed + ["RAISE"]


def _starting(kind: str) -> Any:
    """Return Ray Train's error for a failure while workers start."""
    from ray import exceptions
    from ray.train import ControllerError
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    if kind == "WorkerGroupStartupFailedError":
        return ControllerError(
            WorkerGroupStartupFailedError("at least one of the worker actors failed to initialize")
        )
    base = getattr(exceptions, kind)
    made = type(kind, (base,), {"__init__": lambda self: None, "__str__": lambda self: "gone"})
    return ControllerError(made())


DEATHS = (
    "WorkerGroupStartupFailedError",
    "OutOfMemoryError",
    "NodeDiedError",
    "ActorDiedError",
    "ActorUnavailableError",
    "WorkerCrashedError",
    "ObjectLostError",
    "RaySystemError",
    "ActorUnschedulableError",
    "LocalRayletDiedError",
)


@pytest.mark.parametrize("kind", DEATHS)
def test_crashes_of_starting_workers_count_as_others_do(kind: str, tmp_path: Path) -> None:
    """Ray Train retries RayActorErrors there for ever, and no other kind at all."""
    from ray.train import FailureConfig

    from ssd_ray.training.worker_group import ConsecutiveFailures

    policy = ConsecutiveFailures(FailureConfig(max_failures=2), tmp_path)
    errors = [_starting(kind), _death(), _starting(kind)]
    assert [policy.make_decision(error).value for error in errors] == ["RETRY", "RETRY", "RAISE"]


def test_failed_collectives_count_and_mistakes_do_not(
    tmp_path: Path,
) -> None:
    from ray.exceptions import RayTaskError
    from ray.train import ControllerError, FailureConfig
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    from ssd_ray.errors import UserError
    from ssd_ray.training.worker_group import ConsecutiveFailures

    def raised(cause: Exception) -> Any:
        return ControllerError(RayTaskError("init", "Traceback", cause).as_instanceof_cause())

    policy = ConsecutiveFailures(FailureConfig(max_failures=1), tmp_path)
    assert policy.make_decision(raised(UserError("a mistake"))).value == "RAISE"
    assert policy.make_decision(ControllerError(UserError("a mistake"))).value == "RAISE"
    for _ in range(5):
        assert (
            policy.make_decision(ControllerError(WorkerGroupStartupTimeoutError(2))).value
            == "RETRY"
        )
    assert [policy.make_decision(raised(RuntimeError("peer closed"))).value for _ in range(2)] == [
        "RETRY",
        "RAISE",
    ]


def _job(tmp_path: Path) -> Any:
    from ssd_ray.training.job import Job

    places = dict.fromkeys(("dataset", "model", "out", "logs"), tmp_path)
    return Job(**places, train=TrainConfig(), cluster=ClusterConfig(device="cpu"), seed=0)


@pytest.mark.parametrize("kind", DEATHS[1:])
def test_a_lost_controller_is_an_infrastructure_error(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray import roles
    from ssd_ray.errors import InfrastructureError
    from ssd_ray.training import trainer

    def fit(self: Any) -> None:
        raise _starting(kind).controller_failure

    monkeypatch.setattr(roles, "live_nodes", list)
    monkeypatch.setattr(trainer.SizedTrainer, "__init__", lambda self, *_, **__: None)
    monkeypatch.setattr(trainer.SizedTrainer, "fit", fit)
    message = (
        rf"training's controller was lost \({kind}: gone\); the workers' logs are in .*, and "
        r"running again resumes from step 0"
    )
    with pytest.raises(InfrastructureError, match=message):
        trainer._run(_job(tmp_path), LineProgress())


def test_the_report_names_the_cause_of_a_crash(tmp_path: Path) -> None:
    from ray.exceptions import OutOfMemoryError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    from ssd_ray.training import trainer

    failure = WorkerHealthCheckFailedError(
        "A worker health check failed.", OutOfMemoryError("1 worker(s) were killed\nmore")
    )
    message = str(trainer._explained(WorkerGroupError("gone", {1: failure}), _job(tmp_path)))
    assert (
        "without a new state (OutOfMemoryError: 1 worker(s) were killed); the workers' logs"
        in message
    )


def test_a_run_asked_to_stop_waits_as_the_recipe_sets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ssd_ray.training import trainer
    from ssd_ray.training.job import Job
    from ssd_ray.training.state import logs

    clock = SimpleNamespace(
        now=100.0,
        monotonic=lambda: clock.now,
        sleep=lambda seconds: setattr(clock, "now", clock.now + seconds),
    )
    monkeypatch.setattr(trainer, "time", clock)
    cluster = ClusterConfig(device="cpu", notice_s=600)
    job = Job(
        dataset=tmp_path,
        model=tmp_path,
        out=tmp_path,
        logs=tmp_path,
        train=TrainConfig(),
        cluster=cluster,
        seed=0,
    )
    trainer._await_state(job, LineProgress())  # every trained step is in a state
    assert clock.now == 100
    logs.append_log(tmp_path, {"loss": 1.0, "tokens": 1})
    trainer._await_state(job, LineProgress())
    assert clock.now == pytest.approx(700, abs=1)
    assert "asked to stop, waiting at most 600 s" in capfd.readouterr().err
    assert ClusterConfig().notice_s == 25


def test_a_stop_waits_no_longer_than_for_all_steps_in_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ssd_ray.training import trainer
    from ssd_ray.training.state import logs, resume

    waits: list[float] = []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        state = tmp_path / "resume" / f"step-{len(waits)}" / "state.json"
        state.parent.mkdir()
        state.write_text('{"num_workers": 1, "zero_stage": 3}')

    monkeypatch.setattr(trainer, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=sleep))
    for _ in range(3):
        logs.append_log(tmp_path, {"loss": 1.0, "tokens": 1})
    trainer._await_state(_job(tmp_path), LineProgress())
    assert len(waits) == 3
    assert resume.stop_requested(tmp_path)


def test_the_screen_has_the_sentence_of_a_bad_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ssd_ray.training import trainer
    from ssd_ray.training.observe.heartbeat import Heartbeat

    monkeypatch.setattr(trainer, "POLL_S", 0.01)
    job = _job(tmp_path)
    progress = LineProgress()
    task = SimpleNamespace(wait=lambda phase: None, update=lambda *_, **__: None)
    with trainer._follow(job, 0, task, progress):
        beat = Heartbeat(tmp_path, 0)
        beat.say("the state after step 6 is bad")
        beat.phase("loading the model")
        beat.begin_step(5, 100)
        beat.advance(0.5)
    shown = capfd.readouterr().err
    assert shown.count("train: the state after step 6 is bad") == 1


def test_stopped_jobs_have_more_grace_than_training() -> None:
    """For pods, see tests/cluster/test_overlay_promises.py."""
    top = Path(__file__).parents[2]
    options = yaml.safe_load((top / "cluster.yaml").read_text())["docker"]["run_options"]
    (wait,) = [each for each in options if each.startswith("--env=RAY_JOB_STOP_WAIT_TIME_S=")]
    assert ClusterConfig().notice_s < int(wait.rpartition("=")[2])
