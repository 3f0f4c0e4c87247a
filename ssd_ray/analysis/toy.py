"""The toy of 2604.01193, appendix C.4: an automaton of one fork and some locks, exact.

    root ─token 0─▶ path A: fork ─0─▶ lock ─0─▶ … ─0─▶ lock ─0─▶ PASS
         └token 1─▶ path B: the same; any other token anywhere is FAIL

- A fork has several likely tokens and wants diversity; a lock has one and wants precision.
- Success is (root A + root B) × fork(0) × lock(0)^locks, in closed form for any decoding.
- The student is the exact q of the samples (Eq. 7), as after an ideal fit.
- A decoding of a state keeps a prefix of its ranking (Eq. 35). So a state needs its ranked masses
  at each temperature, and one prefix for each cell of a grid.

Tests hold the decoded states against `operator`; without torch the command starts at once. Pure
functions on numpy arrays, without I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from pydantic import Field, field_validator, model_validator

from ssd_ray.config.section import Section

if TYPE_CHECKING:
    from ssd_ray.analysis.operator import DecodingLike

Vector: TypeAlias = npt.NDArray[np.float64]
STATES = ("lock", "fork", "root")
_PATHS = 2
"""Tokens of the root that lead on: 0 to path A and 1 to path B."""
# A prefix of exactly top-p is enough, also where rounding takes a little of its mass.
_ROUNDING = 1e-12


class ToyState(Section):
    """The distribution of a state: its first tokens, then a geometric tail."""

    head: tuple[float, ...] = Field(min_length=1)
    """Probabilities of the first tokens, from token 0 on."""
    tail_ratio: float = Field(gt=0, le=1)
    """Ratio of each tail token to the one before it. The paper does not print it."""

    @field_validator("head")
    @classmethod
    def _check_head(cls, head: tuple[float, ...]) -> tuple[float, ...]:
        if min(head) <= 0 or sum(head) > 1 + _ROUNDING:
            raise ValueError(f"use positive numbers with a sum up to 1, not {sum(head):g}")
        return head

    def probabilities(self, vocabulary: int) -> Vector:
        """Return the distribution, float64[vocabulary]."""
        head = np.array(self.head)
        tail = self.tail_ratio ** np.arange(vocabulary - len(head))
        rest = max(0.0, 1 - head.sum())
        full = np.concatenate([head, rest * tail / tail.sum() if len(tail) else tail])
        return np.asarray(full / full.sum())


class SampleDecoding(Section):
    """The decoding of the samples, T_train and its truncation."""

    temperature: float = Field(0.9, ge=1e-3)
    """T_train."""
    top_k: int | None = Field(None, ge=1)
    """Top-k of the samples; null keeps all."""
    top_p: float = Field(0.85, gt=0, le=1)
    """Top-p of the samples; 1 keeps all."""


class ToyGrid(Section):
    """The decodings of the evaluation."""

    top_p: float = Field(0.8, gt=0, le=1)
    """Top-p where only the temperature is tuned."""
    lowest: float = Field(0.1, ge=1e-3)
    """Lowest temperature."""
    highest: float = Field(4.0, le=1000)
    """Highest temperature."""
    step: float = Field(0.01, gt=0)
    """Step of the temperatures; a tenth of it at the fixed top-p."""

    @model_validator(mode="after")
    def _check(self) -> ToyGrid:
        if self.highest <= self.lowest:
            raise ValueError(
                f"highest {self.highest:g} is not above lowest {self.lowest:g}: raise highest or "
                "reduce lowest"
            )
        if self.step > self.highest - self.lowest:
            raise ValueError(
                f"step {self.step:g} passes from lowest {self.lowest:g} beyond highest "
                f"{self.highest:g}: use a smaller step"
            )
        if (self.highest - self.lowest) / self.step > 2000:
            raise ValueError(
                f"step {self.step:g} gives more than 2,000 temperatures from {self.lowest:g} to "
                f"{self.highest:g}: use a larger step"
            )
        return self

    def temperatures(self, *, fine: bool = False) -> Vector:
        """Return the temperatures, in steps of a tenth if `fine`."""
        return grid(self.lowest, self.highest, self.step / (10 if fine else 1))


class ToySettings(Section):
    """Every number of the toy. The defaults are the paper's."""

    vocabulary: int = Field(16, ge=2, le=256)
    """Number of tokens."""
    locks: int = Field(3, ge=0, le=1000)
    """Number of locks after the fork."""
    rounds: int = Field(5, ge=1, le=50)
    """Rounds of self-distillation; each takes the student before as its base."""
    lock: ToyState = ToyState(head=(0.75, 0.055, 0.05, 0.037), tail_ratio=0.75)
    """The lock: one likely token and a long tail."""
    fork: ToyState = ToyState(head=(0.148, 0.28, 0.14, 0.144), tail_ratio=0.5)
    """The fork: several likely tokens, the right one second."""
    root: ToyState = ToyState(head=(0.2, 0.19, 0.329, 0.126), tail_ratio=0.6)
    """The first choice. Tokens 0 and 1 lead on."""
    samples: SampleDecoding = SampleDecoding()
    """Decoding of the samples."""
    grid: ToyGrid = ToyGrid()
    """Decodings of the evaluation."""

    @model_validator(mode="after")
    def _check(self) -> ToySettings:
        for name in STATES:
            size = len(getattr(self, name).head)
            if size > self.vocabulary:
                raise ValueError(
                    f"{name}.head has {size} tokens and vocabulary={self.vocabulary}: "
                    "shorten the head or raise vocabulary"
                )
        return self

    def base(self) -> Automaton:
        """Return the automaton of the frozen model."""
        lock, fork, root = (
            Ranked(state.probabilities(self.vocabulary))
            for state in (self.lock, self.fork, self.root)
        )
        return Automaton(lock=lock, fork=fork, root=root, locks=self.locks)


