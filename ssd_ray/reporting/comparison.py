"""Comparison of two finished runs: recipes, scores, and differences problem by problem.

Two runs on the same problems are compared like two arms of one run, paired by problem. If the
problems differ, there is no paired difference, and the reason is given instead. Reads
report/recipe.yaml and report/scores.json of both runs; writes nothing.
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ssd_ray import recipes
from ssd_ray.artifacts.files import Json
from ssd_ray.config import Recipe, fields
from ssd_ray.errors import UserError
from ssd_ray.reporting.numbers.json_bytes import plain, rounded_to_ten_digits
from ssd_ray.reporting.numbers.scores import Order, ProblemCounts
from ssd_ray.reporting.numbers.scores_file import read_part
from ssd_ray.reporting.readings import reading
from ssd_ray.reporting.terminal import STYLES, score
from ssd_ray.reporting.words import MINUS, decimals, is_few, points, tally
from ssd_ray.statistics.differences import Difference, difference, pass_at_values
from ssd_ray.statistics.metrics import Score, Values


@dataclass(frozen=True, kw_only=True)
class Change:
    """A field of the recipe with different values; None in a run without the field."""

    field: str
    first: object
    second: object


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One arm and metric on one group of problems in both runs."""

    benchmark: str
    difficulty: str | None
    """None for all problems of the benchmark."""
    arm: str
    metric: str
    first: Score | None
    """Score in the first run, None without one."""
    second: Score | None
    """Score in the second run, None without one."""
    difference: Difference | None
    """Second minus first, None if there is none."""
    unpaired: str | None
    """Reason for the absence of a difference."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two runs side by side; a rich console prints it as tables."""

    first: str
    second: str
    confidence: float
    changes: tuple[Change, ...]
    pairs: tuple[Pair, ...]

    def plain(self) -> Json:
        """Return the comparison as plain JSON, floats at ten significant digits."""
        document: Json = rounded_to_ten_digits(plain(self))
        return document

    def __rich__(self) -> RenderableType:
        """Return tables of changes and scores, then one sentence for each paired difference."""
        return Group(_changes_table(self), _scores_table(self), *_sentences(self))


@dataclass(frozen=True, kw_only=True)
class ScoredArm:
    """The part of an arm's table to compare."""

    refused: str | None
    score: Mapping[str, Score | None]


@dataclass(frozen=True, kw_only=True)
class ScoredGroup:
    """The part of a group's tables to compare."""

    arms: Mapping[str, ScoredArm]


@dataclass(frozen=True, kw_only=True)
class ScoredBenchmark:
    """The part of a benchmark's tables to compare."""

    all: ScoredGroup
    difficulties: Mapping[str, ScoredGroup]


@dataclass(frozen=True, kw_only=True)
class ComparedScores:
    """The part of scores.json to compare, unchanged since format 3."""

    order: Order
    benchmarks: Mapping[str, ScoredBenchmark]
    problems: Mapping[str, Mapping[str, ProblemCounts]]

    def benchmark(self, name: str) -> ScoredBenchmark:
        """Return the tables of a benchmark, empty ones if the run lacks it."""
        return self.benchmarks.get(name, _NO_TABLES)


_NO_ARMS = ScoredGroup(arms={})
_NO_TABLES = ScoredBenchmark(all=_NO_ARMS, difficulties={})


@dataclass(frozen=True, kw_only=True)
class _Run:
    recipe: Recipe
    scores: ComparedScores


def compare(first: Path, second: Path) -> Comparison:
    """Compare two run directories; intervals have the confidence of the first run.

    Raises:
        UserError: a run has no report, no readable recipe, or scores of an earlier format.
    """
    runs = _load(first), _load(second)
    return Comparison(
        first=str(first),
        second=str(second),
        confidence=runs[0].recipe.evaluate.confidence,
        changes=tuple(_changes(runs[0].recipe, runs[1].recipe)),
        pairs=tuple(_pairs(*runs)),
    )


def _load(path: Path) -> _Run:
    scores = path / "report" / "scores.json"
    if not scores.exists():
        raise UserError(_advice(path))
    # Reports of earlier versions of ssd_ray hold no recipe.
    recipe = path / "report" / "recipe.yaml"
    recipe = recipe if recipe.exists() else path / "recipe.yaml"
    return _Run(recipe=recipes.load(recipe), scores=read_part(scores, ComparedScores))


def _advice(path: Path) -> str:
    """Return the reason why a directory cannot be compared, with the remedy."""
    if not path.is_dir():
        return f"there is no directory {path}: give the --out of a finished run"
    lack = f"{path} has no report/scores.json"
    if not (path / "recipe.yaml").exists():
        return f"{lack} and no recipe.yaml, so it is no run: give the --out of a finished run"
    command = shlex.join(["ssd-ray", "report", str(path / "recipe.yaml"), "--out", str(path)])
    return f"{lack}: finish that run first, with `{command}`"


def _changes(first: Recipe, second: Recipe) -> Iterator[Change]:
    values = {name: value for name, value, _ in fields(first)}
    others = {name: value for name, value, _ in fields(second)}
    for name in dict.fromkeys([*values, *others]):
        # Sources explain values; they shape nothing.
        if name != "sources" and values.get(name) != others.get(name):
            yield Change(field=name, first=values.get(name), second=others.get(name))


