"""What Ray reserves for one engine: plain resources on one device, a placement group with one bundle a worker on several.

A tensor- or pipeline-parallel engine is an actor in the first bundle and, in each bundle, a worker that vLLM starts as an actor
of that actor: Ray ends them with it, and a restarted engine finds the same group. A group outlives its engine, so whoever
starts engines calls `reap` now and then, and `release` at the end. Talks to Ray; writes nothing.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from ssd_ray.config import EngineConfig
from ssd_ray.inference.vllm.arguments import num_workers

_YOUNG_S = 60


@dataclass(frozen=True)
class Resources:
    """`remote_args` are Ray Data's for the engine's actors, `cpus` and `gpus` what one engine takes in all."""

    cpus: float
    gpus: float
    remote_args: dict[str, Any]
    groups: PlacementGroups | None = None


def engine_resources(engine: EngineConfig, device: str) -> Resources:
    """What one engine needs; on several GPUs, `groups` has to be released when no engine is needed any more."""
    if device == "cpu":
        return Resources(engine.cpus, 0, {"num_cpus": engine.cpus})
    if (gpus := num_workers(engine, device)) == 1:
        return Resources(1, 1, {"num_cpus": 1, "num_gpus": 1})
    groups = PlacementGroups(({"CPU": 1.0, "GPU": 1.0}, *[{"GPU": 1.0}] * (gpus - 1)))
    return Resources(1, gpus, {"num_cpus": 1, "num_gpus": 0, "ray_remote_args_fn": groups}, groups)


@dataclass(frozen=True)
class PlacementGroups:
    """Called for each engine that is started: a new group, and the options of the actor that goes into its first bundle.

    Groups and engines share names, by which copies of this object in other places find them.
    """

    bundles: tuple[dict[str, float], ...]
    prefix: str = field(default_factory=lambda: f"engine-{uuid.uuid4().hex[:12]}")

    def __call__(self) -> dict[str, Any]:
        """Reserve a group, which may wait for the cluster to grow, and return the engine's actor options."""
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = f"{self.prefix}-{int(time.time())}-{uuid.uuid4().hex[:8]}"
        group = ray.util.placement_group(list(self.bundles), strategy="PACK", name=name)
        strategy = PlacementGroupSchedulingStrategy(
            group, placement_group_bundle_index=0, placement_group_capture_child_tasks=True
        )
        return {"name": name, "scheduling_strategy": strategy}

    def reap(self, young_s: float = _YOUNG_S) -> int:
        """Give back the groups whose engine is gone for good, except where it may not have started yet; returns how many."""
        import ray

        gone = 0
        for name in self._names():
            old = time.time() - int(name.rsplit("-", 2)[1]) >= young_s
            try:
                ray.get_actor(name)
            except ValueError:
                if old:
                    _remove(name)
                    gone += 1
        return gone

    def release(self) -> None:
        """Give back every group, and end what still runs in them."""
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


def _remove(name: str) -> None:
    import ray

    ray.util.remove_placement_group(ray.util.get_placement_group(name))
