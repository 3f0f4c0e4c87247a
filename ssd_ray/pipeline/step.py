"""A step of a run: one artifact, the choices behind it, and the act of making it.

The steps of each subject are subclasses in `rendering`, `sampling`, `training`, `grading` and
`reporting`; `graph` connects them. A step knows the recipe alone; `make` gets the shared
resources of the run. `reset` moves or deletes the directory of the step.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.facts import Facts, RowFacts
from ssd_ray.artifacts.identity import Identity, revision_of
from ssd_ray.config import Recipe
from ssd_ray.errors import InfrastructureError
from ssd_ray.pipeline.context import RunContext

SET_ASIDE = "set-aside"
"""Directory of a run for replaced artifacts that took hours to make."""
# GPU hours cost most, so artifacts of these verbs are refused or moved, and never deleted.
GPU_VERBS = frozenset({"sample", "train", "generate"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Step(ABC):
    """One artifact: its directory under the run, its inputs, its choices, its act."""

    verb: ClassVar[str]
    """The command to make the artifact."""
    reads_facts: ClassVar[bool] = False
    """True if it reads facts of all earlier steps, not only rows of its inputs."""

    name: str
    recipe: Recipe
    inputs: tuple[Step, ...] = ()
    """Artifacts to make it from; their contents shape it."""
    after: tuple[Step, ...] = ()
    """Steps to complete before it can be complete. Ordering only; not part of the fingerprint."""
    follows: Step | None = None
    """Input to read while it is still being made."""
    engines: str | None = None
    """Model whose engines draw it; steps of one model are drawn together. None: no engine."""

    @abstractmethod
    def choices(self) -> Mapping[str, object]:
        """Return the choices of the recipe behind the artifact, without those of its inputs."""

    @abstractmethod
    def make(self, out: Path, context: RunContext) -> Facts:
        """Fill the directory `out`, resuming a partial one, and return the facts for its manifest.

        Raises:
            UserError: a mistake in the recipe or its inputs.
            InfrastructureError: a crash after all retries.
        """

    @abstractmethod
    def preview(self, run: Path) -> str:
        """Describe the work of `make` in a few words, for a plan."""

    def check(self, context: RunContext) -> None:  # noqa: B027 - optional
        """Check the recipe and the model before hours are spent on the inputs.

        Raises:
            UserError: the step cannot succeed.
        """

    def describe(self, out: Path, context: RunContext) -> None:  # noqa: B027 - optional
        """Write the pages of a complete artifact again, from its facts."""

    @property
    def needs_ray(self) -> bool:
        """Return True if making it needs Ray."""
        return False

    @property
    def takes_gpu(self) -> bool:
        """Return True if making it costs GPU time; then only the user deletes it."""
        return self.verb in GPU_VERBS

    @property
    def begins_run(self) -> bool:
        """Return True if the artifact with other choices belongs to another run."""
        return False

    def sources(self) -> list[Step]:
        """List the steps from whose contents the artifact is made."""
        if not self.reads_facts:
            return list(self.inputs)
        return list(dict.fromkeys(before for step in self.inputs for before in step.closure()))

    def closure(self) -> Iterator[Step]:
        """Yield the step and, recursively, its inputs and the steps before it."""
        yield self
        for step in (*self.inputs, *self.after):
            yield from step.closure()

    def reset(self, run: Path) -> Path | None:
        """Clear the directory of the step, to make it from the beginning.

        - Artifacts that took hours, on GPUs or in graders, move to another directory of the run.
          Their new path is returned.
        - Others are deleted, and None is returned.
        - A crash in between leaves the artifact as it was, or a directory without a fingerprint.
        """
        if self.takes_gpu or self.verb == "grade":
            return _move_away(run, self.name)
        manifests.remove(run / self.name)
        return None

    @functools.cached_property
    def identity(self) -> Identity:
        """Identity from choices, recipe digests of the inputs, and the revision of the stage."""
        # An arm's artifact is generations/ARM: all arms share one stage and its revision.
        stage = self.name.split("/")[0]
        return Identity(
            stage=stage,
            choices=self.choices(),
            inputs={step.name: step.identity.recipe_digest for step in self.inputs},
            revision=revision_of(stage),
            revisions={name: number for name, number in self._revisions() if number},
        )

    def _revisions(self) -> Iterator[tuple[str, int]]:
        """Yield the revisions of the step and of all its inputs, recursively, by stage."""
        stage = self.name.split("/")[0]
        yield stage, revision_of(stage)
        for step in self.inputs:
            yield from step.identity.revisions.items()


def when_complete(context: RunContext, *steps: Step) -> Callable[[], bool]:
    """Return a function to poll: it returns True once all steps are complete.

    It raises InfrastructureError if the run has stopped, since a caller would wait forever.
    """

    def are_complete() -> bool:
        if context.stopped.is_set():
            raise InfrastructureError("the run was stopped")
        return all(
            manifests.state_of(context.run / step.name, step.identity) == "complete"
            for step in steps
        )

    return are_complete


def rows_of(artifact: Path) -> str:
    """Return the number of rows of a complete artifact as text, or "the" before completion."""
    if not (artifact / "manifest.json").exists():
        return "the"
    return f"{manifests.load_facts(artifact, RowFacts).rows:,}"


def _move_away(run: Path, name: str) -> Path:
    """Move an artifact to the folder of replaced ones by one rename; return its new path."""
    directory = run / SET_ASIDE / name
    directory.parent.mkdir(parents=True, exist_ok=True)
    # An artifact may be replaced several times; none of the earlier ones is overwritten.
    numbered = (directory.with_name(f"{directory.name}.{number}") for number in itertools.count())
    place = next(path for path in numbered if not path.exists())
    files.replace_directory(run / name, place)
    return place