def grid(lowest: float, highest: float, step: float) -> Vector:
    """Return numbers from `lowest` to `highest`, both included, without rounding beyond 1e-9."""
    count = int(np.floor((highest - lowest) / step + 1e-6)) + 1
    return np.asarray(np.round(lowest + step * np.arange(count), 9))


class Ranked:
    """The distribution of a state, ranked for any number of decodings."""

    def __init__(self, probabilities: Vector) -> None:
        """Take float64[vocabulary], with zeros for tokens outside of the support."""
        self.probabilities = probabilities
        # Temperatures keep this order, so one ranking serves all of them.
        # Of equal probabilities, the larger id comes first, as in the operator.
        self.order = np.argsort(probabilities, kind="stable")[::-1]
        self.ranked = probabilities[self.order]

    @cached_property
    def support(self) -> int:
        """Number of tokens with mass."""
        return int((self.ranked > 0).sum())

    @property
    def entropy(self) -> float:
        """Entropy in nats."""
        mass = self.ranked[: self.support]
        return float(-(mass * np.log(mass)).sum()) + 0.0

    def masses(self, powers: Vector) -> Vector:
        """Return p^power by rank, normalized, float64[powers, support]."""
        # Relative to the most likely token: its weight is 1, and no power overflows.
        scaled = powers[:, None] * np.log(self.ranked[: self.support] / self.ranked[0])
        weights = np.exp(scaled)
        return np.asarray(weights / weights.sum(axis=1, keepdims=True))

    def limit(self, top_k: int | None) -> int:
        """Return the number of tokens that top-k keeps, ties of the k-th included."""
        if top_k is None or top_k >= self.support:
            return self.support
        return int((self.ranked[: self.support] >= self.ranked[top_k - 1]).sum())

    def prefixes(
        self, masses: Vector, top_ps: Vector, top_k: int | None = None
    ) -> npt.NDArray[np.int64]:
        """Return the number of tokens kept, int64[powers, top_ps]."""
        limit = self.limit(top_k)
        reached = np.cumsum(masses[:, :limit], axis=1)
        reached /= reached[:, -1:]
        sizes = np.ones((len(masses), len(top_ps)), dtype=np.int64)
        for column in range(limit - 1):
            sizes += reached[:, column, None] < top_ps - _ROUNDING
        return np.asarray(np.where(top_ps >= 1, limit, sizes))

    def shares(
        self, tokens: int, temperatures: Vector, top_ps: Vector, top_k: int | None = None
    ) -> Vector:
        """Return the decoded probability of the first `tokens` ids, float64[T, top_p]."""
        masses = self.masses(1 / temperatures)
        last = self.prefixes(masses, top_ps, top_k) - 1
        return self._within(masses, tokens, last)

    def share_of_prefixes(self, tokens: int, powers: Vector) -> Vector:
        """Return the share of the first `tokens` ids of each prefix, float64[powers, support]."""
        masses = self.masses(powers)
        last = np.broadcast_to(np.arange(self.support), masses.shape)
        return self._within(masses, tokens, last)

    def _within(self, masses: Vector, tokens: int, last: npt.NDArray[np.int64]) -> Vector:
        wanted = masses * (self.order[: self.support] < tokens)
        inside, kept = (
            np.take_along_axis(np.cumsum(each, axis=1), last, axis=1) for each in (wanted, masses)
        )
        return np.asarray(inside / kept)

    def decoded(self, decoding: DecodingLike) -> Ranked:
        """Return the state under a decoding: q of Eq. 7."""
        masses = self.masses(np.array([1 / decoding.temperature]))
        size = int(self.prefixes(masses, np.array([decoding.top_p]), decoding.top_k)[0, 0])
        kept = np.zeros_like(self.probabilities)
        kept[self.order[:size]] = masses[0, :size] / masses[0, :size].sum()
        return Ranked(kept)


