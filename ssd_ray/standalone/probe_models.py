"""Models of a probe: a directory, a hub id, a run, or the exported steps of a run.

Reads recipes and model directories; writes the caches of `ssd_ray.models`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray import models, recipes
from ssd_ray.artifacts import manifests
from ssd_ray.config import ModelConfig, Recipe
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.reporting.words import counted

RECIPE = "recipe.yaml"
_STEP = "step-"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A model on this machine."""

    name: str
    """Name in tables and on the page."""
    directory: Path
    step: int | None = None
    """Step of its training, for a curve."""
    run: Path | None = None
    """The run that the model belongs to."""


def is_run(path: Path) -> bool:
    """Return True if a path is a run directory."""
    return (path / RECIPE).is_file()


def recipe_of(run: Path) -> Recipe:
    """Return the recipe of a run."""
    return recipes.load(run / RECIPE)


def base_of(run: Path) -> Path:
    """Return the directory of a run's frozen model, of the commit that the run took."""
    model = recipe_of(run).model
    note = run / "model-revision"
    if note.exists():
        model = model.model_copy(update={"revision": note.read_text().strip()})
    return models.fetch(model)


def resolve(sources: Sequence[str]) -> tuple[Place, ...]:
    """Return the models of the arguments, the base first, with unique names.

    Raises:
        UserError: a source is no model, or a run has no complete checkpoint.
    """
    places = [place for source in sources for place in _places(source)]
    # A base given twice, by itself and by its run, is one model.
    unique = {place.directory.resolve(): place for place in reversed(places)}
    kept = [place for place in places if unique[place.directory.resolve()] is place]
    first = [place for place in places if place.directory.resolve() == _first(places)][:1]
    ordered = first + [place for place in kept if place.directory.resolve() != _first(places)]
    counts: Counter[str] = Counter()
    named = []
    for place in ordered:
        counts[place.name] += 1
        number = counts[place.name]
        name = place.name if number == 1 else f"{place.name} ({number})"
        named.append(Place(name=name, directory=place.directory, step=place.step, run=place.run))
    return tuple(named)


def _first(places: Sequence[Place]) -> Path:
    return places[0].directory.resolve()


def _places(source: str) -> list[Place]:
    path = Path(source).expanduser()
    if is_run(path):
        return [_base(path), Place(name="ssd", directory=_checkpoint(path), run=path)]
    if path.name == "steps" and is_run(path.parent.parent):
        return _steps(path, path.parent.parent)
    config = ModelConfig(source=source)
    name = path.name if path.exists() else source
    return [Place(name=name, directory=models.fetch(config))]


def _base(run: Path) -> Place:
    return Place(name="base", directory=base_of(run), run=run)


def _checkpoint(run: Path) -> Path:
    manifests.load(run / "checkpoint")
    return run / "checkpoint"


def _steps(path: Path, run: Path) -> list[Place]:
    numbers = sorted(
        int(each.name.removeprefix(_STEP))
        for each in (path.iterdir() if path.is_dir() else ())
        if each.name.startswith(_STEP) and each.name.removeprefix(_STEP).isdigit()
    )
    if not numbers:
        raise UserError(
            f"{path} holds no exported step: set train.export_every in the recipe, or give {run}"
        )
    places = [
        Place(name=f"step {number}", directory=path / f"{_STEP}{number}", step=number, run=run)
        for number in numbers
    ]
    # The last step is exported as the checkpoint itself.
    last = recipe_of(run).train.steps
    if last not in numbers and (run / "checkpoint" / "manifest.json").exists():
        places.append(Place(name=f"step {last}", directory=run / "checkpoint", step=last, run=run))
    return [_base(run), *places]


def common_tokenizer(places: Sequence[Place]) -> Any:
    """Return the tokenizer of all models.

    Raises:
        UserError: two models have different tokenizers.
    """
    first = loading.load_tokenizer(places[0].directory)
    vocabulary = first.get_vocab()
    for place in places[1:]:
        other = loading.load_tokenizer(place.directory).get_vocab()
        if other != vocabulary:
            differing = sum(vocabulary.get(token) != number for token, number in other.items())
            raise UserError(
                f"{place.name} and {places[0].name} have different tokenizers (different "
                f"ids for {counted(differing, 'token')}): compare models with the same tokenizer"
            )
    return first
