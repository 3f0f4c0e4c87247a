"""The whole program on one page: which artifact is made from which, by what, and in what order.

    problems ─render→ prompts/ ─sample→ samples/ ─prepare→ dataset/ ─train→ checkpoint/
    benchmark/, prompts/ ─render→ contamination/ (before samples are whole)
    benchmark/ ─render→ eval-prompts/ ─generate→ generations/<arm>/ ─grade→ verdicts/<arm>/ ─report→ report/

The naive control, where an arm needs it, goes the same way once more (samples-naive/, dataset-naive/, checkpoint-naive/). The
control `accepted` shares the samples: training-problems/ with their tests, sample-verdicts/, dataset-accepted/,
checkpoint-accepted/. A second profile of grading fills verdicts-lcb/<arm>/.

Every fingerprint follows from the recipe alone, so what is whole, partial or made by another recipe is known before any
work starts. This is the one module that knows more than one stage; `ssd_ray.pipeline.run` makes the steps.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import config, models
from ssd_ray.artifacts import files, manifests
from ssd_ray.config import Arm, Recipe, arms
from ssd_ray.config.arms import Branch
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.pipeline.stages import Stages
from ssd_ray.pipeline.step import Step
from ssd_ray.problems import sources
from ssd_ray.progress import Progress
from ssd_ray.schema import Profile

if TYPE_CHECKING:
    from ssd_ray.evaluation.pool import GraderPool


class Pipeline:
    """The steps of a recipe in a run directory."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out = recipe, out
        self._stages = Stages(recipe, out, progress)
        self.stopped = threading.Event()

    @property
    def graders(self) -> GraderPool:
        """The graders of all steps; closed until a run opens them."""
        return self._stages.graders

    # What is made from what.

    @functools.cached_property
    def steps(self) -> list[Step]:
        """Every step in the order in which `run` makes them."""
        return [*self._before_report, self._report]

    @functools.cached_property
    def _before_report(self) -> list[Step]:
        """All steps but the report, which shows what each of them cost: this is the only list of steps."""
        return [
            self._benchmark,
            self._eval_prompts,  # before any prompt, on which engines may wait already
            self._prompts,
            self._contamination,
            *([self._training_problems] if self._selects else []),
            *dict.fromkeys(step for branch in self._branches.values() for step in self._training_data(branch)),
            *(self._checkpoint(branch) for branch in self._branches.values()),
            *(self._generations(arm) for arm in self._arms),
            *self._all_verdicts,
        ]

    @functools.cached_property
    def _arms(self) -> dict[str, Arm]:
        return arms.arms(self.recipe)

    @functools.cached_property
    def _branches(self) -> dict[str, Branch]:
        return {branch.name: branch for branch in arms.branches(self.recipe)}

    @property
    def _selects(self) -> bool:
        """Whether a model is trained on accepted answers alone, for which the prompts' tests are needed."""
        return any(branch.verdicts for branch in self._branches.values())

    def _training_data(self, branch: Branch) -> Iterator[Step]:
        """The steps from prompts to a data set: those of every branch come before any training, so that a mistake shows early."""
        yield self._samples(branch.samples)
        if branch.verdicts is not None:
            yield self._sample_verdicts(branch)
        yield self._dataset(branch)

    @functools.cached_property
    def _all_verdicts(self) -> list[Step]:
        return [self._verdicts(arm, profile) for profile in self.recipe.evaluate.profiles for arm in self._arms]

    @functools.cached_property
    def _model(self) -> dict[str, Any]:
        chosen = config.choices(self.recipe.model)
        template = [Path(self.recipe.model.chat_template)] if self.recipe.model.chat_template else []
        if not all(path.is_file() for path in template):
            raise UserError(f"model.chat_template {self.recipe.model.chat_template!r} is not a file")
        return {
            "weights": dict(models.identify(self.recipe.model)),
            "dtype": chosen["dtype"],
            "max_model_len": chosen["max_model_len"],
            "chat_template": files.digest(template) if template else None,
        }

    @property
    def _answering_model(self) -> dict[str, Any]:
        """The model where it answers or is trained to; further end tokens shape no prompt."""
        further = list(self.recipe.model.end_tokens)
        return {**self._model, **({"end_tokens": further} if further else {})}

    @functools.cached_property
    def _benchmark(self) -> Step:
        chosen = self.recipe.evaluate
        names = {benchmark.name: sources.identify(benchmark) for benchmark in chosen.benchmarks}
        return Step(
            name="benchmark", verb="render", choices={"benchmarks": names, "limit": chosen.limit}, act=self._stages.benchmark
        )

    @functools.cached_property
    def _prompts(self) -> Step:
        prompts = self.recipe.prompts
        shaping = config.choices(prompts)
        if prompts.template_date is None:
            del shaping["template_date"]
        if prompts.contamination != "drop":
            del shaping["contamination"]  # what is refused or allowed shapes nothing
        inputs = (self._benchmark,) if "contamination" in shaping else ()
        chosen: dict[str, Any] = {
            "prompts": shaping,
            "source": sources.identify(prompts.source),
            "model": self._model,
        }
        if prompts.over_length == "truncate-left":
            chosen["room"] = self.recipe.sample.max_tokens
        return Step(name="prompts", verb="render", choices=chosen, act=self._stages.prompts, inputs=inputs)

    @functools.cached_property
    def _contamination(self) -> Step:
        chosen, inputs = {"policy": self.recipe.prompts.contamination}, (self._benchmark, self._prompts)
        return Step(name="contamination", verb="render", choices=chosen, act=self._stages.contamination, inputs=inputs)

    @functools.cached_property
    def _training_problems(self) -> Step:
        inputs = (self._prompts,)
        return Step(name="training-problems", verb="render", choices={}, act=self._stages.training_problems, inputs=inputs)

    @functools.cache  # noqa: B019 - a Run lives as long as its process
    def _samples(self, name: str) -> Step:
        sample = next(branch.sample for branch in self._branches.values() if branch.samples == name)
        settled = (self._contamination, self._eval_prompts, *((self._training_problems,) if self._selects else ()))
        return Step(
            name=name,
            verb="sample",
            choices={"sample": config.choices(sample), **self._engine_choices},
            act=functools.partial(self._stages.samples, sample, name, functools.partial(self._ended, *settled)),
            inputs=(self._prompts,),
            after=settled,
            needs_ray=True,
            follows=self._prompts if name == "samples" else None,  # the control's turn on the engines comes later
            check=self._stages.check_weights,
        )

    @functools.cache  # noqa: B019
    def _sample_verdicts(self, branch: Branch) -> Step:
        profile, samples = self.recipe.evaluate.profiles[0], self._samples(branch.samples)
        name = str(branch.verdicts)
        act = functools.partial(
            self._stages.sample_verdicts, branch.samples, profile, name, functools.partial(self._ended, samples)
        )
        return Step(
            name=name,
            verb="grade",
            choices=self._grading(profile),
            act=act,
            inputs=(self._training_problems, samples),
            needs_ray=True,
            follows=samples,
        )

    @functools.cache  # noqa: B019
    def _dataset(self, branch: Branch) -> Step:
        chosen = {"prepare": config.choices(branch.prepare), "extract": self.recipe.evaluate.extract}
        graded = (self._sample_verdicts(branch),) if branch.verdicts else ()
        inputs = (self._samples(branch.samples), *graded)
        return Step(
            name=branch.dataset,
            verb="prepare",
            choices=chosen,
            act=functools.partial(self._stages.dataset, branch),
            inputs=inputs,
            describe=functools.partial(self._stages.describe_dataset, branch),
        )

    @functools.cache  # noqa: B019
    def _checkpoint(self, branch: Branch) -> Step:
        chosen = {"train": config.choices(self.recipe.train), "model": self._answering_model, "seed": self.recipe.seed}
        return Step(
            name=branch.checkpoint,
            verb="train",
            choices=chosen,
            act=functools.partial(self._stages.checkpoint, branch),
            inputs=(self._dataset(branch),),
            needs_ray=True,
            check=self._stages.check_training,
        )

    @functools.cached_property
    def _eval_prompts(self) -> Step:
        chosen: dict[str, Any] = {
            "mode": self.recipe.evaluate.prompt_mode,
            "system_message": self.recipe.prompts.system_message,
            "template_arguments": self.recipe.prompts.template_arguments,
            "model": self._model,
        }
        if (pinned := self.recipe.prompts.template_date) is not None:
            chosen["template_date"] = pinned
        return Step(name="eval-prompts", verb="render", choices=chosen, act=self._stages.eval_prompts, inputs=(self._benchmark,))

    @functools.cache  # noqa: B019
    def _generations(self, name: str) -> Step:
        arm, evaluate = self._arms[name], self.recipe.evaluate
        chosen = {
            "arm": config.choices(arm),
            "samples_per_problem": evaluate.samples_per_problem,
            "max_tokens": evaluate.max_tokens,
            **self._engine_choices,
        }
        branch = self._branches.get(arm.model)
        inputs = (self._eval_prompts,) if branch is None else (self._eval_prompts, self._checkpoint(branch))
        checkpoint, ended = branch.checkpoint if branch else None, functools.partial(self._ended, self._eval_prompts)
        act = functools.partial(self._stages.generations, f"generations/{name}", arm, checkpoint, ended)
        return Step(
            name=f"generations/{name}",
            verb="generate",
            choices=chosen,
            act=act,
            inputs=inputs,
            needs_ray=True,
            check=functools.partial(self._stages.check_weights, checkpoint),
        )

    @functools.cache  # noqa: B019
    def _verdicts(self, name: str, profile: Profile) -> Step:
        answers = self._generations(name)
        stage = f"{arms.VERDICTS[profile]}/{name}"
        ended = functools.partial(self._ended, answers)
        act = functools.partial(self._stages.verdicts, answers.name, profile, stage, ended)
        return Step(
            name=stage,
            verb="grade",
            choices=self._grading(profile),
            act=act,
            inputs=(self._benchmark, self._eval_prompts, answers),
            needs_ray=True,
            follows=answers,
        )

    @functools.cached_property
    def _report(self) -> Step:
        evaluate = self.recipe.evaluate
        names = ("pass_at", "bootstrap_samples", "confidence", "max_infrastructure_errors", "profiles")
        chosen = {"name": self.recipe.name, "seed": self.recipe.seed, **{key: config.choices(evaluate)[key] for key in names}}
        chosen |= {
            "baseline": arms.baseline(self.recipe),
            "families": {name: list(swept.values()) for name, swept in arms.families(self.recipe).items()},
        }
        trained = (step for branch in self._branches.values() for step in (self._dataset(branch), self._checkpoint(branch)))
        inputs = (self._contamination, *trained, *self._all_verdicts)
        act = functools.partial(self._stages.report, [step.name for step in self._before_report])
        return Step(name="report", verb="report", choices=chosen, act=act, inputs=inputs, reads_facts=True)

    def _grading(self, profile: Profile) -> dict[str, Any]:
        limits = ("time_limit_s", "memory_limit_mib", "output_limit_kib", "extract")
        return {"profile": profile, **{limit: getattr(self.recipe.evaluate, limit) for limit in limits}}

    @property
    def _engine_choices(self) -> dict[str, Any]:
        return {"model": self._answering_model, "engine": config.choices(self.recipe.engine), "seed": self.recipe.seed}

    def _ended(self, *steps: Step) -> bool:
        """Whether steps that another one follows or waits for are whole.

        Raises:
            InfrastructureError: the run has stopped, and they may never be.
        """
        if self.stopped.is_set():
            raise InfrastructureError("the run was stopped")
        return all(manifests.state_of(self.out / step.name, step.identity) == "whole" for step in steps)
