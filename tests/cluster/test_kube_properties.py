"""Properties of the double's operator and store, over random histories."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from tests.support.played_cluster import PlayedCluster
from tests.support.ray_manifests import ray_cluster, worker_group

GROUPS = ("spot", "steady")
_ACTIONS = st.one_of(
    st.tuples(st.just("scale"), st.integers(0, 1), st.integers(0, 6), st.booleans()),
    st.tuples(st.just("fail"), st.integers(0, 5)),
    st.tuples(st.just("evict"), st.integers(0, 5)),
    st.sampled_from([("run",), ("finalize",), ("step",)]),
)


def _play(cluster: PlayedCluster, action: tuple[Any, ...]) -> None:
    pods = cluster.pods()
    if action[0] == "scale":
        _, index, replicas, names_some = action
        victims = cluster.names(GROUPS[index])[replicas:] if names_some else []
        cluster.scale(index, replicas, victims)
    elif action[0] in ("fail", "evict") and action[1] < len(pods):
        name = pods[action[1]]["metadata"]["name"]
        if action[0] == "fail":
            cluster.end(name)
        else:
            cluster.store.delete("pods", "default", name)
    elif action[0] == "run":
        cluster.run_pods()
    elif action[0] == "finalize":
        cluster.finalize_all()
    cluster.operator.step()


@settings(max_examples=40, deadline=None)
@given(st.lists(_ACTIONS, max_size=12))
@pytest.mark.slow
def test_replicas_are_met_whatever_happens_in_between(actions: list[tuple[Any, ...]]) -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 1), worker_group("steady", 2)))
    for action in actions:
        _play(cluster, action)
        uid = cluster.object()["metadata"]["uid"]
        for pod in cluster.pods():
            assert [owner["uid"] for owner in pod["metadata"]["ownerReferences"]] == [uid]
    for _ in range(6):
        cluster.run_pods()
        cluster.finalize_all()
        cluster.operator.step()
    groups = cluster.object()["spec"]["workerGroupSpecs"]
    for group in groups:
        wanted = min(group["replicas"], group["maxReplicas"])
        # Surplus pods are the autoscaler's to name.
        assert len(cluster.pods(group["groupName"])) >= wanted
    assert len(cluster.pods("headgroup")) == 1
    deleted = [
        obj["metadata"]["uid"]
        for _, event, obj in cluster.store.watch("pods", 1, timeout_s=0)
        if event == "DELETED"
    ]
    assert len(deleted) == len(set(deleted))


@settings(max_examples=25, deadline=None)
@given(st.lists(_ACTIONS, max_size=10))
@pytest.mark.slow
def test_nothing_is_left_of_a_deleted_cluster(actions: list[tuple[Any, ...]]) -> None:
    cluster = PlayedCluster(ray_cluster("c", worker_group("spot", 1), worker_group("steady", 2)))
    for action in actions:
        _play(cluster, action)
    cluster.store.delete("rayclusters", "default", "c")
    cluster.operator.step()
    cluster.finalize_all()
    cluster.operator.step()
    assert cluster.pods() == []
