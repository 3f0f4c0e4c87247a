"""Families of arms over a sweep of temperatures: what each gains over another when nobody peeks.

One idea: the number to believe has its temperatures chosen on problems that it is not measured on; the best cell against the
best cell stands beside it, called what it is. Pure functions of counted results: the part `selection` of scores.json.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ssd_ray.config import Recipe, arms
from ssd_ray.reporting.numbers.counts import ProblemResult
from ssd_ray.statistics import selection
from ssd_ray.statistics.differences import judged, pass_at_values
from ssd_ray.statistics.metrics import Values
from ssd_ray.statistics.selection import Halves

Results = Mapping[str, Mapping[str, ProblemResult]]


def pairs(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Which families are compared: each with the baseline's, and SSD with the trained controls."""
    families, models = arms.families(recipe), arms.arms(recipe)
    control = recipe.evaluate.baseline
    yield from ((name, control) for name in families if name != control)
    model = {name: models[next(iter(points.values()))].model for name, points in families.items()}
    trained = [name for name in families if model[name] == "ssd"]
    others = [name for name in families if model[name] in (arms.NAIVE, arms.ACCEPTED)]
    yield from (
        (name, other) for name in trained for other in others if control not in (name, other)
    )


def selections(
    recipe: Recipe, results: Results, refusals: Mapping[str, str | None]
) -> list[dict[str, Any]]:
    """Every compared pair of families on the problems of one benchmark, as plain values; empty without a sweep."""
    families = arms.families(recipe)
    if not families:
        return []
    found = []
    for treated, control in pairs(recipe):
        refused = next(
            (
                refusals[arm]
                for name in (treated, control)
                for arm in families[name].values()
                if refusals[arm]
            ),
            None,
        )
        found.append(
            {
                "treated": treated,
                "control": control,
                "temperatures": list(arms.temperatures(recipe)),
                "refused": refused or "no problem has enough graded answers at every temperature",
                "metrics": {
                    f"pass@{k}": None if refused else _gain(recipe, results, treated, control, k)
                    for k in sorted(recipe.evaluate.pass_at)
                },
            }
        )
    return found


def _gain(
    recipe: Recipe, results: Results, treated: str, control: str, k: int
) -> dict[str, Any] | None:
    """One pair and metric: the selection-free gain on all problems and by difficulty, and the best cell's gain."""
    families = arms.families(recipe)
    here, there = (
        _values(results, list(families[name].values()), k) for name in (treated, control)
    )
    kept = np.isfinite(np.concatenate([here, there], axis=1)).all(axis=1)
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
    whole = _compared(recipe, here[kept], there[kept], cut, None)
    groups = sorted({name for name in difficulties if 1 < difficulties.count(name) < len(problems)})
    return {
        **whole,
        "difficulties": {
            name: _compared(
                recipe,
                here[kept],
                there[kept],
                cut,
                np.array([own == name for own in difficulties]),
            )
            for name in groups
        },
    }


def _compared(
    recipe: Recipe, here: Values, there: Values, cut: Halves, within: Halves | None
) -> dict[str, Any]:
    evaluate = recipe.evaluate
    gain = selection.Sweep(here, there, cut, within).gain(
        samples=evaluate.bootstrap_samples, answers=evaluate.samples_per_problem, seed=recipe.seed
    )
    problems = len(here) if within is None else int(within.sum())
    free = judged(
        gain.pair, gain.better, gain.worse, problems=problems, confidence=evaluate.confidence
    )
    return {
        "selection_free": dataclasses.asdict(free),
        "best_cell": gain.best_cell,
        "chosen": {
            "treated": gain.chosen_treated.tolist(),
            "control": gain.chosen_control.tolist(),
        },
    }


def _ordered(results: Results, points: Mapping[float, str]) -> list[ProblemResult]:
    return [problem for _, problem in sorted(results[next(iter(points.values()))].items())]


def _values(results: Results, names: list[str], k: int) -> Values:
    """float64[problems, temperatures] of pass@k, problems in the order of their ids."""
    columns = [
        pass_at_values(
            [(problem.graded, problem.accepted) for _, problem in sorted(results[name].items())], k
        )
        for name in names
    ]
    return np.column_stack(columns)
