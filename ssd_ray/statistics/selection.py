"""A gain without selection: each model's temperature is chosen on one half of the problems and scored on the other.

One idea: the best of many cells on the same problems is too good by the luck of the draw. So every model's temperature is
chosen by its mean on half of the problems, the models are compared on the other half, the halves change places, and many
splits are averaged. The estimate is the gain of one who tunes on half as many problems of this kind. The interval is
that of any paired difference; the bootstrap, which repeats the choosing, says how much variance the choosing adds. Pure
functions on arrays; reads and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_ray.statistics.metrics import Values, problem_weights
from ssd_ray.statistics.paired import Discordance, design_effect

SPLITS = 24
"""Random splits that are averaged: the spread that the split itself causes is then a fifth of that of a single one."""

_TIE = 1e-9
_ROWS_AT_A_TIME = 500
Halves = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Treated minus control, each at a temperature chosen on other problems.

    `pair` is their disagreement there, and its size allows for the choosing. `better` and `worse` count the problems on which
    treated did better or worse, over all halves.
    `best_cell` is the difference of the best means on all problems: selected on the problems that it is measured on.
    `chosen_treated` and `chosen_control`, float64[temperatures], are the shares of halves that chose each temperature.
    """

    pair: Discordance
    better: int
    worse: int
    best_cell: float
    chosen_treated: Values
    chosen_control: Values


def halves(
    problem_ids: Sequence[str], strata: Sequence[str], *, seed: int, splits: int = SPLITS
) -> Halves:
    """bool[splits, num_problems]: which half each problem is in, every stratum cut in two; from hashes of seed, split and id.

    A problem's place does not depend on the order of the problems. Of an odd stratum the hash of the stratum says which half
    gets the one more.
    """
    found = np.zeros((splits, len(problem_ids)), dtype=np.bool_)
    members: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        members[stratum].append(index)
    for split in range(splits):
        for stratum, indices in members.items():
            ranked = sorted(
                indices,
                key=lambda index: (_hash(seed, split, problem_ids[index]), problem_ids[index]),
            )
            extra = _hash(seed, split, stratum)[0] & 1 if len(ranked) % 2 else 0
            found[split, ranked[: len(ranked) // 2 + extra]] = True
    return found


def _hash(seed: int, split: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{split}/{text}".encode()).digest()


class Sweep:
    """Two models' values over the same problems and temperatures, cut into halves many times.

    `treated` and `control` are float64[num_problems, temperatures], `cut` is bool[splits, num_problems]. `within`,
    bool[num_problems], compares on those problems alone, some of which must be in every half; temperatures are still chosen on
    all of a half.
    """

    def __init__(
        self, treated: Values, control: Values, cut: Halves, within: Halves | None = None
    ) -> None:
        self._values = (treated, control)
        self._inside = np.ones(len(treated), dtype=np.bool_) if within is None else within
        self._halves = np.concatenate([cut, ~cut])
        self._compared = self._halves & self._inside
        self._counted = self._compared.T.astype(np.float64)

    def gain(self, *, samples: int, answers: int, seed: int) -> Gain:
        """Estimate the selection-free gain; `answers` is the largest number of answers behind a value.

        The bootstrap's variance beyond that of fixed choices is added to that of the plain paired difference.
        """
        inside, size = self._inside, len(self._inside)
        choices = [
            _choice(self._sums(np.ones((1, size)), *self._spread(values))[0])[0]
            for values in self._values
        ]
        contributions, better, worse = self._compare(choices)
        weights = problem_weights(size, samples, seed)
        fixed = weights[:, inside] @ contributions / weights[:, inside].sum(axis=1)
        added = max(0.0, float(self._resampled(weights).var()) - float(fixed.var()))
        effect = design_effect(
            contributions, better + worse, answers=answers * self._values[0].shape[1]
        )
        single = max(better + worse - (better - worse) ** 2, 1 / contributions.size)
        best = [
            _choice(values.sum(axis=0)) @ values[inside].mean(axis=0) for values in self._values
        ]
        return Gain(
            pair=Discordance(
                better=better, worse=worse, size=1 / (effect / contributions.size + added / single)
            ),
            better=int((contributions > _TIE).sum()),
            worse=int((contributions < -_TIE).sum()),
            best_cell=float(best[0] - best[1]),
            chosen_treated=choices[0].mean(axis=0),
            chosen_control=choices[1].mean(axis=0),
        )

    def _resampled(self, weights: Values) -> Values:
        """float64[rows]: the gain under float64[rows, num_problems] weights of the problems."""
        spreads = [self._spread(values) for values in self._values]
        return _by_rows(
            lambda rows: self._difference(
                [self._sums(rows, *spread) for spread in spreads], rows @ self._counted
            ),
            weights,
        )

    def _spread(self, values: Values) -> tuple[Values, Values]:
        """float64[num_problems, halves x temperatures]: the values in each half, to choose by and to compare; zero elsewhere."""
        choosing, compared = (
            (halves.T[:, :, None] * values[:, None, :]).reshape(len(values), -1)
            for halves in (self._halves, self._compared)
        )
        return choosing, choosing if self._inside.all() else compared

    def _sums(self, rows: Values, choosing: Values, compared: Values) -> tuple[Values, Values]:
        """Weighted sums over the problems of each half, to choose by and to compare: float64[rows, halves, temperatures] each."""
        shape = (len(rows), len(self._halves), self._values[0].shape[1])
        sums = (rows @ choosing).reshape(shape)
        return sums, sums if compared is choosing else (rows @ compared).reshape(shape)

    def _difference(self, sums: Sequence[tuple[Values, Values]], counted: Values) -> Values:
        """float64[rows]: each model's mean on the halves that did not choose, averaged, the first minus the second."""
        sizes = self._opposite(counted)
        means = [
            (np.einsum("bht,bht->bh", _choice(choosing), self._opposite(compared)) / sizes).mean(
                axis=1
            )
            for choosing, compared in sums
        ]
        return np.asarray(means[0] - means[1])

    def _compare(self, choices: Sequence[Values]) -> tuple[Values, float, float]:
        """Compare the models on the halves that did not choose, at the temperatures `choices` of those that did.

        Returns what each compared problem adds to the gain, scaled so that its mean is the gain, and the chances that one
        answer of treated alone, or of control alone, is right.
        """
        share = self._compared / self._compared.sum(axis=1)[:, None]
        weights = np.roll(share, len(share) // 2, axis=0).T
        treated, control = (
            values @ choice.T for values, choice in zip(self._values, choices, strict=True)
        )
        gain, better, worse = (
            (weights * values).mean(axis=1)
            for values in (treated - control, treated * (1 - control), control * (1 - treated))
        )
        return gain[self._inside] * self._inside.sum(), float(better.sum()), float(worse.sum())

    @staticmethod
    def _opposite(found: Values) -> Values:
        """For each half along axis 1 what belongs to the other half of its split."""
        return np.roll(found, found.shape[1] // 2, axis=1)


def _choice(sums: Values) -> Values:
    """Weights over the last axis: all on the best, shared among equals so that no order decides."""
    best = sums >= sums.max(axis=-1, keepdims=True) - _TIE
    return np.asarray(best / best.sum(axis=-1, keepdims=True))


def _by_rows(statistic: Callable[[Values], Values], rows: Values) -> Values:
    """A statistic of many rows, a bounded number at a time."""
    return np.concatenate(
        [
            statistic(rows[start : start + _ROWS_AT_A_TIME])
            for start in range(0, len(rows), _ROWS_AT_A_TIME)
        ]
    )
