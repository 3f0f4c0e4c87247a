"""Show the progress of one job of a pool: its bar, its gauges, its speed.

Reads the heartbeats of the pool. Writes `pace.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import files, shards
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.crashes.attribution import CrashHistory
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.engine_use import EngineUse
from ssd_ray.inference.gauges import Gauges
from ssd_ray.inference.work.jobs import JobSpec
from ssd_ray.inference.work.queue import prompt_rows
from ssd_ray.progress import Task
from ssd_ray.throughput import Remaining, Throughput


@dataclass(frozen=True, kw_only=True)
class Watched:
    """A job, and its counts at the beginning of an attempt."""

    job: JobSpec
    attempt: str
    before: int
    """Answers finished by earlier attempts."""
    failed: int
    """Answers failed in earlier attempts."""


class Monitor:
    """The progress of a job.

    - `read` returns the crash history of the pool; with True it reads the heartbeats now.
    - `is_next` returns True if this job was opened first among the open ones.
    - `take_wait` returns the seconds that the engines waited for this job without any other.
    """

    def __init__(
        self,
        watched: Watched,
        task: Task,
        *,
        read: Callable[[bool], CrashHistory],
        is_next: Callable[[], bool],
        take_wait: Callable[[], float] = lambda: 0.0,
        use: EngineUse,
    ) -> None:
        self._watched = watched
        self._task = task
        self._read = read
        self._is_next = is_next
        self._take_wait = take_wait
        self._use = use
        self._gauges = Gauges(watched.job.stage)
        self._throughputs: dict[str, Throughput] = {}
        self._rows: dict[Path, int] = {}
        self.engine_losses = 0

    @property
    def total(self) -> int:
        """Answers to draw, for the prompts rendered so far."""
        for path in shards.shard_paths(self._watched.job.prompts):
            if path not in self._rows:
                self._rows[path] = prompt_rows(path)
        return sum(self._rows.values()) * self._watched.job.samples

    def poll(self, on_record: int | None = None) -> None:
        """Read heartbeats and publish the progress of the job.

        `on_record` is the number of answers on record, once an audit has counted them.
        """
        key = self._watched.job.key
        history = self._read(on_record is not None)
        statuses = [status.of(key) for status in history.statuses]
        self.engine_losses = sum(map(_is_lost, statuses))
        attempt = [status for status in statuses if status.attempt == self._watched.attempt]
        leads = self._is_next()
        self._use.mark(
            (each for each in history.statuses if each.attempt == self._watched.attempt),
            leads=leads,
            between_s=self._take_wait() if leads else 0.0,
        )
        failed, total = sum(status.failed for status in attempt), self.total
        if on_record is None:
            done = self._watched.before + sum(status.rows for status in attempt) + failed
        else:
            done = on_record
        drawn = sum(_drawn(status) for status in attempt)
        rates = {
            status.engine: self._rate(status.engine, status.rows, _drawn(status))
            for status in attempt
            if _is_busy(status) and status.first
        }
        rate = self._rate("", done, drawn) if rates else 0.0
        remaining = _remaining(attempt, total - done, self._watched.job.max_tokens)
        figures = {
            "answers": done,
            "answers_left": max(0, total - done),
            "answers_failed": self._watched.failed + failed,
            "retries": sum(status.retries for status in attempt),
            "tokens_per_second": rate,
            "engines": sum(1 for value in rates.values() if value > 0),
            "engine_losses": sum(map(_is_lost, attempt)),
            "prompts_left_out": len(history.quarantined_in(key)),
        }
        if total <= done:
            figures["seconds_left"] = 0
        elif rate > 0 and remaining is not None:
            figures["seconds_left"] = remaining.tokens / rate
        self._gauges.publish(figures, rates)
        self._gauges.loaded({each.engine: each.load_s for each in attempt if each.load_s})
        # Without a running engine there is no rate, and a time left would be a guess.
        if rates or done >= total:
            self._task.update(min(done, total), drawn, _note(attempt, rates), total, remaining)
        else:
            self._task.wait(self._reason(attempt))

    def _reason(self, attempt: list[EngineStatus]) -> str:
        """Return the reason of a wait; only the job opened first reports that engines start."""
        if any(map(_is_busy, attempt)) or not self._is_next():
            return "waiting for engines"
        return "starting engines"

    def _rate(self, engine: str, rows: int, tokens: int) -> float:
        """Record the counts of an engine and return its tokens a second.

        The name "" is for all engines together.
        """
        if engine not in self._throughputs:
            self._throughputs[engine] = Throughput(age_s=heartbeat.PERIOD_S)
        throughput = self._throughputs[engine]
        throughput.mark(rows, tokens)
        return throughput.rates[1]

    def released(self, seconds: float) -> None:
        """Count the seconds that the engines were held after the last answer of the last job."""
        self._use.released(seconds)

    def close(self) -> None:
        """Set rates and time left to zero, since no engine draws the job any more."""
        self._gauges.end()
        self._use.close()

    def pace(self) -> None:
        """Write rows, tokens and seconds of this attempt.

        Seconds are from the first request to the last shard.
        """
        attempt = [
            status
            for status in (status.of(self._watched.job.key) for status in self._read(True).statuses)
            if status.attempt == self._watched.attempt and status.last
        ]
        if attempt:
            pace = {
                "rows": sum(status.rows for status in attempt),
                "tokens": sum(status.tokens for status in attempt),
                "seconds": max(status.last for status in attempt)
                - min(status.first for status in attempt),
            }
            files.write_atomic(self._watched.job.out / "pace.json", json.dumps(pace))


def _is_busy(engine: EngineStatus) -> bool:
    """Return True for an engine taking or finishing requests."""
    return not engine.crashed and engine.state in ("ready", "draining")


def _is_lost(engine: EngineStatus) -> bool:
    """Return True for an engine that crashed with answers of the job in flight."""
    return engine.crashed and bool(engine.drawing)


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
    - Bound: no answer is longer than `max_tokens`. It limits the estimate, and alone is known
      before the first answer ends.
    """
    finished = sum(engine.rows for engine in attempt)
    drawn = sum(_drawn(engine) for engine in attempt)
    in_flight = sum(_drawn(engine) - engine.tokens for engine in attempt if _is_busy(engine))
    bound = None if max_tokens is None else max(0, max_tokens * answers_left - in_flight)
    estimate = answers_left * drawn / finished if finished else None
    if estimate is not None:
        return Remaining(tokens=estimate if bound is None else min(estimate, bound))
    return None if bound is None else Remaining(tokens=bound, at_most=True)


def _note(attempt: list[EngineStatus], rates: Mapping[str, float]) -> str:
    """Describe the running engines: the slowest, the fastest, and the number of lost ones."""
    parts = []
    busy = sorted(rate for rate in rates.values() if rate > 0)
    if len(busy) > 1:
        parts.append(f"{len(busy)} engines at {busy[0]:,.0f} to {busy[-1]:,.0f} tok/s")
    lost = sum(_is_lost(engine) for engine in attempt)
    if lost:
        parts.append(f"{lost} engine{'s' if lost > 1 else ''} lost")
    return ", ".join(parts)
