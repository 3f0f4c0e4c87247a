"""Reserve resources of Ray for an engine: plain on one device, a placement group on several.

- A parallel engine is an actor in the first bundle. vLLM starts a worker actor in each bundle.
- The actor owns the workers: Ray ends them with it, and a restarted engine uses the same group.
- A group outlives its engine. Whoever starts engines calls `reap` now and then, and `release`
  at the end.

Talks to Ray; writes nothing.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field

from ssd_ray.config import EngineConfig
from ssd_ray.inference.vllm.arguments import num_workers

_YOUNG_S = 60


@dataclass(frozen=True)
class Resources:
    """Resources of one engine: CPUs, GPUs, and the options of its actor in Ray Data."""

    cpus: float
    gpus: float
    remote_args: dict[str, object]
    groups: PlacementGroups | None = None


def engine_resources(engine: EngineConfig, device: str) -> Resources:
    """Return the resources of one engine.

    On several GPUs, `groups` has to be released once no engine is needed.
    """
    if device == "cpu":
        return Resources(engine.cpus, 0, {"num_cpus": engine.cpus})
    if (gpus := num_workers(engine, device)) == 1:
        return Resources(1, 1, {"num_cpus": 1, "num_gpus": 1})
    groups = PlacementGroups(({"CPU": 1.0, "GPU": 1.0}, *[{"GPU": 1.0}] * (gpus - 1)))
    return Resources(1, gpus, {"num_cpus": 1, "num_gpus": 0, "ray_remote_args_fn": groups}, groups)


@dataclass(frozen=True)
class PlacementGroups:
    """Make a placement group for each starting engine, as an options function of Ray Data.

    Groups and engines share names, by which copies of this object elsewhere find them.
    """

    bundles: tuple[dict[str, float], ...]
    prefix: str = field(default_factory=lambda: f"engine-{uuid.uuid4().hex[:12]}")

    def __call__(self) -> dict[str, object]:
        """Reserve a group and return the options of its engine.

        Ray may wait for the cluster to grow.
        """
        import ray
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        name = f"{self.prefix}-{int(time.time())}-{uuid.uuid4().hex[:8]}"
        group = ray.util.placement_group(list(self.bundles), strategy="PACK", name=name)
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


def _remove(name: str) -> None:
    import ray

    ray.util.remove_placement_group(ray.util.get_placement_group(name))
