"""The graph of a run: its artifacts, their inputs and their order.

    problems ─render→ prompts/ ─sample→ samples/ ─prepare→ dataset/ ─train→ checkpoint/
    benchmark/, prompts/ ─render→ contamination/ (before samples are complete)
    benchmark/ ─render→ eval-prompts/ ─generate→ generations/<arm>/ ─grade→ verdicts/<arm>/
    verdicts/<arm>/ ─report→ report/

- A trained control NAME has samples-NAME/, dataset-NAME/ and checkpoint-NAME/, and shares those
  that it does not change (`config/trained_models.py`).
- The control `accepted` shares the samples: training-problems/ with their tests, sample-verdicts/,
  dataset-accepted/, checkpoint-accepted/.
- Repeated trainings share the data set: checkpoint-ssd-seed2/.
- A second profile of grading fills verdicts-lcb/<arm>/.

Every fingerprint follows from the recipe alone. So the state of each artifact is known in advance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from ssd_ray.config import Arm, Recipe, arms
from ssd_ray.config.arms import TrainedModel
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.rendering import (
    Benchmark,
    Contamination,
    EvalPrompts,
    Prompts,
    TrainingProblems,
    answering_model_choices,
    model_choices,
)
from ssd_ray.pipeline.reporting import Report
from ssd_ray.pipeline.sampling import BASE, Generations, Samples
from ssd_ray.pipeline.step import Step
from ssd_ray.pipeline.training import Checkpoint, Dataset
from ssd_ray.schema import Profile

StepT = TypeVar("StepT", bound=Step)


def steps(recipe: Recipe) -> list[Step]:
    """List all steps of a recipe in the order of a run.

    Raises:
        UserError: a file named in the recipe is missing.
    """
    return Graph(recipe).steps


class Graph:
    """The steps of a recipe: the only list of them."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe
        self._steps: dict[str, Step] = {}
        self._model = model_choices(recipe)
        self._answering = answering_model_choices(recipe, self._model)
        branches = arms.branches(recipe)
        self._selects = any(branch.verdicts for branch in branches)
        self._render()
        # All data comes before any training, so that a mistake shows early.
        datasets = {branch.name: self._training_data(branch) for branch in branches}
        every = arms.arms(recipe)
        base = {name: arm for name, arm in every.items() if arm.model == BASE}
        # The arms of the base also come first: its engines draw them together with the samples,
        # and end before training needs their devices.
        graded = self._evaluate(base, {})
        checkpoints = {
            branch.name: self._checkpoint(branch, datasets[branch.name]) for branch in branches
        }
        trained_arms = {name: arm for name, arm in every.items() if name not in base}
        graded |= self._evaluate(trained_arms, checkpoints)
        profiles = recipe.evaluate.profiles
        verdicts = [graded[profile, name] for profile in profiles for name in every]
        trained = (step for name in datasets for step in (datasets[name], checkpoints[name]))
        # A data set may be shared.
        inputs = tuple(dict.fromkeys((self._contamination, *trained, *verdicts)))
        self._add(Report(name="report", recipe=recipe, inputs=inputs, steps=tuple(self._steps)))

    @property
    def steps(self) -> list[Step]:
        """All steps in the order of a run."""
        return list(self._steps.values())

    def _add(self, step: StepT) -> StepT:
        """Append a step."""
        self._steps[step.name] = step
        return step

    def _render(self) -> None:
        recipe = self._recipe
        model = self._model
        self._benchmark = self._add(Benchmark(name="benchmark", recipe=recipe))
        # Evaluation prompts come before training prompts, with which sampling starts. So a chat
        # template that cannot render them is reported before an engine starts.
        self._eval_prompts = self._add(
            EvalPrompts(name="eval-prompts", recipe=recipe, inputs=(self._benchmark,), model=model)
        )
        # Dropping overlaps needs the benchmark; otherwise prompts do not depend on it.
        overlaps = (self._benchmark,) if recipe.prompts.contamination == "drop" else ()
        self._prompts = self._add(
            Prompts(name="prompts", recipe=recipe, inputs=overlaps, model=model)
        )
        inputs = (self._benchmark, self._prompts)
        self._contamination = self._add(
            Contamination(name="contamination", recipe=recipe, inputs=inputs)
        )
        self._problems: tuple[Step, ...] = ()
        if self._selects:
            problems = TrainingProblems(
                name="training-problems", recipe=recipe, inputs=(self._prompts,)
            )
            self._problems = (self._add(problems),)

    def _training_data(self, branch: TrainedModel) -> Dataset:
        """Add the steps from prompts to a data set, or return one shared with another branch."""
        shared = self._steps.get(branch.dataset)
        if isinstance(shared, Dataset):
            return shared
        samples = self._samples(branch)
        graded = self._sample_verdicts(branch, samples)
        inputs = (samples, *graded)
        return self._add(
            Dataset(name=branch.dataset, recipe=self._recipe, inputs=inputs, branch=branch)
        )

    def _samples(self, branch: TrainedModel) -> Step:
        """Add the samples of a branch, or return those shared with an earlier branch."""
        if branch.samples in self._steps:
            return self._steps[branch.samples]
        return self._add(
            Samples(
                name=branch.samples,
                recipe=self._recipe,
                inputs=(self._prompts,),
                after=(self._contamination, self._eval_prompts, *self._problems),
                # The control joins the engines of `samples/` once all prompts are complete.
                follows=self._prompts if branch.samples == "samples" else None,
                engines=BASE,
                sample=branch.sample,
                model=self._answering,
            )
        )

    def _sample_verdicts(self, branch: TrainedModel, samples: Step) -> Iterator[Step]:
        """Add and yield the verdicts on samples, if only accepted ones are trained on."""
        if branch.verdicts is None:
            return
        yield self._add(
            Grade(
                name=branch.verdicts,
                recipe=self._recipe,
                inputs=(*self._problems, samples),
                follows=samples,
                profile=self._recipe.evaluate.profiles[0],
                answers=samples.name,
                problems="training-problems",
                prompts="prompts",
                samples_per_prompt=self._recipe.sample.samples_per_prompt,
            )
        )

    def _checkpoint(self, branch: TrainedModel, dataset: Dataset) -> Checkpoint:
        return self._add(
            Checkpoint(
                name=branch.checkpoint,
                recipe=self._recipe,
                inputs=(dataset,),
                branch=branch,
                model=self._answering,
            )
        )

    def _generations(self, name: str, arm: Arm, checkpoint: Checkpoint | None) -> Generations:
        inputs: tuple[Step, ...] = (self._eval_prompts,)
        return self._add(
            Generations(
                name=f"generations/{name}",
                recipe=self._recipe,
                inputs=inputs if checkpoint is None else (*inputs, checkpoint),
                arm=arm,
                model=self._answering,
                checkpoint=None if checkpoint is None else checkpoint.name,
                engines=BASE if checkpoint is None else checkpoint.name,
            )
        )

    def _evaluate(
        self, evaluated: Mapping[str, Arm], checkpoints: Mapping[str, Checkpoint]
    ) -> dict[tuple[Profile, str], Grade]:
        """Add the generations of some arms and their verdicts; return these by profile and arm."""
        answers = {
            name: self._generations(name, arm, checkpoints.get(arms.weights(arm)))
            for name, arm in evaluated.items()
        }
        return {
            (profile, name): self._verdicts(name, profile, answers[name])
            for profile in self._recipe.evaluate.profiles
            for name in answers
        }

    def _verdicts(self, name: str, profile: Profile, answers: Generations) -> Grade:
        return self._add(
            Grade(
                name=f"{arms.VERDICTS[profile]}/{name}",
                recipe=self._recipe,
                inputs=(self._benchmark, self._eval_prompts, answers),
                follows=answers,
                profile=profile,
                answers=answers.name,
                problems="benchmark",
                prompts="eval-prompts",
                samples_per_prompt=self._recipe.evaluate.samples_per_problem,
            )
        )
