"""The verb `report`: scores.json, timings.json and report.html from the artifacts of a run.

One idea: the page computes nothing.

- scores.json holds every result: equal artifacts give equal bytes.
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
from typing import Any

from ssd_ray import recipes
from ssd_ray.artifacts import files, manifests
from ssd_ray.artifacts.facts import ReportFacts
from ssd_ray.config import Recipe, arms, fields
from ssd_ray.config.arms import TrainedModel
from ssd_ray.reporting import health, words
from ssd_ray.reporting.examples import Example, examples
from ssd_ray.reporting.limits import limits, what_was_run
from ssd_ray.reporting.numbers import counts, tables
from ssd_ray.reporting.numbers.held_out import held_out
from ssd_ray.reporting.numbers.json_bytes import canonical
from ssd_ray.reporting.numbers.timings import timings
from ssd_ray.reporting.plots.canvas import Picture, style_of
from ssd_ray.reporting.plots.pictures import pictures
from ssd_ray.reporting.templates.environment import environment


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One field of the resolved recipe."""

    name: str
    value: str
    meaning: str
    source: str


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
    scores, results = measure(recipe, run)
    cost = timings(recipe, run, steps)
    html = render(recipe, scores, cost, examples(recipe, run, results), pictures(scores, cost))
    files.write_atomic(out / "scores.json", canonical(scores) + "\n")
    files.write_atomic(out / "timings.json", canonical(cost) + "\n")
    files.write_atomic(out / "report.html", html)
    # The run's recipe.yaml is that of the latest call, which may have made something else since.
    files.write_atomic(out / "recipe.yaml", recipes.dump(recipe))
    return headline(scores)


def measure(recipe: Recipe, run: Path) -> tuple[dict[str, Any], tables.Results]:
    """Return the contents of scores.json, and the counted answers of each arm behind them.

    Raises:
        UserError: as for `report`.
    """
    evaluate = recipe.evaluate
    asked = counts.problems_asked(run)
    by_profile: dict[str, tables.Results] = {
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
    trained = {branch.name: _trained(run, branch) for branch in arms.branches(recipe)}
    contamination = manifests.read_manifest(run / "contamination").facts
    scores = tables.scores(recipe, by_profile, trained, contamination)
    scores["problems_left_out"] = manifests.read_manifest(run / "benchmark").facts.get(
        "problems_left_out", []
    )
    return scores, by_profile[evaluate.profiles[0]]


def _trained(run: Path, branch: TrainedModel) -> tables.Trained:
    """Return samples, loss, held-out measures and facts of a trained model."""
    named = {"prompts": "prompts", "samples": branch.samples, "dataset": branch.dataset}
    facts = {stage: counts.facts(run / directory) for stage, directory in named.items()}
    facts["checkpoint"] = manifests.read_manifest(run / branch.checkpoint).facts
    checkpoint = run / branch.checkpoint
    return (
        counts.sample_counts(run / branch.samples),
        counts.loss(checkpoint),
        held_out(checkpoint),
        facts,
    )


def headline(scores: Mapping[str, Any]) -> ReportFacts:
    """Return the estimates of the headline metric; None if the score is refused."""
    metric = scores["headline"]
    estimates = {
        benchmark: {
            arm: None if table["score"][metric] is None else table["score"][metric]["estimate"]
            for arm, table in groups["all"]["arms"].items()
        }
        for benchmark, groups in scores["benchmarks"].items()
    }
    return ReportFacts(metric=metric, estimates=estimates)


def render(
    recipe: Recipe,
    scores: Mapping[str, Any],
    cost: Mapping[str, Any],
    answers: Sequence[Example],
    drawn: Mapping[str, Picture],
) -> str:
    """Return the page as HTML."""
    template = environment().get_template("page.html.j2")
    return template.render(
        recipe=recipe,
        arms=arms.arms(recipe),
        scores=scores,
        timings=cost,
        examples=answers,
        pictures=drawn,
        readings=words.readings(scores),
        acts=what_was_run(recipe, scores),
        limits=limits(recipe, scores, cost),
        choices=list(choices(recipe)),
        contamination=scores["contamination"],
        prompts_dropped=scores["training"]["prompts"]["dropped"] or {},
        **health.section(scores["training"]["dataset"]["health"]),
        style_of={arm: style_of(scores, arm) for arm in scores["order"]["arms"]},
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