@dataclass(frozen=True, kw_only=True)
class _Group:
    """The problems of a benchmark, or of one difficulty in it."""

    benchmark: str
    difficulty: str | None

    def table(self, scores: ComparedScores, arm: str) -> ScoredArm | None:
        """Return the table of an arm on this group, or None."""
        benchmark = scores.benchmark(self.benchmark)
        group = benchmark.all
        if self.difficulty is not None:
            group = benchmark.difficulties.get(self.difficulty, _NO_ARMS)
        return group.arms.get(arm)

    def score(self, scores: ComparedScores, arm: str, metric: str) -> Score | None:
        """Return the score of an arm on this group, or None."""
        table = self.table(scores, arm)
        return None if table is None else table.score.get(metric)

    def problems(self, scores: ComparedScores) -> dict[str, ProblemCounts]:
        """Return the problems of this group by id, with graded and accepted answers of each arm."""
        return {
            name: problem
            for name, problem in scores.problems[self.benchmark].items()
            if self.difficulty in (None, problem.difficulty)
        }


def _groups(first: _Run, second: _Run) -> Iterator[_Group]:
    """Yield every benchmark of either run, each followed by its difficulties if it has several."""
    orders = first.scores.order, second.scores.order
    benchmarks = _united(*(order.benchmarks for order in orders))
    difficulties = _united(*(order.difficulties for order in orders))
    for benchmark in benchmarks:
        yield _Group(benchmark=benchmark, difficulty=None)
        by_difficulty = [run.scores.benchmark(benchmark).difficulties for run in (first, second)]
        for difficulty in difficulties:
            if any(difficulty in groups for groups in by_difficulty):
                yield _Group(benchmark=benchmark, difficulty=difficulty)


def _pairs(first: _Run, second: _Run) -> Iterator[Pair]:
    """Yield every group of problems, arm and metric of either run, in the order of the first."""
    orders = first.scores.order, second.scores.order
    arms = _united(*(order.arms for order in orders))
    metrics = _united(*(order.pass_at for order in orders))
    for group in _groups(first, second):
        for arm, metric in itertools.product(arms, metrics):
            paired, unpaired = _paired(first, second, group, arm, metric)
            yield Pair(
                benchmark=group.benchmark,
                difficulty=group.difficulty,
                arm=arm,
                metric=metric,
                first=group.score(first.scores, arm, metric),
                second=group.score(second.scores, arm, metric),
                difference=paired,
                unpaired=unpaired,
            )


def _united(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """Return the names of either run, those of the first run first."""
    return list(dict.fromkeys([*first, *second]))


def _paired(
    first: _Run, second: _Run, group: _Group, arm: str, metric: str
) -> tuple[Difference | None, str | None]:
    """Return the difference of second minus first by problem, or the reason for its absence."""
    # An arm may be new in one run, or refused there.
    for name, run in (("first", first), ("second", second)):
        table = group.table(run.scores, arm)
        if table is None or metric not in table.score:
            return None, f"absent from the {name} run"
        if table.refused:
            return None, f"no score in the {name} run: {table.refused}"
    baseline = group.problems(first.scores)
    treated = group.problems(second.scores)
    # Pairs need the same problems: a difference over the common ones would hide the others.
    if baseline.keys() != treated.keys():
        lost = len(baseline.keys() - treated.keys())
        new = len(treated.keys() - baseline.keys())
        return None, f"the problems differ: {lost} only in the first run, {new} only in the second"
    paired = difference(
        first.recipe,
        _values(treated, arm, metric),
        _values(baseline, arm, metric),
        # The bound of the design effect is that of the run with more answers.
        answers=max(run.recipe.evaluate.samples_per_problem for run in (first, second)),
    )
    return paired, None if paired else "no problem has enough graded answers in both"


def _values(problems: Mapping[str, ProblemCounts], arm: str, metric: str) -> Values:
    """Return float64[num_problems] of pass@k in the order of problem ids, NaN where ungraded."""
    counts = [
        (problem.graded[arm], problem.accepted[arm]) for _, problem in sorted(problems.items())
    ]
    return pass_at_values(counts, int(metric.removeprefix("pass@")))


def _changes_table(comparison: Comparison) -> RenderableType:
    if not comparison.changes:
        return Text("The recipes are the same.")
    table = Table(title="Differences of the recipes", title_justify="left")
    for heading in ("field", "first", "second"):
        table.add_column(heading, overflow="fold")
    for change in comparison.changes:
        table.add_row(*(Text(str(value)) for value in (change.field, change.first, change.second)))
    return table


def _scores_table(comparison: Comparison) -> RenderableType:
    table = Table(title="Scores", title_justify="left")
    for heading in ("benchmark", "problems", "arm", "metric"):
        table.add_column(heading)
    for heading in ("first", "second"):
        table.add_column(heading, justify="right")
    table.add_column(f"second {MINUS} first (points)", justify="right")
    for pair in comparison.pairs:
        names = (pair.benchmark, pair.difficulty or "all", pair.arm, pair.metric)
        cells = (*names, score(pair.first), score(pair.second), _short(pair))
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _short(pair: Pair) -> str:
    """Return the cell of a difference: estimate and interval, or counts of few problems."""
    if pair.difference is None:
        return "not compared"
    paired = pair.difference
    if is_few(paired.problems):
        return tally(paired)
    digits = decimals(paired.problems)
    estimate, low, high = (
        points(share, digits) for share in (paired.estimate, paired.low, paired.high)
    )
    return f"{estimate} ({low} to {high})"


def _sentences(comparison: Comparison) -> Iterator[Text]:
    """Yield a sentence for each benchmark, arm and metric; difficulties are in the table alone."""
    for pair in comparison.pairs:
        # Difficulties would add dozens of sentences.
        if pair.difficulty is not None:
            continue
        where = f"{pair.benchmark}, {pair.arm}, {pair.metric}"
        if pair.difference is None:
            yield Text(f"{where}: not compared, {pair.unpaired}", style="yellow")
        else:
            sentence = reading(
                "second", "first", pair.difference, comparison.confidence, "these runs"
            )
            yield Text(f"{where}: {sentence}", style=STYLES[pair.difference.reading])
