"""All uses of Ray's private API in this package, each with the public API missing for it.

- The internals are those of one version of Ray, `PINNED`; `ssd_ray.cluster` requires it.
- Importing this module loads no part of Ray: each function imports its own part. Sampling loads no
  part of Ray Train, training no part of Ray Data.
- Base classes come from functions (`elastic_policy()`), as their own bases are classes of Ray.
"""

from __future__ import annotations

import functools
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from ssd_ray import roles

PINNED = "2.60.0"
"""The version of Ray in pyproject.toml."""

# The connection: used by ssd_ray.cluster.


def start_options(session_directory: str | None) -> dict[str, object]:
    """Return the option of `ray.init` for the session directory of a local Ray.

    Missing: a public parameter. RAY_TMPDIR would apply to all child processes.
    """
    return {"_temp_dir": session_directory}


def resolved_address(address: str) -> str:
    """Return HOST:PORT of the cluster that `ray.init` would join at `address`.

    Missing: a public function for it. Ray replaces the address of the loopback device by that of
    the node, and looks for running clusters for `auto`.

    Raises:
        ConnectionError: the address is `auto`, and no Ray runs on this machine.
        ValueError: the address has another form.
    """
    from ray._private import services

    resolved: str = services.canonicalize_bootstrap_address(address)
    return resolved


@contextmanager
def plain_start() -> Iterator[None]:
    """Let `ray.init` leave SIGTERM alone, and start no monitors and no dashboard.

    Missing: options for both. Ray's handler ends the process. The other three processes serve log
    files, an autoscaler and jobs: a local Ray has no use for them, and its start waits for them.
    """
    import ray
    from ray._private.node import Node

    names = ("start_log_monitor", "start_monitor", "start_api_server")
    handler = mock.patch.object(ray._private.utils, "set_sigterm_handler")
    with handler, mock.patch.multiple(Node, **dict.fromkeys(names, mock.DEFAULT)):
        yield


@contextmanager
def messages_sent_to(write: Callable[..., None]) -> Iterator[None]:
    """Hand messages of other Ray processes to `write` in place of the screen.

    Missing: a hook for them. `write` receives a dict with `pid` and `lines`, and other arguments.
    """
    import ray._private.worker

    with mock.patch.object(ray._private.worker, "print_to_stdstream", write):
        yield


def is_console(handler: logging.Handler) -> bool:
    """Return True for the handler of Ray's logs to the screen.

    Missing: an option against it; `configure_logging` has no effect on Ray Data's loggers.
    """
    return type(handler).__name__ == "PlainRayHandler"


def job_config(import_path: Callable[[], list[str]]) -> Any:
    """Return a configuration of a Ray job whose workers import from `import_path()` alone.

    Missing: an option against the driver's directories. Ray adds them during the connection, so
    they are replaced at the last moment, before the configuration is sent.
    """
    from ray.job_config import JobConfig

    class FixedPath(JobConfig):  # type: ignore[misc]
        def _serialize(self) -> str:
            # In place: Ray holds a reference to the list.
            self._py_driver_sys_path[:] = import_path()
            serialized: str = super()._serialize()
            return serialized

    return FixedPath()


# The state of the cluster: used by ssd_ray.cluster.growth and ssd_ray.inference.crashes.


def has_autoscaler() -> bool | None:
    """Return True if an autoscaler can add nodes, False without one, None if none has reported.

    Missing: a query for it. Ray's monitor also runs without a configuration. It then reports the
    present nodes: in version 2 without instances of a cloud, in version 1 each as a type of its
    own. The pods of KubeRay have instances even without its autoscaler.
    """
    import ray
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.autoscaler._private.util import format_readonly_node_type
    from ray.autoscaler.v2 import sdk
    from ray.autoscaler.v2.utils import is_autoscaler_v2
    from ray.experimental.internal_kv import _internal_kv_get

    if is_autoscaler_v2(fetch_from_server=True):
        status = sdk.get_cluster_status(ray.get_runtime_context().gcs_address)
        return any(node.instance_id for node in (*status.active_nodes, *status.idle_nodes))
    report = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or b"{}")
    types = (report.get("autoscaler_report") or {}).get("active_nodes")
    if not types:
        return None
    return not types.keys() <= {format_readonly_node_type(node["NodeID"]) for node in ray.nodes()}


def stated_groups() -> list[tuple[Mapping[str, float], float]]:
    """Return the resources of a node and the most nodes, for each group of a hosted autoscaler.

    Missing: a query for it. Empty for Ray's own autoscaler, which states no groups.
    """
    import ray

    config = ray._private.state.state.get_cluster_config()
    return [
        (dict(group.resources), group.max_count if group.max_count >= 0 else math.inf)
        for group in (config.node_group_configs if config else ())
    ]


def draining_nodes() -> Mapping[str, object]:
    """Return the nodes about to leave, by id.

    Missing: draining in `ray.nodes()`.
    """
    import ray

    nodes: Mapping[str, object] = ray._private.state.state.get_draining_nodes()
    return nodes


def live_actors() -> frozenset[str]:
    """Return the ids of this job's live actors.

    Missing: a query without the dashboard; `ray.util.state.list_actors` needs it.
    """
    import ray

    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return frozenset(ray._private.state.state.actor_table(None, job, "ALIVE"))


