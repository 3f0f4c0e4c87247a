"""Steps of a forecast: answers of the frozen model, their verdicts, and the page.

    prompts/ ─> samples/base/, samples/T=<T_train>/ ─> sample-verdicts/ ─> forecast/

- samples/base/ is drawn at T 1 without truncation, and graded where the prompts have tests.
- samples/T=<T_train>/ are a few answers at each T_train, for their health alone.
- All samples are drawn by one pool of engines, exactly once, and resumed like those of a run.
- Prompts are those of training, so that no setting is chosen on a benchmark.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ssd_ray import config
from ssd_ray.artifacts import files, shards
from ssd_ray.artifacts.facts import ForecastFacts
from ssd_ray.config import Decoding, Policies, PrepareConfig, Recipe, SampleConfig, arms
from ssd_ray.errors import UserError
from ssd_ray.models import architecture, loading
from ssd_ray.models.answers import reasoning_format
from ssd_ray.pipeline.context import RunContext
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
from ssd_ray.planner.assumptions import Assumptions
from ssd_ray.planner.clusters import plan_training
from ssd_ray.progress import counted
from ssd_ray.schema import Completion, Verdict

if TYPE_CHECKING:
    from ssd_ray.analysis.forecast import Grid, Tally
    from ssd_ray.analysis.forward import Context
    from ssd_ray.reporting.numbers.forecast import Choice, Cost, HealthAt

VERB = "forecast"
ANSWERS_PER_PROMPT = 3
"""Answers at T 1 to a prompt. Each T_train adds one."""
TEMPERATURES = (1.0, 1.5, 2.0)
"""T_train, in addition to the recipe's own."""
_EVALUATED = tuple(number / 5 for number in range(1, 11))
_CUTS = (Decoding(top_k=20, top_p=0.95), Decoding(top_k=10))
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
    prompts = Prompts(name="prompts", recipe=recipe, inputs=overlaps, model=model)
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
        steps.append(problems)
        graded = (verdicts,)
    steps += [*drawn, *graded]
    return [*steps, Forecast(name=VERB, recipe=recipe, inputs=(prompts, *drawn, *graded))]


def has_tests(recipe: Recipe) -> bool:
    """Return True if the training prompts have tests."""
    return recipe.prompts.source == "builtin" or recipe.prompts.tests_column is not None


def train_temperatures(recipe: Recipe) -> tuple[float, ...]:
    """Return the T_train of a forecast, rising."""
    return tuple(sorted({*TEMPERATURES, recipe.sample.temperature}))


def _at(temperature: float) -> str:
    return f"samples/T={temperature:g}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast(Step):
    """The page of a forecast and forecast.json."""

    verb = VERB

    def choices(self) -> Mapping[str, object]:
        recipe = self.recipe
        return {
            "train": config.choices(_decoding(recipe.sample)),
            "evaluate": config.choices(_evaluated(recipe)),
            "baseline": config.choices(_baseline(recipe)),
            "extract": recipe.evaluate.extract,
            "training": config.choices(recipe.train),
        }

    def preview(self, run: Path) -> str:
        return "forecast.html and forecast.json"

    def check(self, context: RunContext) -> None:
        limit = self.recipe.prompts.limit
        if limit == 1:
            raise UserError(f"prompts.limit {limit} gives no interval over problems: use 2 or more")
        model = loading.load_config(context.model).get_text_config()
        _grid(self.recipe).check(model.vocab_size)

    def make(self, out: Path, context: RunContext) -> ForecastFacts:
        from ssd_ray.analysis.outlook import outlook
        from ssd_ray.reporting import forecast as page
        from ssd_ray.reporting.numbers import forecast as numbers

        recipe = self.recipe
        contexts = _contexts(context.run / _BASE)
        accepted = _accepted(context.run / _VERDICTS, contexts) if has_tests(recipe) else None
        tally = _scored(recipe, contexts, context)
        seen = outlook(tally, [each.problem_id for each in contexts], accepted)
        train = _choice(recipe.sample)
        baseline = _choice(_baseline(recipe))
        health = tuple(_health(recipe, t, context) for t in train_temperatures(recipe))
        cost, reason = _cost(recipe, contexts, context)
        conclusion = numbers.conclude(seen, health, train, baseline)
        document = numbers.ForecastDocument(
            format=numbers.FORMAT,
            recipe=recipe.name,
            model=recipe.model.source,
            train=train,
            evaluate=_choice(_evaluated(recipe)),
            baseline=baseline,
            outlook=seen,
            health=health,
            cost=cost,
            no_cost=reason,
            conclusion=conclusion,
            answers=page.answer_rows(
                tally,
                contexts,
                accepted,
                (train, _choice(_evaluated(recipe)), conclusion.best_base),
            ),
        )
        files.write_atomic(out / "forecast.json", numbers.forecast_text(document))
        files.write_atomic(out / "forecast.html", page.forecast_page(document))
        return ForecastFacts(answers=seen.answers, problems=seen.problems, positions=seen.positions)


