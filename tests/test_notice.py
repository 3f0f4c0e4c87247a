"""Workers that die and runs that are told to leave: how often, and how long, training bears with it."""

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
def test_deaths_of_workers_count_since_the_last_state(allowed: int, tmp_path: Path) -> None:
    from ray.train import FailureConfig

    from ssd_ray.training.worker_group import DeathsInARow

    policy = DeathsInARow(FailureConfig(max_failures=allowed), tmp_path)
    for step in range(1, 6):
        decisions = [policy.make_decision(_death()).value for _ in range(allowed)]
        assert decisions == ["RETRY"] * allowed
        state = tmp_path / "resume" / f"step-{step}" / "state.json"
        state.parent.mkdir(parents=True)
        state.write_text('{"num_workers": 1, "zero_stage": 3}')
    assert [policy.make_decision(_death()).value for _ in range(allowed + 1)] == ["RETRY"] * allowed + ["RAISE"]


def test_a_run_that_is_told_to_leave_waits_as_long_as_the_recipe_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from ssd_ray.training import checkpoints, loop, trainer

    clock = SimpleNamespace(
        now=100.0, monotonic=lambda: clock.now, sleep=lambda seconds: setattr(clock, "now", clock.now + seconds)
    )
    monkeypatch.setattr(trainer, "time", clock)
    cluster = ClusterConfig(device="cpu", notice_s=600)
    job = loop.Job(dataset=tmp_path, model=tmp_path, out=tmp_path, logs=tmp_path, train=TrainConfig(), cluster=cluster, seed=0)
    trainer._await_state(job, LineProgress())  # nothing was trained that is not in a state
    assert clock.now == 100
    checkpoints.append_log(tmp_path, {"loss": 1.0, "tokens": 1})
    trainer._await_state(job, LineProgress())
    assert clock.now == pytest.approx(700, abs=1)
    assert "told to leave, waiting 600 s at most" in capfd.readouterr().err
    assert ClusterConfig().notice_s == 25


def test_a_stopped_job_and_its_pods_are_given_longer_than_training_waits() -> None:
    top = Path(__file__).parent.parent
    documents = [
        document for name in ("rayjob", "raycluster") for document in yaml.safe_load_all((top / f"k8s/{name}.yaml").read_text())
    ]
    clusters = [document["spec"].get("rayClusterSpec", document["spec"]) for document in documents]
    for cluster in clusters:
        head = cluster["headGroupSpec"]["template"]["spec"]
        (gpu,) = (group["template"]["spec"] for group in cluster["workerGroupSpecs"] if group["groupName"] == "gpu-spot")
        named = {each["name"]: each.get("value") for each in head["containers"][0]["env"]}
        wait_s = int(named["RAY_JOB_STOP_WAIT_TIME_S"])
        assert named["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] == named["RAY_JOB_STOP_WAIT_TIME_S"]
        assert ClusterConfig().notice_s < wait_s < head["terminationGracePeriodSeconds"] == gpu["terminationGracePeriodSeconds"]
    options = yaml.safe_load((top / "cluster.yaml").read_text())["docker"]["run_options"]
    assert f"--env=RAY_JOB_STOP_WAIT_TIME_S={wait_s}" in options
