"""Carry work units through an autoscaled pool of engine actors with Ray Data.

- Ray Data hands units to engines with room, and starts engines while more units wait.
- It releases idle engines, and restarts crashed ones wherever there is room.
- A watch runs within its scheduling loop and may stop it.
"""

from __future__ import annotations

import pickle
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import ceil, log
from pathlib import Path
from typing import Any

from ssd_ray import roles
from ssd_ray.cluster import ray_internals, ray_log, room
from ssd_ray.cluster.ray_internals import Execution
from ssd_ray.inference.vllm.placement import PlacementGroups, Resources
from ssd_ray.inference.work import queue
from ssd_ray.inference.work.queue import QueuePlan, all_drawn, all_out, emit
from ssd_ray.inference.worker import EngineSpec, EngineWorker
from ssd_ray.progress import Progress

_watches: dict[str, _Watch] = {}
_WATCH = "ssd_ray.watch"
_WATCH_PERIOD_S = 0.1
_REAP_S = 30.0
_LONGEST_PAUSE_S = 0.4


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The size of a pool, the units in progress of each engine, and the resources of each."""

    min_engines: int
    max_engines: int
    concurrent_units: int
    resources: Resources
    environment: Mapping[str, str] = field(default_factory=dict)
    nodes_timeout_s: float | None = None
    """Longest wait for a node for any engine; None waits without end."""

    @property
    def units_in_hand(self) -> int:
        """Units held by an engine at a time: those in progress, and a few in advance."""
        return self.concurrent_units + self.concurrent_units // 4 + 1

    @property
    def window(self) -> int:
        """Units in flight at most: enough to make Ray Data start all engines."""
        return self.max_engines * self.units_in_hand + 1


def concurrent_units(max_num_seqs: int, shard_rows: int) -> int:
    """Return the number of units in progress to keep an engine's batch full.

    Answers of a unit end one after another. With exponential lengths, as of reasoning, the longest
    of n answers has 1 + 1/2 + ... + 1/n times the mean length, about 1 + ln n. So a unit of n
    answers fills only n / (1 + ln n) places of the batch on average.
    """
    return 1 + ceil(max_num_seqs / shard_rows * (1 + log(shard_rows)))


class _AllDrawn(Exception):  # noqa: N818
    """Every unit is on record, and an engine of a lost node still waits for another node."""


class _Watch:
    """A context manager that calls a function several times a second, and looks for marks.

    It has a thread of its own. Both read files, and on slow storage the scheduling loop of Ray Data
    would wait for them instead of handing out units.
    """

    def __init__(self, watch: Callable[[], None], control: Path) -> None:
        self.error: BaseException | None = None
        self.all_out = False
        self.all_drawn = False
        self._call = watch
        self._all_out = all_out(control)
        self._all_drawn = all_drawn(control)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watch", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def _loop(self) -> None:
        try:
            while not self._closed.wait(_WATCH_PERIOD_S):
                self._call()
                self.all_out = self.all_out or self._all_out.exists()
                self.all_drawn = self.all_out and self._all_drawn.exists()
        # Raised in the scheduling loop, which ends the execution.
        except BaseException as error:
            self.error = error


class _Watched(ray_internals.execution_callback()):  # type: ignore[misc]
    """End the execution on an exception of the watch; release idle engines near its end.

    Ray Data polls 10 times a second, which costs a CPU engine 1/40 of a core. So the loop sleeps
    longer while no results arrive. Engines hold units in advance, so none waits for it.
    """

    def __init__(self) -> None:
        self._done = -1
        self._pause = 0.0
        self._lost = False

    def on_execution_step(self, executor: Any) -> None:
        execution = Execution(executor)
        watch = _watches.get(execution.setting(_WATCH))
        if watch is None:
            return
        if watch.error is not None:
            # Ray Data drops its handles. An engine that is still starting, or held by a reference
            # in the exception, would keep its devices from the next pool.
            execution.kill_actors()
            raise watch.error
        if watch.all_drawn and _restarting(execution):
            # Their calls would end with the next node.
            execution.kill_actors()
            raise _AllDrawn
        if watch.all_out:
            self._release_idle(execution)
        done = execution.num_results
        self._pause = min(self._pause + 0.05, _LONGEST_PAUSE_S) if done == self._done else 0.0
        self._done = done
        time.sleep(self._pause)

    def _release_idle(self, execution: Execution) -> None:
        """Once all units are handed out and none waits, start no engine and release idle ones.

        Ray Data does so by itself where its input has ended. Here the input stays open for units
        given back by engines. If an engine was lost, one more stays, in case the restarted engine
        is faulty.
        """
        execution.keep_idle_actors()
        for engines, waiting in execution.actor_pools():
            self._lost = self._lost or engines.num_restarting_actors() > 0
            execution.allow_more_actors(waiting > 0)
            if not waiting and engines.current_size() > max(engines.min_size(), 1 + self._lost):
                ray_internals.remove_actor(engines, "all units are handed out")


def _restarting(execution: Execution) -> bool:
    """Return True while an engine was lost and is not back."""
    return any(engines.num_restarting_actors() > 0 for engines, _ in execution.actor_pools())


def run(order: EngineSpec, pool: Pool, watch: Callable[[], None]) -> None:
    """Draw the missing positions of all jobs, until the pool is closed and all are on record.

    `watch` is called several times a second in another thread.

    Raises:
        Exception: an exception of `watch`, or of a worker as Ray Data wraps it.
    """
    import ray
    import ray.data

    execution_id = uuid.uuid4().hex
    groups = pool.resources.groups
    queue.begin(order.control)
    _watches[execution_id] = _Watch(
        watch if groups is None else _reaping(groups, watch), order.control
    )
    try:
        context = _context(ray.data.DataContext.get_current().copy(), execution_id, pool)
        with (
            suppress(_AllDrawn),
            _watches[execution_id],
            ray.data.DataContext.current(context),
        ):
            for _ in _drawn(order, pool).iter_batches(batch_size=None):
                pass
    finally:
        if groups is not None:
            groups.release()
        del _watches[execution_id]


def _drawn(order: EngineSpec, pool: Pool) -> Any:
    """Return the lazy data set whose execution draws all units."""
    import ray
    import ray.data
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    choice = pool.resources.roles
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    # The pinned Ray has no named parameters for restarts and retries, and deprecates this way.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    plan = QueuePlan(control=order.control, window=pool.window)
    start = ray.data.from_items([{"plan": pickle.dumps(plan)}], override_num_blocks=1)
    units = start.map_batches(
        emit,
        batch_format="pyarrow",
        batch_size=None,
        num_cpus=0,
        scheduling_strategy=here,
        label_selector=roles.selector(roles.DRIVER, choice),
        max_retries=0,
    )
    return units.map_batches(
        EngineWorker,
        fn_constructor_args=(order, pool.concurrent_units),
        batch_format="pyarrow",
        batch_size=1,
        compute=_strategy(pool),
        max_restarts=-1,
        max_task_retries=-1,
        label_selector=roles.selector(roles.SAMPLER, choice),
        runtime_env={"env_vars": dict(pool.environment)},
        **pool.resources.remote_args,
    )


def _reaping(groups: PlacementGroups, watch: Callable[[], None]) -> Callable[[], None]:
    """Return a watch extended by the removal of placement groups without an engine."""
    reaped = [time.monotonic()]

    def both() -> None:
        watch()
        if time.monotonic() - reaped[0] > _REAP_S:
            groups.reap()
            reaped[0] = time.monotonic()

    return both


def _context(context: Any, execution_id: str, pool: Pool) -> Any:
    """Configure Ray Data for a pool of engines."""
    context.enable_progress_bars = context.print_on_execution_start = False
    ray_log.leave_to_ray("ray.data")
    # Otherwise a pool cannot outgrow the present nodes, and an autoscaler never sees its demand.
    context.op_resource_reservation_enabled = False
    # Ray Data asks an autoscaler for nodes with these labels.
    context.execution_options.label_selector = roles.selector(roles.SAMPLER, pool.resources.roles)
    # Blocks are units, handed on at once and never merged.
    context.target_max_block_size = 1
    # A unit may take hours, and a cluster's next node as well.
    context.execution_no_progress_timeout_s = -1
    context.custom_execution_callback_classes = [
        *context.custom_execution_callback_classes,
        _Watched,
    ]
    # Users read the exceptions of engines.
    context.raise_original_map_exception = True
    # Start more engines as soon as units wait. Ray Data divides the units handed out by the
    # places for them, `units_in_hand` for each running engine.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = (
        pool.concurrent_units + 1
    ) / pool.units_in_hand
    context.set_config(_WATCH, execution_id)
    return context


def _strategy(pool: Pool) -> Any:
    import ray.data

    return ray.data.ActorPoolStrategy(
        min_size=pool.min_engines,
        max_size=pool.max_engines,
        max_tasks_in_flight_per_actor=pool.units_in_hand,
        # An engine takes all its units at once, so that on notice it can give back those not begun.
        max_concurrent_calls_per_actor=pool.units_in_hand,
        # Otherwise Ray Data runs one batch at a time, and an engine idles at the end of a shard.
        enable_true_multi_threading=True,
    )


def check_room(pool: Pool, progress: Progress) -> None:
    """Check the room for one engine: refuse one that never fits, report one that has to wait.

    Raises:
        UserError: Ray would wait forever.
    """
    need = pool.resources.need
    room.check_room(need, progress.say, lambda _: f"lower {need.fields}, or use larger machines")
