"""Gains of one family of arms over another, in a sweep of temperatures.

A gain counts only if its temperatures were chosen on other problems. The gain of best cell over
best cell is reported next to it, under that name. Pure functions of counted results: the part
`selection` of scores.json.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ssd_ray.config import Recipe, arms
from ssd_ray.config.trained_models import TRAINED_CONTROLS
from ssd_ray.reporting.numbers.counts import ProblemResult, Results
from ssd_ray.statistics import selection
from ssd_ray.statistics.differences import Difference, judged, pass_at_values
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.selection import Halves


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Shares of the halves that chose each temperature, in the order of the temperatures."""

    treated: tuple[float, ...]
    control: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class TunedGain:
    """Treated minus control, each at its best temperature."""

    selection_free: Difference
    """Temperatures chosen on other problems."""
    best_cell: float
    """Difference of the best cells, selected on the test problems themselves."""
    chosen: Chosen


@dataclass(frozen=True, kw_only=True)
class MetricGain(TunedGain):
    """The gain by one metric, on all problems and by difficulty."""

    difficulties: Mapping[str, TunedGain]


@dataclass(frozen=True, kw_only=True)
class FamilyGain:
    """Gains of one family of arms over another on a benchmark."""

    treated: str
    control: str
    temperatures: tuple[float, ...]
    refused: str
    """Reason for the absence of a gain, given for the metrics without one."""
    metrics: Mapping[str, MetricGain | None]


def pairs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the families to compare: each with the baseline's, and SSD with trained controls."""
    families = arms.families(recipe)
    models = arms.arms(recipe)
    control = recipe.evaluate.baseline
    yield from ((name, control) for name in families if name != control)
    # A repeated training is compared with the baseline alone.
    model = {
        name: arms.weights(models[next(iter(points.values()))]) for name, points in families.items()
    }
    trained = [name for name in families if model[name] == "ssd"]
    others = [name for name in families if model[name] in TRAINED_CONTROLS]
    yield from (
        (name, other) for name in trained for other in others if control not in (name, other)
    )


def selections(
    recipe: Recipe, results: Results, refusals: Mapping[str, str | None]
) -> tuple[FamilyGain, ...]:
    """Return the gains of every pair of families on one benchmark; empty without a sweep."""
    families = arms.families(recipe)
    if not families:
        return ()
    compared = []
    for treated, control in pairs(recipe):
        # A gain needs scores at every temperature: one refused arm refuses it.
        refused = next(
            (
                refusals[arm]
                for name in (treated, control)
                for arm in families[name].values()
                if refusals[arm]
            ),
            None,
        )
        compared.append(
            FamilyGain(
                treated=treated,
                control=control,
                temperatures=arms.temperatures(recipe),
                refused=refused or "no problem has enough graded answers at every temperature",
                metrics={
                    f"pass@{k}": None if refused else _gain(recipe, results, treated, control, k)
                    for k in sorted(recipe.evaluate.pass_at)
                },
            )
        )
    return tuple(compared)


def _gain(
    recipe: Recipe, results: Results, treated: str, control: str, k: int
) -> MetricGain | None:
    """Return the gains of a pair by one metric, on all problems and by difficulty.

    It is None with fewer than two problems graded at every temperature.
    """
    families = arms.families(recipe)
    first = _values(results, list(families[treated].values()), k)
    second = _values(results, list(families[control].values()), k)
    kept = np.isfinite(np.concatenate([first, second], axis=1)).all(axis=1)
    problems = [
        problem
        for problem, known in zip(_ordered(results, families[treated]), kept.tolist(), strict=True)
        if known
    ]
    if len(problems) < 2:
        return None
    difficulties = [problem.difficulty for problem in problems]
    cut = selection.halves(
        [problem.problem_id for problem in problems], difficulties, seed=recipe.seed
    )
    # A group of one problem would be missing in one half of every split.
    groups = sorted({name for name in difficulties if 1 < difficulties.count(name) < len(problems)})
    gain = _compared(recipe, first[kept], second[kept], cut, None)
    return MetricGain(
        selection_free=gain.selection_free,
        best_cell=gain.best_cell,
        chosen=gain.chosen,
        difficulties={
            name: _compared(
                recipe,
                first[kept],
                second[kept],
                cut,
                np.array([difficulty == name for difficulty in difficulties]),
            )
            for name in groups
        },
    )


def _compared(
    recipe: Recipe, treated: Values, control: Values, cut: Halves, within: Halves | None
) -> TunedGain:
    evaluate = recipe.evaluate
    gain = selection.Sweep(treated, control, cut, within).gain(
        samples=evaluate.bootstrap_samples, answers=evaluate.samples_per_problem, seed=recipe.seed
    )
    problems = len(treated) if within is None else int(within.sum())
    free = judged(
        gain.pair, gain.better, gain.worse, problems=problems, confidence=evaluate.confidence
    )
    return TunedGain(
        selection_free=free,
        best_cell=gain.best_cell,
        chosen=Chosen(
            treated=tuple(gain.chosen_treated.tolist()), control=tuple(gain.chosen_control.tolist())
        ),
    )


def _ordered(results: Results, points: Mapping[float, str]) -> list[ProblemResult]:
    return [problem for _, problem in sorted(results[next(iter(points.values()))].items())]


def _values(results: Results, names: list[str], k: int) -> Values:
    """Return float64[problems, temperatures] of pass@k, problems in the order of their ids."""
    columns = [
        pass_at_values(
            [(problem.graded, problem.accepted) for _, problem in sorted(results[name].items())], k
        )
        for name in names
    ]
    return np.column_stack(columns)
