"""Workers that a cluster can never hold are refused; a wait for its growth is reported."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import roles
from ssd_ray.cluster import growth, ray_internals, room
from ssd_ray.cluster.cluster_files import read_cluster
from ssd_ray.cluster.growth import Group, Growth
from ssd_ray.cluster.room import Need, check_room, holding, largest, training_need
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import InfrastructureError, UserError
from tests.support.fleet import Fleet

GPUS = Need(
    subject="training",
    workers=4,
    bundle={"GPU": 1, "CPU": 1},
    fields="cluster.train_workers",
    role=roles.TRAINER,
    roles="auto",
)

GROWING = Growth(has_autoscaler=True)
UNKNOWN = Growth(has_autoscaler=None)


class Cluster:
    """Present nodes and growth of a cluster, in place of Ray's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes: list[Mapping[str, float]] = []
        self.growth = [Growth(has_autoscaler=False)]
        self.clock = 0.0
        self.is_lost = False
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr(ray, "nodes", self._alive)
        monkeypatch.setattr(room, "read_growth", self._read_growth)
        clock = Mock(wraps=time, monotonic=lambda: self.clock, sleep=self._sleep)
        monkeypatch.setattr(room, "time", clock)
        monkeypatch.setattr(room.address, "check_still_answers", self._answer)

    def _alive(self) -> list[Mapping[str, object]]:
        dead = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
        return [dead, *({"Alive": True, "Resources": node} for node in self.nodes)]

    def _read_growth(self) -> Growth:
        return self.growth.pop(0) if len(self.growth) > 1 else self.growth[0]

    def _answer(self, _say: object) -> None:
        if self.is_lost:
            raise InfrastructureError("no longer answers")

    def _sleep(self, seconds: float) -> None:
        self.clock += seconds

    def check(self, need: Need = GPUS) -> list[str]:
        lines: list[str] = []
        check_room(need, lines.append, lambda most: f"take {most}")
        return lines


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    return Cluster(monkeypatch)


