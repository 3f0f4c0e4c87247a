"""The decoding of the base that is nearest to a decoded student, and how much it explains.

- Temperature, top-k and top-p of the base, in any order, give a power of its distribution on its
  most likely tokens (Eq. 35). One global choice of them is a decode-only policy.
- Distance is the Jensen-Shannon divergence in nats, averaged over positions. It is 0 for equal
  distributions and at most log 2. KL would be infinite wherever the student keeps one token that
  the base's decoding cuts.
- The change is the distance of the student, decoded, to the base decoded in the same way. The share
  that decoding explains is 1 - distance to the nearest decoding / change.
- Distributions are known on heads, the most likely tokens. All tokens outside of a student's head
  count as one.

Pure functions on arrays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from ssd_ray.analysis.measures import TAIL_POWERS
from ssd_ray.analysis.operator import GREEDY, Setting

_TEMPERATURES = tuple(float(each) for each in np.geomspace(0.25, 3.0, 18))
_TOP_K = (1, 2, 3, 5, 8, 12, 20, 32, 48, None)
_TOP_P = (0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)
_FINEST = 0.0005
"""Last step of the local search, as a share of the temperature and as top-p."""


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Most likely tokens of a model at some positions, most likely first."""

    log_probabilities: Tensor
    """float64 [positions, head]."""
    base_log_probabilities: Tensor
    """The base's log-probabilities of the same tokens, float64 [positions, head]."""
    tail_log_masses: Tensor
    """log of the sum of p^g outside of the head at each of `TAIL_POWERS`, [positions, powers]."""


@dataclass(frozen=True, kw_only=True)
class Nearest:
    """The nearest decoding of the base, and its distance at each position."""

    setting: Setting
    distances: Tensor
    """float64 [positions]."""
    changes: Tensor
    """Distance of the base decoded as the student, float64 [positions]."""


def nearest(base: Heads, student: Heads, evaluation: Setting) -> Nearest:
    """Search the decodings of the base for the one nearest to the student under `evaluation`.

    A grid of temperature, top-k and top-p comes first, then a local search from its best point.
    """
    search = _Search(base, student, evaluation)
    start = min(_grid(evaluation), key=search.mean)
    best = search.descend(start)
    return Nearest(
        setting=best,
        distances=search.distances(best),
        changes=search.distances(evaluation),
    )


def _grid(evaluation: Setting) -> Iterator[Setting]:
    yield evaluation
    for temperature, top_k, top_p in itertools.product(_TEMPERATURES, _TOP_K, _TOP_P):
        yield Setting(temperature=temperature, top_k=top_k, top_p=top_p)


class _Search:
    """Distances of a student to decodings of the base."""

    def __init__(self, base: Heads, student: Heads, evaluation: Setting) -> None:
        self._base = _Powers(base)
        decoded = _Powers(student).decoded(evaluation)
        width = int(decoded.sizes.max())
        self._student = decoded.probabilities[:, :width]
        self._rest = (1 - self._student.sum(1)).clamp(min=0)
        self._tokens = student.base_log_probabilities[:, :width]
        self._means: dict[Setting, float] = {}

    def distances(self, setting: Setting) -> Tensor:
        """Return the divergence at each position."""
        decoded = self._base.decoded(setting)
        power = 1 / max(setting.temperature, GREEDY)
        kept = self._tokens >= decoded.least[:, None]
        probabilities = (power * self._tokens - decoded.log_norm[:, None]).exp() * kept
        probabilities = probabilities * (self._student > 0)
        rest = (1 - probabilities.sum(1)).clamp(min=0)
        return _divergence(self._student, probabilities).sum(1) + _divergence(self._rest, rest)

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
            if self.mean(best) >= self.mean(setting):
                step /= 2
            else:
                setting = best
        return setting


def _neighbors(setting: Setting, step: float) -> Iterator[Setting]:
    top_k = setting.top_k
    limits = {top_k} if top_k is None else {top_k, max(1, top_k - 1), top_k + 1, None}
    masses = {setting.top_p, max(0.01, setting.top_p - step), min(1.0, setting.top_p + step)}
    for factor, limit, mass in itertools.product((1 - step, 1.0, 1 + step), limits, masses):
        yield Setting(temperature=setting.temperature * factor, top_k=limit, top_p=mass)


@dataclass(frozen=True, kw_only=True)
class _Decoded:
    probabilities: Tensor
    """On the head, 0 where cut, [positions, head]."""
    sizes: Tensor
    """Tokens of the head that are kept, [positions]."""
    least: Tensor
    """Smallest log-probability that is kept, before tempering, [positions]."""
    log_norm: Tensor
    """log of the kept mass of p^(1/T), [positions]."""


class _Powers:
    """Decodings of a model from its heads."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads.log_probabilities
        self._tail = CubicSpline(TAIL_POWERS, heads.tail_log_masses.numpy(), axis=1)

    def decoded(self, setting: Setting) -> _Decoded:
        """Return the distribution of a decoding."""
        power = 1 / max(setting.temperature, GREEDY)
        scaled = power * self._heads
        norm = scaled.logsumexp(1)
        limit = self._heads.shape[1] if setting.top_k is None else setting.top_k
        if setting.top_k is None:
            # Beyond the last power the tail has no mass to speak of.
            tail = self._tail(min(power, TAIL_POWERS[-1])) if power <= 2 * TAIL_POWERS[-1] else -99
            norm = torch.logaddexp(norm, torch.as_tensor(tail))
        else:
            norm = scaled[:, :limit].logsumexp(1)
        mass = (scaled - norm[:, None]).exp()
        before = mass.cumsum(1) - mass
        kept = (before < setting.top_p) & (torch.arange(mass.shape[1]) < limit)
        kept[:, 0] = True
        everything = kept.all(1)
        within = (mass * kept).sum(1)
        # Where the head is kept and mass is missing, the rest comes from the tail.
        reached = torch.where(
            everything & (setting.top_k is None), within.clamp(min=setting.top_p), within
        )
        sizes = kept.sum(1)
        least = self._heads.gather(1, sizes[:, None] - 1)[:, 0]
        if setting.top_k is None:
            least = torch.where(everything, torch.full_like(least, -math.inf), least)
        return _Decoded(
            probabilities=mass * kept / reached[:, None],
            sizes=sizes,
            least=least,
            log_norm=norm + reached.log(),
        )


def _divergence(first: Tensor, second: Tensor) -> Tensor:
    """Return the summands of the Jensen-Shannon divergence."""
    middle = (first + second) / 2
    return 0.5 * (_summand(first, middle) + _summand(second, middle))


def _summand(mass: Tensor, middle: Tensor) -> Tensor:
    ratio = torch.where(mass > 0, mass / middle.clamp(min=1e-300), torch.ones_like(mass))
    return mass * ratio.log()
