"""The design of a sweep: axes, students to train, and decodings of each model.

- An axis is a field with two or more values. Axes of `sample` and `train` make students, those of
  `evaluate` decodings, and `checkpoint` exports within one training.
- A student with samples at T 1 without truncation is always there. By theory its samples teach
  nothing, so it shows the effect of fine-tuning itself.
- The base is decoded over the same axes of `evaluate`, with its own truncation.

Names follow from the recipe and the values alone, so a larger sweep keeps the artifacts of a
smaller one. Reads YAML.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import ValidationError

from ssd_ray import config, recipes
from ssd_ray.config import Decoding, Recipe, arms
from ssd_ray.errors import UserError
from ssd_ray.recipes.axes import (
    CHECKPOINT,
    DECODING,
    EVALUATE,
    Axis,
    Value,
    axis_of,
    check_axes,
    text_of,
)
from ssd_ray.recipes.cells import Cell, Student, decoding_name

LEAST_FOR_FIT = 4
"""Fewest different T_eff of a fit: a quadratic has three coefficients."""
# A sweep has its own cells and its own control.
_WITHOUT_ARMS = ("evaluate.sweep=[]", "evaluate.controls=[]")
_TEMPERATURES = ("sample.temperature", "evaluate.temperature")


@dataclass(frozen=True, kw_only=True)
class Design:
    """The cells of a sweep: every student at every checkpoint and decoding, and the base."""

    recipe: Recipe
    axes: tuple[Axis, ...]
    students: tuple[Student, ...]
    """Those of the axes first, then those added."""
    decodings: tuple[Decoding, ...]
    """Decodings of each student."""
    base: tuple[Decoding, ...]
    """Decodings of the base, one for each of `decodings`."""
    reference: Decoding
    """The recipe's own decoding of the base."""
    checkpoints: tuple[int | None, ...]
    """Exported steps of each training; None is the last one."""
    fits: bool
    """True if values are fitted over T_eff."""

    def cells_of(self, student: Student | None) -> tuple[Cell, ...]:
        """Return the cells of a student, or those of the base."""
        if student is None:
            named = {decoding_name(each): each for each in (*self.base, self.reference)}
            return tuple(Cell(student=None, step=None, decoding=each) for each in named.values())
        return tuple(
            Cell(student=student, step=step, decoding=decoding)
            for step in self.checkpoints
            for decoding in self.decodings
        )

    @property
    def cells(self) -> tuple[Cell, ...]:
        """All cells, those of the base first."""
        return tuple(cell for each in (None, *self.students) for cell in self.cells_of(each))

    @property
    def shape(self) -> str:
        """The sizes of the axes, such as `3 × 1 × 4`: samples, trainings, decodings."""
        asked = [student for student in self.students if not student.added]
        samples = len({student.samples for student in asked})
        sizes = [samples, len(asked) // samples, len(self.decodings)]
        if len(self.checkpoints) > 1:
            sizes.insert(2, len(self.checkpoints))
        return " × ".join(map(str, sizes))


def design(
    recipe: str, overrides: Sequence[str], over: Sequence[str], *, fit: bool = True
) -> Design:
    """Return the design of a sweep of a recipe over axes `FIELD=v1,v2,...`.

    Args:
        recipe: a shipped name or a path.
        overrides: as for `recipes.load`.
        over: the axes.
        fit: fit values over T_eff where a temperature is swept.

    Raises:
        UserError: an axis is no field or has one value, two cells are the same, a value is refused,
            a fit has too few temperatures, or the recipe repeats trainings.
    """
    overrides = [*overrides, *_WITHOUT_ARMS]
    loaded = recipes.load(recipe, overrides)
    _check_single_trainings(loaded)
    axes = tuple(axis_of(loaded, text) for text in over)
    check_axes(loaded, axes)
    by_field = {axis.field: axis for axis in axes}
    checkpoints = _checkpoints(loaded, by_field.get(CHECKPOINT))
    students = _students(recipe, overrides, axes, loaded)
    swept = [by_field[name] for name in EVALUATE if name in by_field]
    reference = _base_decoding(loaded)
    result = Design(
        recipe=loaded,
        axes=axes,
        students=_with_exports(students, checkpoints),
        decodings=tuple(_decodings(_student_decoding(loaded), swept)),
        base=tuple(_decodings(reference, swept)),
        reference=reference,
        checkpoints=checkpoints,
        fits=fit and not by_field.keys().isdisjoint(_TEMPERATURES),
    )
    _check_cells(result)
    if result.fits:
        _check_fit(result)
    return result


def _check_single_trainings(recipe: Recipe) -> None:
    """Refuse a recipe that repeats trainings, which no sweep does.

    Raises:
        UserError: `rounds` or `train.seeds` is above 1.
    """
    for field, number in (("rounds", recipe.rounds), ("train.seeds", recipe.train.seeds)):
        if number > 1:
            raise UserError(
                f"{field}={number} repeats trainings, and a sweep trains each student once: "
                f"--set {field}=1"
            )


def _students(
    recipe: str, overrides: Sequence[str], axes: Sequence[Axis], own: Recipe
) -> list[Student]:
    """Return the students of all axes of `sample` and `train`, and those at T 1 without cut."""
    trained = [axis for axis in axes if axis.field.startswith(("sample.", "train."))]
    others = sorted(
        axis.field for axis in trained if axis.field.removeprefix("sample.") not in DECODING
    )
    asked = []
    # Each combination is loaded like a recipe, so that its mistakes are reported like a recipe's.
    for values in itertools.product(*(axis.values for axis in trained)):
        fields = [axis.field for axis in trained]
        chosen = [f"{n}={json.dumps(v)}" for n, v in zip(fields, values, strict=True)]
        asked.append(_student(recipes.load(recipe, [*overrides, *chosen]), own, others))
    names = {student.name for student in asked}
    # One for each training: the control differs from the students in its samples alone.
    added: dict[str, Student] = {}
    for student in asked:
        plain = student.recipe.model_copy(update={"sample": arms.naive_sample(student.recipe)})
        naive = _student(plain, own, others, added=True)
        if naive.name not in names:
            added.setdefault(naive.name, naive)
    return [*asked, *added.values()]


def _student(recipe: Recipe, own: Recipe, others: Sequence[str], *, added: bool = False) -> Student:
    """Return a student; swept fields with another value than the recipe's are in its name."""
    # Values equal to the recipe's add nothing: a new axis keeps the names of existing cells.
    settings = {field: _value(recipe, field) for field in others}
    changed = {field: value for field, value in settings.items() if value != _value(own, field)}

    def suffix(section: str) -> str:
        return "".join(
            f"_{field.removeprefix(section)}={text_of(value)}"
            for field, value in changed.items()
            if field.startswith(section)
        )

    samples = decoding_name(recipe.sample) + suffix("sample.")
    return Student(
        name=samples + suffix("train."),
        samples=samples,
        recipe=recipe,
        settings=settings,
        added=added,
    )


def _value(recipe: Recipe, field: str) -> Value:
    return next((value for name, value, _ in config.fields(recipe) if name == field), None)


def _student_decoding(recipe: Recipe) -> Decoding:
    own = arms.decoding(recipe, "ssd")
    if own is None:
        raise UserError(
            "evaluate.arms has no arm with model ssd, whose decoding the students take: add one"
        )
    return _plain(own)


def _base_decoding(recipe: Recipe) -> Decoding:
    """Return the decoding of the baseline, else of the first arm of the base."""
    baseline = recipe.evaluate.arms[recipe.evaluate.baseline]
    is_own = baseline.model == "base" and not baseline.is_adaptive
    own = baseline if is_own else arms.decoding(recipe, "base")
    if own is None:
        raise UserError(
            "evaluate.arms has no arm with model base, to which students are compared: add one"
        )
    return _plain(own)


def _plain(decoding: Decoding) -> Decoding:
    return Decoding(**{name: getattr(decoding, name) for name in DECODING})


def _decodings(own: Decoding, swept: Sequence[Axis]) -> Iterator[Decoding]:
    """Yield a decoding for each combination of the axes of `evaluate`."""
    names = [axis.field.removeprefix("evaluate.") for axis in swept]
    for values in itertools.product(*(axis.values for axis in swept)):
        section = {**own.model_dump(), **dict(zip(names, values, strict=True))}
        try:
            yield Decoding.model_validate(section)
        except ValidationError as error:
            first = error.errors()[0]
            raise UserError(
                f"--over evaluate.{first['loc'][0]}={first['input']!r}: "
                f"{config.remedy(first['type'], first['msg'])}"
            ) from error


def _checkpoints(recipe: Recipe, axis: Axis | None) -> tuple[int | None, ...]:
    if axis is None:
        return (None,)
    steps = []
    for value in axis.values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"--over {CHECKPOINT}={value}: give steps of the training, from 1")
        if value > recipe.train.steps:
            raise UserError(
                f"--over {CHECKPOINT}={value} is above train.steps {recipe.train.steps}: lower the "
                "first or raise the second"
            )
        steps.append(value)
    return tuple(steps)