# Ray Data: used by ssd_ray.inference.


@functools.cache
def execution_callback() -> Any:
    """Return the base of callbacks into the scheduling loop of Ray Data.

    Missing: a public home for it; `DataContext.custom_execution_callback_classes` takes them. The
    loop calls `on_execution_step(executor)`; `Execution` wraps the executor.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    return ExecutionCallback


class Execution:
    """A running data set as its scheduling loop sees it.

    Missing: progress, and the sizes and the ends of actor pools of a running data set.
    """

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self._context = executor._data_context

    def setting(self, name: str) -> Any:
        """Return a setting of the data set's context, "" if it is not set."""
        return self._context.get_config(name, "")

    @property
    def num_results(self) -> int:
        """Number of tasks and blocks out of all operators; it grows with every result."""
        return sum(
            operator.metrics.num_tasks_finished + operator.metrics.num_task_outputs_generated
            for operator in self._executor._topology
        )

    def keep_idle_actors(self) -> None:
        """Turn off Ray Data's own removal of idle actors."""
        # Utilization is at least 0, so a negative threshold is never reached.
        self._executor._actor_autoscaler._actor_pool_scaling_down_threshold = -1

    def allow_more_actors(self, allowed: bool) -> None:
        """Let pools grow by the context's threshold, or not at all."""
        usual = self._context.autoscaling_config.actor_pool_util_upscaling_threshold
        threshold = usual if allowed else float("inf")
        self._executor._actor_autoscaler._actor_pool_scaling_up_threshold = threshold

    def actor_pools(self) -> Iterator[tuple[Any, int]]:
        """Yield each pool of actors with the number of its waiting blocks."""
        for operator, state in self._executor._topology.items():
            for pool in operator.get_autoscaling_actor_pools():
                yield pool, state.total_enqueued_input_blocks()

    def kill_actors(self) -> None:
        """Kill all actors of the data set, starting ones included."""
        for pool, _ in self.actor_pools():
            pool.shutdown(force=True)


def remove_actor(pool: Any, reason: str) -> None:
    """End one actor of a pool, an idle or a starting one.

    Missing: a public way to make a pool smaller.
    """
    from ray.data._internal.actor_autoscaler import ActorPoolScalingRequest

    pool.scale(ActorPoolScalingRequest.downscale(delta=-1, force=True, reason=reason))


# Ray's sandbox: used by ssd_ray.evaluation.


def runsc_arguments(runtime: Any, name: str) -> list[str]:
    """Return runsc and its global options for a sandbox of `SandboxRuntime`.

    Missing: an `exec` with standard input for the command.
    """
    backend = runtime.backend
    arguments: list[str] = backend._runsc_base_args(backend._sandbox_metadata[name]["config"])
    return arguments


# Ray Train: used by ssd_ray.training.


@functools.cache
def elastic_policy() -> Any:
    """Return the base of a policy for the size of an elastic group of workers.

    Missing: a list of permitted sizes, and a count of workers by labels. Subclasses define
    `largest_size(possible)`, the number of workers to start if `possible` fit.
    """
    from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy

    class ElasticPolicy(ElasticScalingPolicy):  # type: ignore[misc]
        def _count_possible_workers(self, reserved_resources: Any) -> int:
            labels = self.scaling_config.label_selector
            reserved = roles.resources_by_node(labels) if labels else reserved_resources
            size: int = self.largest_size(super()._count_possible_workers(reserved))
            return size

    return ElasticPolicy


@functools.cache
def failure_policy() -> Any:
    """Return the base of a policy for failures of training.

    Missing: a public policy to extend. `forget_failures` starts the count again.
    """
    from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy

    class FailurePolicy(DefaultFailurePolicy):  # type: ignore[misc]
        def forget_failures(self) -> None:
            self._worker_group_failures = 0

    return FailurePolicy


@functools.cache
def worker_callback() -> Any:
    """Return the base of callbacks in the main thread of a training worker.

    Missing: a public home for it; `RunConfig.callbacks` takes them.
    """
    from ray.train.v2._internal.execution.callback import WorkerCallback

    return WorkerCallback


@functools.cache
def torch_trainer() -> Any:
    """Return the base of a TorchTrainer with policies of its own.

    Missing: parameters for the policies, and options against a handler of Ctrl-C and some actors.
    Subclasses define `policies()`, keyword arguments of the controller, and `unused`, callbacks.
    """
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):  # type: ignore[misc]
        def _initialize_and_run_controller(self, **choices: Any) -> Any:
            return super()._initialize_and_run_controller(**{**choices, **self.policies()})

        def _create_default_callbacks(self) -> list[Any]:
            callbacks = super()._create_default_callbacks()
            return [each for each in callbacks if type(each).__name__ not in self.unused]

        def _register_sigint_handler(self, controller: Any) -> None:
            """Leave Ctrl-C to the caller: Ray's handler ends workers before state is saved."""

    return Trainer


def is_startup_failure(failure: BaseException) -> bool:
    """Return True if training failed because workers did not start.

    Missing: a public name of this exception.
    """
    from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError

    return isinstance(failure, WorkerGroupStartupFailedError)
