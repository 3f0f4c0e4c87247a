"""Watch engines from the driver: progress, gauges for Prometheus, and when to stop.

Reads heartbeat files twice a second and asks no engine. Writes `pace.json`.
"""

from __future__ import annotations

import functools
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, shards
from ssd_ray.cluster import niceness
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.heartbeat import EngineStatus
from ssd_ray.inference.work.queue import SamplingPlan, prompt_rows
from ssd_ray.progress import Progress, Task
from ssd_ray.throughput import Remaining, Throughput

_GAUGES = {
    "answers": "Answers on disk or finished, failed ones included.",
    "answers_left": "Unfinished answers to the prompts rendered so far.",
    "answers_failed": "Failed answers.",
    "retries": "Answers that were requested again.",
    "seconds_left": "Answers left times their mean length, over the rate of the last minute.",
    "tokens_per_second": "Output tokens a second over the last minute, answers in flight included.",
    "engines": "Engines that drew tokens in the last minute.",
    "engine_losses": "Engine processes that crashed; their units were drawn again.",
    "prompts_left_out": "Prompts left out because they crash engines.",
}
_ENGINE_GAUGE = "engine_tokens_per_second"
_NO_REASON = "no reason recorded, as for a process killed for its memory"
_NAMED_NODES: set[str] = set()
"""Nodes whose niceness was reported, in any stage of this process."""


class Streak:
    """Failures in a row, without any finished answer between them.

    - `crashes`: crashes of the engine with the most. A lost node crashes many engines once each.
      Groups of suspects count for themselves, faulty engines not at all.
    - `prompts`: quarantined prompts.
    - `refusals`: units without a single answer.
    """

    def __init__(self, history: CrashHistory) -> None:
        self._known = {status.engine for status in history.statuses if status.crashed}
        self._quarantined = history.quarantined()
        self._answers = sum(status.rows for status in history.statuses)
        self._refused = sum(status.refused for status in history.statuses)
        self.prompts = 0
        self.refusals = 0
        self._crashes: Counter[tuple[str, bool]] = Counter()
        self.engines: set[str] = set()

    @property
    def crashes(self) -> int:
        """Crashes of the engine with the most."""
        return max(self._crashes.values(), default=0)

    def update(self, history: CrashHistory) -> frozenset[str]:
        """Count new failures and return the newly quarantined prompts."""
        statuses, quarantined = history.statuses, history.quarantined()
        crashed = [
            status for status in statuses if status.crashed and status.engine not in self._known
        ]
        added = quarantined - self._quarantined
        # Any finished answer ends the streak: engines and prompts work in principle.
        answers = sum(status.rows for status in statuses)
        refused = sum(status.refused for status in statuses)
        if answers > self._answers:
            self.prompts = 0
            self.refusals = 0
            self._crashes.clear()
            self.engines.clear()
            self._refused = refused
        self.refusals += refused - self._refused
        self.engines |= {status.engine for status in crashed}
        # A quarantined prompt explains the crashes before it.
        if added:
            self._crashes.clear()
        self._crashes.update(
            (status.actor, status.testing) for status in crashed if not status.alone
        )
        # A faulty engine must not stop the stage while others answer.
        for actor in history.faulty:
            self._crashes.pop((actor, False), None)
            self._crashes.pop((actor, True), None)
        self.prompts += len(added)
        self._known |= {status.engine for status in crashed}
        self._quarantined = quarantined
        self._answers = answers
        self._refused = refused
        return added


@dataclass(frozen=True, kw_only=True)
class Watch:
    """The stage of a monitor, and the counts at the beginning of an attempt."""

    plan: SamplingPlan
    stage: str
    attempt: str
    before: int
    """Answers finished by earlier attempts."""
    failed: int
    """Answers failed in earlier attempts."""
    max_failures: int
    logs: Path
    max_tokens: int | None = None