def _contexts(samples: Path) -> list[Context]:
    from ssd_ray.analysis.forward import Context

    rows = sorted(
        shards.read_rows(samples, Completion), key=lambda row: (row.prompt_id, row.sample_index)
    )
    contexts = [
        Context(
            problem_id=row.prompt_id,
            prompt_token_ids=row.prompt_token_ids,
            output_token_ids=row.output_token_ids,
            sample_index=row.sample_index,
        )
        for row in rows
    ]
    return [each for each in contexts if each.num_positions]


def _accepted(verdicts: Path, contexts: list[Context]) -> list[bool]:
    outcomes = {
        (row.prompt_id, row.sample_index): row.outcome == "accepted"
        for row in shards.read_rows(verdicts, Verdict)
    }
    return [outcomes[each.problem_id, each.sample_index] for each in contexts]


def _scored(recipe: Recipe, contexts: list[Context], context: RunContext) -> Tally:
    """Return the sums of all answers, from one forward pass over them."""
    from ssd_ray.analysis import forward
    from ssd_ray.analysis.forecast import Tally

    model = forward.ScoredModel.load(context.model, dtype=recipe.model.dtype, name="the base")
    forward.check([model], contexts)
    tally = Tally(_grid(recipe), len(contexts))
    groups = forward.batches(contexts)
    for batch in counted(groups, context.progress, VERB, "batches", len(groups)):
        for chunk in forward.score([model], contexts, batch):
            tally.add(chunk.rows, chunk.tokens, chunk.logits[0])
    return tally


def _grid(recipe: Recipe) -> Grid:
    """Return the grid: T_train at three truncations, the naive control, and the hottest samples."""
    from ssd_ray.analysis.forecast import grid

    training = [
        cut.model_copy(update={"temperature": temperature})
        for cut in (_decoding(recipe.sample), *_CUTS)
        for temperature in train_temperatures(recipe)
    ]
    # The naive control asks nothing, and the hottest samples without truncation ask most.
    training += [Decoding(), Decoding(temperature=TEMPERATURES[-1])]
    evaluate = _evaluated(recipe)
    alone = [_baseline(recipe), Decoding()]
    if evaluate.top_k is not None:
        wider = [evaluate.model_copy(update={"top_p": top_p}) for top_p in (0.95, 1.0)]
        alone += [
            cut.model_copy(update={"temperature": temperature})
            for cut in wider
            for temperature in _EVALUATED
        ]
    return grid(training, evaluate, _EVALUATED, alone)


def _decoding(decoding: Decoding) -> Decoding:
    return Decoding(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)


def _evaluated(recipe: Recipe) -> Decoding:
    """Return the decoding of the student: that of the first arm `ssd`, else of the baseline."""
    return _decoding(arms.decoding(recipe, "ssd") or recipe.evaluate.arms[recipe.evaluate.baseline])


def _baseline(recipe: Recipe) -> Decoding:
    return _decoding(recipe.evaluate.arms[recipe.evaluate.baseline])


def _choice(decoding: Decoding) -> Choice:
    from ssd_ray.reporting.numbers.forecast import Choice

    return Choice(temperature=decoding.temperature, top_k=decoding.top_k, top_p=decoding.top_p)


def _health(recipe: Recipe, temperature: float, context: RunContext) -> HealthAt:
    """Classify the samples at one T_train as those of a training are."""
    from ssd_ray.reporting.numbers.forecast import HealthAt
    from ssd_ray.training.data.health import CLASSES, ParseOptions
    from ssd_ray.training.data.selection import select

    options = ParseOptions(
        extract=recipe.evaluate.extract,
        reasoning=reasoning_format(context.model, context.run / "prompts"),
        end_tokens=loading.end_tokens(context.model, recipe.model.end_tokens),
    )
    # Nothing is left out: the health is that of the samples as drawn.
    everything = PrepareConfig(policies=Policies(empty="keep", stub="keep"))
    answers = select(context.run / _at(temperature), everything, options).answers
    faults = {
        name: answers.classes[:, CLASSES.index(name)] for name in ("no_code", "loop", "cut_off")
    }
    return HealthAt(
        temperature=temperature,
        answers=len(answers.classes),
        tokens=int(answers.num_output_tokens.sum()),
        **{name: int(members.sum()) for name, members in faults.items()},
        unhealthy=int((faults["no_code"] | faults["loop"] | faults["cut_off"]).sum()),
    )


def _cost(recipe: Recipe, contexts: list[Context], context: RunContext) -> tuple[Cost | None, str]:
    """Return the plan of the training with the lengths of the answers, or the reason for none."""
    from ssd_ray.reporting.numbers.forecast import Cost

    # Lengths at T 1 represent those at T_train, which are not known for each setting.
    number = len(contexts)
    assumed = Assumptions(
        mean_prompt_tokens=sum(len(each.prompt_token_ids) for each in contexts) / number,
        mean_response_tokens=sum(len(each.output_token_ids) for each in contexts) / number,
    )
    try:
        plan = plan_training(recipe, architecture.read(context.model), assumed)
    except UserError as error:
        return None, str(error)
    own = plan.requested
    return (
        Cost(
            device=plan.device,
            workers=plan.num_workers,
            hours=None if own.time is None else own.time.hours,
            usd=own.usd,
            refusal=own.refusal,
            smallest=None if plan.smallest is None else plan.smallest.num_workers,
        ),
        "",
    )
