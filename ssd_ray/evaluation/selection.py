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

SPLITS = 40
"""Random splits that are averaged: the spread that the split itself causes is then a sixth of that of a single one."""

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

    def gain(self, *, samples: int, confidence: float, seed: int) -> Gain:
        """The selection-free gain; the p-value flips, problem by problem, which model is called which at all temperatures."""
        inside, size = self._inside, len(self._inside)
        weights = problem_weights(size, samples, seed)
        gains = _by_rows(self._resampled, weights)
        totals = weights[:, inside].sum(axis=1)
        choices = [_choice(self._sums(_one(values), self._halves, values))[0] for values in self._values]
        contributions = self._contributions(choices)[inside]
        best = [_choice(values.sum(axis=0)) @ values[inside].mean(axis=0) for values in self._values]
        return Gain(
            interval=widened(gains * totals, contributions, totals, confidence=confidence, seed=seed),
            p_value=drawn_p_value(lambda signs: _by_rows(self._flipped, signs), size, permutations=samples, seed=seed),
            standard_error=max(float(gains.std()), standard_error(contributions)),
            best_cell=float(best[0] - best[1]),
            chosen_treated=choices[0].mean(axis=0),
            chosen_control=choices[1].mean(axis=0),
        )

    def _resampled(self, weights: Values) -> Values:
        """float64[rows]: the gain under float64[rows, num_problems] weights of the problems."""
        sums = [
            (self._sums(weights, self._halves, values), self._sums(weights, self._compared, values)) for values in self._values
        ]
        return self._difference(sums, weights @ self._compared.T)

    def _flipped(self, signs: Values) -> Values:
        """float64[rows]: the gain where the models change names on the problems with sign -1 of float64[rows, num_problems]."""
        treated, control = self._values
        middle, apart = (treated + control) / 2, (treated - control) / 2
        fixed, moved = (
            [self._sums(rows, halves, values) for halves in (self._halves, self._compared)]
            for rows, values in ((_one(middle), middle), (signs, apart))
        )
        sums = [tuple(same + way * other for same, other in zip(fixed, moved, strict=True)) for way in (1, -1)]
        return self._difference(sums, self._compared.sum(axis=1)[None, :].astype(np.float64))

    def _difference(self, sums: Sequence[tuple[Values, ...]], counted: Values) -> Values:
        """float64[rows]: each model's mean on the halves that did not choose, averaged, the first minus the second."""
        means = []
        for choosing, scored in sums:
            other = self._opposite(scored) / self._opposite(counted)[:, :, None]
            means.append((_choice(choosing) * other).sum(axis=2).mean(axis=1))
        return np.asarray(means[0] - means[1])

    def _contributions(self, choices: Sequence[Values]) -> Values:
        """float64[num_problems]: what each problem adds to the gain, scaled so that its mean over those compared is the gain."""
        share = self._compared / self._compared.sum(axis=1)[:, None]
        differences = self._values[0] @ choices[0].T - self._values[1] @ choices[1].T
        found = (np.roll(share, len(share) // 2, axis=0).T * differences).mean(axis=1)
        return np.asarray(found * self._inside.sum())

    @staticmethod
    def _sums(rows: Values, halves: Halves, values: Values) -> Values:
        """float64[rows, halves, temperatures]: weighted sums of the values over the problems of each half."""
        spread = (halves.T[:, :, None] * values[:, None, :]).reshape(len(values), -1)
        return (rows @ spread).reshape(len(rows), len(halves), values.shape[1])

    @staticmethod
    def _opposite(found: Values) -> Values:
        """For each half along axis 1 what belongs to the other half of its split."""
        return np.roll(found, found.shape[1] // 2, axis=1)


def _choice(sums: Values) -> Values:
    """Weights over the last axis: all on the best, shared among equals so that no order decides."""
    best = sums >= sums.max(axis=-1, keepdims=True) - _TIE
    return np.asarray(best / best.sum(axis=-1, keepdims=True))


def _one(values: Values) -> Values:
    return np.ones((1, len(values)))


def _by_rows(statistic: Callable[[Values], Values], rows: Values) -> Values:
    """A statistic of many rows, a bounded number at a time."""
    return np.concatenate([statistic(rows[start : start + _ROWS_AT_A_TIME]) for start in range(0, len(rows), _ROWS_AT_A_TIME)])
