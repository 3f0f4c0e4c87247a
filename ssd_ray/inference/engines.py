"""Pools of engines of a run: one for each model, shared by all steps that draw from it.

- `EngineSettings` decides whether two steps share a pool. The decoding is not part of it.
- The engines of a model end once no step is left that draws from it.

Writes `.engines/` of the run directory.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ssd_ray import models
from ssd_ray.config import ClusterConfig, EngineConfig, ModelConfig
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.machine import storage
from ssd_ray.machine.garbage import collector_paused
from ssd_ray.models import local_copies
from ssd_ray.progress import Progress

if TYPE_CHECKING:
    # They load Ray Data, which a run that only trains or grades does not need.
    from ssd_ray.inference.engine_pool import EnginePool
    from ssd_ray.inference.pool import Pool
    from ssd_ray.inference.vllm.engine import Engine


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """Everything that makes an engine. Steps with equal settings share a pool."""

    directory: Path
    """Directory of the model."""
    model: ModelConfig
    engine: EngineConfig
    device: str
    local_weights: str = "off"
    """`cluster.local_weights`"""

    def make(self) -> Callable[[], Engine]:
        """Return a function to start an engine on any machine."""
        return functools.partial(_start, self)


def _start(settings: EngineSettings) -> Engine:
    """Start an engine in this process, with this machine's copy of the model.

    Workers on other nodes load the same path, and their nodes have no copy. So an engine on several
    nodes loads from the model's own place.

    Raises:
        UserError: the model is not here and cannot be fetched, or vLLM does not take it.
    """
    with collector_paused():
        from ssd_ray.inference.vllm import placement
        from ssd_ray.inference.vllm.engine import Engine

        directory = models.on_this_machine(settings.model, settings.directory)
        disk = storage.disk_for_copies(settings.local_weights, directory)
        if disk is not None and not placement.spans_nodes():
            directory = local_copies.local_copy(directory, disk)
        return Engine(
            directory,
            model=settings.model,
            engine=settings.engine,
            device=settings.device,
        )


class EnginePools:
    """The pools of a run, by model; a context manager that ends them all.

    `directory` gets a control directory for each pool.
    """

    def __init__(self, directory: Path, logs: Path, progress: Progress) -> None:
        self._directory = directory
        self._logs = logs
        self._progress = progress
        self._lock = threading.Lock()
        self._pools: list[tuple[str, EngineSettings, EnginePool]] = []
        self._expected: dict[str, set[str]] = {}

    def __enter__(self) -> EnginePools:
        """Return the pools, once no engine of an earlier attempt may write any more."""
        heartbeat.end_attempts(self._directory)
        self._pools.clear()
        self._expected.clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for _, _, engines in self._pools:
            engines.stop()
        if kind is None:
            # Left by an earlier driver whose steps are complete by now.
            heartbeat.clear(self._directory)

    def expect(self, model: str, stage: str) -> None:
        """Announce a stage that will draw from a model; its engines wait for it."""
        with self._lock:
            self._expected.setdefault(model, set()).add(stage)

    def pool(
        self, model: str, settings: EngineSettings, cluster: ClusterConfig, shard_rows: int
    ) -> EnginePool:
        """Return the pool of a model with these settings."""
        from ssd_ray.inference.engine_pool import EnginePool
        from ssd_ray.inference.worker import EngineSpec

        with self._lock:
            for _, existing, engines in self._pools:
                if existing == settings:
                    return engines
            number = sum(1 for name, _, _ in self._pools if name == model)
            name = f"{model}-{number}" if number else model
            engines = EnginePool(
                EngineSpec(
                    make_engine=settings.make(),
                    control=self._directory.resolve() / name,
                    logs=self._logs.resolve(),
                ),
                _size(settings, cluster, shard_rows),
                max_failures=cluster.max_failures,
                progress=self._progress,
                expected=self._expected.setdefault(model, set()),
            )
            self._pools.append((model, settings, engines))
            return engines


def _size(settings: EngineSettings, cluster: ClusterConfig, shard_rows: int) -> Pool:
    """Return the size of a pool and the resources of each engine."""
    from ssd_ray.inference import pool
    from ssd_ray.inference.vllm.arguments import engine_environment, max_num_seqs
    from ssd_ray.inference.vllm.placement import engine_resources

    engine = settings.engine
    return pool.Pool(
        min_engines=cluster.min_engines,
        max_engines=cluster.max_engines,
        concurrent_units=pool.concurrent_units(max_num_seqs(engine, cluster.device), shard_rows),
        resources=engine_resources(engine, cluster.device, cluster.roles),
        environment=engine_environment(engine, cluster.device),
        nodes_timeout_s=cluster.nodes_timeout_s,
    )
