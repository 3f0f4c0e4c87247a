"""Attribute crashes of engines to prompts, or to the engines themselves.

- Prompts are counted by job: with the decoding of another job, a prompt may be harmless.
- A prompt in flight at two crashes is a suspect: it gets an engine for itself.
- A prompt alone in an engine at two crashes is quarantined: it is left out and reported.
- An engine with several crashes in a row and no answer, while other engines answer, is faulty. Its
  crashes count against no prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

from ssd_ray.inference.crashes.engine_status import EngineStatus, Suspect
from ssd_ray.inference.work.jobs import JobSpan

SUSPECT_CRASHES = 2
"""Crashes with a prompt in flight; then the prompt gets an engine for itself."""
ALONE_CRASHES = 2
"""Crashes with a prompt alone in the engine, after which the prompt is left out.

If other engines answer, one of them has to be among those that crashed.
"""
_MAX_ALONE_CRASHES = 4
"""Crashes of one engine with a prompt alone; they suffice even if others have not tried it."""
FAULTY_CRASHES = 4
"""Crashes in a row without an answer; then an engine is faulty if others answer."""


class CrashHistory:
    """The statuses of all engine processes of a pool, by start time, read for attribution.

    `list_actors` returns the ids of live actors. It asks Ray, so it is called only if needed.
    """

    def __init__(
        self, statuses: Iterable[EngineStatus], list_actors: Callable[[], Collection[str]]
    ) -> None:
        self.statuses = list(statuses)
        self._list_actors = list_actors
        self._processes: dict[str, list[EngineStatus]] = defaultdict(list)
        for status in self.statuses:
            self._processes[status.actor].append(status)

    @cached_property
    def _alive(self) -> Collection[str]:
        return self._list_actors()

    @cached_property
    def faulty(self) -> Mapping[str, int]:
        """Actors with crashes in a row and no answer while others answer, and how many."""
        crashes = {actor: self._fruitless(actor) for actor in self._processes}
        candidates = {actor: count for actor, count in crashes.items() if count >= FAULTY_CRASHES}
        return candidates if candidates and self._answering else {}

    @cached_property
    def _answering(self) -> frozenset[str]:
        """Live actors with answers, and fewer than `FAULTY_CRASHES` crashes without one since."""
        answered = {status.actor for status in self.statuses if status.rows}
        return frozenset(
            actor
            for actor in answered & set(self._alive)
            if self._fruitless(actor) < FAULTY_CRASHES
        )

    @cached_property
    def _attributed(self) -> list[EngineStatus]:
        """Crashes counting against the prompts in flight."""
        return [
            status
            for status in self.statuses
            if status.crashed and not status.unattributed and status.actor not in self.faulty
        ]

    def fruitless_starts(self, actor: str) -> int:
        """Count the crashes in a row of an actor.

        Of a faulty actor, crashes without an answer count; of any other, crashes before `ready`.
        """
        return self.faulty.get(actor) or self._in_a_row(actor, lambda status: not status.ready)

    def _fruitless(self, actor: str) -> int:
        return self._in_a_row(actor, lambda status: not status.rows and not status.unattributed)

    def _in_a_row(self, actor: str, holds: Callable[[EngineStatus], bool]) -> int:
        crashes = 0
        for process in reversed(self._processes[actor]):
            if not holds(process):
                break
            crashes += process.crashed
        return crashes

    def suspicion(self, unit: JobSpan) -> int:
        """Count the crashes that count against prompts, with any of these positions in flight."""
        return sum(_drew(status, unit) for status in self._attributed)

    def was_begun(self, unit: JobSpan) -> bool:
        """Return True if an engine crashed with any of these positions in flight."""
        return any(status.crashed and _drew(status, unit) for status in self.statuses)

    def quarantined(self) -> frozenset[Suspect]:
        """Return the prompts that crashed engines while alone in them, each with its job."""
        actors_by_suspect: dict[Suspect, list[str]] = defaultdict(list)
        for status in self._attributed:
            if status.suspect is not None:
                actors_by_suspect[status.suspect].append(status.actor)
        return frozenset(
            suspect for suspect, actors in actors_by_suspect.items() if self._is_enough(actors)
        )

    def quarantined_in(self, job: str) -> frozenset[str]:
        """Return the ids of the quarantined prompts of a job."""
        return frozenset(suspect.prompt_id for suspect in self.quarantined() if suspect.job == job)

    def _is_enough(self, actors: list[str]) -> bool:
        """Return True if crashes of these actors with a prompt alone prove it to be the cause."""
        if len(actors) < ALONE_CRASHES:
            return False
        several_engines = len(set(actors)) > 1
        others_left = not self._answering <= set(actors)
        return several_engines or len(actors) >= _MAX_ALONE_CRASHES or not others_left

    def is_for_others(self, actor: str, unit: JobSpan, prompt_ids: Collection[str]) -> bool:
        """Return True if other engines should draw a unit after crashes of this one.

        Either this engine is faulty and crashed with the unit, or it crashed with one prompt of the
        unit alone in it, and another answering engine has not tried that prompt yet.
        """
        crashes = [
            status
            for status in self._processes[actor]
            if status.crashed and not status.unattributed and _drew(status, unit)
        ]
        if actor in self.faulty:
            return bool(crashes)
        alone = {status.suspect for status in crashes} & {
            Suspect(unit.job, prompt_id) for prompt_id in prompt_ids
        }
        tried = {
            status.actor for status in self.statuses if status.crashed and status.suspect in alone
        }
        return bool(alone) and bool(self._answering - tried)


def _drew(status: EngineStatus, unit: JobSpan) -> bool:
    return any(drawn.overlaps(unit) for drawn in status.drawing)