@dataclass(frozen=True)
class Automaton:
    """The states of a model, and the number of locks."""

    lock: Ranked
    fork: Ranked
    root: Ranked
    locks: int

    @property
    def states(self) -> dict[str, Ranked]:
        """The states by name."""
        return {name: getattr(self, name) for name in STATES}

    def success(self, temperatures: Vector, top_ps: Vector, top_k: int | None = None) -> Vector:
        """Return the probability of PASS for each decoding, float64[T, top_p]."""
        root = self.root.shares(_PATHS, temperatures, top_ps, top_k)
        fork = self.fork.shares(1, temperatures, top_ps, top_k)
        lock = self.lock.shares(1, temperatures, top_ps, top_k)
        return np.asarray(root * fork * lock**self.locks)

    def success_at(self, decoding: DecodingLike) -> float:
        """Return the probability of PASS for one decoding."""
        values = self.success(
            np.array([decoding.temperature]), np.array([decoding.top_p]), decoding.top_k
        )
        return float(values[0, 0])

    def decoded(self, decoding: DecodingLike) -> Automaton:
        """Return every state under a decoding: the ideal student of its samples."""
        states = {name: state.decoded(decoding) for name, state in self.states.items()}
        return Automaton(**states, locks=self.locks)

    def with_locks(self, locks: int) -> Automaton:
        """Return the same states with another number of locks."""
        return Automaton(lock=self.lock, fork=self.fork, root=self.root, locks=locks)

    def prefix_shares(self, powers: Vector) -> tuple[Vector, Vector, Vector]:
        """Return the chances of going on from root, fork and lock by prefix (Eq. 35).

        Each is float64[powers, support].
        """
        return (
            self.root.share_of_prefixes(_PATHS, powers),
            self.fork.share_of_prefixes(1, powers),
            self.lock.share_of_prefixes(1, powers),
        )


def interval(
    automaton: Automaton, temperature: float, ranks: Sequence[int], top_k: int | None = None
) -> tuple[float, float]:
    """Return the ends of the top-p in (low, high] that serve fork and lock at once (Eq. 40).

    Args:
        automaton: the model.
        temperature: temperature of the evaluation.
        ranks: rank of the fork's correct token, and the number of tokens that a lock is to keep.
        top_k: top-k of the evaluation.
    """
    ends = []
    for state, size in ((automaton.fork, ranks[0] - 1), (automaton.lock, ranks[1])):
        masses = state.masses(np.array([1 / temperature]))[0, : state.limit(top_k)]
        ends.append(float(masses[:size].sum() / masses.sum()))
    return ends[0], ends[1]
