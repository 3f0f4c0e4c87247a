"""Watch the engines of a pool from the driver: report faults, and stop a hopeless pool.

- A pool without a node for any engine is reported each minute, and stopped at a deadline.

Reads heartbeat files twice a second and asks no engine. Asks Ray for its nodes now and then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ray.exceptions import RayError

from ssd_ray.cluster import niceness
from ssd_ray.cluster.waiting import Waiting
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.crashes.streak import Refusals, Streak
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import Progress

_NO_REASON = "no reason recorded, as for a process killed for its memory"
_NODES_PERIOD_S = 10.0
_NAMED_NODES: set[str] = set()
"""Nodes whose niceness was reported, in any pool of this process."""


class PoolWatch:
    """The engines of one pool, for all its jobs; safe to use from threads.

    `jobs` returns the open jobs. `waiting` counts the time without a node for any engine. The pool
    calls the watch several times a second, and the watch polls the heartbeats twice a second.
    """

    def __init__(
        self,
        spec: EngineSpec,
        max_failures: int,
        progress: Progress,
        jobs: Callable[[], Mapping[str, JobSpec]],
        waiting: Waiting,
    ) -> None:
        self._spec = spec
        self._max_failures = max_failures
        self._progress = progress
        self._jobs = jobs
        self._waiting = waiting
        self._nodes_at = time.monotonic()
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._read_at = 0.0
        self._looked_at = 0.0
        self._history = CrashHistory((), cluster_state.actors)
        self._warned: set[str] = set()
        self._streak = Streak(self.history())
        self._refusals = Refusals(self._history.statuses)
        self.stopped = threading.Event()

    def __call__(self) -> None:
        """Poll the heartbeats if half a second has passed since the last poll.

        Raises:
            UserError: an engine found a mistake.
            InfrastructureError: engines crash without answers, no node came for them in time, or
                the run has stopped.
        """
        if self.stopped.is_set():
            raise InfrastructureError("the run was stopped")
        if time.monotonic() - self._looked_at >= heartbeat.PERIOD_S:
            self._looked_at = time.monotonic()
            self.poll()
        if time.monotonic() - self._nodes_at >= _NODES_PERIOD_S:
            self._nodes_at = time.monotonic()
            self.look_for_nodes()

    def history(self, fresh: bool = False) -> CrashHistory:
        """Return crashes of all attempts, and the engines of this one.

        It is at most a quarter of a second old, with `fresh` read now. Live engines of earlier
        attempts are left out: they end within seconds.
        """
        with self._lock:
            if fresh or time.monotonic() - self._read_at >= heartbeat.PERIOD_S / 2:
                self._read_at = time.monotonic()
                statuses = (
                    status
                    for status in heartbeat.read(self._spec.control)
                    if status.crashed or status.attempt == self._spec.attempt
                )
                self._history = CrashHistory(statuses, cluster_state.actors)
            return self._history

    def poll(self) -> None:
        """Report faulty and slow engines, and raise the error ending the pool, if there is one."""
        history = self.history()
        attempt = [status for status in history.statuses if status.attempt == self._spec.attempt]
        self._warn_of_faulty(attempt, history.faulty)
        self._warn_of_niceness(attempt)
        mistaken = next((status for status in attempt if status.mistake), None)
        if mistaken is not None:
            raise mistaken.kind_of_mistake(mistaken.reason)
        jobs = self._jobs()
        self.name_left_out(history)
        self._refusals.update(history.statuses)
        reason = next((status.reason for status in reversed(attempt) if status.reason), _NO_REASON)
        self._stop_after_crashes(reason)
        self._stop_after_refusals(jobs, reason)

    def name_left_out(self, history: CrashHistory) -> None:
        """Report prompts that are newly left out; also called before a job is closed."""
        jobs = self._jobs()
        with self._reporting:
            added = sorted(self._streak.update(history))
        for suspect in added:
            stage = jobs[suspect.job].stage if suspect.job in jobs else suspect.job
            self._progress.say(
                f"{stage}: prompt {suspect.prompt_id!r} is left out, because it crashes engines"
            )

    def look_for_nodes(self) -> None:
        """Report a pool without a node for any engine, and stop it at the deadline."""
        nodes = cluster_state.nodes()
        if nodes is None:
            return
        # A crashed process comes back on its node, so its node counts until it is lost.
        placed = (each for each in self.history().statuses if each.state != "ended")
        is_met = any(each.node in nodes for each in placed if each.attempt == self._spec.attempt)
        try:
            self._waiting.look(is_met=is_met)
        except RayError:
            # The head went away just now. The next look counts on.
            return

    def _stop_after_crashes(self, reason: str) -> None:
        streak, spec = self._streak, self._spec
        if streak.crashes > self._max_failures:
            heartbeat.disregard(spec.control, streak.engines)
            raise InfrastructureError(
                f"{self._stages}: an engine crashed {streak.crashes} times in a row without an "
                f"answer ({reason}); logs are in {spec.logs}"
            )
        if streak.prompts > self._max_failures:
            heartbeat.disregard(spec.control, streak.engines)
            raise InfrastructureError(
                f"{self._stages}: every prompt crashes engines ({streak.prompts} in a row, "
                f"{reason}); logs are in {spec.logs}; if the prompts are the cause, raise "
                "cluster.max_failures"
            )

    def _stop_after_refusals(self, jobs: Mapping[str, JobSpec], reason: str) -> None:
        for key, units in self._refusals.in_a_row.items():
            if units > self._max_failures and key in jobs:
                raise UserError(
                    f"{jobs[key].stage}: the engine refuses every prompt ({units} units in a "
                    f"row, {reason}): correct the recipe and delete {jobs[key].out}"
                )

    @property
    def _stages(self) -> str:
        """Name the open jobs in a few words."""
        first, *others = [job.stage for job in self._jobs().values()] or ["engines"]
        return f"{first} and {len(others)} more" if others else first

    def _warn_of_faulty(self, attempt: list[EngineStatus], faulty: Mapping[str, int]) -> None:
        """Report each faulty engine once."""
        for status in attempt:
            if status.actor in faulty and status.actor not in self._warned:
                self._warned.add(status.actor)
                self._progress.say(
                    f"{self._stages}: an engine on node {status.node[:12]} crashed "
                    f"{faulty[status.actor]} times in a row without an answer while others answer; "
                    "it is retried less and less often"
                )

    def _warn_of_niceness(self, attempt: list[EngineStatus]) -> None:
        """Report each node with engines at a lower priority than other processes, once per run."""
        for status in attempt:
            if status.niceness > 0 and status.node not in _NAMED_NODES:
                _NAMED_NODES.add(status.node)
                self._progress.say(
                    f"{self._stages}: engines on node {status.node[:12]} run at niceness "
                    f"{status.niceness}, behind every other process there: {niceness.REMEDY}"
                )
