"""The whole program on one page: which artifact is made from which, by what, and in what order.

    problems ─render→ prompts/ ─sample→ samples/ ─prepare→ dataset/ ─train→ checkpoint/
    benchmark/ ─render→ eval-prompts/ ─generate→ generations/<arm>/ ─grade→ verdicts/<arm>/ ─report→ report/

The naive control, where an arm needs it, goes the same way once more (samples-naive/, dataset-naive/, checkpoint-naive/), and
a second profile of grading fills verdicts-lcb/<arm>/.

Every fingerprint follows from the recipe alone, so what is whole, partial or made by another recipe is known before any
work starts. This is the one module that knows more than one stage; `ssd_ray.run` makes the steps.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray import arms, artifacts, config, models
from ssd_ray.artifacts import Identity
from ssd_ray.config import Arm, Recipe, SampleConfig
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.problems import sources
from ssd_ray.progress import Progress
from ssd_ray.schema import Problem, Profile

Facts = Mapping[str, Any]
_BRANCH = {"ssd": "", "naive": "-naive"}
"""What the directories of an arm's training end in."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One artifact to make: its directory under the run, the verb that makes it, its inputs, what it is, the act itself.

    A step that `follows` one of its inputs can be made while that one is: it reads it as it grows.
    """

    name: str
    verb: str
    choices: Mapping[str, Any]
    act: Callable[[Path], Facts]
    inputs: tuple[Step, ...] = ()
    needs_ray: bool = False
    follows: Step | None = None

    @functools.cached_property
    def identity(self) -> Identity:
        """What the artifact is, by its choices and its inputs' fingerprints."""
        fingerprints = {step.name: step.identity.fingerprint for step in self.inputs}
        return Identity(stage=self.name.split("/")[0], choices=self.choices, inputs=fingerprints)