def test_a_local_ray_is_refused_at_once(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS")
    cluster.nodes = [{"CPU": 8, "GPU": 2}]
    with pytest.raises(UserError) as refusal:
        cluster.check()
    assert str(refusal.value) == (
        "training needs 4 workers of 1 GPU and 1 core each (cluster.train_workers), and this "
        "machine holds 2: take 2"
    )
    assert cluster.clock == 0


def test_a_cluster_without_an_autoscaler_is_refused(cluster: Cluster) -> None:
    cluster.nodes = [{"CPU": 8, "GPU": 2}, {"CPU": 8}]
    with pytest.raises(UserError, match="the cluster at RAY_ADDRESS holds 2 and has no autoscaler"):
        cluster.check()
    assert cluster.clock >= room.JOIN_S


def test_a_cluster_lost_while_nodes_join_is_not_asked(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's C++ would wait for its head, and then end the process."""
    cluster.nodes = [{"CPU": 8, "GPU": 2}]

    def lose(_seconds: float) -> None:
        cluster.is_lost = True
        monkeypatch.setattr(ray, "nodes", lambda: pytest.fail("Ray was asked"))

    monkeypatch.setattr(room.time, "sleep", lose)
    with pytest.raises(InfrastructureError, match="no longer answers"):
        cluster.check()


def test_nodes_that_join_in_time_are_waited_for(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes = [{"CPU": 8, "GPU": 2}]
    monkeypatch.setattr(room.time, "sleep", lambda _: cluster.nodes.append({"CPU": 8, "GPU": 2}))
    (line,) = cluster.check()
    assert line.endswith("waiting 60 s for nodes to join, the cluster holds 2 now")


def test_growth_without_a_stated_maximum_is_waited_for(cluster: Cluster) -> None:
    cluster.growth = [GROWING]
    (line,) = cluster.check()
    assert line.endswith("each: waiting for the cluster to grow, it holds 0 now")
    assert cluster.clock == 0


def test_growth_stops_at_the_stated_maximum(cluster: Cluster) -> None:
    groups = [Group(resources={"CPU": 16, "GPU": 1}, most=3)]
    groups += [Group(resources={"CPU": 16}, most=math.inf)]
    cluster.growth = [Growth(has_autoscaler=True, groups=tuple(groups))]
    with pytest.raises(UserError, match="holds 3 at its largest: take 3"):
        cluster.check()
    # The head is not among the groups.
    cluster.nodes = [{"CPU": 2, "GPU": 1, "node:__internal_head__": 1}]
    (line,) = cluster.check()
    assert line.endswith("waiting for the cluster to grow, it holds 1 now")


def test_the_largest_cluster_has_few_nodes_of_the_best_groups() -> None:
    groups = tuple(
        Group(resources={"CPU": 64, "GPU": gpus}, most=most)
        for gpus, most in ((1, 4), (8, 1), (2, 5), (0, math.inf))
    )
    assert [
        largest({"GPU": 1}, Growth(has_autoscaler=True, groups=groups, most_nodes=nodes))
        for nodes in (0, 1, 3, 7, math.inf)
    ] == [0, 8, 12, 19, 22]


def test_an_autoscaler_that_has_not_reported_yet_is_awaited(cluster: Cluster) -> None:
    cluster.growth = [UNKNOWN, UNKNOWN, Growth(has_autoscaler=False)]
    with pytest.raises(UserError, match="no autoscaler"):
        cluster.check()
    cluster.growth = [UNKNOWN, UNKNOWN, GROWING]
    cluster.clock = 0
    assert "waiting for the cluster to grow" in cluster.check()[-1]
    assert cluster.clock < room.JOIN_S
    # Without any report, such as under --no-monitor, nothing is refused.
    cluster.growth = [UNKNOWN]
    assert "waiting for the cluster to grow" in cluster.check()[-1]


def test_enough_present_nodes_need_no_autoscaler(cluster: Cluster) -> None:
    cluster.nodes = [{"CPU": 2, "GPU": 2}] * 2
    cluster.growth = [UNKNOWN]
    assert cluster.check() == []


def test_a_worker_does_not_span_nodes(cluster: Cluster) -> None:
    cluster.nodes = [{"CPU": 3}, {"CPU": 3}]
    need = training_need(
        TrainConfig(), ClusterConfig(device="cpu", train_workers=4, cpus_per_train_worker=1.5)
    )
    assert cluster.check(need) == []
    need = training_need(
        TrainConfig(), ClusterConfig(device="cpu", train_workers=4, cpus_per_train_worker=2)
    )
    with pytest.raises(UserError, match=r"4 workers of 2 cores each .*holds 2 and has no"):
        cluster.check(need)


def test_an_elastic_training_needs_its_fewest_workers() -> None:
    elastic = ClusterConfig(train_workers=8, min_train_workers=3)
    assert training_need(TrainConfig(global_batch_size=32), elastic).workers == 4


@given(st.integers(0, 20), st.integers(0, 8), st.sampled_from([0.1, 0.3, 0.5, 1, 2, 3]))
def test_holding_counts_bundles_taken_one_by_one(cpus: int, gpus: int, cores: float) -> None:
    taken = 0
    tenths = round(cores * 10)
    while cpus * 10 >= (taken + 1) * tenths and gpus > taken:
        taken += 1
    assert holding({"CPU": cores, "GPU": 1}, {"CPU": cpus, "GPU": gpus}) == taken


def test_the_largest_size_is_in_the_file_of_the_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Path(__file__).parents[2] / "cluster.yaml"
    process = tmp_path / "7"
    process.mkdir()
    arguments = ["python", "-u", "/opt/ray/autoscaler/v2/monitor.py", "--gcs-address=10.0.0.1:6379"]
    monkeypatch.setattr(growth, "_PROC", tmp_path)
    monkeypatch.setattr(ray_internals, "stated_groups", list)
    monkeypatch.setattr(ray_internals, "has_autoscaler", lambda: None)
    context = SimpleNamespace(gcs_address="10.0.0.1:6379")
    monkeypatch.setattr(ray, "get_runtime_context", lambda: context)
    assert growth.read_growth() == UNKNOWN
    (process / "cmdline").write_text("\0".join(arguments))
    assert growth.read_growth() == Growth(has_autoscaler=False)
    (process / "cmdline").write_text("\0".join([*arguments, f"--autoscaling-config={path}"]))
    launched = growth.read_growth()
    assert launched.most_nodes == 10
    assert growth.own_cluster() == replace(read_cluster(path), groups=launched.groups)
    # Six nodes of eight GPUs, of all roles together.
    assert largest({"GPU": 1, "CPU": 1}, launched) == 48
    (process / "cmdline").write_text("\0".join([*arguments, "--autoscaling-config=/none.yaml"]))
    assert growth.read_growth() == GROWING
    context.gcs_address = "10.0.0.2:6379"
    assert growth.read_growth() == UNKNOWN


ASK = """
import json, sys, time
from pathlib import Path
from ssd_ray import cluster
from ssd_ray import roles
from ssd_ray.cluster import growth, room

with cluster.connected():
    here = room.room_for({"GPU": 1})
    print(json.dumps([here.now, here.most, here.limit]))
    growth._PROC = Path("/proc/none")  # as on another node than the head
    until = time.monotonic() + 30
    while growth.read_growth().has_autoscaler is None and time.monotonic() < until:
        time.sleep(0.2)
    here = room.room_for({"GPU": 1})
    print(json.dumps([here.now, here.most, here.limit]))
"""
STATE_GROUPS = """
import os
import ray
from ray.core.generated.autoscaler_pb2 import ClusterConfig, NodeGroupConfig

group = NodeGroupConfig(name="engine", resources={"CPU": 1, "GPU": 1}, max_count=7)
config = ClusterConfig(node_group_configs=[group]).SerializeToString()
client = ray._raylet.GcsClient(os.environ["RAY_ADDRESS"])
client.internal_kv_put(b"__autoscaler_cluster_config", config, True, b"__autoscaler")
"""


def _answers(code: str, fleet: Fleet) -> list[object]:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=fleet.environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.real
@pytest.mark.parametrize("version", [1, 2])
def test_a_head_without_an_autoscaler_does_not_grow(tmp_path: Path, version: int) -> None:
    with Fleet(tmp_path, head={"cpus": 2, "gpus": 2}, version=version) as fleet:
        assert _answers(ASK, fleet) == [[2, 2, " and has no autoscaler"]] * 2


@pytest.mark.real
def test_a_head_with_an_autoscaler_grows(tmp_path: Path) -> None:
    with Fleet(tmp_path, most=3) as fleet:
        # The maximum is in a file of the head.
        assert _answers(ASK, fleet) == [[0, 3, " at its largest"], [0, math.inf, ""]]
        _answers(STATE_GROUPS, fleet)
        assert _answers(ASK, fleet) == [[0, 7, " at its largest"]] * 2


RUN = """
import sys
from ssd_ray.cli.app import main
from ssd_ray.cluster import room

room.JOIN_S = 8
main(sys.argv[1:])
"""


@pytest.mark.real
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            ["cluster.device=cuda", "cluster.train_workers=4"],
            "error: training needs 4 workers of 1 GPU and 1 core each (cluster.train_workers), and "
            "the cluster at RAY_ADDRESS holds 2 and has no autoscaler: run with --set "
            "cluster.train_workers=2",
        ),
        (
            ["engine.cpus=2", "cluster.cpus_per_train_worker=2"],
            "error: training needs 2 workers of 2 cores each (cluster.train_workers, "
            "cluster.cpus_per_train_worker), and the cluster at RAY_ADDRESS holds 1 and has no "
            "autoscaler: run with --set cluster.train_workers=1",
        ),
        (
            ["cluster.device=cuda", "engine.tensor_parallel_size=4"],
            "error: an engine needs 4 workers of 1 GPU each (engine.tensor_parallel_size × "
            "engine.pipeline_parallel_size), and the cluster at RAY_ADDRESS holds 2 and has no "
            "autoscaler: run with --set engine.tensor_parallel_size=2",
        ),
    ],
)
def test_a_run_refuses_a_cluster_before_anything_is_made(
    tmp_path: Path, tiny_llama: Path, overrides: list[str], sentence: str
) -> None:
    from tests.support.tiny_run import RECIPE

    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(model=tiny_llama))
    out = tmp_path / "run"
    command = [sys.executable, "-c", RUN, "run", str(recipe), "--out", str(out)]
    command += [part for choice in overrides for part in ("--set", choice)]
    with Fleet(tmp_path, head={"cpus": 2, "gpus": 2}) as fleet:
        environment = {**os.environ, **fleet.environment}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stdout + done.stderr[-3000:]
    assert done.stderr.splitlines()[-1] == sentence
    assert {path.name for path in out.glob("*")} <= {".lock", "owner.json", "logs"}
