"""Steps of rendering: problems as prompts, and overlaps of training and evaluation.

benchmark/ ─> eval-prompts/        problems ─> prompts/ ─> contamination/, training-problems/
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import config, models
from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.problem_facts import (
    BenchmarkFacts,
    ContaminationFacts,
    EvalPromptFacts,
    PromptFacts,
    TrainingProblemFacts,
)
from ssd_ray.config import Recipe
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.step import Step
from ssd_ray.problems import sources
from ssd_ray.progress import counted
from ssd_ray.schema import Problem

if TYPE_CHECKING:
    from ssd_ray.problems.contamination import Benchmarks


def model_choices(recipe: Recipe) -> dict[str, object]:
    """Return the choices of the model behind its prompts.

    Raises:
        UserError: `model.chat_template` is not a file.
    """
    chosen = config.choices(recipe.model)
    template = recipe.model.chat_template
    if template and not Path(template).is_file():
        raise UserError(f"model.chat_template {template!r} is not a file")
    return {
        "weights": dict(models.identify(recipe.model)),
        "dtype": chosen["dtype"],
        "max_model_len": chosen["max_model_len"],
        "chat_template": files.digest([Path(template)]) if template else None,
    }


def answering_model_choices(recipe: Recipe, model: Mapping[str, object]) -> dict[str, object]:
    """Return the choices of the model for answering and training.

    They add the further end tokens: these shape answers, not prompts.
    """
    further = list(recipe.model.end_tokens)
    return {**model, "end_tokens": further} if further else dict(model)


class Benchmark(Step):
    """Problems of every benchmark, with their tests in a store."""

    verb = "render"

    def choices(self) -> Mapping[str, object]:
        evaluate = self.recipe.evaluate
        names = {benchmark.name: sources.identify(benchmark) for benchmark in evaluate.benchmarks}
        return {"benchmarks": names, "limit": evaluate.limit}

    def preview(self, run: Path) -> str:
        return f"problems and tests of {', '.join(map(str, self.recipe.evaluate.benchmarks))}"

    def make(self, out: Path, context: RunContext) -> BenchmarkFacts:
        from ssd_ray.evaluation import soundness
        from ssd_ray.evaluation.tests_on_disk import store_problems

        evaluate = self.recipe.evaluate
        tally = sources.Tally()
        left_out: list[str] = []
        ungradable: dict[str, str] = {}
        chosen = sources.benchmark_problems(evaluate, tally)
        kept = store_problems(chosen, out / "tests", evaluate.sandbox_floor, left_out, ungradable)
        problems = list(counted(kept, context.progress, "benchmark", "problems"))
        problems_left_out = soundness.records(ungradable, tally.places)
        if not problems:
            reasons = soundness.describe(problems_left_out, most=1)
            raise UserError("; ".join(["evaluate.benchmarks: no problem can be graded", *reasons]))
        for line in soundness.describe(problems_left_out):
            context.progress.say(line)
        shards.write_shard(out, "problems", problems, Problem)
        return BenchmarkFacts(
            rows=len(problems),
            tests=sum(problem.num_tests for problem in problems),
            tests_left_out=tuple(left_out),
            problems_left_out=problems_left_out,
            public_only=dict(tally.public_only),
            dropped=dict(tally.dropped),
            bad_rows=tuple(tally.bad_rows),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prompts(Step):
    """Training problems as prompts."""

    verb = "render"

    model: Mapping[str, object]
    """Choices of the model behind its prompts."""

    @property
    def begins_run(self) -> bool:
        return True

    def choices(self) -> Mapping[str, object]:
        prompts = self.recipe.prompts
        shaping = config.choices(prompts)
        # Left out without a date: recipes older than the field keep their fingerprints.
        if prompts.template_date is None:
            del shaping["template_date"]
        # Refusing or allowing an overlap shapes no prompt.
        if prompts.contamination != "drop":
            del shaping["contamination"]
        source = sources.identify(prompts.source)
        chosen: dict[str, object] = {"prompts": shaping, "source": source, "model": self.model}
        # Only truncation depends on the tokens reserved for the answer.
        if prompts.over_length == "truncate-left":
            chosen["room"] = self.recipe.sample.max_tokens
        return chosen

    def check(self, context: RunContext) -> None:
        sources.check_file(self.recipe.prompts)
        if hint := sources.id_hint(self.recipe.prompts):
            context.progress.say(hint)

    def preview(self, run: Path) -> str:
        return f"prompts of {self.recipe.prompts.source} in mode {self.recipe.prompts.mode}"

    def make(self, out: Path, context: RunContext) -> PromptFacts:
        from ssd_ray.problems.rendering import ContextBudget, render

        prompts = self.recipe.prompts
        tally = sources.Tally()
        budget = ContextBudget(
            max_model_len=self.recipe.model.max_model_len,
            answer_tokens=self.recipe.sample.max_tokens,
            over_length=prompts.over_length,
        )
        problems = counted(
            _training_problems(self.recipe, context, tally), context.progress, "prompts", "prompts"
        )
        renderer = context.prompting.renderer(prompts.mode, "prompts.mode")
        counts = render(problems, renderer, budget, out=out)
        if counts.skipped:
            tally.dropped["too long for the context"] = counts.skipped
        rendered = context.prompting.complete(counts, renderer)
        return PromptFacts(
            **vars(rendered),
            read=tally.read,
            source_revision=tally.revision,
            dropped=dict(tally.dropped),
            model=context.model.name,
            tokenizer=loading.tokenizer_digests(context.model),
        )


def _training_problems(recipe: Recipe, context: RunContext, tally: sources.Tally) -> Any:
    """Return an iterator of the training problems, without overlapping ones if so chosen."""
    note = context.run / "prompts-revision"
    return sources.training_problems(recipe.prompts, tally, _benchmarks(recipe, context), note)


def _benchmarks(recipe: Recipe, context: RunContext) -> Benchmarks | None:
    """Return the benchmarks if overlapping training problems are dropped, else None."""
    from ssd_ray.problems.contamination import Benchmarks

    if recipe.prompts.contamination != "drop":
        return None
    return Benchmarks(shards.read_rows(context.run / "benchmark", Problem))


class Contamination(Step):
    """Overlaps between the training prompts and the benchmarks."""

    verb = "render"

    def choices(self) -> Mapping[str, object]:
        return {"policy": self.recipe.prompts.contamination}

    def preview(self, run: Path) -> str:
        return f"prompts that overlap the benchmarks: {self.recipe.prompts.contamination}"

    def make(self, out: Path, context: RunContext) -> ContaminationFacts:
        from ssd_ray.problems.contamination import check

        policy = self.recipe.prompts.contamination
        prompts = context.run / "prompts"
        benchmark = context.run / "benchmark"
        return check(prompts, benchmark, policy, out=out, progress=context.progress)


class TrainingProblems(Step):
    """Problems behind the training prompts, with their tests in a store."""

    verb = "render"

    def choices(self) -> Mapping[str, object]:
        return {}

    def preview(self, run: Path) -> str:
        return "tests of the training problems"

    def make(self, out: Path, context: RunContext) -> TrainingProblemFacts:
        from ssd_ray.evaluation.tests_on_disk import store_problems

        left_out: list[str] = []
        problems = _training_problems(self.recipe, context, sources.Tally())
        kept = store_problems(problems, out / "tests", self.recipe.evaluate.sandbox_floor, left_out)
        rows = list(counted(kept, context.progress, "training-problems", "problems"))
        shards.write_shard(out, "problems", rows, Problem)
        num_tests = sum(problem.num_tests for problem in rows)
        return TrainingProblemFacts(rows=len(rows), tests=num_tests, tests_left_out=tuple(left_out))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EvalPrompts(Step):
    """Problems of the benchmarks as prompts."""

    verb = "render"

    model: Mapping[str, object]
    """Choices of the model behind its prompts."""

    def choices(self) -> Mapping[str, object]:
        prompts = self.recipe.prompts
        chosen: dict[str, object] = {
            "mode": self.recipe.evaluate.prompt_mode,
            "system_message": prompts.system_message,
            "template_arguments": prompts.template_arguments,
            "model": self.model,
        }
        if prompts.template_date is not None:
            chosen["template_date"] = prompts.template_date
        return chosen

    def preview(self, run: Path) -> str:
        return f"benchmark prompts in mode {self.recipe.evaluate.prompt_mode}"

    def make(self, out: Path, context: RunContext) -> EvalPromptFacts:
        from ssd_ray.problems.rendering import ContextBudget, render

        rows = shards.read_rows(context.run / "benchmark", Problem)
        total = context.num_rows("benchmark")
        problems = counted(rows, context.progress, "eval-prompts", "prompts", total)
        renderer = context.prompting.renderer(
            self.recipe.evaluate.prompt_mode, "evaluate.prompt_mode"
        )
        budget = ContextBudget(max_model_len=self.recipe.model.max_model_len)
        counts = render(problems, renderer, budget, out=out)
        return context.prompting.complete(counts, renderer)
