"""Arms of a recipe: the named ones, their sweep over temperatures, and the controls.

A fair comparison decodes every model at the same temperatures and takes each at its best:

- A sweep makes a family of each named arm, with one arm for each temperature.
- All families share one grid of temperatures.
- The base has a further family for each top-p of `evaluate.sweep_top_p`.

Pure functions of the recipe, without I/O.
"""

from __future__ import annotations

from ssd_ray.config import Arm, Recipe
from ssd_ray.config.section import AdaptiveDecoding
from ssd_ray.config.trained_models import (
    ACCEPTED,
    NAIVE,
    STUDENT,
    TRAINED_CONTROLS,
    TrainedModel,
    naive_sample,
    repetition,
    trained_models,
)
from ssd_ray.errors import UserError
from ssd_ray.schema import Profile

__all__ = [
    "ACCEPTED",
    "ADAPTIVE",
    "NAIVE",
    "TEACHER",
    "VERDICTS",
    "TrainedModel",
    "arms",
    "baseline",
    "branches",
    "controls",
    "decoding",
    "families",
    "naive_sample",
    "named",
    "of_base",
    "point",
    "temperatures",
    "weights",
]
BASE = "base"
TEACHER = "teacher"
ADAPTIVE = "adaptive"
_ADAPTIVE_THETA, _ADAPTIVE_MIN_P = 0.1, 0.1
"""Decoding of the control `adaptive`: theta of its temperature, and its min-p."""
VERDICTS: dict[Profile, str] = {"strict": "verdicts", "lcb-compat": "verdicts-lcb"}
"""Directory of the verdicts of all arms, by profile."""


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
    return {name: {t: _point(name, t) for t in grid} for name in named(recipe)} if grid else {}


def arms(recipe: Recipe) -> dict[str, Arm]:
    """Return every arm of the run by name, in the order of the report.

    Raises:
        UserError: An arm has the name of a control or of a point of the sweep, or a control has no
            arm to be compared with.
    """
    grid = temperatures(recipe)
    every: dict[str, Arm] = {}
    for name, arm in named(recipe).items():
        if not grid:
            _add(every, name, arm)
        for temperature in grid:
            swept = arm.model_copy(update={"temperature": temperature})
            _add(every, _point(name, temperature), swept)
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
    return point(recipe, recipe.evaluate.baseline)


def point(recipe: Recipe, name: str) -> str:
    """Return a named arm as the run has it; in a sweep, at the temperature that it states."""
    return _point(name, named(recipe)[name].temperature) if recipe.evaluate.sweep else name


def weights(arm: Arm) -> str:
    """Return the model of an arm, with its repetition: `base`, `ssd`, `ssd-seed2`, `naive`."""
    return repetition(arm.training) if arm.model == STUDENT else arm.model


def branches(recipe: Recipe) -> tuple[TrainedModel, ...]:
    """Return the models that a run trains: `ssd`, and those that an arm needs.

    Raises:
        UserError: As for `arms`.
    """
    # `ssd` is trained even if no arm uses it, since `ssd-ray train` makes its checkpoint.
    needed = {STUDENT, *(weights(arm) for arm in arms(recipe).values())}
    return tuple(model for name, model in trained_models(recipe).items() if name in needed)


def decoding(recipe: Recipe, model: str) -> Arm | None:
    """Return the first named arm of a trained model, None if no named arm uses the model.

    An exported model states it as its own. Arms with a decoder of this package are left out.
    """
    return next(
        (arm for arm in named(recipe).values() if weights(arm) == model and not arm.is_adaptive),
        None,
    )


def named(recipe: Recipe) -> dict[str, Arm]:
    """Return the arms before a sweep: those of the recipe, repetitions, controls and top-p."""
    stated = recipe.evaluate.arms
    every = dict(stated)
    students = [arm for arm in stated.values() if arm.model == STUDENT]
    for training in range(2, recipe.train.seeds + 1):
        for name, arm in stated.items():
            if arm.model == STUDENT and arm.training == 1:
                repeated = arm.model_copy(update={"training": training})
                _add(every, f"{name}-seed{training}", repeated)
    for control in (*TRAINED_CONTROLS, ADAPTIVE):
        if control not in controls(recipe):
            continue
        # Controls differ from the run in their training alone, so they share its decoding.
        if not students:
            raise UserError(
                f"evaluate.controls holds {control}, but no arm has model ssd to compare it "
                "to: add one to evaluate.arms"
            )
        _add(every, control, _control(control, students[0]))
    for top_p in recipe.evaluate.sweep_top_p:
        for name, arm in stated.items():
            if arm.model == BASE and not arm.is_adaptive and arm.top_p != top_p:
                _add(every, f"{name}@p={top_p:g}", arm.model_copy(update={"top_p": top_p}))
    _check_models(recipe, {weights(arm) for arm in every.values()})
    _check_decoders(recipe, every)
    return every


def of_base(recipe: Recipe, name: str) -> list[str]:
    """Return the named arms that decode the base as `name` does, up to temperature and top-p."""
    every = named(recipe)
    return [other for other in every if other == name or other.startswith(f"{name}@p=")]


def _control(control: str, student: Arm) -> Arm:
    """Return the arm of a control, decoded as a student's arm where it is a trained model."""
    if control == ADAPTIVE:
        return Arm(
            model="base",
            temperature=student.temperature,
            entropy_theta=_ADAPTIVE_THETA,
            min_p=_ADAPTIVE_MIN_P,
        )
    return student.model_copy(update={"model": control, "training": 1})


def _check_models(recipe: Recipe, models: set[str]) -> None:
    """Refuse a control equal to another model, and a selection by tests without tests."""
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
    _check_trainings(recipe, models)


def _check_trainings(recipe: Recipe, models: set[str]) -> None:
    """Refuse a repetition that the recipe does not train, and two models with the same weights."""
    every = trained_models(recipe)
    for name in sorted(models - every.keys() - {BASE}):
        raise UserError(
            f"an arm has the model {name}, but train.seeds={recipe.train.seeds} trains fewer: "
            "raise train.seeds, or lower the field training of that arm"
        )
    train = recipe.train
    if "sequence-mean" in models and train.loss_kernel == "liger":
        raise UserError(
            "an arm has model sequence-mean, and train.loss_kernel 'liger' sums over tokens: "
            "set train.loss_kernel=chunked"
        )
    # The student is trained in any case.
    trained = [model for name, model in every.items() if name in {STUDENT, *models}]
    for place, model in enumerate(trained):
        for other in trained[:place]:
            if model.is_trained_like(other):
                sample = recipe.sample
                raise UserError(
                    f"an arm has model {model.name}, which would be the same model as {other.name} "
                    f"(sample.temperature={sample.temperature:g}, sample.top_k={sample.top_k}, "
                    f"sample.top_p={sample.top_p:g}, train.loss_mean={train.loss_mean}): leave "
                    f"{model.name} out"
                )


def _check_decoders(recipe: Recipe, every: dict[str, Arm]) -> None:
    """Refuse a decoder of this package in an engine that keeps vLLM's own sampler."""
    engine = recipe.engine
    for name, arm in every.items():
        if isinstance(arm, AdaptiveDecoding) and arm.is_adaptive and not engine.has_processors:
            raise UserError(
                f"the arm {name} has entropy_theta or min_p, which needs this package's sampler, "
                f"and engine.sampler={engine.sampler} or engine.extra leaves sampling to vLLM: set "
                "engine.sampler=exact, or leave the arm out"
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
