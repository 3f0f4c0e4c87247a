"""The run of a sweep in its directory, and its cost in words."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from ssd_ray.artifacts.manifests import Artifact, State
from ssd_ray.errors import UserError
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.sweep_probing import VERB
from ssd_ray.pipeline.sweep_space import hours_line
from ssd_ray.pipeline.sweeping import Measure, sweep_steps
from ssd_ray.progress import Progress
from ssd_ray.recipes.sweeps import Design
from ssd_ray.submissions.owner import Work


class SweepRun(Run):
    """A sweep in its directory. Another process with other axes is other work."""

    def __init__(
        self, design: Design, out: Path, progress: Progress, measure: Measure = "answers"
    ) -> None:
        """Take the design, the directory and the measure.

        Raises:
            UserError: as for `sweep_steps`, or the directory is that of a run.
        """
        _refuse_a_run(out)
        super().__init__(design.recipe, out, progress, sweep_steps(design, measure))
        self._measure = measure
        self._design = design

    def make_sweep(self) -> list[Artifact]:
        """Make and return the page with everything behind it.

        Raises:
            UserError: as for `Run.make`.
            InfrastructureError: as for `Run.make`.
        """
        return self.make(VERB)

    def work(self, verb: str) -> Work:
        """Return the work of the sweep as other commands see it."""
        own = super().work(verb)
        axes = {axis.field: list(axis.values) for axis in self._design.axes}
        return replace(own, choices={**own.choices, "axes": axes, "measure": self._measure})


def _refuse_a_run(out: Path) -> None:
    # In a sweep these directories hold a directory for each student.
    if any((out / name / "fingerprint.json").exists() for name in ("samples", "checkpoint")):
        raise UserError(
            f"{out} holds a run, and a sweep needs a directory of its own: choose another --out"
        )


def cost_lines(design: Design, states: Iterable[tuple[Step, State]]) -> Iterator[str]:
    """Yield the cost of a sweep, and the part of it that is left."""
    kinds = {
        "sample": "sampling",
        "train": "training",
        "generate": "set of answers",
        "states": "forward pass",
    }
    # An iterator: the states are read twice.
    states = list(states)
    total, left = [], []
    for verb, noun in kinds.items():
        own = [s for step, s in states if step.verb == verb or step.name.startswith(f"{verb}/")]
        pending = sum(state != "complete" for state in own)
        if own:
            total.append(_counted(len(own), noun))
            left.append(_counted(pending, noun))
    added = sum(student.added for student in design.students)
    yield f"sweep: {design.shape} cells cost {_listed(total)}"
    if added:
        yield (
            f"sweep: {added} of the trainings {'are' if added > 1 else 'is'} added: T_train 1 "
            "without truncation teaches nothing by theory, and shows the effect of fine-tuning"
        )
    yield from hours_line(design)
    if any(state == "complete" for _, state in states):
        yield f"sweep: of these are left {_listed(left)}"


def _counted(number: int, noun: str) -> str:
    first, space, rest = noun.partition(" ")
    ending = "es" if noun.endswith("pass") else "s"
    if number == 1:
        return f"{number} {noun}"
    # "sets of answers", but "forward passes".
    return f"{number} {first}s{space}{rest}" if " of " in noun else f"{number} {noun}{ending}"


def _listed(parts: list[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
