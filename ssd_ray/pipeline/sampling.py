"""Steps of sampling with vLLM: samples of the frozen model, generations of each arm.

prompts/ ─> samples/, samples-naive/        eval-prompts/ (, checkpoint/) ─> generations/<arm>/

Steps of one model share a pool of engines: samples and arms of the base, arms of each checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ssd_ray import config
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.config import Arm, Decoding, Recipe, SampleConfig, arms
from ssd_ray.models import model_files
from ssd_ray.models.model_files import Origin
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step, rows_of, when_complete

BASE = "base"
"""Name of the frozen model among the models of a run."""


def _engine_choices(recipe: Recipe, model: Mapping[str, object]) -> dict[str, object]:
    return {"model": model, "engine": config.choices(recipe.engine), "seed": recipe.seed}


@dataclass(frozen=True, kw_only=True, eq=False)
class Samples(Step):
    """Answers of the frozen model at the training temperature."""

    verb = "sample"
    needs_ray = True

    sample: SampleConfig
    model: Mapping[str, object]
    """Choices of the model that shape its answers."""

    def choices(self) -> Mapping[str, object]:
        return {"sample": config.choices(self.sample), **_engine_choices(self.recipe, self.model)}

    def preview(self, run: Path) -> str:
        answers = _answers(self.sample.samples_per_prompt)
        longest = _longest(self.recipe, self.sample.max_tokens)
        prompts = f"{rows_of(run / 'prompts')} prompts"
        return f"{answers} to each of {prompts} at {_decoding(self.sample)}, {longest}"

    def check(self, context: RunContext) -> None:
        # Fetching the model checks its files.
        _ = context.model

    def make(self, out: Path, context: RunContext) -> AnswerFacts:
        from ssd_ray.inference.generation import SamplingJob, generate

        job = SamplingJob(
            recipe=self.recipe,
            stage=self.name,
            prompts=context.run / "prompts",
            model=self.engines or BASE,
            model_directory=context.model,
            decoding=self.sample,
            samples=self.sample.samples_per_prompt,
            max_tokens=self.sample.max_tokens,
            out=out,
        )
        ended = when_complete(context, *self.after)
        return generate(job, ended, context.engines, context.progress)


@dataclass(frozen=True, kw_only=True, eq=False)
class Generations(Step):
    """Answers of one arm to the benchmarks."""

    verb = "generate"
    needs_ray = True

    arm: Arm
    model: Mapping[str, object]
    """Choices of the model that shape its answers."""
    checkpoint: str | None
    """Directory of the trained model under the run; None for the base."""

    def choices(self) -> Mapping[str, object]:
        evaluate = self.recipe.evaluate
        return {
            "arm": config.choices(self.arm),
            "samples_per_problem": evaluate.samples_per_problem,
            "max_tokens": evaluate.max_tokens,
            **_engine_choices(self.recipe, self.model),
        }

    def preview(self, run: Path) -> str:
        evaluate, arm = self.recipe.evaluate, self.arm
        answers = _answers(evaluate.samples_per_problem)
        problems = f"{rows_of(run / 'benchmark')} problems"
        longest = _longest(self.recipe, evaluate.max_tokens)
        return (
            f"{arms.weights(arm)} at {_decoding(arm)}: {answers} to each of {problems}, {longest}"
        )

    def check(self, context: RunContext) -> None:
        if self.checkpoint is None:
            # Fetching the model checks its files.
            _ = context.model
        elif (context.run / self.checkpoint / "manifest.json").exists():
            _check_checkpoint(context.run / self.checkpoint)

    def make(self, out: Path, context: RunContext) -> AnswerFacts:
        from ssd_ray.inference.generation import SamplingJob, generate

        if self.checkpoint is None:
            directory = context.model
        else:
            directory = context.run / self.checkpoint
            _check_checkpoint(directory)
        evaluate = self.recipe.evaluate
        job = SamplingJob(
            recipe=self.recipe,
            stage=self.name,
            prompts=context.run / "eval-prompts",
            model=self.engines or BASE,
            model_directory=directory,
            decoding=self.arm,
            samples=evaluate.samples_per_problem,
            max_tokens=evaluate.max_tokens,
            out=out,
        )
        (eval_prompts, *_) = self.inputs
        ended = when_complete(context, eval_prompts)
        return generate(job, ended, context.engines, context.progress)


def _check_checkpoint(directory: Path) -> None:
    """Check the files of a trained model.

    Raises:
        UserError: a file is damaged or missing.
    """
    remedy = f"delete {directory} and run the same command, which trains the model again"
    model_files.check(directory, Origin(name=f"the trained model {directory}", remedy=remedy))


def _answers(number: int) -> str:
    return f"{number} answer{'' if number == 1 else 's'}"


def _longest(recipe: Recipe, max_tokens: int) -> str:
    """Describe the longest answer; the context limits answer and prompt together."""
    context = recipe.model.max_model_len
    if max_tokens < context:
        return f"up to {max_tokens:,} tokens each"
    return f"up to {context:,} tokens each with its prompt"


def _decoding(chosen: Decoding) -> str:
    top_k = "" if chosen.top_k is None else f", top-k {chosen.top_k}"
    top_p = "" if chosen.top_p == 1 else f", top-p {chosen.top_p:g}"
    adaptive = ", adaptive" if isinstance(chosen, Arm) and chosen.is_adaptive else ""
    return f"T {chosen.temperature:g}{top_k}{top_p}{adaptive}"
