"""Making a recipe's artifacts in a run directory: what is complete is left alone, what is partial is resumed.

Ray starts only when a step needs it. One process at a time works in a run directory. Writes `recipe.yaml`, the resolved
recipe, and into every artifact `timing.json`.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from ssd_ray import cluster, recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.manifests import Artifact, State
from ssd_ray.config import Recipe
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.renewal import Outlook, Renewal
from ssd_ray.pipeline.seconds import Rank, Seconds
from ssd_ray.pipeline.step import Facts, Step
from ssd_ray.progress import Progress

_STOP_TIMEOUT_S = 30.0


class Run:
    """A recipe and the directory that it fills."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out, self._progress = recipe, out, progress
        self._context = RunContext(recipe, out, progress)
        self._steps = graph.steps(recipe)
        self._seconds = Seconds()

    def states(self) -> Iterator[tuple[Step, State]]:
        """Every step and where it stands, without touching anything."""
        for step in self._steps:
            yield step, manifests.state_of(self.out / step.name, step.identity)

    def outlooks(self) -> Iterator[tuple[Step, State, Outlook, str]]:
        """Every step, where it stands, what `make` would do with it and why, without touching anything."""
        for step, outlook, reason in Renewal(self._steps, self.out, self._progress).outlooks():
            yield step, self._state(step), outlook, reason

    def make(self, verb: str = "report") -> list[Artifact]:
        """Make the artifacts of a verb, and first whatever they need that is not complete; returns the artifacts of the verb.

        Raises:
            UserError: a mistake in the recipe, its inputs, or the run directory.
            InfrastructureError: crashes that outlived their retries; the same call resumes.
        """
        needed = {step.name for goal in self._steps if goal.verb == verb for step in goal.closure()}
        wanted = [step for step in self._steps if step.name in needed]
        with locked(self.out), ExitStack() as stack:
            renewal = Renewal(self._steps, self.out, self._progress)
            renewal.refuse(wanted)
            files.write_atomic(self.out / "recipe.yaml", recipes.dump(self.recipe))
            for step in wanted:  # before hours of the steps that it is made from
                if self._state(step) != "complete":
                    step.check(self._context)
            followers = stack.enter_context(_Followers(self._context.stopped))
            started = False
            made = []
            for step in wanted:
                followers.raise_failure()
                whole = step.name not in followers and renewal.settle(step) == "complete"
                if not whole and not started and self._needs_ray(step, wanted):
                    self._progress.say("starting Ray")
                    stack.enter_context(
                        cluster.connected(
                            self.recipe.cluster, self.out / "logs", self._progress.say
                        )
                    )
                    stack.enter_context(self._context.graders)
                    stack.callback(
                        self._context.stopped.set
                    )  # before Ray goes: what is under way must not look for another
                    started = True
                if started and not whole:
                    self._follow(step, wanted, followers, renewal)
                artifact = (
                    followers.pop(step.name).result()
                    if step.name in followers
                    else self._make(step, renewal)
                )
                renewal.done(step)
                if not whole:
                    self._progress.say(f"{step.name}: complete")
                made += self._asked_for(step, artifact, verb, whole)
            return made

    def _asked_for(self, step: Step, artifact: Artifact, verb: str, whole: bool) -> list[Artifact]:
        """The artifact, if its verb is the one that was asked for; the pages beside one that was whole are then written anew."""
        if step.verb != verb:
            return []
        if whole:
            step.describe(artifact.path, self._context, artifact.facts)
        return [artifact]

    def _state(self, step: Step) -> State:
        return manifests.state_of(self.out / step.name, step.identity)

    def _needs_ray(self, step: Step, wanted: list[Step]) -> bool:
        """Whether a step, or one that can be made while it is, works on Ray."""
        follow = (
            other for other in wanted if other.follows is step and self._state(other) != "complete"
        )
        return step.needs_ray or any(other.needs_ray for other in follow)

    def _make(self, step: Step, renewal: Renewal, rank: Rank = Rank.LEADING) -> Artifact:
        def act(out: Path) -> Facts:
            renewal.record(step)
            facts = _timed(step, out, self._context, self._seconds, rank)
            renewal.record(step)  # what it followed is complete by now
            return facts

        return manifests.make(self.out / step.name, step.identity, act)

    def _follow(
        self, step: Step, wanted: list[Step], followers: _Followers, renewal: Renewal
    ) -> None:
        """Start in threads what can be made while `step` is: the steps that read it, or a whole artifact, as it grows."""
        if step.name not in followers:
            manifests.claim(
                self.out / step.name, step.identity
            )  # those that follow it know it by its claim
        for other in wanted:
            if (
                other is not step
                and other.name not in followers
                and renewal.may_follow(other, step)
            ):
                manifests.claim(self.out / other.name, other.identity)
                rank = Rank.DRAWING if other.takes_gpu else Rank.GRADING
                followers.start(other.name, functools.partial(self._make, other, renewal, rank))


class _Followers:
    """Steps that are being made in threads, by name; a context manager that tells the rest to stop, and waits for them."""

    def __init__(self, stopped: threading.Event) -> None:
        self._running: dict[str, Future[Artifact]] = {}
        self._begun: list[Future[Artifact]] = []
        self._stopped = stopped

    def __enter__(self) -> _Followers:
        self._stopped.clear()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        wait(self._begun, timeout=_STOP_TIMEOUT_S)

    def __contains__(self, name: str) -> bool:
        return name in self._running

    def start(self, name: str, act: Callable[[], Artifact]) -> None:
        """Begin `act` in a thread of its own."""
        future: Future[Artifact] = Future()

        def run() -> None:
            try:
                future.set_result(act())
            except BaseException as error:  # handed on to the thread that asks for the result
                future.set_exception(error)

        threading.Thread(target=run, name=name, daemon=True).start()
        self._running[name] = future
        self._begun.append(future)

    def raise_failure(self) -> None:
        """Raise what one of them failed of already, rather than after hours of other steps."""
        for future in self._running.values():
            if future.done():
                future.result()

    def pop(self, name: str) -> Future[Artifact]:
        """What `name` comes to; an exception where it failed."""
        return self._running.pop(name)


def _timed(step: Step, out: Path, context: RunContext, seconds: Seconds, rank: Rank) -> Facts:
    """Make the step and add its wall time to `timing.json`.

    A killed attempt leaves only its `versions` there. Time that steps share counts once.
    """
    path = out / "timing.json"
    before: dict[str, Any] = (
        files.read_json(path) if path.exists() else {"seconds": 0.0, "attempts": 0, "tokens": 0}
    )
    known, own = before.get("versions", []), manifests.versions()
    before["versions"] = known if own in known else [*known, own]
    files.write_atomic(path, json.dumps(before))
    facts: Facts = {}
    try:
        with seconds.of(rank) as spent:
            facts = step.make(out, context)
    finally:
        tokens = facts.get("output_tokens", facts.get("tokens", 0)) if step.takes_gpu else 0
        record = {
            "seconds": before["seconds"] + spent.seconds,
            "attempts": before["attempts"] + 1,
            "tokens": tokens,
        }
        files.write_atomic(path, json.dumps({**before, **record}))
    return facts
