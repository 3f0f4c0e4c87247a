"""Models that a run can train: the student, its controls, and repetitions with other seeds.

Each control changes one thing of the student, and shares everything else with it:

- another sampling: its own samples, data set and checkpoint;
- another selection: the student's samples;
- another mean of the loss, or another seed: the student's data set.

Two controls with one sampling share their samples. Pure functions of the recipe, without I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ssd_ray.config.sampling import Policies, PrepareConfig, SampleConfig
from ssd_ray.config.training import TrainConfig

if TYPE_CHECKING:
    from ssd_ray.config import Recipe

STUDENT = "ssd"
NAIVE = "naive"
ACCEPTED = "accepted"
TRAINED_CONTROLS = (
    NAIVE,
    ACCEPTED,
    "compression",
    "reshaping",
    "bad-data",
    "token-mean",
    "sequence-mean",
)
"""Controls with a training of their own, in the order of a run."""
BAD_DATA_TEMPERATURE = 2.0
"""T_train of the paper's section 4.4, without truncation."""
_NO_TRUNCATION = {"top_k": None, "top_p": 1.0}


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """A model to train: its name among arms, its sampling, its selection and its training."""

    name: str
    samples: str
    """Directory of its samples."""
    sample: SampleConfig
    prepare: PrepareConfig
    dataset: str
    """Directory of its training sequences."""
    train: TrainConfig
    seed: int
    """Seed of the training: the order of its batches."""

    @property
    def checkpoint(self) -> str:
        """Directory of the trained model."""
        return "checkpoint" if self.name == STUDENT else f"checkpoint-{self.name}"

    @property
    def verdicts(self) -> str | None:
        """Directory of the verdicts on its samples, or None if it is trained on all of them."""
        return (
            self.samples.replace("samples", "sample-verdicts")
            if self.prepare.select == "accepted"
            else None
        )

    def is_trained_like(self, other: TrainedModel) -> bool:
        """Return True if both would have the same weights."""
        return (self.samples, self.prepare, self.train, self.seed) == (
            other.samples,
            other.prepare,
            other.train,
            other.seed,
        )


def repetition(training: int) -> str:
    """Return the name of a repeated training of the student: `ssd-seed2`; the first is `ssd`."""
    return STUDENT if training == 1 else f"{STUDENT}-seed{training}"


def naive_sample(recipe: Recipe) -> SampleConfig:
    """Return the sampling of the naive control: the run's, at temperature 1 without truncation."""
    return recipe.sample.model_copy(update={"temperature": 1.0, **_NO_TRUNCATION})


def trained_models(recipe: Recipe) -> dict[str, TrainedModel]:
    """Return every model that a recipe could train, by name: the student comes first.

    Names of directories do not depend on the controls of the recipe. So a control added later
    leaves every artifact as it is.
    """
    sample, prepare, train = recipe.sample, recipe.prepare, recipe.train
    everything = prepare.model_copy(
        update={
            "select": "all",
            "policies": Policies(**dict.fromkeys(Policies.model_fields, "keep")),
            "drop_shortest_percent": 0.0,
        }
    )
    samplings = {
        STUDENT: sample,
        NAIVE: naive_sample(recipe),
        ACCEPTED: sample,
        "compression": sample.model_copy(update={"temperature": 1.0}),
        "reshaping": sample.model_copy(update=_NO_TRUNCATION),
        "bad-data": sample.model_copy(
            update={"temperature": BAD_DATA_TEMPERATURE, **_NO_TRUNCATION}
        ),
    }
    selections = {
        ACCEPTED: prepare.model_copy(update={"select": "accepted"}),
        "bad-data": everything,
    }
    models: dict[str, TrainedModel] = {}
    for name, drawn in samplings.items():
        # The first model with this sampling names the directory of the samples.
        first = next(other for other, known in samplings.items() if known == drawn)
        models[name] = TrainedModel(
            name=name,
            samples="samples" if first == STUDENT else f"samples-{first}",
            sample=drawn,
            prepare=selections.get(name, prepare),
            dataset="dataset" if name == STUDENT else f"dataset-{name}",
            train=train,
            seed=recipe.seed,
        )
    for mean in ("token", "sequence"):
        models[f"{mean}-mean"] = _like_student(
            models[STUDENT],
            f"{mean}-mean",
            train=train.model_copy(update={"loss_mean": mean}),
        )
    # Seeds follow from the run's, so that more of them leave the earlier trainings as they are.
    for training in range(2, train.seeds + 1):
        name = repetition(training)
        models[name] = _like_student(models[STUDENT], name, seed=recipe.seed + training - 1)
    return models


def _like_student(
    student: TrainedModel, name: str, *, train: TrainConfig | None = None, seed: int | None = None
) -> TrainedModel:
    """Return a model trained on the student's data set in another way."""
    return TrainedModel(
        name=name,
        samples=student.samples,
        sample=student.sample,
        prepare=student.prepare,
        dataset=student.dataset,
        train=train or student.train,
        seed=student.seed if seed is None else seed,
    )
