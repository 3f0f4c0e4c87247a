"""What the driver knows of its engines: progress, figures for Prometheus, and when to stop.

Reads the engines' own files twice a second: answers, tokens, deaths and failures are counted from there, and no engine is
asked anything. Writes `pace.json`.
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
from ssd_ray.inference.crashes.attribution import Deaths
from ssd_ray.inference.crashes.heartbeat import EngineStatus
from ssd_ray.inference.work.queue import SamplingPlan, prompt_rows
from ssd_ray.progress import Progress, Task
from ssd_ray.throughput import Remaining, Throughput

_FIGURES = {
    "answers": "Answers on disk or finished, with those that could not be drawn.",
    "answers_left": "Answers that are not finished yet, of the prompts that are there.",
    "answers_failed": "Answers that could not be drawn.",
    "retries": "Answers that were asked for again.",
    "seconds_left": "Time left by tokens: answers left, times their mean length so far, over the rate of the last minute.",
    "tokens_per_second": "Output tokens a second over the last minute, unfinished answers included.",
    "engines": "Engines that drew tokens in the last minute.",
    "engine_losses": "Engine processes that died; their units were done again.",
    "prompts_left_out": "Prompts left out because engines died with them.",
}
_ENGINE_FIGURE = "engine_tokens_per_second"
_NO_REASON = "no reason recorded, as of a process that the system kills for its memory"
_NAMED_NODES: set[str] = set()
"""Nodes whose niceness was said, in any stage of this process."""


class Streak:
    """What happened in a row without a finished answer of any engine between.

    Deaths of the engine that died most (a lost node takes many at once, each of them once), with whatever it drew or with groups
    of suspects, each for itself, but for engines that are doubted; prompts that died alone in an engine; units refused.
    """

    def __init__(self, deaths: Deaths) -> None:
        self._known = {one.engine for one in deaths.statuses if one.dead}
        self._left_out = deaths.left_out()
        self._answers = sum(one.rows for one in deaths.statuses)
        self._refused = sum(one.refused for one in deaths.statuses)
        self.prompts = self.refusals = 0
        self._deaths: Counter[tuple[str, bool]] = Counter()
        self.engines: set[str] = set()

    @property
    def deaths(self) -> int:
        """Deaths of the engine that died most often."""
        return max(self._deaths.values(), default=0)

    def take(self, deaths: Deaths) -> frozenset[str]:
        """Count what is new; returns the prompts that are left out from now on."""
        statuses, left_out = deaths.statuses, deaths.left_out()
        fresh = [one for one in statuses if one.dead and one.engine not in self._known]
        added = left_out - self._left_out
        answers, refused = sum(one.rows for one in statuses), sum(one.refused for one in statuses)
        if answers > self._answers:
            self.prompts = self.refusals = 0
            self._deaths.clear()
            self.engines.clear()
            self._refused = refused
        self.refusals += refused - self._refused
        self.engines |= {one.engine for one in fresh}
        if added:
            self._deaths.clear()
        self._deaths.update((one.actor, one.testing) for one in fresh if not one.alone)
        for actor in deaths.doubted:
            self._deaths.pop((actor, False), None)
            self._deaths.pop((actor, True), None)
        self.prompts += len(added)
        self._known |= {one.engine for one in fresh}
        self._left_out, self._answers, self._refused = left_out, answers, refused
        return added


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What a monitor watches: the plan of a stage, and where an attempt begins."""

    plan: SamplingPlan
    stage: str
    attempt: str
    before: int
    """Answers that earlier attempts finished."""
    failed: int
    """Answers that earlier attempts could not draw."""
    max_failures: int
    logs: Path
    max_tokens: int | None = None


