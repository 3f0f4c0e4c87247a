"""Making a recipe's artifacts in a run directory: what is whole is left alone, what is partial is resumed.

Ray starts only when a step needs it. One process at a time works in a run directory. Writes `recipe.yaml`, the resolved
recipe, and into every artifact `timing.json`.
"""

from __future__ import annotations

import fcntl
import functools
import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ssd_ray import artifacts, cluster, recipes
from ssd_ray.artifacts import Artifact, State
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.pipeline import Facts, Pipeline, Step
from ssd_ray.progress import Progress


class Run:
    """A recipe and the directory that it fills."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out, self._progress = recipe, out, progress
        self._steps = Pipeline(recipe, out, progress).steps

    def states(self) -> Iterator[tuple[Step, State]]:
        """Every step and where it stands, without touching anything."""
        for step in self._steps:
            yield step, artifacts.state_of(self.out / step.name, step.identity)

    def make(self, verb: str = "report") -> list[Artifact]:
        """Make the artifacts of a verb, and first whatever they need that is not whole; returns the artifacts of the verb.

        Raises:
            UserError: a mistake in the recipe, its inputs, or the run directory.
            InfrastructureError: crashes that outlived their retries; the same call resumes.
        """
        needed = {step.name for goal in self._steps if goal.verb == verb for step in _closure(goal)}
        wanted = [step for step in self._steps if step.name in needed]
        for step, state in self.states():
            if state == "stale":
                artifacts.claim(self.out / step.name, step.identity)  # refuses, with what differs
        with self._locked(), ExitStack() as stack:
            started = False
            made = []
            for step in wanted:
                whole = artifacts.state_of(self.out / step.name, step.identity) == "whole"
                if step.needs_ray and not whole and not started:
                    stack.enter_context(cluster.connected(self.recipe.cluster))
                    started = True
                artifact = artifacts.make(self.out / step.name, step.identity, functools.partial(_timed, step))
                if not whole:
                    self._progress.say(f"{step.name}: whole")
                made += [artifact] if step.verb == verb else []
            return made

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the run directory: one process at a time works in it; the lock goes when the process does."""
        artifacts.make_directory(self.out)
        with (self.out / ".lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise UserError(f"another process is at work in {self.out}: wait for it, or choose another --out") from error
            artifacts.write_atomic(self.out / "recipe.yaml", recipes.dump(self.recipe))
            yield


def _closure(goal: Step) -> Iterator[Step]:
    """A step and everything that it is made from."""
    yield goal
    for step in goal.inputs:
        yield from _closure(step)


def _timed(step: Step, out: Path) -> Facts:
    """Do the step's act and add its wall time to `timing.json`; an attempt that was killed outright is not in it."""
    path = out / "timing.json"
    before = artifacts.read_json(path) if path.exists() else {"seconds": 0.0, "attempts": 0, "tokens": 0}
    began = time.monotonic()
    facts: Facts = {}
    try:
        facts = step.act(out)
    finally:
        tokens = facts.get("output_tokens", facts.get("tokens", 0)) if step.verb in {"sample", "generate", "train"} else 0
        record = {"seconds": before["seconds"] + time.monotonic() - began, "attempts": before["attempts"] + 1, "tokens": tokens}
        artifacts.write_atomic(path, json.dumps(record))
    return facts
