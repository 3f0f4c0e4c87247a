"""Steps of a sweep alone: answers of a cell, the training of a student, the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray import config
from ssd_ray.artifacts import files
from ssd_ray.artifacts.facts import AnswerFacts, SweepFacts
from ssd_ray.config import arms
from ssd_ray.config.arms import TrainedModel
from ssd_ray.errors import UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.sampling import Generations
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.sweep_probing import VERB
from ssd_ray.pipeline.sweep_space import check_space
from ssd_ray.recipes.cells import Student
from ssd_ray.recipes.sweeps import Design


@dataclass(frozen=True, kw_only=True)
class SweptModel(TrainedModel):
    """A student of a sweep, with directories of its own."""

    student: str
    """Name of the student."""

    @property
    def checkpoint(self) -> str:
        return f"checkpoint/{self.student}"


def swept_model(student: Student) -> SweptModel:
    """Return the training of a student, named like those of a run."""
    return SweptModel(
        # The control's name on its pages; other students are as the run's own model.
        name=arms.NAIVE if student.is_naive else "ssd",
        samples=f"samples/{student.samples}",
        sample=student.recipe.sample,
        prepare=student.recipe.prepare,
        dataset=f"dataset/{student.samples}",
        train=student.recipe.train,
        seed=student.recipe.seed,
        student=student.name,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class CellAnswers(Generations):
    """Answers of the base, or of a student at one of its exported steps."""

    step: int | None

    def choices(self) -> Mapping[str, object]:
        chosen = dict(super().choices())
        return chosen if self.step is None else {**chosen, "step": self.step}

    def make(self, out: Path, context: RunContext) -> AnswerFacts:
        if self.checkpoint is not None and not (context.run / self.checkpoint).is_dir():
            trained = self.inputs[-1].name
            raise UserError(
                f"{context.run / trained} has no export of step {self.step}, since it was trained "
                "without this checkpoint: delete it to train again"
            )
        return super().make(out, context)


@dataclass(frozen=True, kw_only=True, eq=False)
class Sweep(Step):
    """The page of a sweep and sweep.json."""

    verb = VERB

    design: Design

    def choices(self) -> Mapping[str, object]:
        evaluate = self.recipe.evaluate
        statistics = ("pass_at", "confidence", "bootstrap_samples", "max_infrastructure_errors")
        return {
            **{name: config.choices(evaluate)[name] for name in statistics},
            "seed": self.recipe.seed,
            "fits": self.design.fits,
            "axes": {axis.field: list(axis.values) for axis in self.design.axes},
        }

    def preview(self, run: Path) -> str:
        return "sweep.html and sweep.json"

    def check(self, context: RunContext) -> None:
        check_space(self, context)

    def make(self, out: Path, context: RunContext) -> SweepFacts:
        from ssd_ray.reporting import sweep as page
        from ssd_ray.reporting.numbers import counts, sweep_document, sweep_numbers

        run = context.run
        asked = counts.problems_asked(run)
        number = self.recipe.evaluate.samples_per_problem
        results = {
            cell.name: counts.arm_results(
                run / "generations" / cell.name, run / "verdicts" / cell.name, asked, number
            )
            for cell in self.design.cells
        }
        document = sweep_numbers.of_answers(self.design, results)
        files.write_atomic(out / "sweep.json", sweep_document.sweep_text(document))
        files.write_atomic(out / "sweep.html", page.sweep_page(document))
        return SweepFacts(cells=len(results), problems=len(asked))
