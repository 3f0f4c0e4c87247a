"""The run of a recipe: make the artifacts of a verb in a run directory.

- Complete artifacts are left alone, partial ones are resumed.
- Ray starts at the first step that needs it.
- One process at a time works in a run directory. Another one with the same recipe attaches to it.

Writes `recipe.yaml`, the resolved recipe, and `timing.json` in every artifact.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack
from pathlib import Path

from ssd_ray import cluster, recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.facts import Facts
from ssd_ray.artifacts.manifests import Artifact, State
from ssd_ray.cluster import address, sameness
from ssd_ray.config import Recipe
from ssd_ray.pipeline import cluster_room, graph, preflight, run_storage
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.grading import announce
from ssd_ray.pipeline.renewal import Outlook, Renewal
from ssd_ray.pipeline.seconds import Rank, Seconds
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.timing import timed
from ssd_ray.progress import Progress, RecordedProgress
from ssd_ray.submissions import mistakes
from ssd_ray.submissions.owner import Work
from ssd_ray.submissions.turn import turn

_STOP_TIMEOUT_S = 30.0


class Run:
    """A recipe and its run directory."""

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        progress: Progress,
        steps: Sequence[Step] | None = None,
    ) -> None:
        """Take the steps of the recipe's graph, or other `steps` in their order."""
        self.recipe = recipe
        self.out = out
        self._progress = RecordedProgress(progress)
        self._context = RunContext(recipe, out, self._progress)
        self._steps = list(steps) if steps is not None else graph.steps(recipe)
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

        While another process is at work in the directory, show its progress and end as it does.

        Raises:
            UserError: a mistake in the recipe, its inputs, or the run directory.
            InfrastructureError: a crash after all retries; the same call resumes.
        """
        needed = {step.name for goal in self._steps if goal.verb == verb for step in goal.closure()}
        wanted = [step for step in self._steps if step.name in needed]
        work = self.work(verb)
        with turn(self.out, work, self._progress), ExitStack() as stack:
            renewal = Renewal(self._steps, self.out, self._progress)
            renewal.refuse(wanted)
            ray = _Ray(
                self._context, stack, [step for step in wanted if not self._is_complete(step)]
            )
            ray.check()
            # Mistakes show before hours are spent on the inputs of a step.
            for step in ray.pending:
                step.check(self._context)
            files.write_atomic(self.out / "recipe.yaml", recipes.dump(self.recipe))
            # These checks cost little, so their mistakes are found again. Others cost GPU nodes.
            if ray.pending and address.named():
                digest = functools.partial(self._circumstances, work, wanted)
                stack.enter_context(mistakes.remembered(self.out, digest, self._progress.say))
            announce(ray.pending, self._context)
            followers = stack.enter_context(_Followers(self._context.stopped))
            return self._make_all(verb, wanted, ray, renewal, followers)

    def _make_all(
        self,
        verb: str,
        wanted: list[Step],
        ray: _Ray,
        renewal: Renewal,
        followers: _Followers,
    ) -> list[Artifact]:
        """Make the wanted artifacts in their order, and return those of the verb."""
        artifacts = []
        for step in wanted:
            followers.raise_failure()
            was_complete = step.name not in followers and renewal.settle(step) == "complete"
            if not was_complete and self._needs_ray(step, wanted):
                ray.open_pools(step for step in wanted if not self._is_complete(step))
            if ray.has_pools and not was_complete:
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

    def work(self, verb: str) -> Work:
        """Return the work of a verb as other commands see it."""
        unimportant = {"name", "description", "sources"}
        choices = self.recipe.model_dump(mode="json", exclude=unimportant)
        return Work(command=f"ssd-ray {verb} {self.recipe.name}", choices=choices)

    def _circumstances(self, work: Work, wanted: Iterable[Step]) -> str:
        """Return a digest of everything by which a mistake could be corrected."""
        states = {step.name: f"{step.identity.fingerprint} {self._state(step)}" for step in wanted}
        return mistakes.circumstances(work, states)

    def _state(self, step: Step) -> State:
        return manifests.state_of(self.out / step.name, step.identity)

    def _is_complete(self, step: Step) -> bool:
        return self._state(step) == "complete"

    def _needs_ray(self, step: Step, wanted: list[Step]) -> bool:
        """Return True if a step, or an incomplete follower of it, works on Ray."""
        following = (
            other for other in wanted if other.follows is step and not self._is_complete(other)
        )
        return step.needs_ray or any(other.needs_ray for other in following)

    def _make(self, step: Step, renewal: Renewal, *, follows: bool = False) -> Artifact:
        rank = _rank(step, follows=follows)

        def act(out: Path) -> Facts:
            renewal.record(step)
            facts = timed(step, out, self._context, self._seconds, rank)
            # The input that it followed is complete by now, and has contents to record.
            renewal.record(step)
            return facts

        return manifests.make(self.out / step.name, step.identity, act)

    def _follow(
        self, step: Step, wanted: list[Step], followers: _Followers, renewal: Renewal
    ) -> None:
        """Start threads for the steps that can be made while `step` is being made."""
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


class _Ray:
    """Ray and the pools of a run, opened when first needed, closed with the stack."""

    def __init__(self, context: RunContext, stack: ExitStack, pending: list[Step]) -> None:
        self.pending = pending
        """The incomplete steps."""
        self.has_pools = False
        self._context = context
        self._stack = stack
        self._is_connected = False

    def check(self) -> None:
        """Refuse a machine or a cluster without room for the run, before anything is downloaded.

        Raises:
            UserError: the first fault, with its remedy.
        """
        if any(step.takes_gpu for step in self.pending):
            say = self._context.progress.say
            run_storage.check(self._context.run)
            preflight.check(self._context.recipe, trains=self._trains, say=say)
            # Only the cluster knows its devices.
            if address.named():
                self._connect()

    def open_pools(self, drawing: Iterable[Step]) -> None:
        """Open the pools of graders and engines, once; `drawing` are the steps to draw."""
        if self.has_pools:
            return
        self.has_pools = True
        self._connect()
        self._stack.enter_context(self._context.graders)
        self._stack.enter_context(self._context.engines)
        # The pools have to know all steps to come: engines stay until the last step of their model,
        # and end before another step needs the devices.
        for step in drawing:
            if step.engines is not None:
                self._context.engines.expect(step.engines, step.name)
        # Stop the threads before Ray shuts down: a late call of theirs would start another Ray.
        self._stack.callback(self._context.stopped.set)

    @property
    def _trains(self) -> bool:
        return any(step.verb == "train" for step in self.pending)

    def _connect(self) -> None:
        """Connect to Ray once; refuse a cluster without room for the pending steps."""
        if self._is_connected:
            return
        self._is_connected = True
        recipe = self._context.recipe
        say = self._context.progress.say
        named = address.named()
        say(f"connecting to Ray at {named}" if named else "starting Ray")
        self._stack.enter_context(cluster.connected(self._context.logs, say))
        work = cluster_room.Work(
            draws=any(step.engines is not None for step in self.pending),
            trains=self._trains,
            grades=any(step.verb == "grade" for step in self.pending),
        )
        cluster_room.check_cluster(recipe, work, say)
        # After the wait for nodes to join, so that they are examined before work too.
        self._stack.enter_context(sameness.required(self._context.run, self._context.progress.say))


class _Followers:
    """Steps in threads, by name; leaving the context stops those still running."""

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
    """Return the rank of a step, which decides its share of the time of overlapping steps."""
    if step.engines is not None:
        return Rank.DRAWING
    return Rank.GRADING if follows else Rank.LEADING
