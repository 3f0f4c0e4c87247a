"""Steps of a sweep: samples, trainings and answers of every cell, and the page.

    prompts/ ─> samples/<samples>/ ─> dataset/<samples>/ ─> checkpoint/<student>/
    eval-prompts/ (, checkpoint/<student>/) ─> generations/<cell>/ ─> verdicts/<cell>/ ─> sweep/

- One sampling for each decoding of the samples, one training for each student, and one pool of
  engines for all answers of a student. The base draws all samples and its own answers at once.
- Each artifact is named by its values, so a larger sweep keeps those of a smaller one.
- Each student answers before the next one is trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ssd_ray.config import Arm
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.rendering import (
    Benchmark,
    Contamination,
    EvalPrompts,
    Prompts,
    answering_model_choices,
    model_choices,
)
from ssd_ray.pipeline.sampling import BASE, Generations, Samples
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.sweep_cells import CellAnswers, Sweep, swept_model
from ssd_ray.pipeline.sweep_probing import (
    BASE_STATES,
    VERB,
    CellProbes,
    HeldOutAnswers,
    ProbeSweep,
    States,
    held_out_prompts,
)
from ssd_ray.pipeline.training import Checkpoint, Dataset
from ssd_ray.recipes.cells import Cell, Student
from ssd_ray.recipes.sweeps import Design

Measure = Literal["answers", "probe"]


PROBE = "sweep-probe"


def sweep_steps(design: Design, measure: Measure = "answers") -> list[Step]:
    """List the steps of a sweep in their order.

    Raises:
        UserError: distributions are to be measured, and too few prompts are held out of training.
    """
    steps = _Steps(design)
    if measure == "answers":
        steps.answers()
    else:
        steps.probes()
    return steps.steps


class _Steps:
    """The steps of a sweep, in the order of the work."""

    def __init__(self, design: Design) -> None:
        recipe = design.recipe
        self.steps: list[Step] = []
        self._recipe = recipe
        self._design = design
        self._model = model_choices(recipe)
        self._answering = answering_model_choices(recipe, self._model)
        self._render()
        self._samples_of = self._samples(design.students)

    def answers(self) -> None:
        """Add the answers of every cell, and the page."""
        design = self._design
        # The base answers before any training, with the engines that draw the samples.
        verdicts = self._answers(design.cells_of(None), None)
        datasets = self._datasets(design.students, self._samples_of)
        for student in design.students:
            checkpoint = self._checkpoint(student, datasets[student.samples])
            verdicts += self._answers(design.cells_of(student), checkpoint)
        inputs = (self._eval_prompts, *verdicts)
        self.steps += [Sweep(name=VERB, recipe=self._recipe, inputs=inputs, design=design)]

    def probes(self) -> None:
        """Add the distributions of every student, and the page."""
        design = self._design
        datasets = self._datasets(design.students, self._samples_of)
        naive = next(student for student in design.students if student.is_naive)
        held_out = HeldOutAnswers(
            samples=f"samples/{naive.samples}", prompts=held_out_prompts(design)
        )
        base = States(
            name=BASE_STATES,
            recipe=self._recipe,
            inputs=(self._prompts, self._samples_of[naive.samples]),
            answers=held_out,
            checkpoint=None,
        )
        self.steps.append(base)
        probes: list[Step] = []
        for student in design.students:
            checkpoint = self._checkpoint(student, datasets[student.samples])
            probes += [self._probe(student, checkpoint, n, base) for n in design.checkpoints]
        page = ProbeSweep(name=PROBE, recipe=self._recipe, inputs=tuple(probes), design=design)
        self.steps.append(page)

    def _probe(
        self, student: Student, checkpoint: Checkpoint, step: int | None, base: States
    ) -> CellProbes:
        """Add the states of a student and its distributions, and return the latter."""
        model = Cell(student=student, step=step, decoding=self._design.decodings[0]).model
        states = States(
            name=f"states/{model}",
            recipe=self._recipe,
            inputs=(*base.inputs, checkpoint),
            answers=base.answers,
            checkpoint=_directory(checkpoint, step),
            step=step,
        )
        probe = CellProbes(
            name=f"probes/{model}",
            recipe=self._recipe,
            inputs=(base, states),
            design=self._design,
            student=student,
            base=base,
            own=states,
        )
        self.steps += [states, probe]
        return probe

    def _render(self) -> None:
        recipe = self._recipe
        benchmark = Benchmark(name="benchmark", recipe=recipe)
        self._benchmark = benchmark
        self._eval_prompts = EvalPrompts(
            name="eval-prompts", recipe=recipe, inputs=(benchmark,), model=self._model
        )
        overlaps = (benchmark,) if recipe.prompts.contamination == "drop" else ()
        self._prompts = Prompts(name="prompts", recipe=recipe, inputs=overlaps, model=self._model)
        self._contamination = Contamination(
            name="contamination", recipe=recipe, inputs=(benchmark, self._prompts)
        )
        self.steps += [benchmark, self._eval_prompts, self._prompts, self._contamination]

    def _samples(self, students: tuple[Student, ...]) -> dict[str, Samples]:
        """Add the samples of all students, one step for those with the same decoding."""
        samples: dict[str, Samples] = {}
        for student in students:
            if student.samples not in samples:
                samples[student.samples] = Samples(
                    name=f"samples/{student.samples}",
                    recipe=self._recipe,
                    inputs=(self._prompts,),
                    after=(self._contamination, self._eval_prompts),
                    engines=BASE,
                    sample=student.recipe.sample,
                    model=self._answering,
                )
        self.steps += samples.values()
        return samples

    def _datasets(
        self, students: tuple[Student, ...], samples: Mapping[str, Samples]
    ) -> dict[str, Dataset]:
        datasets: dict[str, Dataset] = {}
        for student in students:
            if student.samples not in datasets:
                branch = swept_model(student)
                datasets[student.samples] = Dataset(
                    name=branch.dataset,
                    recipe=self._recipe,
                    inputs=(samples[student.samples],),
                    branch=branch,
                )
        # All data comes before any training, so that a mistake shows early.
        self.steps += datasets.values()
        return datasets

    def _checkpoint(self, student: Student, dataset: Dataset) -> Checkpoint:
        # Its own recipe, since an axis may set a field of the training.
        branch = swept_model(student)
        checkpoint = Checkpoint(
            name=branch.checkpoint,
            recipe=student.recipe,
            inputs=(dataset,),
            branch=branch,
            model=self._answering,
        )
        self.steps.append(checkpoint)
        return checkpoint

    def _answers(self, cells: tuple[Cell, ...], checkpoint: Checkpoint | None) -> list[Grade]:
        """Add the answers of one model at every decoding, and return their verdicts."""
        answers = [self._generations(cell, checkpoint) for cell in cells]
        verdicts = [self._verdicts(cell, drawn) for cell, drawn in zip(cells, answers, strict=True)]
        self.steps += [*answers, *verdicts]
        return verdicts

    def _generations(self, cell: Cell, checkpoint: Checkpoint | None) -> Generations:
        inputs: tuple[Step, ...] = (self._eval_prompts,)
        model = "base" if checkpoint is None else "ssd"
        return CellAnswers(
            name=f"generations/{cell.name}",
            recipe=self._recipe,
            inputs=inputs if checkpoint is None else (*inputs, checkpoint),
            arm=Arm(model=model, **cell.decoding.model_dump()),
            model=self._answering,
            checkpoint=None if checkpoint is None else _directory(checkpoint, cell.step),
            engines=cell.model,
            step=cell.step,
        )

    def _verdicts(self, cell: Cell, answers: Generations) -> Grade:
        return Grade(
            name=f"verdicts/{cell.name}",
            recipe=self._recipe,
            inputs=(self._benchmark, self._eval_prompts, answers),
            follows=answers,
            profile=self._recipe.evaluate.profiles[0],
            answers=answers.name,
            problems="benchmark",
            prompts="eval-prompts",
            samples_per_prompt=self._recipe.evaluate.samples_per_problem,
        )


def _directory(checkpoint: Checkpoint, step: int | None) -> str:
    """Return the directory of a student at an exported step; the last is the checkpoint itself."""
    if step in (None, checkpoint.recipe.train.steps):
        return checkpoint.name
    return f"{checkpoint.name}/steps/step-{step}"
