"""The verb `report`: scores.json, timings.json and report.html from the artifacts of a run.

The page computes nothing.

- scores.json holds every result: equal artifacts give equal bytes.
- questions.json holds each arm next to the control that it answers, where there are controls.
- timings.json holds times and the machine, never equal twice.
- The page opens without a network and holds no script. Its template engine escapes every string
  from a model, a recipe or a problem.

Reads the run, and the templates.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_ray import recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.dataset_facts import DatasetFacts
from ssd_ray.artifacts.facts import AnswerFacts, CheckpointFacts, ReportFacts
from ssd_ray.artifacts.problem_facts import BenchmarkFacts, ContaminationFacts, PromptFacts
from ssd_ray.config import Recipe, arms, fields
from ssd_ray.config.arms import TrainedModel
from ssd_ray.reporting import health
from ssd_ray.reporting.examples import Example, examples
from ssd_ray.reporting.forecast_outcome import ForecastOutcome, forecast_outcome
from ssd_ray.reporting.limits import limits, what_was_run
from ssd_ray.reporting.numbers import counts, logs
from ssd_ray.reporting.numbers.counts import Results
from ssd_ray.reporting.numbers.json_bytes import canonical, plain, rounded_to_ten_digits
from ssd_ray.reporting.numbers.questions import Arguments, arguments
from ssd_ray.reporting.numbers.samples import sample_counts
from ssd_ray.reporting.numbers.scores import RunCounts, Scores, scores
from ssd_ray.reporting.numbers.scores_file import scores_text
from ssd_ray.reporting.numbers.timings import Timings, timings
from ssd_ray.reporting.numbers.training_data import TrainedModelFacts
from ssd_ray.reporting.plots.canvas import Picture, style_of
from ssd_ray.reporting.plots.pictures import pictures
from ssd_ray.reporting.readings import progress_in_words, readings
from ssd_ray.reporting.templates.environment import environment


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One field of the resolved recipe."""

    name: str
    value: str
    meaning: str
    source: str


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Parts of the page next to the scores."""

    examples: Sequence[Example]
    pictures: Mapping[str, Picture]
    compared: ForecastOutcome | None
    """Forecast and outcome, None without a forecast."""
    arguments: Arguments


def report(recipe: Recipe, run: Path, steps: Sequence[str], *, out: Path) -> ReportFacts:
    """Fill the claimed directory `out` and return its facts, the headline estimates.

    Args:
        recipe: the recipe of the run.
        run: the run directory.
        steps: names of all steps before the report, to show their cost.
        out: directory of the report.

    Raises:
        UserError: an artifact of the run is missing or incomplete, or its rows contradict each
            other.
    """
    # Compute everything first: an error leaves no half report.
    numbers, results = measure(recipe, run)
    cost = timings(recipe, run, steps)
    drawn = pictures(numbers, cost)
    compared = forecast_outcome(run, recipe, numbers)
    shown = Shown(
        examples=examples(recipe, run, results),
        pictures=drawn,
        compared=compared,
        arguments=arguments(recipe, results, numbers.order.benchmarks),
    )
    html = render(recipe, numbers, cost, shown)
    files.write_atomic(out / "scores.json", scores_text(numbers))
    files.write_atomic(out / "timings.json", canonical(plain(cost)) + "\n")
    if shown.arguments.is_shown:
        text = canonical(plain(rounded_to_ten_digits(shown.arguments))) + "\n"
        files.write_atomic(out / "questions.json", text)
    files.write_atomic(out / "report.html", html)
    # The run's recipe.yaml is that of the latest call, which may have made something else since.
    files.write_atomic(out / "recipe.yaml", recipes.dump(recipe))
    return headline(numbers)


def measure(recipe: Recipe, run: Path) -> tuple[Scores, Results]:
    """Return the contents of scores.json, and the counted answers of each arm behind them.

    Raises:
        UserError: as for `report`.
    """
    evaluate = recipe.evaluate
    asked = counts.problems_asked(run)
    by_profile: dict[str, Results] = {
        profile: {
            arm: counts.arm_results(
                run / "generations" / arm,
                run / arms.VERDICTS[profile] / arm,
                asked,
                evaluate.samples_per_problem,
                # A second profile may have no rules for a benchmark.
                partly=profile != evaluate.profiles[0],
            )
            for arm in arms.arms(recipe)
        }
        for profile in evaluate.profiles
    }
    counted = RunCounts(
        by_profile=by_profile,
        trained={branch.name: _trained(run, branch) for branch in arms.branches(recipe)},
        contamination=manifests.load_facts(run / "contamination", ContaminationFacts),
        problems_left_out=manifests.load_facts(run / "benchmark", BenchmarkFacts).problems_left_out,
    )
    return scores(recipe, counted), by_profile[evaluate.profiles[0]]


def _trained(run: Path, branch: TrainedModel) -> TrainedModelFacts:
    """Return facts, lengths of samples and logs of a trained model."""
    checkpoint = run / branch.checkpoint
    return TrainedModelFacts(
        prompts=counts.checked_facts(run / "prompts", PromptFacts),
        samples=counts.checked_facts(run / branch.samples, AnswerFacts),
        dataset=counts.checked_facts(run / branch.dataset, DatasetFacts),
        checkpoint=manifests.load_facts(checkpoint, CheckpointFacts),
        lengths=sample_counts(run / branch.samples),
        loss=logs.loss(checkpoint),
        held_out=logs.held_out(checkpoint, branch.sample.temperature),
    )


def headline(numbers: Scores) -> ReportFacts:
    """Return the estimates of the headline metric; None if the score is refused."""
    metric = numbers.headline
    return ReportFacts(
        metric=metric,
        estimates={
            name: {
                arm: None if (value := table.score[metric]) is None else value.estimate
                for arm, table in benchmark.all.arms.items()
            }
            for name, benchmark in numbers.benchmarks.items()
        },
    )


def render(recipe: Recipe, numbers: Scores, cost: Timings, shown: Shown) -> str:
    """Return the page as HTML."""
    template = environment().get_template("page.html.j2")
    return template.render(
        recipe=recipe,
        arms=arms.arms(recipe),
        scores=numbers,
        timings=cost,
        examples=shown.examples,
        pictures=shown.pictures,
        compared=shown.compared,
        arguments=shown.arguments,
        readings=readings(numbers),
        progress=progress_in_words(numbers.training.held_out),
        acts=what_was_run(recipe, numbers),
        limits=limits(recipe, numbers, cost),
        choices=list(choices(recipe)),
        contamination=numbers.contamination,
        prompts_dropped=numbers.training.prompts.dropped or {},
        **health.section(numbers.training.dataset.health),
        style_of={arm: style_of(numbers, arm) for arm in numbers.order.arms},
    )


def choices(recipe: Recipe) -> Iterator[Choice]:
    """Yield every field of the recipe with its value, its meaning and its stated source.

    The source is that of `recipe.sources` for the field or the innermost section around it.
    """
    for name, value, meaning in fields(recipe):
        if name == "sources":
            continue
        # The longest of the stated names is the innermost section.
        named = [known for known in recipe.sources if name == known or name.startswith(f"{known}.")]
        source = recipe.sources[max(named, key=len)] if named else ""
        text = value
        if not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False, default=str)
        yield Choice(name=name, value=text, meaning=meaning, source=source)