class Monitor:
    """Show the progress of engines, and raise the error ending a stage.

    The pool calls it several times a second. It looks twice a second.
    """

    def __init__(
        self, watch: Watch, ended: Callable[[], bool], task: Task, progress: Progress
    ) -> None:
        self._watch = watch
        self._ended = ended
        self._task = task
        self._progress = progress
        self._looked_at = 0.0
        self._warned: set[str] = set()
        self._shown: set[str] = set()
        self._streak = Streak(self._read())
        self._throughputs: dict[str, Throughput] = {}
        self._rows: dict[Path, int] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Answers to draw, for the prompts rendered so far."""
        for path in shards.shard_paths(self._watch.plan.prompts):
            if path not in self._rows:
                self._rows[path] = prompt_rows(path)
        return sum(self._rows.values()) * self._watch.plan.samples

    def __call__(self) -> None:
        """Look, if half a second has passed since the last look.

        Raises:
            UserError: an engine found a mistake.
            InfrastructureError: engines crash without answers, or the stage before has failed.
        """
        with self._lock:
            if time.monotonic() - self._looked_at >= heartbeat.PERIOD_S:
                self._looked_at = time.monotonic()
                self._ended()
                self.look()

    def look(self, on_record: int | None = None) -> None:
        """Read heartbeats, publish them, and stop a hopeless stage.

        `on_record` is the number of answers on record, once an audit has counted them.
        """
        history = self._read()
        attempt = self._of_attempt(history)
        self._warn_of_faulty(attempt, history.faulty)
        self._warn_of_niceness(attempt)
        self._stop(attempt, history)
        failed, total = sum(status.failed for status in attempt), self.total
        if on_record is None:
            done = self._watch.before + sum(status.rows for status in attempt) + failed
        else:
            done = on_record
        drawn = sum(_drawn(status) for status in attempt)
        rates = {
            status.engine: self._rate(status.engine, status.rows, _drawn(status))
            for status in attempt
            if _is_at_work(status)
        }
        rate = self._rate("", done, drawn) if rates else 0.0
        remaining = _remaining(attempt, total - done, self._watch.max_tokens)
        figures = {
            "answers": done,
            "answers_left": max(0, total - done),
            "answers_failed": self._watch.failed + failed,
            "retries": sum(status.retries for status in attempt),
            "tokens_per_second": rate,
            "engines": sum(1 for value in rates.values() if value > 0),
            "engine_losses": sum(status.crashed for status in attempt),
            "prompts_left_out": len(history.quarantined()),
        }
        if total <= done:
            figures["seconds_left"] = 0
        elif rate > 0 and remaining is not None:
            figures["seconds_left"] = remaining.tokens / rate
        self._publish(figures, rates)
        # Without an engine at work there is no rate, and a time left would be a guess.
        if rates or done >= total:
            self._task.update(min(done, total), drawn, _note(attempt, rates), total, remaining)
        else:
            self._task.wait("starting engines")

    def _rate(self, engine: str, rows: int, tokens: int) -> float:
        """Mark the counts of an engine, or of all under "", and return tokens a second."""
        if engine not in self._throughputs:
            self._throughputs[engine] = Throughput(age_s=heartbeat.PERIOD_S)
        throughput = self._throughputs[engine]
        throughput.mark(rows, tokens)
        return throughput.rates[1]

    def close(self) -> None:
        """Set rates and time left to zero, since no engine is at work any more."""
        self._publish(dict.fromkeys(("tokens_per_second", "engines", "seconds_left"), 0.0), {})

    def _read(self) -> CrashHistory:
        """Read crashes of all attempts, and the engines of this one.

        Engines of a lost driver may take some seconds to end.
        """
        statuses = (
            status
            for status in heartbeat.read(self._watch.plan.out)
            if status.crashed or status.attempt == self._watch.attempt
        )
        return CrashHistory(statuses, cluster_state.actors)

    def _of_attempt(self, history: CrashHistory) -> list[EngineStatus]:
        return [status for status in history.statuses if status.attempt == self._watch.attempt]

    def _warn_of_faulty(self, attempt: list[EngineStatus], faulty: Mapping[str, int]) -> None:
        """Report each faulty engine once."""
        for status in attempt:
            if status.actor in faulty and status.actor not in self._warned:
                self._warned.add(status.actor)
                self._progress.say(
                    f"{self._watch.stage}: an engine on node {status.node[:12]} crashed "
                    f"{faulty[status.actor]} times in a row without an answer while others answer; "
                    "it is retried less and less often"
                )

    def _warn_of_niceness(self, attempt: list[EngineStatus]) -> None:
        """Report each node once a run where engines give way to all other processes."""
        for status in attempt:
            if status.niceness > 0 and status.node not in _NAMED_NODES:
                _NAMED_NODES.add(status.node)
                self._progress.say(
                    f"{self._watch.stage}: engines on node {status.node[:12]} run at niceness "
                    f"{status.niceness}, behind every other process there: {niceness.REMEDY}"
                )

    def _stop(self, attempt: list[EngineStatus], history: CrashHistory) -> None:
        """Raise the error ending the stage, if there is one."""
        watch, streak = self._watch, self._streak
        mistake = next((status.reason for status in attempt if status.mistake), None)
        if mistake is not None:
            raise UserError(mistake)
        for prompt in sorted(streak.update(history)):
            self._progress.say(
                f"{watch.stage}: prompt {prompt!r} is left out, because it crashes engines"
            )
        reason = next((status.reason for status in reversed(attempt) if status.reason), _NO_REASON)
        if streak.crashes > watch.max_failures:
            heartbeat.disregard(watch.plan.out, streak.engines)
            raise InfrastructureError(
                f"{watch.stage}: an engine crashed {streak.crashes} times in a row without an "
                f"answer ({reason}); logs are in {watch.logs}"
            )
        if streak.prompts > watch.max_failures:
            heartbeat.disregard(watch.plan.out, streak.engines)
            raise InfrastructureError(
                f"{watch.stage}: every prompt crashes engines ({streak.prompts} in a row, "
                f"{reason}); logs are in {watch.logs}; if the prompts are the cause, raise "
                "cluster.max_failures"
            )
        if streak.refusals > watch.max_failures:
            raise UserError(
                f"{watch.stage}: the engine refuses every prompt ({streak.refusals} units in a "
                f"row, {reason}): correct the recipe and delete {watch.plan.out}"
            )

    def _publish(self, figures: dict[str, float], rates: dict[str, float]) -> None:
        """Set the gauges; the rate of an engine without a heartbeat becomes zero."""
        for name, value in figures.items():
            _gauge(name, _GAUGES[name], ("stage",)).set(value, tags={"stage": self._watch.stage})
        gauge = _gauge(
            _ENGINE_GAUGE,
            "Output tokens a second of one engine process over the last minute.",
            ("stage", "engine"),
        )
        for engine, rate in {**dict.fromkeys(self._shown - rates.keys(), 0.0), **rates}.items():
            gauge.set(rate, tags={"stage": self._watch.stage, "engine": engine})
        self._shown = set(rates)

    def pace(self) -> None:
        """Write rows, tokens and seconds of this attempt.

        Seconds are from the first ready engine to the last shard.
        """
        attempt = [status for status in self._of_attempt(self._read()) if status.last]
        if attempt:
            began = min(status.ready for status in attempt)
            pace = {
                "rows": sum(status.rows for status in attempt),
                "tokens": sum(status.tokens for status in attempt),
                "seconds": max(status.last for status in attempt) - began,
            }
            files.write_atomic(self._watch.plan.out / "pace.json", json.dumps(pace))


def _is_at_work(engine: EngineStatus) -> bool:
    """Return True for an engine taking or finishing requests."""
    return not engine.crashed and engine.state in ("ready", "draining")


def _drawn(engine: EngineStatus) -> int:
    """Return the tokens of an engine so far.

    Finished answers count at once, those in flight with the next heartbeat.
    """
    return max(engine.drawn, engine.tokens)


def _remaining(
    attempt: list[EngineStatus], answers_left: int, max_tokens: int | None
) -> Remaining | None:
    """Estimate the tokens left from the mean length so far; None while no length is known.

    - Mean length: all tokens over finished answers. For exponential lengths, this is the
      maximum-likelihood estimate with unfinished answers as censored ones.
    - Bound: no answer is longer than `max_tokens`. It alone is known before the first answer ends.
    """
    finished = sum(engine.rows for engine in attempt)
    drawn = sum(_drawn(engine) for engine in attempt)
    in_flight = sum(_drawn(engine) - engine.tokens for engine in attempt if _is_at_work(engine))
    bound = None if max_tokens is None else max(0, max_tokens * answers_left - in_flight)
    estimate = answers_left * drawn / finished if finished else None
    if estimate is not None and (bound is None or estimate < bound):
        return Remaining(tokens=estimate)
    return None if bound is None else Remaining(tokens=bound, at_most=True)


def _note(attempt: list[EngineStatus], rates: Mapping[str, float]) -> str:
    """Describe the engines at work: the slowest, the fastest, and the number of lost ones."""
    parts = []
    busy = sorted(rate for rate in rates.values() if rate > 0)
    if len(busy) > 1:
        parts.append(f"{len(busy)} engines at {busy[0]:,.0f} to {busy[-1]:,.0f} tok/s")
    lost = sum(engine.crashed for engine in attempt)
    if lost:
        parts.append(f"{lost} engine{'s' if lost > 1 else ''} lost")
    return ", ".join(parts)


@functools.cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"ssd_ray_{name}", description=description, tag_keys=tags)
