"""Ray Train's group of workers: allowed sizes, crashes that count, and graceful stops.

- Ray Train's elastic policy takes any number of workers that fits the cluster. Ours takes the
  largest number able to share a global batch.
- Ray Train counts crashes over a run, and a spot fleet has many. Ours counts since the last resume
  state.
- SIGTERM to a worker sets `STOP_REQUESTED`, checked by the training loop after every step. Ray's
  own handler would end the process in the middle of a step.
- Reads the step of the latest resume state; writes nothing.
"""

from __future__ import annotations

import os
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

from ssd_ray.cluster import is_own, ray_internals
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.state import resume

_WATCHER = "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"
STOP_REQUESTED = threading.Event()
"""Set in a worker after SIGTERM."""


def sizes(train: TrainConfig, cluster: ClusterConfig) -> list[int]:
    """Return the allowed numbers of workers, ascending.

    Without `cluster.min_train_workers` there is a single one.
    """
    least = cluster.min_train_workers or cluster.train_workers
    return train.worker_counts(least, cluster.train_workers)


class SizedPolicy(ray_internals.elastic_policy()):  # type: ignore[misc]
    """Ray Train's elastic policy, limited to the sizes `allowed`."""

    def __init__(self, scaling_config: ScalingConfig, allowed: list[int]) -> None:
        super().__init__(scaling_config)
        self._allowed = allowed

    def largest_size(self, possible: int) -> int:
        """Return the largest allowed size of at most `possible` workers, or 0."""
        return max((size for size in self._allowed if size <= possible), default=0)


class ConsecutiveFailures(ray_internals.failure_policy()):  # type: ignore[misc]
    """Ray Train's failure policy, with its count reset by every new resume state in `out`."""

    def __init__(self, failure_config: FailureConfig, out: Path) -> None:
        super().__init__(failure_config)
        self._out = out
        self._reached = resume.latest(out)[0]

    def make_decision(self, training_failed_error: TrainingFailedError) -> Any:
        """Decide between another attempt and the end of the run."""
        reached = resume.latest(self._out)[0]
        if reached > self._reached:
            self._reached = reached
            self.forget_failures()
        if isinstance(training_failed_error, ControllerError) and is_worker_crash(
            training_failed_error.controller_failure
        ):
            # Ray Train retries one kind of crash at the start of workers without a bound, and the
            # other kinds never. A WorkerGroupError counts like a crash during training.
            training_failed_error = WorkerGroupError(str(training_failed_error), {})
        return super().make_decision(training_failed_error)


def is_worker_crash(failure: BaseException) -> bool:
    """Return True if a worker crashed; False for a user's mistake or a wait for resources.

    Any error of Ray means a worker that is lost or unreachable, or fails because of another one.
    It need not be a RayActorError: a worker evicted by the memory monitor has an OutOfMemoryError.
    """
    is_worker = isinstance(failure, RayError) or ray_internals.is_startup_failure(failure)
    return is_worker and not isinstance(failure, UserError)


class SizedTrainer(ray_internals.torch_trainer()):  # type: ignore[misc]
    """TorchTrainer with `SizedPolicy` for sizes `allowed` and `ConsecutiveFailures` in `out`.

    - No actor is started for data sets: there are none.
    - No actor frees the workers' places after the loss of the controller: Ray frees them with the
      driver's job, which ends then. Ray Train's actor for it would outlive each killed driver.
    - In a Ray of this process's own, no actor watches for nodes about to leave: there is one node.
    - Each actor loads Ray Train, about 3 s of a core.
    """

    unused = frozenset({"DatasetsCallback", "PlacementGroupCleanerCallback"})

    def __init__(self, *arguments: Any, allowed: list[int], out: Path, **choices: Any) -> None:
        self._allowed = allowed
        self._out = out
        self._is_alone = is_own()
        super().__init__(*arguments, **choices)

    def fit(self) -> Any:
        """Train; Ray Train reads the variable here and hands it to its controller."""
        if not self._is_alone or _WATCHER in os.environ:
            return super().fit()
        os.environ[_WATCHER] = "0"
        try:
            return super().fit()
        finally:
            del os.environ[_WATCHER]

    def policies(self) -> dict[str, object]:
        """Return the policies for failures, and for sizes where the group is elastic."""
        failures = ConsecutiveFailures(self.run_config.failure_config, self._out)
        if not self.scaling_config.elasticity_enabled:
            return {"failure_policy": failures}
        sizes = SizedPolicy(self.scaling_config, self._allowed)
        return {"failure_policy": failures, "scaling_policy": sizes}


class GracefulStop(ray_internals.worker_callback()):  # type: ignore[misc]
    """Callback to turn SIGTERM into a request to stop after the current step."""

    def after_init_train_context(self) -> None:
        """Install the handler; Ray Train calls this in the main thread, as signals require."""
        signal.signal(signal.SIGTERM, lambda *_: STOP_REQUESTED.set())
