"""A gang of training workers that waits says each minute what is missing, and since when."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest.mock import Mock

import pytest
import ray

from ssd_ray.cluster import waiting
from ssd_ray.cluster.room import training_need
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.training import gang
from ssd_ray.training.gang import GangWatch

NEED = training_need(TrainConfig(global_batch_size=8), ClusterConfig(train_workers=4))
TRAINERS = {"Alive": True, "NodeID": "t", "Labels": {"ssd-ray/role": "trainer"}}


class Scene:
    """A clock, nodes and placement groups in place of Ray's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Noon on any day, wherever the test runs.
        self.now = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))
        self.groups: dict[str, dict[str, Any]] = {}
        self.nodes: list[dict[str, Any]] = []
        self.lines: list[str] = []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(waiting, "time", Mock(wraps=time, time=lambda: self.now))
        monkeypatch.setattr(gang, "placement_group_table", lambda: self.groups)
        monkeypatch.setattr(ray, "nodes", lambda: self.nodes)
        self.watch = GangWatch(NEED, self.lines.append, 600)

    def wait(self, seconds: int) -> list[str]:
        """Look every ten seconds; return the new lines."""
        self.lines.clear()
        for _ in range(0, seconds, 10):
            self.watch.look()
            self.now += 10
        return self.lines


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(monkeypatch)


def _group(state: str, workers: int, **bundle: float) -> dict[str, Any]:
    return {"state": state, "bundles": dict.fromkeys(range(workers), bundle)}


def test_a_line_a_minute_has_the_missing_workers(scene: Scene) -> None:
    scene.nodes = [{**TRAINERS, "Resources": {"GPU": 3.0, "CPU": 8.0}}]
    scene.groups = {"ours": _group("PENDING", 4, GPU=1.0, CPU=1.0)}
    assert scene.wait(60) == []
    text = (
        "training needs 4 workers of 1 GPU and 1 core each, all or none: nodes of role "
        "trainer hold 3, 1 is missing since 12:00"
    )
    assert scene.wait(120) == [f"{text} (1 min)", f"{text} (2 min)"]


def test_a_gang_in_place_says_nothing(scene: Scene) -> None:
    scene.groups = {"ours": _group("CREATED", 4, GPU=1.0, CPU=1.0)}
    assert scene.wait(300) == []
    # A node is lost, and the workers wait again.
    scene.groups = {
        "ours": _group("RESCHEDULING", 4, GPU=1.0, CPU=1.0),
        "engine": _group("CREATED", 4, GPU=1.0),
        "smaller": _group("CREATED", 3, GPU=1.0, CPU=1.0),
    }
    (line,) = scene.wait(70)
    assert line.endswith("each, all or none: the nodes hold 0, 4 are missing since 12:05 (1 min)")


def test_nodes_in_use_by_others_are_named(scene: Scene) -> None:
    scene.nodes = [{"Alive": True, "NodeID": "t", "Resources": {"GPU": 8.0, "CPU": 8.0}}]
    (line,) = scene.wait(70)
    assert line.endswith("the nodes hold 8, and are in use since 12:00 (1 min)")


def test_a_gang_that_waits_until_the_deadline_ends_the_run(scene: Scene) -> None:
    assert len(scene.wait(600)) == 9
    with pytest.raises(InfrastructureError) as failure:
        scene.wait(10)
    assert str(failure.value).endswith(
        "the nodes hold 0, 4 are missing since 12:00 (10 min), the deadline of "
        "cluster.nodes_timeout_s 600: start nodes, or raise it"
    )


def test_the_deadline_ends_the_wait_of_the_main_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's own wait is deaf to exceptions of other threads."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(gang, "_POLL_S", 0.01)
    monkeypatch.setattr(gang, "placement_group_table", dict)
    monkeypatch.setattr(ray, "nodes", list)
    begun = time.monotonic()
    with (
        pytest.raises(InfrastructureError, match=r"cluster\.nodes_timeout_s 0\.1: start nodes"),
        gang.reported(NEED, pytest.fail, 0.1),
    ):
        time.sleep(60)
    assert time.monotonic() - begun < 30
    # Ctrl-C of the user stays what it is.
    with pytest.raises(KeyboardInterrupt), gang.reported(NEED, pytest.fail, None):
        raise KeyboardInterrupt


def test_the_report_ends_with_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = threading.Semaphore(0)
    monkeypatch.setattr(gang, "_POLL_S", 0.01)

    def lost_head() -> None:
        looks.release()
        raise RuntimeError("no head")

    monkeypatch.setattr(gang, "placement_group_table", lost_head)
    with gang.reported(NEED, pytest.fail, None):
        assert looks.acquire(timeout=30)
        assert looks.acquire(timeout=30)
    assert "gang" not in [thread.name for thread in threading.enumerate()]
