"""Students and cells of a sweep, with the names of their artifacts. Does no I/O."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ssd_ray.config import Decoding, Recipe, arms
from ssd_ray.recipes.axes import Value, text_of


@dataclass(frozen=True, kw_only=True)
class Student:
    """A model to train: its own recipe, and the names of its artifacts."""

    name: str
    """Name among the students, such as `T=1.5_k=20_p=0.8_learning_rate=1e-05`."""
    samples: str
    """Name of its samples, which students with other training share."""
    recipe: Recipe
    settings: Mapping[str, Value]
    """Values of swept fields other than the decoding of the samples."""
    added: bool = False
    """True if no cell asked for it: the student at T 1 without truncation."""

    @property
    def is_naive(self) -> bool:
        """True if its samples are at T 1 without truncation."""
        return arms.naive_sample(self.recipe) == self.recipe.sample


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A cell of the base or of a student: its place in the design, and its name."""

    student: Student | None
    """None for the base."""
    step: int | None
    """Exported step; None is the end of the training."""
    decoding: Decoding

    @property
    def model(self) -> str:
        """Name of the model, without a slash: its engines have a directory of this name."""
        if self.student is None:
            return "base"
        return self.student.name + ("" if self.step is None else f"_step={self.step}")

    @property
    def name(self) -> str:
        """Name of the directories of its answers and its verdicts."""
        return f"{self.model}@{decoding_name(self.decoding)}"

    @property
    def group(self) -> str:
        """Everything but the temperatures; cells of one group are fitted together."""
        parts = ["base" if self.student is None else self.model, decoding_name(self.decoding)]
        return "@".join(re.sub(r"^T=[^_]*_?", "", part) for part in parts)

    @property
    def t_train(self) -> float:
        """T_train; 1 for the base, which is its own sample at T 1."""
        return 1.0 if self.student is None else self.student.recipe.sample.temperature

    @property
    def t_eff(self) -> float:
        """T_eff = T_train T_eval, rounded: equal products are equal."""
        return round(self.t_train * self.decoding.temperature, 9)


def decoding_name(decoding: Decoding) -> str:
    """Return the name of a decoding: `T=1.5_k=20_p=0.8`; what keeps all tokens is left out."""
    parts = [f"T={text_of(decoding.temperature)}"]
    if decoding.top_k is not None:
        parts.append(f"k={decoding.top_k}")
    if decoding.top_p != 1:
        parts.append(f"p={text_of(decoding.top_p)}")
    return "_".join(parts)
