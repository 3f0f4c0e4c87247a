"""Two finished runs side by side: what differs in their recipes, their scores, and the difference problem by problem.

One idea: two runs that answered the same problems are compared like two arms of one run, paired by problem; where the
problems differ there is no paired difference, and the reason stands in its place. Reads report/recipe.yaml and
report/scores.json of both runs; writes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray import recipes
from ssd_ray.artifacts.files import read_json
from ssd_ray.config import Recipe, fields
from ssd_ray.errors import UserError
from ssd_ray.reporting.numbers.tables import rounded_to_ten_digits
from ssd_ray.reporting.terminal import STYLES, score
from ssd_ray.reporting.words import MINUS, decimals, is_few, points, reading, tally
from ssd_ray.statistics.differences import Difference, difference, pass_at_values


@dataclass(frozen=True, kw_only=True)
class Change:
    """A field of the recipe whose values differ; None where a run has no such field."""

    field: str
    first: Any
    second: Any


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One arm and metric on one group of problems in both runs.

    `difficulty` is None for all problems of the benchmark. `difference` is second minus first, or `unpaired` says why not.
    """

    benchmark: str
    difficulty: str | None
    arm: str
    metric: str
    first: Mapping[str, Any] | None
    second: Mapping[str, Any] | None
    difference: Difference | None
    unpaired: str | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side; printing it on a rich console shows it as tables."""

    first: str
    second: str
    confidence: float
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]

    def plain(self) -> dict[str, Any]:
        """The comparison as JSON-able values, floats at ten significant digits."""
        found: dict[str, Any] = rounded_to_ten_digits(dataclasses.asdict(self))
        return found

    def __rich__(self) -> RenderableType:
        """Tables of changes and scores, then one sentence for each paired difference."""
        return Group(_changes_table(self), _scores_table(self), *_sentences(self))


@dataclass(frozen=True, kw_only=True)
class _Run:
    recipe: Recipe
    scores: Mapping[str, Any]


def compare(first: Path, second: Path) -> Comparison:
    """Compare two run directories; intervals use the first run's seed, confidence and number of resamples.

    Raises:
        UserError: a run has no report, or no readable recipe.
    """
    one, other = _load(first), _load(second)
    return Comparison(
        first=str(first),
        second=str(second),
        confidence=one.recipe.evaluate.confidence,
        changes=tuple(_changes(one.recipe, other.recipe)),
        pairs=tuple(_pairs(one, other)),
    )


def _load(path: Path) -> _Run:
    if not (path / "report" / "scores.json").exists():
        raise UserError(
            f"{path} has no report/scores.json: finish that run with `ssd-ray report` first"
        )
    recipe = path / "report" / "recipe.yaml"  # which reports of earlier versions of ssd_ray lack
    recipe = recipe if recipe.exists() else path / "recipe.yaml"
    return _Run(recipe=recipes.load(recipe), scores=read_json(path / "report" / "scores.json"))


def _changes(first: Recipe, second: Recipe) -> Iterator[Change]:
    here = {name: value for name, value, _ in fields(first)}
    there = {name: value for name, value, _ in fields(second)}
    for name in [*here, *(name for name in there if name not in here)]:
        if name != "sources" and here.get(name) != there.get(name):
            yield Change(field=name, first=here.get(name), second=there.get(name))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The problems of a benchmark, or of one difficulty in it."""

    benchmark: str
    difficulty: str | None

    def table(self, scores: Mapping[str, Any], arm: str) -> Mapping[str, Any]:
        """An arm's table on this group in scores.json, empty where there is none."""
        groups = scores["benchmarks"].get(self.benchmark, {"all": {"arms": {}}, "difficulties": {}})
        group = (
            groups["all"]
            if self.difficulty is None
            else groups["difficulties"].get(self.difficulty, {"arms": {}})
        )
        found: Mapping[str, Any] = group["arms"].get(arm, {})
        return found

    def score(self, scores: Mapping[str, Any], arm: str, metric: str) -> Mapping[str, Any] | None:
        """An arm's score on this group, None where there is none."""
        found: Mapping[str, Any] | None = self.table(scores, arm).get("score", {}).get(metric)
        return found

    def problems(self, scores: Mapping[str, Any]) -> Mapping[str, Any]:
        """The problems of this group by id, with each arm's graded and accepted answers."""
        problems = scores["problems"][self.benchmark]
        return {
            name: found
            for name, found in problems.items()
            if self.difficulty in (None, found["difficulty"])
        }


