"""The run of a recipe: make the artifacts of a verb in a run directory.

- Complete artifacts are left alone, partial ones are resumed.
- Ray starts at the first step in need of it.
- One process at a time works in a run directory.

Writes `recipe.yaml`, the resolved recipe, and `timing.json` in every artifact.
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
from ssd_ray.artifacts import files, manifests, versions
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.facts import Facts
from ssd_ray.artifacts.manifests import Artifact, State
from ssd_ray.config import Recipe
from ssd_ray.pipeline import graph
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.renewal import Outlook, Renewal
from ssd_ray.pipeline.seconds import Rank, Seconds
from ssd_ray.pipeline.step import Step
from ssd_ray.progress import Progress

_STOP_TIMEOUT_S = 30.0


class Run:
    """A recipe and its run directory."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe = recipe
        self.out = out
        self._progress = progress
        self._context = RunContext(recipe, out, progress)
        self._steps = graph.steps(recipe)
        self._seconds = Seconds()

    def states(self) -> Iterator[tuple[Step, State]]:
        """Yield every step and its state, without touching anything."""
        for step in self._steps:
            yield step, manifests.state_of(self.out / step.name, step.identity)

    def outlooks(self) -> Iterator[tuple[Step, State, Outlook, str]]:
        """Yield every step, its state, its outlook in `make` and the reason; touch nothing."""
        for step, outlook, reason in Renewal(self._steps, self.out, self._progress).outlooks():
            yield step, self._state(step), outlook, reason

    def make(self, verb: str = "report") -> list[Artifact]:
        """Make and return the artifacts of a verb, after their incomplete inputs.

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
            # Mistakes show before hours are spent on the inputs of a step.
            for step in wanted:
                if self._state(step) != "complete":
                    step.check(self._context)
            followers = stack.enter_context(_Followers(self._context.stopped))
            ray_started = False
            artifacts = []
            for step in wanted:
                followers.raise_failure()
                was_complete = step.name not in followers and renewal.settle(step) == "complete"
                if not was_complete and not ray_started and self._needs_ray(step, wanted):
                    self._start_ray(stack, wanted)
                    ray_started = True
                if ray_started and not was_complete:
                    self._follow(step, wanted, followers, renewal)
                if step.name in followers:
                    artifact = followers.pop(step.name).result()
                else:
                    artifact = self._make(step, renewal)
                renewal.done(step)
                if not was_complete:
                    self._progress.say(f"{step.name}: complete")
                elif step.verb == verb:
                    step.describe(artifact.path, self._context)
                if step.verb == verb:
                    artifacts.append(artifact)
            return artifacts

    def _start_ray(self, stack: ExitStack, wanted: list[Step]) -> None:
        """Start Ray, the graders and the pools of engines until the stack closes."""
        self._progress.say("starting Ray")
        logs = self.out / "logs"
        stack.enter_context(cluster.connected(self.recipe.cluster, logs, self._progress.say))
        stack.enter_context(self._context.graders)
        stack.enter_context(self._context.engines)
        # Engines stay between the steps of their model, and end before a later step needs the
        # devices.
        for step in wanted:
            if step.engines is not None and self._state(step) != "complete":
                self._context.engines.expect(step.engines, step.name)
        # Stop the threads before Ray shuts down: a late call of theirs would start another Ray.
        stack.callback(self._context.stopped.set)

    def _state(self, step: Step) -> State:
        return manifests.state_of(self.out / step.name, step.identity)

    def _needs_ray(self, step: Step, wanted: list[Step]) -> bool:
        """Return True if a step, or an incomplete follower of it, works on Ray."""
        following = (
            other for other in wanted if other.follows is step and self._state(other) != "complete"
        )
        return step.needs_ray or any(other.needs_ray for other in following)

    def _make(self, step: Step, renewal: Renewal, *, follows: bool = False) -> Artifact:
        rank = _rank(step, follows=follows)

        def act(out: Path) -> Facts:
            renewal.record(step)
            facts = _timed(step, out, self._context, self._seconds, rank)
            # The input that it followed is complete by now, and has contents to record.
            renewal.record(step)
            return facts

        return manifests.make(self.out / step.name, step.identity, act)

    def _follow(
        self, step: Step, wanted: list[Step], followers: _Followers, renewal: Renewal
    ) -> None:
        """Start threads for the steps that can be made while `step` is."""
        if step.name not in followers:
            # Followers recognize the growing artifact by its claim.
            manifests.claim(self.out / step.name, step.identity)
        new = [other for other in wanted if other is not step and other.name not in followers]
        joined = [other for other in new if renewal.may_join(other, step)]
        for growing in (step, *joined):
            if growing is not step:
                self._start(growing, followers, renewal)
            for other in new:
                if other.name not in followers and renewal.may_follow(other, growing):
                    self._start(other, followers, renewal)

    def _start(self, step: Step, followers: _Followers, renewal: Renewal) -> None:
        """Make a step in a thread."""
        manifests.claim(self.out / step.name, step.identity)
        make = functools.partial(self._make, step, renewal, follows=True)
        followers.start(step.name, make)


class _Followers:
    """Steps in threads, by name; leaving the context stops those still at work."""

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
        """Start `act` in a new thread."""
        future: Future[Artifact] = Future()

        def run() -> None:
            try:
                future.set_result(act())
            except BaseException as error:
                # The thread that asks for the result raises it.
                future.set_exception(error)

        threading.Thread(target=run, name=name, daemon=True).start()
        self._running[name] = future
        self._begun.append(future)

    def raise_failure(self) -> None:
        """Raise the error of any failed step, without waiting for the others."""
        for future in self._running.values():
            if future.done():
                future.result()

    def pop(self, name: str) -> Future[Artifact]:
        """Remove a step and return its future."""
        return self._running.pop(name)


def _rank(step: Step, *, follows: bool) -> Rank:
    """Return the place of a step where it shares time with others."""
    if step.engines is not None:
        return Rank.DRAWING
    return Rank.GRADING if follows else Rank.LEADING


def _timed(step: Step, out: Path, context: RunContext, seconds: Seconds, rank: Rank) -> Facts:
    """Make the step and add its wall time to `timing.json`.

    A killed attempt adds only its `versions`. Shared time counts once.
    """
    path = out / "timing.json"
    before: dict[str, Any] = {"seconds": 0.0, "attempts": 0, "tokens": 0}
    if path.exists():
        before = files.read_json(path)
    # Written before the work: a killed attempt leaves its versions.
    earlier = before.get("versions", [])
    current = versions.installed()
    before["versions"] = earlier if current in earlier else [*earlier, current]
    files.write_atomic(path, json.dumps(before))
    # A failed attempt has no facts.
    facts = Facts()
    try:
        with seconds.of(rank) as spent:
            facts = step.make(out, context)
    finally:
        record = {
            "seconds": before["seconds"] + spent.seconds,
            "attempts": before["attempts"] + 1,
            "tokens": facts.gpu_tokens,
        }
        files.write_atomic(path, json.dumps({**before, **record}))
    return facts
