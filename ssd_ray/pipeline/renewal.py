"""Upkeep of a run directory: keep, resume, remake or refuse each artifact.

- Other choices: an artifact is refused if it took GPU time, before anything is touched. Otherwise
  it is made again.
- Other contents of an input: everything made from it is made again. An input with equal
  contents changes nothing after it.
- Another version of ssd_ray: the artifact itself is treated as one with other choices. Artifacts
  made from it are compared by content, and refused if they took GPU time and the contents differ.

An artifact is compared once its inputs are complete, or before it starts to follow a growing input.
Reads fingerprints, manifests and `made-from.json`; moves, deletes or reopens artifacts.
docs/design.md has the rules.
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
"""Treatment of an artifact by a run that starts now."""


class Renewal:
    """The upkeep of a run directory while its steps are made; each step is settled once."""

    def __init__(self, steps: Sequence[Step], out: Path, progress: Progress) -> None:
        self._steps = steps
        self._out = out
        self._progress = progress
        self._settled: set[str] = set()
        self._made: set[str] = set()

    def state(self, step: Step) -> State:
        """Return the state of an artifact by its fingerprint, without touching it."""
        return manifests.state_of(self._out / step.name, step.identity)

    def refuse(self, needed: Collection[Step]) -> None:
        """Refuse to discard work of GPUs, before anything is touched.

        Stale artifacts are refused if they took GPU time, and if one of these holds:

        - the artifact itself is needed;
        - one of its inputs is to be made again.

        Prompts with other choices are refused too: they belong to another run. So is a directory
        with a manifest of another format.

        Raises:
            UserError: names the directories, the differing choice, and the remedy.
        """
        for step in self._steps:
            if (self._out / step.name / "manifest.json").exists():
                manifests.read_manifest(self._out / step.name)
        replaced = {step.name for step in needed if self.state(step) == "stale"}
        refused = [
            step
            for step in self._steps
            if self._is_refused(step)
            and (step in needed or any(before.name in replaced for before in _upstream(step)))
        ]
        if refused:
            cause = self._cause(refused[0])
            pronoun = "it"
            if len(refused) > 1:
                cause = cause.replace("was made", "were made", 1)
                pronoun = "them"
            if any(step.takes_gpu for step in refused):
                cause += ", and took GPU time"
            directories = _listed(str(self._out / step.name) for step in refused)
            raise UserError(
                f"{directories} {cause}: choose another --out, or delete {pronoun} to have "
                f"{pronoun} made again"
            )

    def _is_refused(self, step: Step) -> bool:
        """Return True if an artifact is stale and must not be made again without a request."""
        if self.state(step) != "stale" or not (step.takes_gpu or step.begins_run):
            return False
        existing = files.read_json(self._out / step.name / "fingerprint.json")
        return step.takes_gpu or not identity.has_recipe_digest_of(existing, step.identity)

    def outlooks(self) -> Iterator[tuple[Step, Outlook, str]]:
        """Yield every step, its outlook in a run now, and the reason; nothing is touched.

        A step to keep has a reason only if some of its inputs are still to be made. It is made
        again if their contents change. The reason names them.
        """
        remade: set[str] = set()
        for step in self._steps:
            outlook, reason = self._outlook(step)
            if outlook != "keep":
                remade.add(step.name)
            elif inputs := [before.name for before in step.sources() if before.name in remade]:
                remade.add(step.name)
                reason = f"if the contents of {_listed(inputs)} change"
            yield step, outlook, reason

    def _outlook(self, step: Step) -> tuple[Outlook, str]:
        state = self.state(step)
        if state == "stale":
            return "refuse" if self._is_refused(step) else "make again", self._cause(step)
        # Nothing was made yet, so there are no inputs to compare.
        if state == "missing":
            return "make", ""
        if changed := self._changed(step):
            reason = f"was made before the contents of {_listed(changed)} changed"
            return "make again" if all(changed.values()) or not step.takes_gpu else "refuse", reason
        is_open = state == "partial" or self._open_reason(step)
        return ("resume" if is_open else "keep"), ""

    def settle(self, step: Step) -> State:
        """Prepare the directory of a step whose inputs are all complete, and return its state.

        The directory is cleared if it is out of date, and reopened if a part of it was lost.

        Raises:
            UserError: it took GPU time and was made with other choices, or from contents of another
                version of ssd_ray.
        """
        if step.name not in self._settled:
            self._settled.add(step.name)
            self._replace(step)
            self._reopen(step)
            self._compare(step)
        return self.state(step)

    def done(self, step: Step) -> None:
        """Mark a step as complete."""
        self._made.add(step.name)

    def may_follow(self, step: Step, growing: Step) -> bool:
        """Return True if a step can be made in a thread while `growing` is being made.

        Only a step with `follows` can. There are two cases:

        - All inputs are complete, and the step is not.
        - `growing` is the input that the step follows, and all other inputs are complete. Existing
          rows of the step come from `growing` under its present claim. Rows from an earlier claim
          cannot be compared before `growing` is complete.
        """
        incomplete = [before for before in step.inputs if before.name not in self._made]
        if step.follows is None or step.name in self._settled | self._made:
            return False
        if not incomplete:
            return self.settle(step) != "complete"
        if incomplete != [growing] or growing is not step.follows:
            return False
        self._replace(step)
        state = self.state(step)
        # Resume only rows made from the present claim of `growing`.
        if state == "partial":
            return lineage.can_follow(self._out / step.name, growing.name, self._out / growing.name)
        return state == "missing"

    def may_join(self, step: Step, drawing: Step) -> bool:
        """Return True if a step can be drawn together with `drawing`, by the same engines.

        Everything before it has to be complete.
        """
        if step.engines is None or step.engines != drawing.engines:
            return False
        if step.name in self._settled | self._made:
            return False
        if any(before.name not in self._made for before in (*step.inputs, *step.after)):
            return False
        return self.settle(step) != "complete"

    def record(self, step: Step) -> None:
        """Record the current contents of the inputs of a step."""
        lineage.record(self._out / step.name, self._paths(step.sources()))

    def _replace(self, step: Step) -> None:
        """Clear a stale artifact.

        Raises:
            UserError: it took GPU time, or belongs to another run.
        """
        if self.state(step) == "stale":
            # Read the cause before the reset deletes its evidence.
            cause = self._cause(step)
            self.refuse([step])
            self._reset(step, cause)

    def _reopen(self, step: Step) -> None:
        """Reopen answers with lost shards, and verdicts with infrastructure errors."""
        if self.state(step) != "complete" or not (reason := self._open_reason(step)):
            return
        out = self._out / step.name
        self._progress.say(f"{step.name}: {reason}")
        if manifests.lost_shards(out):
            # Graders that followed the lost shards must not take the new ones for the same rows.
            lineage.renew_claim(out)
        manifests.reopen(out)

    def _open_reason(self, step: Step) -> str:
        """Return the reason to resume a complete artifact, or an empty text."""
        from ssd_ray.evaluation.verdicts import is_open

        out = self._out / step.name
        if (out / "ledger").is_dir() and manifests.damage(out):
            return "shards have changed since it was complete; checking all of them again"
        if step.verb == "grade" and is_open(out):
            return "grading again the answers without a verdict, after infrastructure errors"
        return ""

    def _compare(self, step: Step) -> None:
        """Clear an artifact made from other contents than its inputs have now.

        Raises:
            UserError: it took GPU time, and the contents came from another version of ssd_ray.
        """
        if self.state(step) not in ("complete", "partial"):
            return
        # Equal contents: record this version's revisions, so that later ones compare with them.
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
                f"{out} took GPU time and was made from {_listed(revised)} of another version of "
                f"ssd_ray, which this version makes differently: choose another --out, or delete "
                f"{out} to have it made again"
            )
        self._reset(step, f"was made before the contents of {_listed(changed)} changed")

    def _reset(self, step: Step, cause: str) -> None:
        """Clear the artifact of a step, after everything made from it has recorded its contents."""
        # Later steps are compared by contents, and these are about to be deleted.
        for other in self._steps:
            if step in other.sources() and self.state(other) != "missing":
                lineage.record(self._out / other.name, self._paths([step]))
                lineage.record_columns(self._out / other.name, step.name, self._out / step.name)
        place = step.reset(self._out)
        kept = "" if place is None else f"; the earlier one is in {place}"
        self._progress.say(f"{step.name} {cause}, and is made again{kept}")

    def _changed(self, step: Step) -> dict[str, bool]:
        paths = self._paths(step.sources())
        return lineage.changed(self._out / step.name, paths, facts=step.reads_facts)

    def _paths(self, steps: Iterable[Step]) -> dict[str, Path]:
        return {step.name: self._out / step.name for step in steps}

    def _cause(self, step: Step) -> str:
        """Describe the difference behind another fingerprint: a choice, or the revision.

        The choice may be one of the step or of an input.
        """
        for before in _upstream(step):
            path = self._out / before.name / "fingerprint.json"
            if path.exists() and (
                changes := identity.own_changes(files.read_json(path), before.identity)
            ):
                origin = "" if before is step else f"{before.name}: "
                return f"was made with other choices ({origin}{changes})"
        return identity.staleness(
            files.read_json(self._out / step.name / "fingerprint.json"), step.identity
        )


def _upstream(step: Step) -> Iterator[Step]:
    """Yield a step and, recursively, its inputs."""
    yield step
    for before in step.inputs:
        yield from _upstream(before)


def _listed(names: Iterable[str]) -> str:
    """Join names as in a sentence: "a, b and c"."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
