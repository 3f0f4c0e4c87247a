"""What of a run directory still holds: which artifacts are kept, resumed, made again or refused, and the acts that go with it.

- Other choices: an artifact that took GPU time is refused, before anything is touched. What costs no GPU time is made again.
- Other contents of an input: whatever was made from it is made again. What comes out as before changes nothing after it.
- Another version of ssd_ray: as other choices for the artifact itself. What was made from it is looked at by content, and
  refused where that took GPU time and the contents differ.

An artifact is looked at when its turn has come and its inputs are complete, or before it starts to follow one that grows.
Reads fingerprints, manifests and `made-from.json`; moves, deletes or reopens artifacts. docs/design.md has the rules.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from ssd_ray.artifacts import files, identity, lineage, manifests
from ssd_ray.artifacts.manifests import State
from ssd_ray.errors import UserError
from ssd_ray.pipeline.step import Step
from ssd_ray.progress import Progress

Outlook = Literal["keep", "resume", "make", "make again", "refuse"]


class Renewal:
    """The upkeep of a run directory while its steps are made, one after another; each step is settled once."""

    def __init__(self, steps: Sequence[Step], out: Path, progress: Progress) -> None:
        self._steps, self._out, self._progress = steps, out, progress
        self._settled: set[str] = set()
        self._made: set[str] = set()

    def state(self, step: Step) -> State:
        """Where an artifact stands by its fingerprint, without touching it."""
        return manifests.state_of(self._out / step.name, step.identity)

    def refuse(self, needed: Collection[Step]) -> None:
        """Refuse to make steps for which work of GPUs would be thrown away, before anything is touched.

        That is work with other choices, if it is needed, or if something that it was made from is to be made again. Prompts
        with other choices are refused too: they are those of another run.

        Raises:
            UserError: names the directories, the choice that differs, and what to do.
        """
        replaced = {step.name for step in needed if self.state(step) == "stale"}
        refused = [
            step
            for step in self._steps
            if self._is_refused(step)
            and (step in needed or any(before.name in replaced for before in _upstream(step)))
        ]
        if refused:
            cause, them = self._cause(refused[0]), "it" if len(refused) == 1 else "them"
            if len(refused) > 1:
                cause = cause.replace("was made", "were made", 1)
            if any(step.takes_gpu for step in refused):
                cause += ", and took GPU time"
            raise UserError(
                f"{_listed(str(self._out / step.name) for step in refused)} {cause}: choose another --out, or delete {them} to "
                f"have {them} made again"
            )

    def _is_refused(self, step: Step) -> bool:
        """Return True if an artifact is stale and is not made again for that."""
        if self.state(step) != "stale" or not (step.takes_gpu or step.begins_run):
            return False
        existing = files.read_json(self._out / step.name / "fingerprint.json")
        return step.takes_gpu or not identity.is_asked_for(existing, step.identity)

    def outlooks(self) -> Iterator[tuple[Step, Outlook, str]]:
        """Say of every step what a run would do with it as things are, and why; nothing is touched.

        What is kept as things are may be made again once an input of it is; the reason then names those inputs.
        """
        remade: set[str] = set()
        for step in self._steps:
            outlook, reason = self._outlook(step)
            if outlook != "keep":
                remade.add(step.name)
            elif inputs := [before.name for before in step.sources() if before.name in remade]:
                remade.add(step.name)
                reason = f"if {_listed(inputs)} come out otherwise"
            yield step, outlook, reason

    def _outlook(self, step: Step) -> tuple[Outlook, str]:
        state = self.state(step)
        if state == "stale":
            return "refuse" if self._is_refused(step) else "make again", self._cause(step)
        if state == "missing":
            return "make", ""
        if changed := self._changed(step):
            was = f"was made from other {_listed(changed)} than are there now"
            return "make again" if all(changed.values()) or not step.takes_gpu else "refuse", was
        return ("resume" if state == "partial" or self._is_open(step) else "keep"), ""

    def settle(self, step: Step) -> State:
        """Bring the directory of a step, all of whose inputs are complete, to where making it goes on; return its state.

        Raises:
            UserError: it took GPU time and was made from contents of another version of ssd_ray.
        """
        if step.name not in self._settled:
            self._settled.add(step.name)
            self._replace(step)
            self._reopen(step)
            self._compare(step)
        return self.state(step)

    def done(self, step: Step) -> None:
        """Note that a step is complete."""
        self._made.add(step.name)

    def may_follow(self, step: Step, growing: Step) -> bool:
        """Return True if a step can be made now that `growing` is; one that cannot waits for its turn.

        Everything that it is made from has to be complete, but for `growing` itself. What the step has already must come from
        `growing` as it grows now: of anything else nobody can say before it is complete.
        """
        waited = [before for before in step.inputs if before.name not in self._made]
        if step.follows is None or step.name in self._settled | self._made:
            return False
        if not waited:
            return self.settle(step) != "complete"
        if waited != [growing] or growing is not step.follows:
            return False
        self._replace(step)
        state = self.state(step)
        if state == "partial":
            return lineage.can_follow(self._out / step.name, growing.name, self._out / growing.name)
        return state == "missing"

    def record(self, step: Step) -> None:
        """Put on record what a step is being made from, as it is now."""
        lineage.record(self._out / step.name, self._paths(step.sources()))

    def _replace(self, step: Step) -> None:
        """Clear away what was made with other choices or by another version, where that cost no GPU time."""
        if self.state(step) == "stale":
            cause = self._cause(step)
            self.refuse([step])
            self._reset(step, cause)

    def _reopen(self, step: Step) -> None:
        """Reopen shards of engines that were lost, and verdicts that a failing machine left open."""
        if self.state(step) != "complete" or not (why := self._is_open(step)):
            return
        out = self._out / step.name
        self._progress.say(f"{step.name}: {why}")
        if manifests.lost_shards(out):
            lineage.renew_claim(out)
        manifests.reopen(out)

    def _is_open(self, step: Step) -> str:
        """Say why a complete artifact is to be resumed; empty where it is not."""
        from ssd_ray.evaluation.verdicts import is_open

        out = self._out / step.name
        if (out / "ledger").is_dir() and manifests.damage(out):
            return "shards are not as they were when it was whole; looking at all of them again"
        return (
            "grading again what a failing machine left without a verdict"
            if step.verb == "grade" and is_open(out)
            else ""
        )

    def _compare(self, step: Step) -> None:
        """Clear away what was made from other contents than its inputs hold now."""
        if self.state(step) not in ("complete", "partial"):
            return
        if not (changed := self._changed(step)):
            lineage.adopt(
                self._out / step.name, self._paths(step.sources()), step.identity.revisions
            )
            return
        if step.takes_gpu and (
            revised := [name for name, is_comparable in changed.items() if not is_comparable]
        ):
            out = self._out / step.name
            raise UserError(
                f"{out} took GPU time and was made from {_listed(revised)} of another version of ssd_ray, which come out "
                f"otherwise now: choose another --out, or delete {out} to have it made again"
            )
        self._reset(step, f"was made from other {_listed(changed)} than are there now")

    def _reset(self, step: Step, cause: str) -> None:
        """Clear away a step's artifact, once everything that was made from it has on record that it was."""
        for other in self._steps:
            if step in other.sources() and self.state(other) != "missing":
                lineage.record(self._out / other.name, self._paths([step]))
                lineage.record_columns(self._out / other.name, step.name, self._out / step.name)
        place = step.reset(self._out)
        kept = "" if place is None else f"; what was there is in {place}"
        self._progress.say(f"{step.name} {cause}, and is made again{kept}")

    def _changed(self, step: Step) -> dict[str, bool]:
        paths = self._paths(step.sources())
        return lineage.changed(self._out / step.name, paths, facts=step.reads_facts)

    def _paths(self, steps: Iterable[Step]) -> dict[str, Path]:
        return {step.name: self._out / step.name for step in steps}

    def _cause(self, step: Step) -> str:
        """Say in what a directory with another fingerprint differs, by the choice behind it: its own, or that of an input."""
        for before in _upstream(step):
            path = self._out / before.name / "fingerprint.json"
            if path.exists() and (
                changes := identity.own_changes(files.read_json(path), before.identity)
            ):
                return f"was made with other choices ({changes if before is step else f'{before.name}: {changes}'})"
        return identity.staleness(
            files.read_json(self._out / step.name / "fingerprint.json"), step.identity
        )


def _upstream(step: Step) -> Iterator[Step]:
    """A step and all that it is made from."""
    yield step
    for before in step.inputs:
        yield from _upstream(before)


def _listed(names: Iterable[str]) -> str:
    """Names as a sentence holds them."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
