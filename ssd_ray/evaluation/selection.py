"""A gain without selection: each model's temperature is chosen on one half of the problems and scored on the other.

One idea: the best of many cells on the same problems is too good by the luck of the draw. So every model's temperature is
chosen by its mean on half of the problems, the models are compared on the other half, the halves change places, and many
splits are averaged. What is estimated is the gain of one who tunes on half as many problems of this kind. The bootstrap and
the permutation repeat the choosing inside. Pure functions on arrays; reads and writes nothing.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ssd_ray.evaluation.metrics import Interval, Values, problem_weights, widened
from ssd_ray.evaluation.significance import PValue, drawn_p_value, standard_error

SPLITS = 24
"""Random splits that are averaged: the spread that the split itself causes is then a fifth of that of a single one."""

_TIE = 1e-9
_ROWS_AT_A_TIME = 500
Halves = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Treated minus control, each at a temperature chosen on other problems, with interval and p-value.

    `best_cell` is the difference of the best means on all problems: selected on the problems that it is measured on.
    `chosen_treated` and `chosen_control`, float64[temperatures], are the shares of halves that chose each temperature.
    """

    interval: Interval
    p_value: PValue
    standard_error: float
    best_cell: float
    chosen_treated: Values
    chosen_control: Values


def halves(problem_ids: Sequence[str], strata: Sequence[str], *, seed: int, splits: int = SPLITS) -> Halves:
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
            ranked = sorted(indices, key=lambda index: (_hash(seed, split, problem_ids[index]), problem_ids[index]))
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

    def __init__(self, treated: Values, control: Values, cut: Halves, within: Halves | None = None) -> None:
        self._values = (treated, control)
        self._inside = np.ones(len(treated), dtype=np.bool_) if within is None else within
        self._halves = np.concatenate([cut, ~cut])
        self._compared = self._halves & self._inside
        self._counted = self._compared.T.astype(np.float64)

    def gain(self, *, samples: int, confidence: float, seed: int) -> Gain:
        """The selection-free gain; the p-value flips, problem by problem, which model is called which at all temperatures."""
        inside, size = self._inside, len(self._inside)
        weights = problem_weights(size, samples, seed)
        gains = self._resampled(weights)
        totals = weights[:, inside].sum(axis=1)
        choices = [_choice(self._sums(np.ones((1, size)), *self._spread(values))[0])[0] for values in self._values]
        contributions = self._contributions(choices)[inside]
        best = [_choice(values.sum(axis=0)) @ values[inside].mean(axis=0) for values in self._values]
        return Gain(
            interval=widened(gains * totals, contributions, totals, confidence=confidence, seed=seed),
            p_value=drawn_p_value(self._flipped(), size, permutations=samples, seed=seed),
            standard_error=max(float(gains.std()), standard_error(contributions)),
            best_cell=float(best[0] - best[1]),
            chosen_treated=choices[0].mean(axis=0),
            chosen_control=choices[1].mean(axis=0),
        )

    def _resampled(self, weights: Values) -> Values:
        """float64[rows]: the gain under float64[rows, num_problems] weights of the problems."""
        spreads = [self._spread(values) for values in self._values]
        return _by_rows(
            lambda rows: self._difference([self._sums(rows, *spread) for spread in spreads], rows @ self._counted), weights
        )

    def _flipped(self) -> Callable[[Values], Values]:
        """The gain where the models change names on the problems with sign -1 of float64[rows, num_problems]: float64[rows]."""
        treated, control = self._values
        fixed = self._sums(np.ones((1, len(treated))), *self._spread((treated + control) / 2))
        apart, counted = self._spread((treated - control) / 2), self._counted.sum(axis=0, keepdims=True)

        def gain(signs: Values) -> Values:
            moved = self._sums(signs, *apart)
            sums = [
                (fixed[0] + moved[0], fixed[1] + moved[1]),
                (fixed[0] - moved[0], fixed[1] - moved[1]),
            ]
            return self._difference(sums, counted)

        return lambda signs: _by_rows(gain, signs)

    def _spread(self, values: Values) -> tuple[Values, Values]:
        """float64[num_problems, halves x temperatures]: the values in each half, to choose by and to compare; zero elsewhere."""
        choosing, compared = (
            (halves.T[:, :, None] * values[:, None, :]).reshape(len(values), -1) for halves in (self._halves, self._compared)
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
            (np.einsum("bht,bht->bh", _choice(choosing), self._opposite(compared)) / sizes).mean(axis=1)
            for choosing, compared in sums
        ]
        return np.asarray(means[0] - means[1])

    def _contributions(self, choices: Sequence[Values]) -> Values:
        """float64[num_problems]: what each problem adds to the gain, scaled so that its mean over those compared is the gain."""
        share = self._compared / self._compared.sum(axis=1)[:, None]
        differences = self._values[0] @ choices[0].T - self._values[1] @ choices[1].T
        found = (np.roll(share, len(share) // 2, axis=0).T * differences).mean(axis=1)
        return np.asarray(found * self._inside.sum())

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
    return np.concatenate([statistic(rows[start : start + _ROWS_AT_A_TIME]) for start in range(0, len(rows), _ROWS_AT_A_TIME)])
