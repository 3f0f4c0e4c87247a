"""Steps of a sweep: samples, trainings and answers of every cell, and the page.

    prompts/ ─> samples/<samples>/ ─> dataset/<samples>/ ─> checkpoint/<student>/
    eval-prompts/ (, checkpoint/<student>/) ─> generations/<cell>/ ─> verdicts/<cell>/ ─> sweep/

- One sampling for each decoding of the samples, one training for each student, and one pool of
  engines for all answers of a student. The base draws all samples and its own answers at once.
- Each artifact is named by its values. So a larger sweep keeps those of a smaller one.
- Students are trained one after another, and each answers before the next one is trained.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ssd_ray import config
from ssd_ray.artifacts import files
from ssd_ray.artifacts.facts import AnswerFacts, SweepFacts
from ssd_ray.artifacts.manifests import Artifact, State
from ssd_ray.config import Arm, arms
from ssd_ray.config.arms import TrainedModel
from ssd_ray.errors import UserError
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.rendering import (
    Benchmark,
    Contamination,
    EvalPrompts,
    Prompts,
    answering_model_choices,
    model_choices,
)
from ssd_ray.pipeline.run import Run
from ssd_ray.pipeline.sampling import BASE, Generations, Samples
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.training import Checkpoint, Dataset
from ssd_ray.progress import Progress
from ssd_ray.recipes.cells import Cell, Student
from ssd_ray.recipes.sweeps import Design
from ssd_ray.submissions.owner import Work

VERB = "sweep"


@dataclass(frozen=True, kw_only=True)
class SweptModel(TrainedModel):
    """A student of a sweep, with directories of its own."""

    student: str
    """Name of the student."""

    @property
    def checkpoint(self) -> str:
        return f"checkpoint/{self.student}"


def sweep_steps(design: Design) -> list[Step]:
    """List the steps of a sweep in their order."""
    return _Steps(design).steps


class _Steps:
    """The steps of a sweep, in the order of the work."""

    def __init__(self, design: Design) -> None:
        recipe = design.recipe
        self.steps: list[Step] = []
        self._recipe = recipe
        self._model = model_choices(recipe)
        self._answering = answering_model_choices(recipe, self._model)
        self._render()
        samples = self._samples(design.students)
        # The base answers before any training, with the engines that draw the samples.
        verdicts = self._answers(design.cells_of(None), None)
        datasets = self._datasets(design.students, samples)
        for student in design.students:
            checkpoint = self._checkpoint(student, datasets[student.samples])
            verdicts += self._answers(design.cells_of(student), checkpoint)
        inputs = (self._eval_prompts, *verdicts)
        self.steps.append(Sweep(name=VERB, recipe=recipe, inputs=inputs, design=design))

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
        directory = None if checkpoint is None else checkpoint.name
        if checkpoint is not None and cell.step not in (None, checkpoint.recipe.train.steps):
            # The last step is exported as the checkpoint itself.
            directory = f"{checkpoint.name}/steps/step-{cell.step}"
        return CellAnswers(
            name=f"generations/{cell.name}",
            recipe=self._recipe,
            inputs=inputs if checkpoint is None else (*inputs, checkpoint),
            arm=Arm(model=model, **cell.decoding.model_dump()),
            model=self._answering,
            checkpoint=directory,
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


class SweepRun(Run):
    """A sweep in its directory. Another process with other axes is other work."""

    def __init__(self, design: Design, out: Path, progress: Progress) -> None:
        """Take the design and the directory."""
        super().__init__(design.recipe, out, progress, sweep_steps(design))
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
        return replace(own, choices={**own.choices, "axes": axes})


def cost_lines(design: Design, states: Iterable[tuple[Step, State]]) -> Iterator[str]:
    """Yield the cost of a sweep, and the part of it that is left."""
    kinds = {"sample": "sampling", "train": "training", "generate": "set of answers"}
    # An iterator: the states are read twice.
    states = list(states)
    total, left = [], []
    for verb, noun in kinds.items():
        own = [state for step, state in states if step.verb == verb]
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
    if any(state == "complete" for _, state in states):
        yield f"sweep: of these are left {_listed(left)}"


def _counted(number: int, noun: str) -> str:
    first, space, rest = noun.partition(" ")
    return f"{number} {first}{'' if number == 1 else 's'}{space}{rest}"


def _listed(parts: list[str]) -> str:
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
