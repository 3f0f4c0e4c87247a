"""A step of a run: one artifact, the choices that shape it, and the act that makes it.

The steps of each subject are subclasses in `rendering`, `sampling`, `training`, `grading` and
`reporting`; `graph` connects them. A step knows the recipe, and nothing of a run until it is made.
`reset` moves or deletes the step's directory.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.identity import Identity, revision_of
from ssd_ray.config import Recipe

if TYPE_CHECKING:
    from ssd_ray.pipeline.context import RunContext

Facts = Mapping[str, Any]
SET_ASIDE = "set-aside"
"""Directory of a run that keeps artifacts which took hours and are made again."""
GPU_VERBS = frozenset({"sample", "train", "generate"})


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One artifact: its directory under the run, its inputs, its choices, its act."""

    verb: ClassVar[str]
    """The command that makes the artifact."""
    needs_ray: ClassVar[bool] = False
    reads_facts: ClassVar[bool] = False
    """True if it shows facts of everything that precedes it, not only rows of its inputs."""

    name: str
    recipe: Recipe
    inputs: tuple[Step, ...] = ()
    """Artifacts from whose contents it is made."""
    after: tuple[Step, ...] = ()
    """Steps that are complete before it begins. Ordering only; not part of the fingerprint."""
    follows: Step | None = None
    """Input that it reads while that input still grows."""

    def choices(self) -> Mapping[str, Any]:
        """Return the choices of the recipe that shape the artifact, inputs apart."""
        raise NotImplementedError

    def make(self, out: Path, context: RunContext) -> Facts:
        """Fill the directory `out` and return the facts for its manifest; resume what is there.

        Raises:
            UserError: a mistake in the recipe or its inputs.
            InfrastructureError: crashes that outlived their retries.
        """
        raise NotImplementedError

    def preview(self, run: Path) -> str:
        """Say in a few words what making it does, for a plan."""
        raise NotImplementedError

    def check(self, context: RunContext) -> None:
        """Check what can be checked before hours are spent on the inputs.

        Raises:
            UserError: the step cannot succeed.
        """

    def describe(self, out: Path, context: RunContext, facts: Facts) -> None:
        """Write the pages of a complete artifact again, from its facts."""

    @property
    def takes_gpu(self) -> bool:
        """Return True if making it costs GPU time, so that it is never discarded unasked."""
        return self.verb in GPU_VERBS

    @property
    def begins_run(self) -> bool:
        """Return True if other choices of it mean another run."""
        return False

    def sources(self) -> list[Step]:
        """List the steps whose contents shape the artifact."""
        if not self.reads_facts:
            return list(self.inputs)
        return list(dict.fromkeys(before for step in self.inputs for before in step.closure()))

    def closure(self) -> Iterator[Step]:
        """Yield the step and every step that it is made from or comes after."""
        yield self
        for step in (*self.inputs, *self.after):
            yield from step.closure()

    def reset(self, run: Path) -> Path | None:
        """Clear the step's directory so that it can be made from the beginning.

        Artifacts that took hours, on GPUs or in graders, are moved to `set-aside/`, and their new
        place is returned. Others are deleted. A crash leaves the artifact as it was, or nothing
        that counts.
        """
        if self.takes_gpu or self.verb == "grade":
            return _set_aside(run, self.name)
        manifests.remove(run / self.name)
        return None

    @functools.cached_property
    def identity(self) -> Identity:
        """Identity by choices, recipe digests of the inputs, and the revision of the stage."""
        stage = self.name.split("/")[0]
        return Identity(
            stage=stage,
            choices=self.choices(),
            inputs={step.name: step.identity.recipe_digest for step in self.inputs},
            revision=revision_of(stage),
            revisions={name: number for name, number in self._revisions() if number},
        )

    def _revisions(self) -> Iterator[tuple[str, int]]:
        """Yield the revisions of the step and of everything upstream, by stage."""
        stage = self.name.split("/")[0]
        yield stage, revision_of(stage)
        for step in self.inputs:
            yield from step.identity.revisions.items()


def rows_of(artifact: Path) -> str:
    """Return the number of rows of a complete artifact in words, or "the" while it is unknown."""
    if not (artifact / "manifest.json").exists():
        return "the"
    return f"{int(manifests.load(artifact).facts['rows']):,}"


def _set_aside(run: Path, name: str) -> Path:
    """Move an artifact into `set-aside/` by one rename and return its new place."""
    first = run / SET_ASIDE / name
    first.parent.mkdir(parents=True, exist_ok=True)
    numbered = (first.with_name(f"{first.name}.{number}") for number in itertools.count())
    place = next(path for path in numbered if not path.exists())
    files.replace_directory(run / name, place)
    return place
