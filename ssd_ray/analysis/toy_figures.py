"""The figures of the toy as rows, for the page, the terminal and toy.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ssd_ray.analysis.toy import ToySettings


@dataclass(frozen=True, kw_only=True)
class Best:
    """The best decoding of a model on a grid."""

    success: float
    temperature: float
    top_p: float
    top_k: int | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """The best decoding of base and student."""

    base: Best
    student: Best

    @property
    def gain(self) -> float:
        """Success of the student minus that of the base."""
        return self.student.success - self.base.success


@dataclass(frozen=True, kw_only=True)
class StateFigures:
    """One state: its distribution, what samples keep of it, and what the evaluation keeps."""

    probabilities: list[float]
    entropy: float
    """Nats."""
    entropy_bits: float
    student: list[float]
    kept_mass: float
    """Mass of the support S of the samples under the base."""
    support: int
    """Number of tokens in S."""
    base_nucleus: list[float]
    """Probabilities that the base decodes with at its best temperature, the largest first."""
    student_nucleus: list[float]
    """The same for the student."""


@dataclass(frozen=True, kw_only=True)
class At:
    """Success of both models at one temperature and the fixed top-p."""

    temperature: float
    base: float
    student: float


@dataclass(frozen=True, kw_only=True)
class Curves:
    """Success over the temperature."""

    temperatures: list[float]
    base: list[float]
    """At the fixed top-p."""
    student: list[float]
    base_tuned: list[float]
    """With the best top-p at each temperature."""
    student_tuned: list[float]


@dataclass(frozen=True, kw_only=True)
class Surface:
    """Success over temperature and top-p, without top-k."""

    temperatures: list[float]
    top_ps: list[float]
    base: list[list[float]]
    """A row for each temperature."""
    student: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """Best decodings for one value of a varied number."""

    value: float
    at_fixed_top_p: Pair
    tuned: Pair | None = None
    """With top-p tuned too, where that is computed."""


@dataclass(frozen=True, kw_only=True)
class OtherStudent:
    """A student of other samples."""

    temperature: float
    """T_train."""
    top_p: float
    """Top-p of the samples."""
    supports: list[int]
    """Tokens kept of lock, fork and root."""
    best: Best
    """At the fixed top-p."""
    tuned: Best
    """With top-p tuned too."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """The student after some rounds; each takes the student before as its base."""

    round: int
    supports: list[int]
    """Tokens kept of lock, fork and root."""
    entropies: list[float]
    """Entropies of lock, fork and root in nats."""
    best: Best
    """At the fixed top-p."""
    at_one: float
    """Success at T 1 and the fixed top-p."""


@dataclass(frozen=True, kw_only=True)
class Bound:
    """The best success of any normal form, with a prefix of its own at each state (Eq. 35)."""

    success: float
    power: float
    prefixes: list[int]
    """Tokens kept of root, fork and lock."""


@dataclass(frozen=True, kw_only=True)
class TopPInterval:
    """Top-p in (low, high] that keeps the fork's token, and one token of the lock (Eq. 40).

    The interval is empty where `low` is at least `high`.
    """

    temperature: float
    base_low: float
    base_high: float
    student_low: float
    student_high: float


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """The best decodings by what is tuned, the temperature always among it."""

    fixed_top_p: Pair
    tuned_top_p: Pair
    tuned_top_p_up_to_one: Pair
    """With T at most 1."""
    tuned_top_k_too: Pair


@dataclass(frozen=True, kw_only=True)
class ToyFigures:
    """Everything that toy.html, toy.json and the terminal show."""

    settings: ToySettings
    states: Mapping[str, StateFigures]
    shown: list[At]
    curves: Curves
    surface: Surface
    frontier: Frontier
    bound: Bound
    intervals: list[TopPInterval]
    robustness: list[Row]
    other_students: list[OtherStudent]
    rounds: list[Round]
    locks: list[Row]
