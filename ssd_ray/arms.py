"""The arms of a recipe: those that it names, or their sweep over temperatures, and the controls that belong beside them.

One idea: a comparison is fair when every model is decoded at the same temperatures and each is taken at its best, so a
sweep turns each named arm into a family, one arm a temperature, and all families share one grid. Pure functions of the
recipe; reads and writes nothing.
"""

from __future__ import annotations

from ssd_ray.config import Arm, Recipe, SampleConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import Profile

TEACHER, NAIVE = "teacher", "naive"
VERDICTS: dict[Profile, str] = {"strict": "verdicts", "lcb-compat": "verdicts-lcb"}
"""Where the verdicts of each profile stand, under the run directory and over the arms."""


def controls(recipe: Recipe) -> tuple[str, ...]:
    """The controls that were asked for; where nothing was said, the teacher beside a sweep."""
    evaluate = recipe.evaluate
    if evaluate.controls is None:
        return (TEACHER,) if evaluate.sweep else ()
    return evaluate.controls


def temperatures(recipe: Recipe) -> tuple[float, ...]:
    """The grid of every family in rising order: the sweep and the temperatures that the arms are written with; () without one."""
    evaluate = recipe.evaluate
    if not evaluate.sweep:
        return ()
    return tuple(sorted({*evaluate.sweep, *(arm.temperature for arm in evaluate.arms.values())}))


def families(recipe: Recipe) -> dict[str, dict[float, str]]:
    """For each swept name (`base`, `ssd`, `naive`), its arms by temperature, rising; empty where there is no sweep.

    Raises:
        UserError: as for `arms`.
    """
    grid = temperatures(recipe)
    return {name: {t: _point(name, t) for t in grid} for name in _named(recipe)} if grid else {}


def arms(recipe: Recipe) -> dict[str, Arm]:
    """Every arm that a run answers the benchmarks with, by name, in the order of the report.

    Raises:
        UserError: an arm takes the name of a control or of a point of the sweep, or a control has nothing to be compared to.
    """
    named, grid = _named(recipe), temperatures(recipe)
    found: dict[str, Arm] = {}
    for name, arm in named.items():
        points = {_point(name, t): arm.model_copy(update={"temperature": t}) for t in grid} if grid else {name: arm}
        for point, decoded in points.items():
            _add(found, point, decoded)
    if TEACHER in controls(recipe):
        sample = recipe.sample
        _add(found, TEACHER, Arm(model="base", temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p))
    return found


def baseline(recipe: Recipe) -> str:
    """The arm that differences are taken against: in a sweep the point at the temperature that it is written with."""
    name = recipe.evaluate.baseline
    return _point(name, recipe.evaluate.arms[name].temperature) if recipe.evaluate.sweep else name


def trains_naive(recipe: Recipe) -> bool:
    """Whether an arm needs the naively self-trained model, and with it a second branch of samples, data set and checkpoint."""
    return any(arm.model == NAIVE for arm in arms(recipe).values())


def naive_sample(recipe: Recipe) -> SampleConfig:
    """How the naive control's training samples are drawn: as the run's, but at temperature 1 and without truncation."""
    return recipe.sample.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": 1.0})


def _named(recipe: Recipe) -> dict[str, Arm]:
    """The arms of the recipe, and the naive control decoded as the first ssd arm."""
    named = dict(recipe.evaluate.arms)
    if NAIVE in controls(recipe):
        if naive_sample(recipe) == recipe.sample:
            raise UserError(
                "evaluate.controls holds naive, but sample is already temperature 1 without truncation, so this run is its own "
                "naive control: leave naive out"
            )
        trained = [arm for arm in named.values() if arm.model == "ssd"]
        if not trained:
            raise UserError("evaluate.controls holds naive, but no arm has model ssd to compare it to: add one to evaluate.arms")
        _add(named, NAIVE, trained[0].model_copy(update={"model": NAIVE}))
    return named


def _point(name: str, temperature: float) -> str:
    return f"{name}@T={temperature!r}".removesuffix(".0")


def _add(found: dict[str, Arm], name: str, arm: Arm) -> None:
    if name in found:
        raise UserError(f"evaluate.arms names {name!r}, which evaluate.sweep or evaluate.controls also makes: rename that arm")
    found[name] = arm