class Pipeline:
    """The steps of a recipe in a run directory."""

    def __init__(self, recipe: Recipe, out: Path, progress: Progress) -> None:
        self.recipe, self.out, self._progress = recipe, out, progress
        self.stopped = threading.Event()

    # What is made from what.

    @functools.cached_property
    def steps(self) -> list[Step]:
        """Every step in the order in which `run` makes them."""
        return [
            self._benchmark,
            self._prompts,
            *(
                step
                for branch in self._branches
                for step in (self._samples(branch), self._dataset(branch), self._checkpoint(branch))
            ),
            self._eval_prompts,
            *(self._generations(arm) for arm in self._arms),
            *self._all_verdicts,
            self._report,
        ]

    @functools.cached_property
    def _arms(self) -> dict[str, Arm]:
        return arms.arms(self.recipe)

    @functools.cached_property
    def _branches(self) -> tuple[str, ...]:
        """What the directories of training end in: nothing for SSD, `-naive` for the control that is trained beside it."""
        return ("", "-naive") if arms.trains_naive(self.recipe) else ("",)

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
            "chat_template": artifacts.digest(template) if template else None,
        }

    @functools.cached_property
    def _benchmark(self) -> Step:
        chosen = self.recipe.evaluate
        names = {benchmark.name: sources.identify(benchmark) for benchmark in chosen.benchmarks}
        return Step(
            name="benchmark", verb="render", choices={"benchmarks": names, "limit": chosen.limit}, act=self._make_benchmark
        )

    @functools.cached_property
    def _prompts(self) -> Step:
        prompts = self.recipe.prompts
        chosen = {"prompts": config.choices(prompts), "source": sources.identify(prompts.source), "model": self._model}
        return Step(name="prompts", verb="render", choices=chosen, act=self._make_prompts)

    @functools.cache  # noqa: B019 - a Run lives as long as its process
    def _samples(self, branch: str) -> Step:
        sample = arms.naive_sample(self.recipe) if branch else self.recipe.sample
        chosen = {"sample": config.choices(sample), **self._engine_choices}
        act = functools.partial(self._make_samples, sample, branch)
        return Step(name=f"samples{branch}", verb="sample", choices=chosen, act=act, inputs=(self._prompts,), needs_ray=True)

    @functools.cache  # noqa: B019
    def _dataset(self, branch: str) -> Step:
        chosen = {"prepare": config.choices(self.recipe.prepare)}
        act = functools.partial(self._make_dataset, branch)
        return Step(name=f"dataset{branch}", verb="prepare", choices=chosen, act=act, inputs=(self._samples(branch),))

    @functools.cache  # noqa: B019
    def _checkpoint(self, branch: str) -> Step:
        chosen = {"train": config.choices(self.recipe.train), "model": self._model, "seed": self.recipe.seed}
        act, inputs = functools.partial(self._make_checkpoint, branch), (self._dataset(branch),)
        return Step(name=f"checkpoint{branch}", verb="train", choices=chosen, act=act, inputs=inputs, needs_ray=True)

    @functools.cached_property
    def _eval_prompts(self) -> Step:
        chosen = {
            "mode": self.recipe.evaluate.prompt_mode,
            "system_message": self.recipe.prompts.system_message,
            "template_arguments": self.recipe.prompts.template_arguments,
            "model": self._model,
        }
        return Step(name="eval-prompts", verb="render", choices=chosen, act=self._make_eval_prompts, inputs=(self._benchmark,))

    @functools.cache  # noqa: B019
    def _generations(self, name: str) -> Step:
        arm, evaluate = self._arms[name], self.recipe.evaluate
        chosen = {
            "arm": config.choices(arm),
            "samples_per_problem": evaluate.samples_per_problem,
            "max_tokens": evaluate.max_tokens,
            **self._engine_choices,
        }
        inputs = (self._eval_prompts,) if arm.model == "base" else (self._eval_prompts, self._checkpoint(_BRANCH[arm.model]))
        act = functools.partial(self._make_generations, name, arm)
        return Step(name=f"generations/{name}", verb="generate", choices=chosen, act=act, inputs=inputs, needs_ray=True)

    @functools.cache  # noqa: B019
    def _verdicts(self, name: str, profile: Profile) -> Step:
        limits = ("time_limit_s", "memory_limit_mib", "output_limit_kib", "extract")
        chosen = {"profile": profile, **{limit: getattr(self.recipe.evaluate, limit) for limit in limits}}
        answers = self._generations(name)
        act = functools.partial(self._make_verdicts, name, profile)
        return Step(
            name=f"{arms.VERDICTS[profile]}/{name}",
            verb="grade",
            choices=chosen,
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
        trained = (step for branch in self._branches for step in (self._dataset(branch), self._checkpoint(branch)))
        inputs = (*trained, *self._all_verdicts)
        return Step(name="report", verb="report", choices=chosen, act=self._make_report, inputs=inputs)

    @property
    def _engine_choices(self) -> dict[str, Any]:
        return {"model": self._model, "engine": config.choices(self.recipe.engine), "seed": self.recipe.seed}

    # How each is made.

    @functools.cached_property
    def _directory(self) -> Path:
        return models.fetch(self.recipe.model)

    def _make_benchmark(self, out: Path) -> Facts:
        from ssd_ray.evaluation.store import stored

        problems = list(
            stored(sources.benchmark_problems(self.recipe.evaluate), out / "tests", self.recipe.evaluate.sandbox_floor)
        )
        artifacts.write_shard(out, "problems", problems, Problem)
        return {"rows": len(problems), "tests": sum(problem.num_tests for problem in problems)}

    def _make_prompts(self, out: Path) -> Facts:
        from ssd_ray.problems.rendering import render

        chosen, tally = self.recipe.prompts, sources.Tally()
        tokenizer = models.load_tokenizer(self._directory, self.recipe.model.chat_template)
        facts = render(
            sources.training_problems(chosen, tally),
            tokenizer,
            mode=chosen.mode,
            system_message=chosen.system_message,
            template_arguments=chosen.template_arguments,
            max_model_len=self.recipe.model.max_model_len,
            out=out,
        )
        return {**facts, "read": tally.read, "dropped": dict(tally.dropped), "model": self._directory.name}

    def _make_eval_prompts(self, out: Path) -> Facts:
        from ssd_ray.problems.rendering import render

        return render(
            artifacts.read_rows(self.out / "benchmark", Problem),
            models.load_tokenizer(self._directory, self.recipe.model.chat_template),
            mode=self.recipe.evaluate.prompt_mode,
            system_message=self.recipe.prompts.system_message,
            template_arguments=self.recipe.prompts.template_arguments,
            max_model_len=self.recipe.model.max_model_len,
            out=out,
        )

    def _make_samples(self, chosen: SampleConfig, branch: str, out: Path) -> Facts:
        stage = f"samples{branch}"
        return self._draw("prompts", self._directory, chosen, chosen.samples_per_prompt, chosen.max_tokens, stage, out)

    def _make_generations(self, name: str, arm: Arm, out: Path) -> Facts:
        directory = self._directory if arm.model == "base" else self.out / f"checkpoint{_BRANCH[arm.model]}"
        evaluate = self.recipe.evaluate
        return self._draw(
            "eval-prompts", directory, arm, evaluate.samples_per_problem, evaluate.max_tokens, f"generations/{name}", out
        )

    def _draw(
        self, prompts: str, directory: Path, decoding: config.Decoding, samples: int, max_tokens: int, stage: str, out: Path
    ) -> Facts:
        from ssd_ray.inference.generation import generate

        return generate(
            self.out / prompts,
            directory.resolve(),
            decoding,
            samples=samples,
            max_tokens=max_tokens,
            shard_rows=self.recipe.sample.shard_rows,
            seed=self.recipe.seed,
            model=self.recipe.model,
            engine=self.recipe.engine,
            cluster=self.recipe.cluster,
            stage=stage,
            out=out,
            logs=self.out / "logs",
            progress=self._progress,
        )

    def _make_dataset(self, branch: str, out: Path) -> Facts:
        from ssd_ray.training.dataset import prepare

        return prepare(self.out / f"samples{branch}", self.recipe.prepare, out=out)

    def _make_checkpoint(self, branch: str, out: Path) -> Facts:
        from ssd_ray.training.trainer import train

        return train(
            self.out / f"dataset{branch}",
            self._directory,
            self.recipe.train,
            self.recipe.cluster,
            seed=self.recipe.seed,
            out=out,
            logs=self.out / "logs",
            progress=self._progress,
        )

    def _make_verdicts(self, name: str, profile: Profile, out: Path) -> Facts:
        from ssd_ray.evaluation.grader import Order
        from ssd_ray.evaluation.graders import grade
        from ssd_ray.evaluation.grading import Rules
        from ssd_ray.evaluation.sandbox import Limits

        evaluate, answers = self.recipe.evaluate, self._generations(name)
        limits = Limits(time_s=evaluate.time_limit_s, memory_mib=evaluate.memory_limit_mib, output_kib=evaluate.output_limit_kib)
        prompts = [text.rstrip().endswith("<think>") for (text,) in artifacts.read_columns(self.out / "eval-prompts", "text")]
        order = Order(
            benchmark=(self.out / "benchmark").resolve(),
            rules=Rules(limits=limits, profile=profile, extract=evaluate.extract),
            floor=evaluate.sandbox_floor,
            out=out.resolve(),
            thinking=all(prompts),
        )
        return grade(
            self.out / answers.name,
            order,
            self.recipe.cluster,
            total=len(prompts) * evaluate.samples_per_problem,
            ended=functools.partial(self._ended, answers),
            stage=f"{arms.VERDICTS[profile]}/{name}",
            logs=self.out / "logs",
            progress=self._progress,
        )

    def _ended(self, step: Step) -> bool:
        """Whether a step that another one follows is whole.

        Raises:
            InfrastructureError: it will not be, since the run has stopped.
        """
        if artifacts.state_of(self.out / step.name, step.identity) == "whole":
            return True
        if self.stopped.is_set():
            raise InfrastructureError(f"{step.name} was stopped")
        return False

    def _make_report(self, out: Path) -> Facts:
        from ssd_ray.reporting.page import report

        return report(self.recipe, self.out, out=out)