def _with_exports(
    students: Sequence[Student], checkpoints: Sequence[int | None]
) -> tuple[Student, ...]:
    """Return the students with exports at every checkpoint."""
    steps = [step for step in checkpoints if step is not None]
    if not steps:
        return tuple(students)
    # Exports come at multiples of one number of steps.
    every = {"export_every": math.gcd(*steps)}
    exporting = []
    for student in students:
        train = student.recipe.train.model_copy(update=every)
        exporting.append(
            replace(student, recipe=student.recipe.model_copy(update={"train": train}))
        )
    return tuple(exporting)


def _check_cells(result: Design) -> None:
    """Refuse two cells with the same choices: they would be one artifact."""
    for what, names in (
        ("students", [student.name for student in result.students]),
        ("decodings", [decoding_name(decoding) for decoding in result.decodings]),
        ("checkpoints", list(map(str, result.checkpoints))),
    ):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(
                f"two {what} of the sweep are the same, {twice}, so their cells have one "
                "fingerprint: give each value of an axis once"
            )


def _check_fit(result: Design) -> None:
    # Cells with another truncation or training are other groups, and each needs its own T_eff.
    most = max(len(temperatures) for temperatures in _groups(result).values())
    if most < LEAST_FOR_FIT:
        raise UserError(
            f"the axes give {most} different T_eff = T_train T_eval, and a fit over T_eff needs "
            f"{LEAST_FOR_FIT}: add values to evaluate.temperature, or give --no-fit"
        )


def _groups(result: Design) -> dict[str, set[float]]:
    """Return the T_eff of the cells that differ in temperatures alone."""
    groups: dict[str, set[float]] = {}
    for cell in result.cells:
        if cell.student is not None and not cell.student.added:
            groups.setdefault(cell.group, set()).add(cell.t_eff)
    return groups
