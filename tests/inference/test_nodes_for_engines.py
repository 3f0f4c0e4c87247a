"""A pool without a node for any engine says so each minute, and ends at a deadline."""

from __future__ import annotations

import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import ray

from ssd_ray.cluster import waiting
from ssd_ray.cluster.waiting import Waiting
from ssd_ray.config import EngineConfig
from ssd_ray.errors import InfrastructureError
from ssd_ray.inference.crashes import cluster_state
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.vllm.placement import engine_resources
from ssd_ray.inference.watch import PoolWatch
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from tests.support.doubles import InstantEngine


class Scene:
    """A clock, nodes and heartbeats in place of a cluster's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, control: Path) -> None:
        # Noon on any day, wherever the test runs.
        self.now = time.mktime((2026, 1, 1, 12, 0, 0, 0, 0, -1))
        self.nodes: frozenset[str] | None = frozenset()
        self.control = control
        self.lines: list[str] = []
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(waiting, "time", Mock(wraps=time, time=lambda: self.now))
        monkeypatch.setattr(cluster_state, "nodes", lambda: self.nodes)
        head = {"Alive": True, "Labels": {"ssd-ray/role": "driver"}, "Resources": {}}
        monkeypatch.setattr(ray, "nodes", lambda: [head])
        spec = EngineSpec(make_engine=InstantEngine, control=control, logs=control, attempt="one")
        need = engine_resources(EngineConfig(), "cuda").need
        self.watch = PoolWatch(spec, 3, LineProgress(), dict, Waiting(need, self.lines.append, 600))

    def engine(self, node: str, attempt: str = "one") -> Reporter:
        """Start the heartbeat of an engine."""
        return Reporter(self.control, f"actor on {node}", node=node, attempt=attempt)

    def wait(self, seconds: int) -> list[str]:
        """Look every ten seconds; return the new lines."""
        self.lines.clear()
        self.watch.history(fresh=True)
        for _ in range(0, seconds, 10):
            self.watch.look_for_nodes()
            self.now += 10
        return self.lines


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Scene:
    return Scene(monkeypatch, tmp_path)


def test_no_capacity_is_said_each_minute_and_has_a_deadline(scene: Scene) -> None:
    scene.engine("gone", attempt="earlier")
    text = (
        "an engine needs 1 worker of 1 GPU and 1 core: nodes of role sampler hold 0, 1 is missing "
        "since 12:00"
    )
    assert scene.wait(130) == [f"{text} (1 min)", f"{text} (2 min)"]
    with pytest.raises(InfrastructureError) as failure:
        scene.wait(500)
    assert str(failure.value) == (
        f"{text} (10 min), the deadline of cluster.nodes_timeout_s 600: start nodes, or raise it"
    )


def test_engines_on_a_live_node_need_no_line(scene: Scene) -> None:
    scene.nodes = frozenset({"spot"})
    scene.engine("spot")
    assert scene.wait(900) == []
    # All spot nodes are taken at once.
    scene.nodes = frozenset()
    (line,) = scene.wait(70)
    assert line.endswith("hold 0, 1 is missing since 12:15 (1 min)")
    # A new one joins, and its engine starts.
    scene.nodes = frozenset({"new"})
    scene.engine("new")
    assert scene.wait(900) == []


def test_the_time_without_a_head_does_not_count(scene: Scene) -> None:
    scene.nodes = None
    assert scene.wait(1200) == []


def test_an_engine_that_ended_has_left_its_node(scene: Scene) -> None:
    scene.nodes = frozenset({"spot"})
    scene.engine("spot").become("ended")
    assert len(scene.wait(70)) == 1
