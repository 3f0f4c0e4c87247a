"""The arms of a recipe: those that it names, or their sweep over temperatures, and the controls that belong beside them.

One idea: a comparison is fair when every model is decoded at the same temperatures and each is taken at its best, so a
sweep turns each named arm into a family, one arm a temperature, and all families share one grid. Pure functions of the
recipe; reads and writes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.config import Arm, PrepareConfig, Recipe, SampleConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import Profile

TEACHER, NAIVE, ACCEPTED = "teacher", "naive", "accepted"
VERDICTS: dict[Profile, str] = {"strict": "verdicts", "lcb-compat": "verdicts-lcb"}
"""Where the verdicts of each profile stand, under the run directory and over the arms."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model that is trained: its name among arms, how its samples are drawn, and what of them it is trained on."""

    name: str
    samples: str
    sample: SampleConfig
    prepare: PrepareConfig

    @property
    def dataset(self) -> str:
        """The directory of its training sequences."""
        return "dataset" if self.name == "ssd" else f"dataset-{self.name}"

    @property
    def checkpoint(self) -> str:
        """The directory of the trained model."""
        return "checkpoint" if self.name == "ssd" else f"checkpoint-{self.name}"

    @property
    def verdicts(self) -> str | None:
        """The directory of the verdicts on its samples, where only accepted ones are trained on."""
        return (
            self.samples.replace("samples", "sample-verdicts")
            if self.prepare.select == "accepted"
            else None
        )


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
        points = (
            {_point(name, t): arm.model_copy(update={"temperature": t}) for t in grid}
            if grid
            else {name: arm}
        )
        for point, decoded in points.items():
            _add(found, point, decoded)
    if TEACHER in controls(recipe):
        sample = recipe.sample
        _add(
            found,
            TEACHER,
            Arm(
                model="base", temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p
            ),
        )
    return found


def baseline(recipe: Recipe) -> str:
    """The arm that differences are taken against: in a sweep the point at the temperature that it is written with."""
    name = recipe.evaluate.baseline
    return _point(name, recipe.evaluate.arms[name].temperature) if recipe.evaluate.sweep else name


def branches(recipe: Recipe) -> tuple[TrainedModel, ...]:
    """The models that a run trains: `ssd` always, the controls `naive` and `accepted` where an arm needs them.

    Raises:
        UserError: as for `arms`.
    """
    sample, prepare = recipe.sample, recipe.prepare
    accepted = prepare.model_copy(update={"select": "accepted"})
    every = (
        TrainedModel(name="ssd", samples="samples", sample=sample, prepare=prepare),
        TrainedModel(
            name=NAIVE, samples="samples-naive", sample=naive_sample(recipe), prepare=prepare
        ),
        TrainedModel(name=ACCEPTED, samples="samples", sample=sample, prepare=accepted),
    )
    needed = {"ssd", *(arm.model for arm in arms(recipe).values())}
    return tuple(branch for branch in every if branch.name in needed)


def decoding(recipe: Recipe, model: str) -> Arm | None:
    """How the first arm of a trained model decodes it, in a sweep as it is written; None where the model has no arm."""
    return next((arm for arm in _named(recipe).values() if arm.model == model), None)


def naive_sample(recipe: Recipe) -> SampleConfig:
    """How the naive control's training samples are drawn: as the run's, but at temperature 1 and without truncation."""
    return recipe.sample.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": 1.0})


def _named(recipe: Recipe) -> dict[str, Arm]:
    """The arms of the recipe, and the trained controls decoded as the first ssd arm."""
    named = dict(recipe.evaluate.arms)
    for control in (NAIVE, ACCEPTED):
        if control in controls(recipe):
            trained = [arm for arm in named.values() if arm.model == "ssd"]
            if not trained:
                raise UserError(
                    f"evaluate.controls holds {control}, but no arm has model ssd to compare it to: add one to evaluate.arms"
                )
            _add(named, control, trained[0].model_copy(update={"model": control}))
    _refuse_twins(recipe, {arm.model for arm in named.values()})
    return named


def _refuse_twins(recipe: Recipe, models: set[str]) -> None:
    """Refuse a control that would be the run itself, and a selection by tests that there are none of."""
    if NAIVE in models and naive_sample(recipe) == recipe.sample:
        raise UserError(
            "an arm is naive, but sample is already temperature 1 without truncation, so this run is its own naive control: "
            "leave naive out"
        )
    selects = recipe.prepare.select == "accepted"
    if ACCEPTED in models and selects:
        raise UserError(
            "an arm is accepted, but prepare.select is already accepted, so ssd would be trained on the same: set "
            "prepare.select=all"
        )
    prompts = recipe.prompts
    if (
        (ACCEPTED in models or selects)
        and prompts.source != "builtin"
        and prompts.tests_column is None
    ):
        what = "prepare.select is accepted" if selects else "an arm has model accepted"
        raise UserError(
            f"{what}, which needs prompts with tests, and those of {prompts.source!r} have none: use the built-in prompts, or "
            "files with a column of tests and set prompts.tests_column"
        )


def _point(name: str, temperature: float) -> str:
    return f"{name}@T={temperature!r}".removesuffix(".0")


def _add(found: dict[str, Arm], name: str, arm: Arm) -> None:
    if name in found:
        raise UserError(
            f"evaluate.arms names {name!r}, which evaluate.sweep or evaluate.controls also makes: rename that arm"
        )
    found[name] = arm
