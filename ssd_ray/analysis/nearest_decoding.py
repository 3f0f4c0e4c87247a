"""The decoding of the base that is nearest to a decoded student, and how much it explains.

- Temperature, top-k and top-p of the base, in any order, give a power of its distribution on its
  most likely tokens (Eq. 35). One global choice of them is a decode-only policy.
- Distance is the Jensen-Shannon divergence in nats, averaged over positions. It is 0 for equal
  distributions and at most log 2. KL would be infinite at every position where the base's
  decoding cuts a token of the student.
- The change is the distance of the student, decoded, to the base decoded in the same way. The share
  that decoding explains is 1 - distance to the nearest decoding / change.
- A divergence is quadratic in small differences, so a share of it flatters decoding. The total
  variation is linear in them: the least share of tokens that two models draw differently.
- Distributions are known on heads, the most likely tokens. All tokens outside of a student's head
  count as one.

Pure functions on arrays. They are numpy's: so many small steps would wait for torch's threads.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.special import xlogy

from ssd_ray.analysis.measures import TAIL_POWERS
from ssd_ray.analysis.operator import GREEDY, Setting

Floats = NDArray[np.float64]

_TEMPERATURES = tuple(float(each) for each in np.geomspace(0.25, 3.0, 14))
_TOP_K = (1, 3, 5, 10, 20, 40, None)
_TOP_P = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0)
_GRID_POSITIONS = 400
_MOST_LOG = 700.0
_FINEST = 0.0005
"""Last step of the local search, as a share of the temperature and as top-p."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Most likely tokens of a model at some positions, most likely first."""

    log_probabilities: Floats
    """float64 [positions, head]."""
    base_log_probabilities: Floats
    """The base's log-probabilities of the same tokens, float64 [positions, head]."""
    tail_log_masses: Floats
    """log of the sum of p^g outside of the head at each of `TAIL_POWERS`, [positions, powers]."""

    def at(self, positions: NDArray[np.int64]) -> Heads:
        """Return the heads of some positions."""
        return Heads(
            log_probabilities=self.log_probabilities[positions],
            base_log_probabilities=self.base_log_probabilities[positions],
            tail_log_masses=self.tail_log_masses[positions],
        )


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest decoding of the base, and its distance at each position."""

    setting: Setting
    distances: Floats
    """float64 [positions]."""
    changes: Floats
    """Distance of the base decoded as the student, float64 [positions]."""
    variations: Floats
    """Total variation at the nearest decoding, float64 [positions]."""
    variations_of_change: Floats
    """Total variation of the base decoded as the student, float64 [positions]."""


def nearest(base: Heads, student: Heads, evaluation: Setting) -> Nearest:
    """Search the decodings of the base for the one nearest to the student under `evaluation`.

    A grid of temperature, top-k and top-p over some positions comes first, then a local search over
    all of them from its best point.
    """
    number = len(base.log_probabilities)
    # The grid only has to find the right valley.
    some = np.arange(0, number, max(1, number // _GRID_POSITIONS))
    coarse = _Search(base.at(some), student.at(some), evaluation)
    start = min(_grid(evaluation), key=coarse.mean)
    search = _Search(base, student, evaluation)
    best = search.descend(start)
    return Nearest(
        setting=best,
        distances=search.distances(best),
        changes=search.distances(evaluation),
        variations=search.variations(best),
        variations_of_change=search.variations(evaluation),
    )


def _grid(evaluation: Setting) -> Iterator[Setting]:
    yield evaluation
    for temperature, top_k, top_p in itertools.product(_TEMPERATURES, _TOP_K, _TOP_P):
        yield Setting(temperature=temperature, top_k=top_k, top_p=top_p)


class _Search:
    """Distances of a student to decodings of the base."""

    def __init__(self, base: Heads, student: Heads, evaluation: Setting) -> None:
        self._base = _Tempered(base, student.base_log_probabilities)
        own = _Tempered(student, student.log_probabilities)
        probabilities = own.decoded(evaluation)
        width = int((probabilities > 0).sum(1).max())
        self._student = probabilities[:, :width]
        self._width = width
        self._means: dict[Setting, float] = {}

    def distances(self, setting: Setting) -> Floats:
        """Return the divergence at each position."""
        own, other = self._pair(setting)
        distances: Floats = _divergence(own, other).sum(1)
        return distances

    def variations(self, setting: Setting) -> Floats:
        """Return the total variation at each position."""
        own, other = self._pair(setting)
        variations: Floats = np.abs(own - other).sum(1) / 2
        return variations

    def _pair(self, setting: Setting) -> tuple[Floats, Floats]:
        """Return the decoded student and base: its tokens, and all others as one."""
        # Tokens that the student cuts are part of the rest, also where the base keeps them.
        other = self._base.decoded(setting)[:, : self._width] * (self._student > 0)
        return _with_rest(self._student), _with_rest(other)

    def mean(self, setting: Setting) -> float:
        """Return the mean divergence."""
        if setting not in self._means:
            self._means[setting] = float(self.distances(setting).mean())
        return self._means[setting]

    def descend(self, setting: Setting) -> Setting:
        """Move to better neighbors in ever smaller steps."""
        step = 0.08
        while step > _FINEST:
            best = min([setting, *_neighbors(setting, step)], key=self.mean)
            # Without a better neighbor, the minimum lies between the steps.
            if self.mean(best) >= self.mean(setting):
                step /= 2
            else:
                setting = best
        return setting


def _neighbors(setting: Setting, step: float) -> Iterator[Setting]:
    top_k = setting.top_k
    masses = (max(0.01, setting.top_p - step), setting.top_p, min(1.0, setting.top_p + step))
    for factor, mass in itertools.product((1 - step, 1.0, 1 + step), sorted(set(masses))):
        yield Setting(temperature=setting.temperature * factor, top_k=top_k, top_p=mass)
    if top_k is not None:
        for limit in (max(1, top_k - 1), top_k + 1, None):
            yield replace(setting, top_k=limit)


class _Tempered:
    """Decodings of a model: probabilities of chosen tokens, from the model's heads.

    What depends on the temperature alone is computed once for all truncations.
    """

    def __init__(self, heads: Heads, chosen: Floats) -> None:
        """Take the heads, and log-probabilities of the chosen tokens under the same model."""
        self._heads = heads.log_probabilities
        self._chosen = chosen
        self._tail = CubicSpline(TAIL_POWERS, heads.tail_log_masses, axis=1)
        self._temperature = math.nan

    def decoded(self, setting: Setting) -> Floats:
        """Return the probabilities of the chosen tokens, 0 where cut, [positions, chosen]."""
        self._temper(setting.temperature)
        width = self._heads.shape[1]
        limit = width if setting.top_k is None else min(setting.top_k, width)
        norm = self._sums[:, limit - 1]
        if setting.top_k is None:
            norm = norm + self._beyond
        wanted = setting.top_p * norm
        # A token survives if those before it have less than the wanted mass. The first one does.
        last = (self._sums[:, : limit - 1] < wanted[:, None]).sum(1)
        rows = np.arange(len(last))
        kept = self._sums[rows, last]
        least = self._heads[rows, last]
        if setting.top_k is None:
            # Where the head lacks mass, the rest comes from beyond it.
            reaches_beyond = kept < wanted
            kept = np.where(reaches_beyond, wanted, kept)
            least = np.where(reaches_beyond, -math.inf, least)
        probabilities: Floats = self._weights / kept[:, None] * (self._chosen >= least[:, None])
        return probabilities

    def _temper(self, temperature: float) -> None:
        """Compute the weights at a temperature, in units of that of the most likely token."""
        # The grid goes through all truncations of a temperature before the next one.
        if temperature == self._temperature:
            return
        self._temperature = temperature
        power = 1 / max(temperature, GREEDY)
        largest = self._heads[:, :1]
        self._sums = np.exp(power * (self._heads - largest)).cumsum(1)
        self._weights = np.exp(power * (self._chosen - largest))
        # Above the last power, the tail has no mass to speak of.
        tail = self._tail(min(power, TAIL_POWERS[-1]))
        self._beyond = np.exp(np.minimum(tail - power * largest[:, 0], _MOST_LOG))


def _with_rest(probabilities: Floats) -> Floats:
    rest = np.maximum(1 - probabilities.sum(1, keepdims=True), 0)
    return np.concatenate([probabilities, rest], axis=1)


def _divergence(first: Floats, second: Floats) -> Floats:
    """Return the summands of the Jensen-Shannon divergence."""
    middle = (first + second) / 2
    summands: Floats = (xlogy(first, first) + xlogy(second, second)) / 2 - xlogy(middle, middle)
    return summands
