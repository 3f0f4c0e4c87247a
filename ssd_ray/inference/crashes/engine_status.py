"""The status of one engine process: its state, its progress by job, its spans in flight.

The heartbeat file of the process holds it. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple, TypeAlias

from ssd_ray.errors import LastingError, OutsideError, UserError
from ssd_ray.inference.work.jobs import JobSpan

State = Literal["starting", "ready", "draining", "failed", "ended"]


CountValues: TypeAlias = dict[str, Any]
"""Counts by field: times are float, all others int."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Progress of an engine process, in one job or in all. Times are as in `EngineStatus`."""

    first: float = 0.0
    """Time of the first request."""
    last: float = 0.0
    """Time of the last answer."""
    rows: int = 0
    """Finished answers."""
    tokens: int = 0
    """Tokens of finished answers."""
    drawn: int = 0
    """Tokens of all answers, those in flight included."""
    refused: int = 0
    """Units without a single answer, although the engine is alive."""
    failed: int = 0
    """Answers on record as failed."""
    retries: int = 0
    """Answers requested again."""


class Suspect(NamedTuple):
    """A prompt alone in an engine, and the job that draws it."""

    job: str
    prompt_id: str


@dataclass(frozen=True, kw_only=True)
class EngineStatus(Counts):
    """One engine process. Times are seconds since the epoch on its machine."""

    engine: str
    """Id of the process."""
    actor: str
    """Id of Ray's actor; it outlives its processes."""
    pid: int
    state: State
    began: float
    node: str = ""
    attempt: str = ""
    spawned: float = 0.0
    """Start of the process, before it imported anything."""
    ready: float = 0.0
    """Time at which it could answer for the first time, with its weights loaded."""
    jobs: Mapping[str, Counts] = field(default_factory=dict)
    """Progress by job."""
    drawing: tuple[JobSpan, ...] = ()
    """Spans in flight."""
    held: tuple[JobSpan, ...] = ()
    """Units in the hands of the process, begun or not."""
    testing: bool = False
    """True while suspects have the engine for themselves."""
    alone: str = ""
    """Id of a prompt with the engine for itself; empty without one, or for a group of suspects."""
    niceness: int = 0
    reason: str = ""
    """Cause of a failure."""
    mistake: bool = False
    """True if the user has to correct the cause."""
    outside: bool = False
    """True if that cause is outside of the recipe (`OutsideError`)."""
    lasting: bool = False
    """True if it also lasts until a person corrects it (`LastingError`)."""
    unattributed: bool = False
    """True if something other than the prompts ended the process."""
    crashed: bool = False
    """True if the file is marked as crashed; not stored."""

    @property
    def load_s(self) -> float:
        """Seconds from the start of the process until it could answer; 0 before that."""
        return self.ready - self.spawned if self.ready and self.spawned else 0.0

    @property
    def kind_of_mistake(self) -> type[UserError]:
        """The class of the mistake on record."""
        outside = OutsideError if self.outside else UserError
        return LastingError if self.lasting else outside

    @property
    def suspect(self) -> Suspect | None:
        """The prompt alone in the engine, if there is one."""
        return Suspect(self.drawing[0].job, self.alone) if self.alone and self.drawing else None

    def of(self, job: str) -> EngineStatus:
        """Return the status with the counts and spans of one job."""
        counts = self.jobs.get(job, Counts())
        drawing = tuple(unit for unit in self.drawing if unit.job == job)
        return replace(self, **values(counts), drawing=drawing)


def values(counts: Counts) -> CountValues:
    """Return the counts by the names of their fields, the same as in `EngineStatus`."""
    return {each.name: getattr(counts, each.name) for each in fields(Counts)}


def total(counts: Iterable[Counts]) -> Counts:
    """Return the counts of all jobs together."""
    listed = list(counts)
    added = {
        each.name: sum(getattr(one, each.name) for one in listed)
        for each in fields(Counts)
        if each.name not in ("first", "last")
    }
    return Counts(
        **added,
        first=min((one.first for one in listed if one.first), default=0.0),
        last=max((one.last for one in listed), default=0.0),
    )
