"""Models of a probe: a directory, a hub id, a run, or the exported steps of a run.

Models that fit into half of the memory together stay in it. Of others, such as the steps of a
curve, the base and one more are in memory at a time.

Reads recipes and model directories; writes the caches of `ssd_ray.models`.
"""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from ssd_ray import models, recipes
from ssd_ray.analysis.forward import ScoredModel
from ssd_ray.artifacts import manifests
from ssd_ray.config import ModelConfig, Recipe
from ssd_ray.errors import UserError
from ssd_ray.machine.host import read_host
from ssd_ray.models import loading, weights
from ssd_ray.progress import Progress
from ssd_ray.reporting.words import counted

RECIPE = "recipe.yaml"
_STEP = "step-"
_SHARE_OF_MEMORY = 0.5
"""Share of the available memory for models that stay in it together."""
_BYTES = {"float32": 4, "bfloat16": 2}


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
    return _checked(run / "checkpoint")


def _checked(directory: Path) -> Path:
    """Return a model directory of a run, unless a file is missing or damaged."""
    return models.fetch(ModelConfig(source=str(directory)))


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
        Place(
            name=f"step {number}",
            directory=_checked(path / f"{_STEP}{number}"),
            step=number,
            run=run,
        )
        for number in numbers
    ]
    # The last step is exported as the checkpoint itself.
    last = recipe_of(run).train.steps
    if last not in numbers and (run / "checkpoint" / "manifest.json").exists():
        places.append(Place(name=f"step {last}", directory=_checkpoint(run), step=last, run=run))
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


class LoadedModels(Sequence[ScoredModel]):
    """The models of some places, loaded when asked for.

    Attributes:
        together: all of them stay in memory; else the first and the one asked for last.
    """

    def __init__(
        self,
        places: Sequence[Place],
        dtype: Literal["float32", "bfloat16"],
        progress: Progress,
    ) -> None:
        self._places = places
        self._dtype = dtype
        self._progress = progress
        self._held: dict[int, ScoredModel] = {}
        needed = sum(_parameters(place.directory) for place in places) * _BYTES[dtype]
        self.together = len(places) <= 2 or needed <= _SHARE_OF_MEMORY * _available()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, place: int) -> ScoredModel: ...

    @overload
    def __getitem__(self, place: slice) -> list[ScoredModel]: ...

    def __getitem__(self, place: int | slice) -> ScoredModel | list[ScoredModel]:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if place not in range(len(self)):
            raise IndexError(place)
        if place not in self._held:
            if not self.together:
                self._held = {each: self._held[each] for each in self._held if each == 0}
                # Modules of torch refer to one another; their memory is free only after this.
                gc.collect()
            chosen = self._places[place]
            self._progress.say(f"probe: loading {chosen.name} from {chosen.directory}")
            self._held[place] = ScoredModel.load(
                chosen.directory, dtype=self._dtype, name=chosen.name
            )
        return self._held[place]


def _parameters(directory: Path) -> int:
    """Return the number of parameters in the weights of a model directory."""
    headers = (weights.read_header(path) for path in sorted(directory.glob("*.safetensors")))
    return sum(math.prod(tensor["shape"]) for header in headers for tensor in header.values())


def _available() -> int:
    """Return the free bytes of the memory that models are loaded into."""
    import torch

    if torch.cuda.is_available():
        free: int = torch.cuda.mem_get_info()[0]
        return free
    return read_host().available