class Monitor:
    """Watch engines for the driver: show their progress, and raise what must end the stage.

    The pool calls it several times a second; it looks twice a second.
    """

    def __init__(
        self, watch: Watch, ended: Callable[[], bool], task: Task, progress: Progress
    ) -> None:
        self._watch = watch
        self._ended = ended
        self._task = task
        self._progress = progress
        self._looked = 0.0
        self._told: set[str] = set()
        self._shown: set[str] = set()
        self._streak = Streak(self._read())
        self._throughputs: dict[str, Throughput] = {}
        self._rows: dict[Path, int] = {}
        self._lock = threading.Lock()

    @property
    def total(self) -> int:
        """Answers to draw to the prompts that are there by now."""
        for path in shards.shard_paths(self._watch.plan.prompts):
            if path not in self._rows:
                self._rows[path] = prompt_rows(path)
        return sum(self._rows.values()) * self._watch.plan.samples

    def __call__(self) -> None:
        """Look, if half a second has gone by since the last look.

        Raises:
            UserError: an engine found a mistake.
            InfrastructureError: engines die and nothing is answered, or what this stage follows has failed.
        """
        with self._lock:
            if time.monotonic() - self._looked >= heartbeat.PERIOD_S:
                self._looked = time.monotonic()
                self._ended()
                self.look()

    def look(self, on_record: int | None = None) -> None:
        """Take in what the engines say, show it, and stop where it is hopeless; `on_record` is the count once that is known."""
        deaths = self._read()
        own = self._own(deaths)
        self._tell_doubts(own, deaths.doubted)
        self._say_niceness(own)
        self._stop(own, deaths)
        failed, total = sum(one.failed for one in own), self.total
        done = (
            self._watch.before + sum(one.rows for one in own) + failed
            if on_record is None
            else on_record
        )
        drawn = sum(_drawn(one) for one in own)
        rates = {
            one.engine: self._rate(one.engine, one.rows, _drawn(one))
            for one in own
            if _is_at_work(one)
        }
        rate = self._rate("", done, drawn) if rates else 0.0
        remaining = _remaining(own, total - done, self._watch.max_tokens)
        figures = {
            "answers": done,
            "answers_left": max(0, total - done),
            "answers_failed": self._watch.failed + failed,
            "retries": sum(one.retries for one in own),
            "tokens_per_second": rate,
            "engines": sum(1 for value in rates.values() if value > 0),
            "engine_losses": sum(one.dead for one in own),
            "prompts_left_out": len(deaths.left_out()),
        }
        if total <= done:
            figures["seconds_left"] = 0
        elif rate > 0 and remaining is not None:
            figures["seconds_left"] = remaining.tokens / rate
        self._publish(figures, rates)
        if rates or done >= total:
            self._task.update(min(done, total), drawn, _note(own, rates), total, remaining)
        else:
            self._task.wait("starting engines")

    def _rate(self, engine: str, rows: int, tokens: int) -> float:
        """Mark the counts of an engine, or of all for an empty name; returns tokens a second."""
        if engine not in self._throughputs:
            self._throughputs[engine] = Throughput(age_s=heartbeat.PERIOD_S)
        throughput = self._throughputs[engine]
        throughput.mark(rows, tokens)
        return throughput.rates[1]

    def close(self) -> None:
        """No engine is at work any more: rates and what is to come are none, counts stay."""
        self._publish(dict.fromkeys(("tokens_per_second", "engines", "seconds_left"), 0.0), {})

    def _read(self) -> Deaths:
        """What counts: deaths, and engines of this attempt; those of a driver that was lost may take some seconds to end."""
        statuses = (
            one
            for one in heartbeat.read(self._watch.plan.out)
            if one.dead or one.attempt == self._watch.attempt
        )
        return Deaths(statuses, cluster_state.actors)

    def _own(self, deaths: Deaths) -> list[EngineStatus]:
        return [one for one in deaths.statuses if one.attempt == self._watch.attempt]

    def _tell_doubts(self, own: list[EngineStatus], doubted: Mapping[str, int]) -> None:
        for one in own:
            if one.actor in doubted and one.actor not in self._told:
                self._told.add(one.actor)
                self._progress.say(
                    f"{self._watch.stage}: an engine on node {one.node[:12]} died {doubted[one.actor]} times in a row without an "
                    "answer while others answer; it is tried ever more rarely"
                )

    def _say_niceness(self, own: list[EngineStatus]) -> None:
        """Say of each node, once a run, where engines give way to every other process."""
        for one in own:
            if one.niceness > 0 and one.node not in _NAMED_NODES:
                _NAMED_NODES.add(one.node)
                self._progress.say(
                    f"{self._watch.stage}: engines on node {one.node[:12]} run at niceness {one.niceness}, "
                    f"behind every other process there: {niceness.REMEDY}"
                )

    def _stop(self, own: list[EngineStatus], deaths: Deaths) -> None:
        mistake = next((one.reason for one in own if one.mistake), None)
        if mistake is not None:
            raise UserError(mistake)
        for prompt in sorted(self._streak.take(deaths)):
            self._progress.say(
                f"{self._watch.stage}: prompt {prompt!r} is left out: engines die with it"
            )
        reason = next((one.reason for one in reversed(own) if one.reason), _NO_REASON)
        if self._streak.deaths > self._watch.max_failures:
            heartbeat.absolve(self._watch.plan.out, self._streak.engines)
            raise InfrastructureError(
                f"{self._watch.stage}: an engine died {self._streak.deaths} times in a row without an answer ({reason}); "
                f"their logs are in {self._watch.logs}"
            )
        if self._streak.prompts > self._watch.max_failures:
            heartbeat.absolve(self._watch.plan.out, self._streak.engines)
            raise InfrastructureError(
                f"{self._watch.stage}: engines die with every prompt ({self._streak.prompts} in a row, {reason}); "
                f"their logs are in {self._watch.logs}; if it is the prompts, raise cluster.max_failures"
            )
        if self._streak.refusals > self._watch.max_failures:
            raise UserError(
                f"{self._watch.stage}: the engine refuses every prompt ({self._streak.refusals} units in "
                f"a row, {reason}): mend the recipe and delete {self._watch.plan.out}"
            )

    def _publish(self, figures: dict[str, float], rates: dict[str, float]) -> None:
        """Give Ray the figures; the rate of an engine that is gone is none from then on."""
        for name, value in figures.items():
            _gauge(name, _FIGURES[name], ("stage",)).set(value, tags={"stage": self._watch.stage})
        gauge = _gauge(
            _ENGINE_FIGURE,
            "Output tokens a second of one engine process over the last minute.",
            ("stage", "engine"),
        )
        for engine, rate in {**dict.fromkeys(self._shown - rates.keys(), 0.0), **rates}.items():
            gauge.set(rate, tags={"stage": self._watch.stage, "engine": engine})
        self._shown = set(rates)

    def pace(self) -> None:
        """Write rows, tokens and seconds of this attempt, from the first engine being ready to the last shard."""
        own = [one for one in self._own(self._read()) if one.last]
        if own:
            seconds = max(one.last for one in own) - min(one.ready for one in own)
            pace = {
                "rows": sum(one.rows for one in own),
                "tokens": sum(one.tokens for one in own),
                "seconds": seconds,
            }
            files.write_atomic(self._watch.plan.out / "pace.json", json.dumps(pace))


