"""Graders as Ray actors: start, give a slice, take the result, end; which Ray errors mean a death.

One idea: every error of Ray but an exception of the grader's own code means that the grader is gone
or out of reach. It is ended, and its slice is graded again, which changes nothing. The reasons are
many: a kill, the memory monitor, a lost node, a lost result, a process that does not start.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import slices
from ssd_ray.cluster import niceness
from ssd_ray.config import ClusterConfig
from ssd_ray.errors import InfrastructureError, UserError, first_line, one_line
from ssd_ray.evaluation.grader import Grader, GradingSpec, Tools

_REFRESH_S = 5.0
_NUM_BENCHMARKS = 2
"""Benchmarks that a grader keeps: a run grades answers to one, and samples of training problems."""


class LostGraderError(Exception):
    """A grader that is gone or out of reach; the message is the reason in one line."""


class GraderActor:
    """A grader that serves any step: each slice comes with its order."""

    def __init__(self, logs: Path) -> None:
        slices.log_to_file(logs, "grader")
        niceness.settle()  # the time limits of programs are the same beside engines
        self._tools = Tools(_NUM_BENCHMARKS)
        self._graders: dict[Path, Grader] = {}

    def start(self) -> int:
        """Return 0, which says that this process is up."""
        return 0

    def grade(self, order: GradingSpec, piece: Mapping[str, Any]) -> int:
        """As `Grader.grade`."""
        if order.out not in self._graders:
            self._graders[order.out] = Grader(order, self._tools)
        return self._graders[order.out].grade(piece)


class RayCrew:
    """Grader actors of a Ray cluster. References stand for calls, and results are numbers of rows."""

    def __init__(self, cluster: ClusterConfig, logs: Path) -> None:
        self._cluster = cluster
        self._logs = logs
        self._nodes: dict[str, int] = {}
        self._refreshed = -_REFRESH_S
        self._placed: dict[Any, str] = {}

    def size(self) -> int:
        """Count the graders that the cluster can hold now.

        Where a grader reserves a core or more, Ray keeps them to the cores, and `max_graders` may
        ask for more than there are, so that a cluster grows. Where it reserves less, nothing else
        would keep them to one a core.
        """
        cores = sum(self._cores().values())
        wanted = self._cluster.max_graders
        if self._cluster.grader_cpus >= 1:
            return wanted or max(1, int(cores // self._cluster.grader_cpus))
        return max(1, min(cores, wanted or cores))

    def start(self) -> tuple[Any, Any]:
        """Start a grader; return it and a reference that is ready when it is up."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        options: dict[str, Any] = {
            "num_cpus": self._cluster.grader_cpus,
            "max_restarts": 0,
            "max_task_retries": 0,
        }
        node = self._emptiest_node() if not self._cluster.grader_cpus else None
        if node is not None:
            # Ray would put actors that reserve nothing onto one node.
            options["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=False)
        actor = ray.remote(GraderActor).options(**options).remote(self._logs)
        self._placed[actor] = node or ""
        return actor, actor.start.remote()

    def grade(self, actor: Any, order: GradingSpec, piece: Mapping[str, Any]) -> Any:
        """Give a grader a slice; return a reference to the number of its rows."""
        return actor.grade.remote(order, piece)

    def finished(self, references: Sequence[Any], timeout_s: float) -> list[Any]:
        """Wait for the first of these calls; return those that have ended."""
        import ray

        first, _ = ray.wait(list(references), num_returns=1, timeout=timeout_s)
        return list(first)

    def result(self, reference: Any) -> int:
        """Return the rows of a call that has ended.

        Raises:
            LostGraderError: the grader is gone.
            UserError: a mistake that the grader found.
            InfrastructureError: any other exception in the grader.
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
        """End a grader, and with it its sandbox; one that is gone already stays so."""
        import ray

        self._placed.pop(actor, None)
        ray.kill(actor)

    def _cores(self) -> dict[str, int]:
        """Cores of every node that is alive, at most a few seconds old."""
        import ray

        if time.monotonic() - self._refreshed > _REFRESH_S:
            self._refreshed = time.monotonic()
            nodes = [node for node in ray.nodes() if node["Alive"]]
            self._nodes = {node["NodeID"]: int(node["Resources"].get("CPU", 0)) for node in nodes}
        return self._nodes

    def _emptiest_node(self) -> str | None:
        """Return the node with the most cores that hold no grader yet."""
        used = Counter(self._placed.values())
        cores = self._cores()
        return max(cores, key=lambda node: cores[node] - used[node], default=None)


def _cause(error: Any) -> Exception:
    cause = error.cause
    if isinstance(cause, UserError | InfrastructureError):
        return cause
    return InfrastructureError(f"a grader failed: {one_line(cause)}")


def _reason(error: Any) -> str:
    """Say in one line what became of a grader; where memory ran out, also what helps."""
    import ray

    text = first_line(error)
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return f"{text}; lower cluster.max_graders, or give graders machines with more memory"
    return text
