"""Graders as Ray actors: start, hand over a slice, take the result, end.

A Ray error other than an exception of the grader's own code means a lost grader. Causes are a
kill, the memory monitor, a lost node, a lost result, or a process with a failed start. A lost
grader is ended. Its slice is graded again and comes to the same verdicts.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ssd_ray import roles
from ssd_ray.artifacts import slices
from ssd_ray.artifacts.slices import Slice
from ssd_ray.cluster import niceness, room
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError, first_line, one_line
from ssd_ray.evaluation.grader import Graders, GradingSpec
from ssd_ray.evaluation.pool import LostGraderError

_REFRESH_S = 5.0
_GROWTH_S = 60.0
"""Time between two looks at the largest size of the cluster, which asks its autoscaler."""


class GraderActor:
    """A grader for any step: each slice comes with its specification."""

    def __init__(self, logs: Path) -> None:
        # A grader's pod may have no access to the run's logs. Ray then keeps its output.
        if logs.is_dir():
            with contextlib.suppress(OSError):
                slices.log_to_file(logs, "grader")
        # Programs inherit the niceness. With Ray's own of 15, other processes would come first.
        niceness.settle()
        self._graders = Graders()

    def start(self) -> int:
        """Return 0 once the process is up."""
        return 0

    def grade(self, spec: GradingSpec, piece: Slice) -> int:
        """Grade a slice; see `Grader.grade`."""
        return self._graders.grade(spec, piece)


class RayBackend:
    """Graders as actors of a Ray cluster; references to calls are those of Ray."""

    def __init__(self, cluster: ClusterConfig, logs: Path) -> None:
        self._cluster = cluster
        self._logs = logs
        self._nodes: dict[str, int] = {}
        self._refreshed = -_REFRESH_S
        self._most = 0.0
        self._asked = -math.inf
        self._placed: dict[Any, str] = {}

    def size(self) -> int:
        """Return the number of graders allowed to run now.

        - If a grader reserves a core or more, Ray itself runs no more of them than cores allow.
          `max_graders` may ask for more, so that the cluster can grow.
        - Without `max_graders`, graders grow with the group of nodes of their role.
        - If a grader reserves less, at most one grader a core: Ray would not limit them.
        """
        cores = sum(self._cores().values())
        wanted = self._cluster.max_graders
        reserved = roles.grader_bundle(self._cluster)["CPU"]
        if reserved >= 1:
            return wanted or max(1, int(cores // reserved), self._grown(int(cores // reserved)))
        return max(1, min(cores, wanted or cores))

    def _grown(self, present: int) -> int:
        """Return the graders that their nodes hold once their group has grown.

        - Without roles, growth would start nodes with GPUs, so only `max_graders` asks for it.
        - Where the largest size is unknown, the next step is twice the present size. Waiting
          graders make the autoscaler start nodes, up to its own limit.
        """
        labels = roles.selector(roles.GRADER, self._cluster.roles)
        if labels is None:
            return 0
        if time.monotonic() - self._asked > _GROWTH_S:
            self._asked = time.monotonic()
            self._most = room.room_for(roles.grader_bundle(self._cluster), labels).most
        return 2 * present if math.isinf(self._most) else int(self._most)

    def start(self) -> tuple[Any, Any]:
        """Start a grader; return the actor and a reference to its readiness."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._logs.mkdir(parents=True, exist_ok=True)
        cores = roles.grader_bundle(self._cluster)["CPU"]
        # Ray would put actors that reserve nothing onto one node.
        node = None if cores else self._emptiest_node()
        strategy = None if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
        actor = (
            ray.remote(GraderActor)
            .options(
                num_cpus=cores,
                # The pool replaces lost graders: a restart by Ray would hide their crashes from it.
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=strategy,
                label_selector=roles.selector(roles.GRADER, self._cluster.roles),
            )
            .remote(self._logs)
        )
        self._placed[actor] = node or ""
        return actor, actor.start.remote()

    def grade(self, actor: Any, spec: GradingSpec, piece: Slice) -> Any:
        """Send a slice to a grader; return a reference to its number of rows."""
        return actor.grade.remote(spec, piece)

    def finished(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Wait at most `timeout_s` for a call to end; return the ended calls."""
        import ray

        first, _ = ray.wait(list(references), num_returns=1, timeout=timeout_s)
        return list(first)

    def result(self, reference: Any) -> int:
        """Return the number of rows of an ended call.

        Raises:
            LostGraderError: the grader crashed or is out of reach.
            UserError: the grader found a mistake in its input.
            InfrastructureError: the grader raised any other exception.
        """
        import ray

        try:
            rows: int = ray.get(reference)
        except ray.exceptions.RayTaskError as error:
            raise _cause(error) from error
        except ray.exceptions.RayError as error:
            raise LostGraderError(_reason(error)) from error
        return rows

    def end(self, actor: Any) -> None:
        """Kill a grader and its sandbox; do nothing if it is gone already."""
        import ray

        self._placed.pop(actor, None)
        ray.kill(actor)

    def _cores(self) -> dict[str, int]:
        """Return the cores for graders of each live node, at most `_REFRESH_S` seconds old."""
        if time.monotonic() - self._refreshed > _REFRESH_S:
            self._refreshed = time.monotonic()
            nodes = roles.live_nodes(roles.selector(roles.GRADER, self._cluster.roles))
            self._nodes = {node["NodeID"]: roles.grader_cores(node) for node in nodes}
        return self._nodes

    def _emptiest_node(self) -> str | None:
        """Return the node with the most cores free of graders, None if no node is alive."""
        used = Counter(self._placed.values())
        cores = self._cores()
        return max(cores, key=lambda node: cores[node] - used[node], default=None)


def _cause(error: Any) -> Exception:
    """Return the exception to raise for an exception in a grader."""
    cause = error.cause
    if isinstance(cause, UserError | InfrastructureError):
        return cause
    return InfrastructureError(f"a grader failed: {one_line(cause)}")


def _reason(error: Any) -> str:
    """Return the cause of a lost grader in one line, with a remedy if memory ran out."""
    import ray

    text = first_line(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"{text}; lower cluster.max_graders, or give graders machines with more memory"
    return text
