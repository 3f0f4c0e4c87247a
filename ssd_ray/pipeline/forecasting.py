"""Steps of a forecast: answers of the frozen model, their verdicts, and the page.

    prompts/ ─> samples/base/, samples/T=<T_train>/ ─> sample-verdicts/ ─> forecast/

- samples/base/ is drawn at T 1 without truncation, and graded where the prompts have tests.
- samples/T=<T_train>/ are a few answers at each T_train, for their health alone.
- All samples are drawn by one pool of engines, exactly once, and resumed like those of a run.
- Reference solutions are scored next to the answers, and never in place of them.
- Prompts are those of training, so that no setting is chosen on a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray import config
from ssd_ray.artifacts import files
from ssd_ray.artifacts.facts import ForecastFacts
from ssd_ray.artifacts.problem_facts import PromptFacts
from ssd_ray.config import Recipe, SampleConfig, arms
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.pipeline import forecast_inputs
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.forecast_inputs import (
    baseline,
    evaluated,
    grid_of,
    plain_decoding,
    train_temperatures,
)
from ssd_ray.pipeline.grading import Grade
from ssd_ray.pipeline.rendering import (
    Benchmark,
    Prompts,
    TrainingProblems,
    answering_model_choices,
    model_choices,
)
from ssd_ray.pipeline.sampling import BASE, Samples
from ssd_ray.pipeline.step import Step

if TYPE_CHECKING:
    from ssd_ray.analysis.forecast import Tally
    from ssd_ray.analysis.forward import ScoredModel
    from ssd_ray.analysis.outlook_figures import References
    from ssd_ray.config import Decoding
    from ssd_ray.reporting.numbers.forecast import Choice

VERB = "forecast"
ANSWERS_PER_PROMPT = 3
"""Answers at T 1 to a prompt. Each T_train adds one."""
_BASE, _VERDICTS, _PROBLEMS = "samples/base", "sample-verdicts", "training-problems"


def forecast_recipe(recipe: Recipe, answers: int) -> Recipe:
    """Return the recipe with as many prompts as a forecast of `answers` answers needs."""
    prompts = max(2, -(-answers // ANSWERS_PER_PROMPT))
    limit = min(prompts, recipe.prompts.limit or prompts)
    return recipe.model_copy(update={"prompts": recipe.prompts.model_copy(update={"limit": limit})})


def forecast_steps(recipe: Recipe) -> list[Step]:
    """List the steps of a forecast in their order; `recipe` is that of `forecast_recipe`."""
    model = model_choices(recipe)
    answering = answering_model_choices(recipe, model)
    steps: list[Step] = []
    # As in a run: only dropped overlaps make prompts depend on the benchmarks.
    overlaps: tuple[Step, ...] = ()
    if recipe.prompts.contamination == "drop":
        overlaps = (Benchmark(name="benchmark", recipe=recipe),)
    prompts = _ForecastPrompts(name="prompts", recipe=recipe, inputs=overlaps, model=model)
    steps += [*overlaps, prompts]

    def samples(name: str, sample: SampleConfig) -> Samples:
        return Samples(
            name=name,
            recipe=recipe,
            inputs=(prompts,),
            engines=BASE,
            sample=sample,
            model=answering,
        )

    base = arms.naive_sample(recipe).model_copy(update={"samples_per_prompt": ANSWERS_PER_PROMPT})
    drawn = [samples(_BASE, base)]
    for temperature in train_temperatures(recipe):
        update = {"temperature": temperature, "samples_per_prompt": 1}
        drawn.append(samples(_at(temperature), recipe.sample.model_copy(update=update)))
    graded: tuple[Step, ...] = ()
    if has_tests(recipe):
        problems = TrainingProblems(name=_PROBLEMS, recipe=recipe, inputs=(prompts,))
        verdicts = Grade(
            name=_VERDICTS,
            recipe=recipe,
            inputs=(problems, drawn[0]),
            follows=drawn[0],
            profile=recipe.evaluate.profiles[0],
            answers=_BASE,
            problems=_PROBLEMS,
            prompts="prompts",
            samples_per_prompt=ANSWERS_PER_PROMPT,
        )
        graded = (problems, verdicts)
    # Problems come first: their verdicts follow the answers while those are drawn.
    steps += [*graded[:1], *drawn, *graded[1:]]
    return [*steps, Forecast(name=VERB, recipe=recipe, inputs=(prompts, *drawn, *graded))]


def has_tests(recipe: Recipe) -> bool:
    """Return True if the training prompts have tests."""
    return recipe.prompts.source == "builtin" or recipe.prompts.tests_column is not None


def _at(temperature: float) -> str:
    return f"samples/T={temperature:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class _ForecastPrompts(Prompts):
    """Prompts, refused before engines start if there are too few."""

    def make(self, out: Path, context: RunContext) -> PromptFacts:
        facts = super().make(out, context)
        if facts.rows < 2:
            raise UserError(
                f"prompts.source {self.recipe.prompts.source} gives {facts.rows} prompt, and an "
                "interval over problems needs 2: add problems"
            )
        return facts


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast(Step):
    """The page of a forecast and forecast.json."""

    verb = VERB

    def choices(self) -> Mapping[str, object]:
        recipe = self.recipe
        return {
            "train": config.choices(plain_decoding(recipe.sample)),
            "evaluate": config.choices(evaluated(recipe)),
            "baseline": config.choices(baseline(recipe)),
            "extract": recipe.evaluate.extract,
            "training": config.choices(recipe.train),
        }

    def preview(self, run: Path) -> str:
        return "forecast.html and forecast.json"

    def check(self, context: RunContext) -> None:
        from ssd_ray.analysis.operator import GREEDY

        limit = self.recipe.prompts.limit
        if limit == 1:
            raise UserError(f"prompts.limit {limit} gives no interval over problems: use 2 or more")
        temperature = self.recipe.sample.temperature
        if temperature < GREEDY:
            raise UserError(
                f"sample.temperature {temperature:g} is greedy, and its samples have no "
                f"distribution to forecast: use {GREEDY:g} or more"
            )
        model = loading.load_config(context.model).get_text_config()
        grid_of(self.recipe).check(model.vocab_size)

    def make(self, out: Path, context: RunContext) -> ForecastFacts:
        from ssd_ray.analysis import forward
        from ssd_ray.analysis.outlook import outlook
        from ssd_ray.reporting import forecast as page
        from ssd_ray.reporting.numbers import forecast as numbers

        recipe = self.recipe
        contexts = forecast_inputs.answers(context.run / _BASE)
        accepted = None
        if has_tests(recipe):
            accepted = forecast_inputs.accepted(context.run / _VERDICTS, contexts)
        model = forward.ScoredModel.load(context.model, dtype=recipe.model.dtype, name="the base")
        tally = forecast_inputs.scored(model, contexts, grid_of(recipe), context, "batches")
        references = _references(model, recipe, tally, context)
        seen = outlook(tally, [each.problem_id for each in contexts], accepted)
        train = _choice(recipe.sample)
        own_base = _choice(baseline(recipe))
        health = tuple(
            forecast_inputs.health(recipe, t, context.run / _at(t), context)
            for t in train_temperatures(recipe)
        )
        cost, reason = forecast_inputs.cost(recipe, contexts, context)
        conclusion = numbers.conclude(seen, health, train, own_base)
        document = numbers.ForecastDocument(
            format=numbers.FORMAT,
            recipe=recipe.name,
            model=recipe.model.source,
            train=train,
            evaluate=_choice(evaluated(recipe)),
            baseline=own_base,
            outlook=seen,
            references=references,
            health=health,
            cost=cost,
            no_cost=reason,
            conclusion=conclusion,
            answers=page.answer_rows(
                tally,
                contexts,
                accepted,
                (train, _choice(evaluated(recipe)), conclusion.best_base),
            ),
        )
        files.write_atomic(out / "forecast.json", numbers.forecast_text(document))
        files.write_atomic(out / "forecast.html", page.forecast_page(document))
        return ForecastFacts(answers=seen.answers, problems=seen.problems, positions=seen.positions)


def _references(
    model: ScoredModel, recipe: Recipe, answers: Tally, context: RunContext
) -> References | None:
    """Return the numbers of the reference solutions; None if the prompts have none."""
    from ssd_ray.analysis.operator import Setting
    from ssd_ray.analysis.outlook import references

    if not has_tests(recipe):
        return None
    longest = min(recipe.model.max_model_len, model.longest or recipe.model.max_model_len)
    contexts, left_out = forecast_inputs.references(
        context.run / _PROBLEMS, context.run / "prompts", context, longest
    )
    if not contexts:
        return None
    own = recipe.sample
    # The recipe's own setting is enough: references only stand next to the answers.
    chosen = replace(answers.grid, training=(Setting(own.temperature, own.top_k, own.top_p),))
    tally = forecast_inputs.scored(model, contexts, chosen, context, "batches of references")
    return references(tally, left_out, answers)


def _choice(decoding: Decoding) -> Choice:
    from ssd_ray.reporting.numbers.forecast import Choice

    return Choice(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)
