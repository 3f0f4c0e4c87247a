"""A step of a run: one artifact, what it is made from and how, and how it is cleared away to be made again.

Reads nothing; `reset` moves or deletes the step's directory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.identity import Identity, revision_of
from ssd_ray.pipeline.stages import Facts

SET_ASIDE = "set-aside"
"""Where a run keeps what took hours and is made again."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One artifact to make: its directory under the run, the verb that makes it, its inputs, what it is, the act itself.

    What it comes `after` has to be whole first, but shapes nothing of it. A step that `follows` one of its inputs can be made
    while that one is: it reads it as it grows. `check` tells what is wrong with it before its inputs are made;
    `describe` writes the pages beside a whole artifact anew, from its facts. One that `reads_facts` shows the facts of all that
    comes before it, not rows of its inputs alone.
    """

    name: str
    verb: str
    choices: Mapping[str, Any]
    act: Callable[[Path], Facts]
    inputs: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    needs_ray: bool = False
    follows: Step | None = None
    check: Callable[[], None] | None = None
    describe: Callable[[Path, Facts], None] | None = None
    reads_facts: bool = False

    @property
    def takes_gpu(self) -> bool:
        """Return True if the artifact costs GPU time to make, so that it is never made again for another recipe unasked."""
        return self.verb in {"sample", "train", "generate"}

    @property
    def begins_run(self) -> bool:
        """Return True for the prompts, without which nothing is drawn: with other choices they are those of another run."""
        return self.name == "prompts"

    def sources(self) -> list[Step]:
        """The steps whose contents shape the artifact: its inputs, and where it reads facts, all that come before them."""
        if not self.reads_facts:
            return list(self.inputs)
        return list(dict.fromkeys(before for step in self.inputs for before in step.closure()))

    def closure(self) -> Iterator[Step]:
        """The step and every step that it is made from or comes after."""
        yield self
        for step in (*self.inputs, *self.after):
            yield from step.closure()

    def reset(self, run: Path) -> Path | None:
        """Empty the step's directory so that it can be made again from the beginning; nothing of it may be kept.

        What took hours, on GPUs or in graders, is moved to `set-aside/`, and its new place returned; the rest is deleted.
        Either way a crash leaves the artifact as it was, or nothing that counts.
        """
        if self.takes_gpu or self.verb == "grade":
            return _set_aside(run, self.name)
        manifests.remove(run / self.name)
        return None

    @functools.cached_property
    def identity(self) -> Identity:
        """What the artifact is, by its choices, its inputs' recipe digests and the revision of its stage."""
        stage = self.name.split("/")[0]
        return Identity(
            stage=stage,
            choices=self.choices,
            inputs={step.name: step.identity.recipe_digest for step in self.inputs},
            revision=revision_of(stage),
            revisions={name: number for name, number in self._revisions() if number},
        )

    def _revisions(self) -> Iterator[tuple[str, int]]:
        """The revisions of the step and of all that it is made from, by stage."""
        stage = self.name.split("/")[0]
        yield stage, revision_of(stage)
        for step in self.inputs:
            yield from step.identity.revisions.items()


def _set_aside(run: Path, name: str) -> Path:
    """Move an artifact of a run out of the way by one rename, so that it is there entirely or not at all; return where to."""
    place = run / SET_ASIDE / name
    place.parent.mkdir(parents=True, exist_ok=True)
    number = next(number for number in itertools.count() if not place.with_name(f"{place.name}.{number}").exists())
    place = place.with_name(f"{place.name}.{number}")
    files.replace_directory(run / name, place)
    return place
