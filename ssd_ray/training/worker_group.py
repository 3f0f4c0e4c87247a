"""Ray Train's group of workers: which sizes it may take when nodes come and go, which deaths count, and the notice to leave.

Ray Train's elastic policy takes any number of workers that fits the cluster; ours takes the largest that can share a global
batch. Ray Train counts deaths over a whole run, which on a spot fleet has many; ours counts since the last resume state. SIGTERM
to a worker sets `STOP_REQUESTED`, which the training loop looks at after every step: Ray's own handler would end the process in the
middle of one. Reads which resume state is the latest; writes nothing.
"""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from ray.train import (
    ControllerError,
    FailureConfig,
    ScalingConfig,
    TrainingFailedError,
    WorkerGroupError,
)

from ssd_ray.cluster import ray_internals
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.state import resume

STOP_REQUESTED = threading.Event()
"""Set in a worker that was told to end."""


def sizes(train: TrainConfig, cluster: ClusterConfig) -> list[int]:
    """The numbers of workers that may train, ascending; one number where `cluster.min_train_workers` is not set."""
    least = (
        cluster.train_workers if cluster.min_train_workers is None else cluster.min_train_workers
    )
    return [
        number for number in range(least, cluster.train_workers + 1) if _can_share(train, number)
    ]


def _can_share(train: TrainConfig, number: int) -> bool:
    try:
        train.check_workers(number)
    except ValueError:
        return False
    return True


class SizedPolicy(ray_internals.elastic_policy()):  # type: ignore[misc]
    """Ray Train's elastic policy, kept to the sizes that can share a global batch."""

    def __init__(self, scaling_config: ScalingConfig, allowed: list[int]) -> None:
        super().__init__(scaling_config)
        self._allowed = allowed

    def largest_size(self, possible: int) -> int:
        """Return the largest allowed size of at most `possible` workers, 0 where none is."""
        return max((size for size in self._allowed if size <= possible), default=0)


class DeathsInARow(ray_internals.failure_policy()):  # type: ignore[misc]
    """Ray Train's policy, which gives up after so many deaths, counted anew where training in `out` got to another state."""

    def __init__(self, failure_config: FailureConfig, out: Path) -> None:
        super().__init__(failure_config)
        self._out, self._reached = out, resume.latest(out)[0]

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:
        """Whether the group is started again."""
        reached = resume.latest(self._out)[0]
        if reached > self._reached:
            self._reached = reached
            self.forget_failures()
        if isinstance(training_failed_error, ControllerError) and is_death(
            training_failed_error.controller_failure
        ):
            # Of deaths while workers start, Ray Train retries one kind without a bound, and all others never.
            training_failed_error = WorkerGroupError(str(training_failed_error), {})
        return super().make_decision(training_failed_error)


def is_death(failure: BaseException) -> bool:
    """Return True if a failure is that of a worker, and neither a mistake nor a wait for resources.

    Any error of Ray says that a worker is gone or out of reach, or fails because another one is: it
    need not be a RayActorError, as of one that the memory monitor evicts it is an OutOfMemoryError.
    """
    is_worker = isinstance(failure, RayError) or ray_internals.is_startup_failure(failure)
    return is_worker and not isinstance(failure, UserError)


class SizedTrainer(ray_internals.torch_trainer()):  # type: ignore[misc]
    """A TorchTrainer whose elastic group takes only the sizes `allowed`, and whose deaths count since the last state in `out`."""

    def __init__(self, *arguments: Any, allowed: list[int], out: Path, **choices: Any) -> None:
        self._allowed, self._out = allowed, out
        super().__init__(*arguments, **choices)

    def policies(self) -> dict[str, Any]:
        """Return the policies for failures, and for sizes where the group is elastic."""
        failures = DeathsInARow(self.run_config.failure_config, self._out)
        if not self.scaling_config.elasticity_enabled:
            return {"failure_policy": failures}
        sizes = SizedPolicy(self.scaling_config, self._allowed)
        return {"failure_policy": failures, "scaling_policy": sizes}


class GracefulStop(ray_internals.worker_callback()):  # type: ignore[misc]
    """Runs in a worker's main thread, the only one that can set a signal's handler."""

    def after_init_train_context(self) -> None:
        """Make SIGTERM a notice."""
        signal.signal(signal.SIGTERM, lambda *_: STOP_REQUESTED.set())
