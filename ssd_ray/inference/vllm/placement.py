"""Reserve resources of Ray for an engine: plain on one device, a placement group on several.

- A parallel engine is an actor in the first bundle. vLLM starts a worker actor in each bundle.
- If any node can hold a group, the group is on one node.
- The actor owns the workers: Ray ends them with it, and a restarted engine uses the same group.
- A group outlives its engine. Whoever starts engines calls `reap` now and then, and `release`
  at the end.

Calls Ray; accesses no files.
"""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from typing import Literal

from ssd_ray import roles
from ssd_ray.cluster.room import Need
from ssd_ray.config import ClusterConfig, EngineConfig, RolesChoice
from ssd_ray.inference.vllm.arguments import num_workers

_YOUNG_S = 60


@dataclass(frozen=True)
class Resources:
    """Resources of one engine: CPUs, GPUs, and the options of its actor in Ray Data."""

    cpus: float
    gpus: float
    remote_args: dict[str, object]
    groups: PlacementGroups | None = None
    roles: RolesChoice = "auto"

    @property
    def need(self) -> Need:
        """The workers of one engine: one process, or on several GPUs a process on each."""
        if self.gpus > 1:
            return Need(
                subject="an engine",
                workers=int(self.gpus),
                bundle={"GPU": 1},
                fields="engine.tensor_parallel_size × engine.pipeline_parallel_size",
                role=roles.SAMPLER,
                roles=self.roles,
            )
        amounts = {"GPU": self.gpus, "CPU": self.cpus}
        return Need(
            subject="an engine",
            workers=1,
            bundle={name: amount for name, amount in amounts.items() if amount},
            fields="cluster.device" if self.gpus else "engine.cpus",
            role=roles.SAMPLER,
            roles=self.roles,
        )


def engine_resources(engine: EngineConfig, device: str, choice: RolesChoice = "auto") -> Resources:
    """Return the resources of one engine; `choice` is `cluster.roles`.

    On several GPUs, `groups` has to be released once no engine is needed.
    """
    first = roles.engine_bundle(engine, device)
    cpus = first["CPU"]
    if device == "cpu":
        return Resources(cpus, 0, {"num_cpus": cpus}, roles=choice)
    if (gpus := num_workers(engine, device)) == 1:
        return Resources(cpus, 1, {"num_cpus": cpus, "num_gpus": 1}, roles=choice)
    groups = PlacementGroups((first, *[{"GPU": 1.0}] * (gpus - 1)), roles=choice)
    arguments = {"num_cpus": cpus, "num_gpus": 0, "ray_remote_args_fn": groups}
    return Resources(cpus, gpus, arguments, groups, choice)


def most_cpu_engines(engine: EngineConfig, cluster: ClusterConfig, cores: int) -> int:
    """Return the largest number of CPU engines on a machine, by its cores and the recipe."""
    return min(cluster.max_engines, max(1, int(cores // engine.cpus)))


def remedy(engine: EngineConfig, device: str, most: int) -> str:
    """Return options that divide an engine over at most `most` GPUs, or reserve fewer cores."""
    if device == "cpu":
        return "lower engine.cpus, or use larger machines"
    # Divisors of the sizes, because layers and heads are divided evenly.
    tensors = _divisors(engine.tensor_parallel_size)
    pipelines = _divisors(engine.pipeline_parallel_size)
    fitting = [each for each in product(tensors, pipelines) if prod(each) <= most]
    if not fitting:
        return "use machines with GPUs, or set cluster.device=cpu"
    tensor, pipeline = max(fitting, key=lambda each: (prod(each), each))
    options = f"--set engine.tensor_parallel_size={tensor}"
    if pipeline != engine.pipeline_parallel_size:
        options += f" --set engine.pipeline_parallel_size={pipeline}"
    return f"run with {options}"


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


@dataclass(frozen=True)
class PlacementGroups:
    """Make a placement group for each starting engine, as an options function of Ray Data.

    Groups and engines share names, by which copies of this object elsewhere find them.
    """

    bundles: tuple[dict[str, float], ...]
    prefix: str = field(default_factory=lambda: f"engine-{uuid.uuid4().hex[:12]}")
    roles: RolesChoice = "auto"

    def __call__(self) -> dict[str, object]:
        """Reserve a group and return the options of its engine.

        Ray may wait for the cluster to grow.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = f"{self.prefix}-{int(time.time())}-{uuid.uuid4().hex[:8]}"
        labels = roles.selector(roles.SAMPLER, self.roles)
        nodes = [node["Resources"] for node in roles.live_nodes(labels)]
        group = ray.util.placement_group(
            list(self.bundles),
            strategy=packing(self.bundles, nodes),
            name=name,
            bundle_label_selector=roles.for_each(self.bundles, labels),
        )
        strategy = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return {"name": name, "scheduling_strategy": strategy}

    def reap(self, young_s: float = _YOUNG_S) -> int:
        """Release groups without an engine, except young ones, and return their number."""
        import ray

        gone = 0
        for name in self._names():
            old = time.time() - int(name.rsplit("-", 2)[1]) >= young_s
            # An engine that restarts keeps its name, so its group stays.
            try:
                ray.get_actor(name)
            except ValueError:
                if old:
                    _remove(name)
                    gone += 1
        return gone

    def release(self) -> None:
        """Release every group, and end processes still running in them."""
        for name in self._names():
            _remove(name)

    def _names(self) -> list[str]:
        from ray.util import placement_group_table

        table = placement_group_table().values()
        return [
            row["name"]
            for row in table
            if row["name"].startswith(self.prefix) and row["state"] != "REMOVED"
        ]


def spans_nodes() -> bool:
    """Return True if the placement group of this process has bundles on several nodes."""
    import ray
    from ray.util import placement_group_table

    group = ray.util.get_current_placement_group() if ray.is_initialized() else None
    if group is None:
        return False
    return len(set(placement_group_table(group)["bundles_to_node_id"].values())) > 1


def packing(
    bundles: Iterable[Mapping[str, float]], nodes: Iterable[Mapping[str, float]]
) -> Literal["PACK", "STRICT_PACK"]:
    """Return Ray's strategy for the bundles of an engine, given the resources of all nodes.

    Where a node can hold the engine, it waits for room on one node. Spread over the free GPUs of
    two nodes, its layers would exchange every activation over the network.
    """
    needed: Counter[str] = Counter()
    for bundle in bundles:
        needed.update(bundle)
    for node in nodes:
        if all(node.get(name, 0) >= amount for name, amount in needed.items()):
            return "STRICT_PACK"
    return "PACK"


def _remove(name: str) -> None:
    import ray

    ray.util.remove_placement_group(ray.util.get_placement_group(name))
