"""What the deaths of engines say, of prompts and of the engines themselves.

A prompt that was being drawn at two deaths is a suspect; one that was alone at two is left out. An engine that dies again and
again without an answer, beside others that answer, is itself the suspect: its deaths speak against no prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property

from ssd_ray.artifacts.ledger import Span
from ssd_ray.inference.crashes.heartbeat import EngineStatus

SUSPECT_DEATHS = 2
"""Deaths while a prompt was being drawn, after which it gets the engine for itself."""
ALONE_DEATHS = 2
"""Deaths while a prompt was alone in an engine, after which it is left out; of several engines where others answer."""
_ALONE_AT_MOST = 4
"""As `ALONE_DEATHS`, where no other engine came to try it."""
DOUBTED_DEATHS = 4
"""Deaths in a row without an answer, after which an engine beside others that answer is doubted."""


class Deaths:
    """Everything that engines said, in the order in which they began, and, where it matters, which of them (actors) are up."""

    def __init__(self, statuses: Iterable[EngineStatus], up: Callable[[], Collection[str]]) -> None:
        self.statuses, self._ask = list(statuses), up
        self._processes: dict[str, list[EngineStatus]] = defaultdict(list)
        for status in self.statuses:
            self._processes[status.actor].append(status)

    @cached_property
    def _up(self) -> Collection[str]:
        return self._ask()

    @cached_property
    def doubted(self) -> Mapping[str, int]:
        """Engines that died in a row without an answer while others answer, and how often."""
        often = {
            actor: deaths
            for actor in self._processes
            if (deaths := self._fruitless(actor)) >= DOUBTED_DEATHS
        }
        return often if often and self._answering else {}

    @cached_property
    def _answering(self) -> frozenset[str]:
        """Engines that are up and have answered, and did not die again and again since."""
        answered = {one.actor for one in self.statuses if one.rows}
        return frozenset(
            actor for actor in answered & set(self._up) if self._fruitless(actor) < DOUBTED_DEATHS
        )

    @cached_property
    def _believed(self) -> list[EngineStatus]:
        return [
            one
            for one in self.statuses
            if one.dead and not one.excused and one.actor not in self.doubted
        ]

    def fruitless_starts(self, actor: str) -> int:
        """How many processes of an engine died in a row: without an answer where others answer, else before they were ready."""
        return self.doubted.get(actor) or self._in_a_row(actor, lambda one: not one.ready)

    def _fruitless(self, actor: str) -> int:
        return self._in_a_row(actor, lambda one: not one.rows and not one.excused)

    def _in_a_row(self, actor: str, holds: Callable[[EngineStatus], bool]) -> int:
        deaths = 0
        for process in reversed(self._processes[actor]):
            if not holds(process):
                break
            deaths += process.dead
        return deaths

    def suspicion(self, span: Span) -> int:
        """At how many deaths any of these positions were being drawn."""
        return sum(_drew(one, span) for one in self._believed)

    def was_begun(self, span: Span) -> bool:
        """Whether any engine died while it was drawing any of these positions."""
        return any(one.dead and _drew(one, span) for one in self.statuses)

    def left_out(self) -> frozenset[str]:
        """Prompts that were alone in an engine at `ALONE_DEATHS` deaths, of different engines where another one answers."""
        alone: dict[str, list[str]] = defaultdict(list)
        for one in self._believed:
            if one.alone:
                alone[one.alone].append(one.actor)
        return frozenset(prompt for prompt, actors in alone.items() if self._is_enough(actors))

    def _is_enough(self, actors: list[str]) -> bool:
        if len(actors) < ALONE_DEATHS:
            return False
        return (
            len(set(actors)) > 1 or len(actors) >= _ALONE_AT_MOST or self._answering <= set(actors)
        )

    def is_for_others(self, actor: str, span: Span, prompt_ids: Collection[str]) -> bool:
        """Whether others should draw a unit with which this engine died: it is doubted, or died alone with a prompt of the unit
        that not all of them have died with.
        """
        own = [
            one
            for one in self._processes[actor]
            if one.dead and not one.excused and _drew(one, span)
        ]
        if actor in self.doubted:
            return bool(own)
        alone = {one.alone for one in own} & set(prompt_ids)
        tried = {one.actor for one in self.statuses if one.dead and one.alone in alone}
        return bool(alone) and bool(self._answering - tried)


def _drew(status: EngineStatus, span: Span) -> bool:
    return any(drawn.overlaps(span) for drawn in status.drawing)