def _groups(first: _Run, second: _Run) -> Iterator[_Group]:
    """Every benchmark of either run, and its difficulties where it has several, in the order of the first."""
    benchmarks, difficulties = (
        _either(first.scores["order"], second.scores["order"], key) for key in _GROUPED
    )
    for benchmark in benchmarks:
        yield _Group(benchmark=benchmark, difficulty=None)
        held = [
            run.scores["benchmarks"].get(benchmark, {"difficulties": {}})["difficulties"]
            for run in (first, second)
        ]
        for difficulty in difficulties:
            if any(difficulty in groups for groups in held):
                yield _Group(benchmark=benchmark, difficulty=difficulty)


def _pairs(first: _Run, second: _Run) -> Iterator[Pair]:
    """Every group of problems, arm and metric of either run, in the order of the first."""
    arms, metrics = (
        _either(first.scores["order"], second.scores["order"], key) for key in ("arms", "pass_at")
    )
    for group in _groups(first, second):
        for arm, metric in itertools.product(arms, metrics):
            found, unpaired = _paired(first, second, group, arm, metric)
            yield Pair(
                benchmark=group.benchmark,
                difficulty=group.difficulty,
                arm=arm,
                metric=metric,
                first=group.score(first.scores, arm, metric),
                second=group.score(second.scores, arm, metric),
                difference=found,
                unpaired=unpaired,
            )


_GROUPED = ("benchmarks", "difficulties")


def _either(first: Mapping[str, list[str]], second: Mapping[str, list[str]], key: str) -> list[str]:
    return list(dict.fromkeys([*first[key], *second[key]]))


def _paired(
    first: _Run, second: _Run, group: _Group, arm: str, metric: str
) -> tuple[Difference | None, str | None]:
    """The difference of second minus first by problem, or why there is none."""
    for name, run in (("first", first), ("second", second)):
        table = group.table(run.scores, arm)
        if metric not in table.get("score", {}):
            return None, f"absent from the {name} run"
        if table["refused"]:
            return None, f"no score in the {name} run: {table['refused']}"
    here, there = group.problems(first.scores), group.problems(second.scores)
    if here.keys() != there.keys():
        lost, new = len(here.keys() - there.keys()), len(there.keys() - here.keys())
        return None, f"the problems differ: {lost} only in the first run, {new} only in the second"
    answers = max(run.recipe.evaluate.samples_per_problem for run in (first, second))
    found = difference(
        first.recipe, _values(there, arm, metric), _values(here, arm, metric), answers=answers
    )
    return found, None if found else "no problem has enough graded answers in both"


def _values(problems: Mapping[str, Any], arm: str, metric: str) -> np.ndarray[Any, Any]:
    """pass@k of each problem in the order of their ids, NaN where fewer than k answers were graded; shape (problems,)."""
    counts = [
        (problems[name]["graded"][arm], problems[name]["accepted"][arm])
        for name in sorted(problems)
    ]
    return pass_at_values(counts, int(metric.removeprefix("pass@")))


def _changes_table(comparison: Comparison) -> RenderableType:
    if not comparison.changes:
        return Text("The recipes are the same.")
    table = Table(title="What differs in the recipes", title_justify="left")
    for heading in ("field", "first", "second"):
        table.add_column(heading, overflow="fold")
    for change in comparison.changes:
        table.add_row(*(Text(str(value)) for value in (change.field, change.first, change.second)))
    return table


def _scores_table(comparison: Comparison) -> RenderableType:
    table = Table(title="Scores", title_justify="left")
    for heading in ("benchmark", "problems", "arm", "metric"):
        table.add_column(heading)
    for heading in (comparison.first, comparison.second):
        table.add_column(Text(heading), justify="right", overflow="fold")
    table.add_column(f"second {MINUS} first", justify="right")
    for pair in comparison.pairs:
        names = (pair.benchmark, pair.difficulty or "all", pair.arm, pair.metric)
        cells = (*names, score(pair.first), score(pair.second), _short(pair))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _short(pair: Pair) -> str:
    """A difference with its interval as a cell, of few problems their counts."""
    if pair.difference is None:
        return "not compared"
    found = dataclasses.asdict(pair.difference)
    digits = decimals(found["problems"])
    estimate, low, high = (points(found[key], digits) for key in ("estimate", "low", "high"))
    return tally(found) if is_few(found["problems"]) else f"{estimate} ({low} to {high})"


def _sentences(comparison: Comparison) -> Iterator[Text]:
    """One sentence for each benchmark, arm and metric; difficulties are in the table alone."""
    for pair in comparison.pairs:
        if pair.difficulty is not None:
            continue
        where = f"{pair.benchmark}, {pair.arm}, {pair.metric}"
        if pair.difference is None:
            yield Text(f"{where}: not compared, {pair.unpaired}", style="yellow")
        else:
            sentence = reading(
                "second",
                "first",
                dataclasses.asdict(pair.difference),
                comparison.confidence,
                "these runs",
            )
            yield Text(f"{where}: {sentence}", style=STYLES[pair.difference.reading])
