"""A gain without selection bias, from temperatures chosen on half of the problems.

The best of many cells on the same problems is too good by luck. So:

1. Each model's temperature is chosen by its mean on one half of the problems.
2. The models are compared on the other half.
3. The halves change places, and many splits are averaged.

The estimate is the gain after tuning on half as many problems of this kind. Its interval is that of
any paired difference. A bootstrap repeats the choice, to measure the variance that it adds.
Pure functions on arrays, without I/O.
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
"""Splits to average: the spread due to splitting is a fifth of a single split's."""

_TIE = 1e-9
"""Means this close are equal: a difference is rounding."""
_ROWS_AT_A_TIME = 500
"""Bootstrap rows in one product of matrices, to bound memory."""
Halves = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Gain:
    """Treated minus control, each at a temperature chosen on other problems."""

    pair: Discordance
    """Their disagreement; its size is lowered by the variance that choosing adds."""
    better: int
    """Problems on which treated did better, over all halves."""
    worse: int
    """Problems on which treated did worse, over all halves."""
    best_cell: float
    """Difference of the best means, with temperatures selected on all problems at once."""
    chosen_treated: Values
    """float64[temperatures]: share of halves that chose each temperature."""
    chosen_control: Values
    """The same of the control."""


def halves(
    problem_ids: Sequence[str], strata: Sequence[str], *, seed: int, splits: int = SPLITS
) -> Halves:
    """Return bool[splits, num_problems]: the half of each problem, every stratum cut in two.

    The halves follow from hashes of seed, split and id, not from the order of the problems. The
    hash of an odd stratum decides which half gets the extra problem.
    """
    cut = np.zeros((splits, len(problem_ids)), dtype=np.bool_)
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
            cut[split, ranked[: len(ranked) // 2 + extra]] = True
    return cut


def _hash(seed: int, split: int, text: str) -> bytes:
    return hashlib.sha256(f"{seed}/{split}/{text}".encode()).digest()


class Sweep:
    """Two models' values over the same problems and temperatures, cut into halves many times.

    Args:
        treated: float64[num_problems, temperatures], or any other cells to choose from.
        control: the same of the control, whose number of cells may differ.
        cut: bool[splits, num_problems], as from `halves`.
        within: bool[num_problems], the problems to compare on; some must be in every half.
            Temperatures are still chosen on all problems of a half.
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
        """Estimate the selection-free gain.

        Args:
            samples: bootstrap resamples.
            answers: largest number of answers behind a value.
            seed: seed of the bootstrap.
        """
        inside = self._inside
        size = len(inside)
        choices = [
            _choice(self._sums(np.ones((1, size)), *self._spread(values))[0])[0]
            for values in self._values
        ]
        contributions, better, worse = self._compare(choices)
        # Choosing adds the variance of the bootstrap beyond that at fixed temperatures.
        weights = problem_weights(size, samples, seed)
        fixed = weights[:, inside] @ contributions / weights[:, inside].sum(axis=1)
        added = max(0.0, float(self._resampled(weights).var()) - float(fixed.var()))
        # Splits choose several temperatures: a contribution averages up to this many answers.
        effect = design_effect(
            contributions,
            better + worse,
            answers=answers * max(values.shape[1] for values in self._values),
        )
        # Keep the divisor from zero where both models agree on every problem.
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
        """Return float64[rows]: the gain under float64[rows, num_problems] weights of problems."""
        spreads = [self._spread(values) for values in self._values]
        return _by_rows(
            lambda rows: self._difference(
                [self._sums(rows, *spread) for spread in spreads], rows @ self._counted
            ),
            weights,
        )

    def _spread(self, values: Values) -> tuple[Values, Values]:
        """Return the values in each half, to choose by and to compare, zero elsewhere.

        Both arrays are float64[num_problems, halves x temperatures].
        """
        choosing, compared = (
            (halves.T[:, :, None] * values[:, None, :]).reshape(len(values), -1)
            for halves in (self._halves, self._compared)
        )
        return choosing, choosing if self._inside.all() else compared

    def _sums(self, rows: Values, choosing: Values, compared: Values) -> tuple[Values, Values]:
        """Return weighted sums over the problems of each half, to choose by and to compare.

        Both arrays are float64[rows, halves, temperatures].
        """
        shape = (len(rows), len(self._halves), choosing.shape[1] // len(self._halves))
        # One product serves both if all problems are compared: it is the costly part.
        sums = (rows @ choosing).reshape(shape)
        return sums, sums if compared is choosing else (rows @ compared).reshape(shape)

    def _difference(self, sums: Sequence[tuple[Values, Values]], counted: Values) -> Values:
        """Return float64[rows]: first minus second, each scored on halves that did not choose."""
        sizes = self._opposite(counted)
        means = [
            (np.einsum("bht,bht->bh", _choice(choosing), self._opposite(compared)) / sizes).mean(
                axis=1
            )
            for choosing, compared in sums
        ]
        return np.asarray(means[0] - means[1])

    def _compare(self, choices: Sequence[Values]) -> tuple[Values, float, float]:
        """Compare the models on each half, at the temperatures chosen on the other half.

        Returns:
            The contribution of each compared problem to the gain, scaled to have the gain as mean.
            The chance that one answer of treated alone is right.
            The same chance of control.
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
    def _opposite(values: Values) -> Values:
        """Exchange both halves of every split along axis 1."""
        # Halves are stored as all first ones, then all second ones.
        return np.roll(values, values.shape[1] // 2, axis=1)


def _choice(sums: Values) -> Values:
    """Return weights over the last axis: 1 on the best value, or an equal share on ties."""
    best = sums >= sums.max(axis=-1, keepdims=True) - _TIE
    return np.asarray(best / best.sum(axis=-1, keepdims=True))


def _by_rows(statistic: Callable[[Values], Values], rows: Values) -> Values:
    """Compute a statistic of many rows, a bounded number at a time."""
    return np.concatenate(
        [
            statistic(rows[start : start + _ROWS_AT_A_TIME])
            for start in range(0, len(rows), _ROWS_AT_A_TIME)
        ]
    )
