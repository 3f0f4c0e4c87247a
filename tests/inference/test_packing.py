"""An engine on several GPUs stays on one node if any node can hold it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from ssd_ray.config import EngineConfig
from ssd_ray.inference.vllm.placement import engine_resources

pytestmark = pytest.mark.real


@pytest.fixture
def two_nodes() -> Iterator[None]:
    """A cluster of two nodes with two logical GPUs each."""
    import ray
    from ray.cluster_utils import Cluster

    limits = {"object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **limits})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=2, num_gpus=2, **limits)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _reserve(gpus: int) -> tuple[Any, Any]:
    groups = engine_resources(EngineConfig(tensor_parallel_size=gpus), "cuda").groups
    assert groups is not None
    strategy: Any = groups()["scheduling_strategy"]
    return groups, strategy.placement_group


def _nodes_of(group: Any) -> set[str]:
    from ray.util import placement_group_table

    return set(placement_group_table(group)["bundles_to_node_id"].values())


def test_an_engine_waits_for_one_node_rather_than_use_two(two_nodes: None) -> None:
    import ray

    one_of_each = ray.util.placement_group([{"GPU": 1}, {"GPU": 1}], strategy="STRICT_SPREAD")
    assert one_of_each.wait(60)
    groups, group = _reserve(2)
    assert not group.wait(3), "the free GPUs are on two nodes"
    ray.util.remove_placement_group(one_of_each)
    assert group.wait(60)
    assert len(_nodes_of(group)) == 1
    groups.release()
    _, larger = _reserve(3)
    assert larger.wait(60), "no node can hold it"
    assert len(_nodes_of(larger)) == 2