def _is_at_work(engine: EngineStatus) -> bool:
    """Return True for an engine that is up and takes requests or finishes them."""
    return not engine.dead and engine.state in ("ready", "draining")


def _drawn(engine: EngineStatus) -> int:
    """Tokens of an engine so far; finished answers count at once, those in flight with the next heartbeat."""
    return max(engine.drawn, engine.tokens)


def _remaining(
    own: list[EngineStatus], answers_left: int, max_tokens: int | None
) -> Remaining | None:
    """Tokens left, from the mean length of the answers so far; None where nothing is known of lengths.

    - Mean length: all tokens over finished answers. For lengths that are spread exponentially this
      is the maximum-likelihood estimate with unfinished answers as censored ones.
    - Bound: no answer is longer than `max_tokens`. It alone is known before the first answer ends.
    """
    finished = sum(engine.rows for engine in own)
    drawn = sum(_drawn(engine) for engine in own)
    in_flight = sum(_drawn(engine) - engine.tokens for engine in own if _is_at_work(engine))
    bound = None if max_tokens is None else max(0, max_tokens * answers_left - in_flight)
    estimate = answers_left * drawn / finished if finished else None
    if estimate is not None and (bound is None or estimate < bound):
        return Remaining(tokens=estimate)
    return None if bound is None else Remaining(tokens=bound, at_most=True)


def _note(own: list[EngineStatus], rates: Mapping[str, float]) -> str:
    """Engines at work, the slowest and the fastest of them, and the number of lost ones."""
    parts = []
    busy = sorted(rate for rate in rates.values() if rate > 0)
    if len(busy) > 1:
        parts.append(f"{len(busy)} engines at {busy[0]:,.0f} to {busy[-1]:,.0f} tok/s")
    lost = sum(engine.dead for engine in own)
    if lost:
        parts.append(f"{lost} engine{'s' if lost > 1 else ''} lost")
    return ", ".join(parts)


@functools.cache
def _gauge(name: str, description: str, tags: tuple[str, ...]) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(f"ssd_ray_{name}", description=description, tag_keys=tags)
