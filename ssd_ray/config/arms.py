"""Arms of a recipe: the named ones, their sweep over temperatures, and the controls.

A fair comparison decodes every model at the same temperatures and takes each at its best:

- A sweep makes a family of each named arm, with one arm for each temperature.
- All families share one grid of temperatures.

Pure functions of the recipe, without I/O.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssd_ray.config import Arm, PrepareConfig, Recipe, SampleConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import Profile

TEACHER = "teacher"
NAIVE = "naive"
ACCEPTED = "accepted"
VERDICTS: dict[Profile, str] = {"strict": "verdicts", "lcb-compat": "verdicts-lcb"}
"""Directory of the verdicts of all arms, by profile."""


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model to train: its name among arms, its sampling, and its selection of samples."""

    name: str
    samples: str
    sample: SampleConfig
    prepare: PrepareConfig

    @property
    def dataset(self) -> str:
        """Directory of its training sequences."""
        return "dataset" if self.name == "ssd" else f"dataset-{self.name}"

    @property
    def checkpoint(self) -> str:
        """Directory of the trained model."""
        return "checkpoint" if self.name == "ssd" else f"checkpoint-{self.name}"

    @property
    def verdicts(self) -> str | None:
        """Directory of the verdicts on its samples, or None if it is trained on all of them."""
        return (
            self.samples.replace("samples", "sample-verdicts")
            if self.prepare.select == "accepted"
            else None
        )


def controls(recipe: Recipe) -> tuple[str, ...]:
    """Return the controls of the recipe; by default, the teacher of a sweep."""
    evaluate = recipe.evaluate
    if evaluate.controls is None:
        return (TEACHER,) if evaluate.sweep else ()
    return evaluate.controls


def temperatures(recipe: Recipe) -> tuple[float, ...]:
    """Return the temperatures shared by all families, in rising order; () without a sweep.

    The grid holds the sweep and the temperatures of the named arms.
    """
    evaluate = recipe.evaluate
    if not evaluate.sweep:
        return ()
    return tuple(sorted({*evaluate.sweep, *(arm.temperature for arm in evaluate.arms.values())}))


def families(recipe: Recipe) -> dict[str, dict[float, str]]:
    """Return the arms of each swept name (`base`, `ssd`, `naive`) by rising temperature.

    The result is empty without a sweep.

    Raises:
        UserError: As for `arms`.
    """
    grid = temperatures(recipe)
    return {name: {t: _point(name, t) for t in grid} for name in _named(recipe)} if grid else {}


def arms(recipe: Recipe) -> dict[str, Arm]:
    """Return every arm of the run by name, in the order of the report.

    Raises:
        UserError: An arm has the name of a control or of a point of the sweep, or a control has no
            arm to be compared with.
    """
    grid = temperatures(recipe)
    every: dict[str, Arm] = {}
    for name, arm in _named(recipe).items():
        if not grid:
            _add(every, name, arm)
        for temperature in grid:
            point = arm.model_copy(update={"temperature": temperature})
            _add(every, _point(name, temperature), point)
    if TEACHER in controls(recipe):
        sample = recipe.sample
        teacher = Arm(
            model="base", temperature=sample.temperature, top_k=sample.top_k, top_p=sample.top_p
        )
        _add(every, TEACHER, teacher)
    return every


def baseline(recipe: Recipe) -> str:
    """Return the arm to which the others are compared.

    In a sweep this is the point at the arm's own temperature.
    """
    name = recipe.evaluate.baseline
    return _point(name, recipe.evaluate.arms[name].temperature) if recipe.evaluate.sweep else name


def branches(recipe: Recipe) -> tuple[TrainedModel, ...]:
    """Return the models that a run trains: `ssd`, and the controls that an arm needs.

    Raises:
        UserError: As for `arms`.
    """
    sample = recipe.sample
    prepare = recipe.prepare
    accepted = prepare.model_copy(update={"select": "accepted"})
    models = (
        TrainedModel(name="ssd", samples="samples", sample=sample, prepare=prepare),
        TrainedModel(
            name=NAIVE, samples="samples-naive", sample=naive_sample(recipe), prepare=prepare
        ),
        TrainedModel(name=ACCEPTED, samples="samples", sample=sample, prepare=accepted),
    )
    # `ssd` is trained even if no arm uses it, since `ssd-ray train` makes its checkpoint.
    needed = {"ssd", *(arm.model for arm in arms(recipe).values())}
    return tuple(model for model in models if model.name in needed)


def decoding(recipe: Recipe, model: str) -> Arm | None:
    """Return the first named arm of a trained model, None if no named arm uses the model."""
    return next((arm for arm in _named(recipe).values() if arm.model == model), None)


def naive_sample(recipe: Recipe) -> SampleConfig:
    """Return the sampling of the naive control: the run's, at temperature 1 without truncation."""
    return recipe.sample.model_copy(update={"temperature": 1.0, "top_k": None, "top_p": 1.0})


def _named(recipe: Recipe) -> dict[str, Arm]:
    """Return the arms of the recipe, and the trained controls decoded as the first ssd arm."""
    named = dict(recipe.evaluate.arms)
    for control in (NAIVE, ACCEPTED):
        if control in controls(recipe):
            # Controls differ from the run in their training alone, so they share its decoding.
            trained = [arm for arm in named.values() if arm.model == "ssd"]
            if not trained:
                raise UserError(
                    f"evaluate.controls holds {control}, but no arm has model ssd to compare it "
                    "to: add one to evaluate.arms"
                )
            _add(named, control, trained[0].model_copy(update={"model": control}))
    _check_models(recipe, {arm.model for arm in named.values()})
    return named


def _check_models(recipe: Recipe, models: set[str]) -> None:
    """Refuse a control equal to the run itself, and a selection by tests without tests."""
    if NAIVE in models and naive_sample(recipe) == recipe.sample:
        raise UserError(
            "an arm has model naive, but sample already is temperature 1 without truncation, so "
            "this run is its own naive control: leave naive out"
        )
    selects = recipe.prepare.select == "accepted"
    if ACCEPTED in models and selects:
        raise UserError(
            "an arm has model accepted, but prepare.select already is accepted, so both would be "
            "trained on the same samples: set prepare.select=all"
        )
    prompts = recipe.prompts
    if (
        (ACCEPTED in models or selects)
        and prompts.source != "builtin"
        and prompts.tests_column is None
    ):
        reason = "prepare.select is accepted" if selects else "an arm has model accepted"
        raise UserError(
            f"{reason}, which needs prompts with tests, and those of {prompts.source!r} have none: "
            "use the built-in prompts, or files with a column of tests and set prompts.tests_column"
        )


def _point(name: str, temperature: float) -> str:
    # The shortest decimal form, so that a point keeps its directory: 0.7, and 1 for 1.0.
    return f"{name}@T={temperature!r}".removesuffix(".0")


def _add(every: dict[str, Arm], name: str, arm: Arm) -> None:
    if name in every:
        raise UserError(
            f"evaluate.arms names {name!r}, which evaluate.sweep or evaluate.controls also makes: "
            "rename that arm"
        )
    every[name] = arm
