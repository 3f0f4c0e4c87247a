"""Numbers of a forecast, from the sums of its answers.

- Means are over positions, with intervals over problems: answers to one problem are alike.
- Success under another decoding is estimated by importance weights, pi(y) / p0(y), since answers
  were drawn from p0. `effective_answers` tells how many answers still count. Long answers and far
  decodings leave about one, and then nothing can be ranked.

Pure functions without I/O.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor

from ssd_ray.analysis.decoded import DECODED
from ssd_ray.analysis.forecast import TRAINING, Tally
from ssd_ray.analysis.operator import Setting
from ssd_ray.analysis.outlook_figures import (
    Decoded,
    Estimate,
    Group,
    Outlook,
    Prediction,
    References,
    TrainingCell,
)
from ssd_ray.errors import UserError

_CONFIDENCE = 0.95


def outlook(tally: Tally, problems: Sequence[str], accepted: Sequence[bool] | None) -> Outlook:
    """Return the numbers of a forecast.

    Args:
        tally: sums of all answers.
        problems: the problem of each answer.
        accepted: for each answer, whether it passed its tests; None without tests.

    Raises:
        UserError: there are fewer than two problems with an answer.
    """
    numbers = {name: number for number, name in enumerate(dict.fromkeys(problems))}
    if len(numbers) < 2:
        raise UserError(
            f"the forecast has answers to {len(numbers)} problem, and an interval needs two or "
            "more: raise --answers or prompts.limit"
        )
    owners = torch.tensor([numbers[name] for name in problems])
    passed = None if accepted is None else torch.tensor(accepted)
    answers = _Answers(tally, owners, passed)
    base = tuple(
        answers.decoded(setting, tally.base[:, place])
        for place, setting in enumerate(tally.grid.decodings)
    )
    return Outlook(
        answers=len(problems),
        problems=len(numbers),
        positions=int(tally.positions.sum()),
        entropy=answers.mean(tally.entropy),
        accepted=None if passed is None else int(passed.sum()),
        training=tuple(
            answers.cell(place, setting, base) for place, setting in enumerate(tally.grid.training)
        ),
        base=base,
    )


def references(tally: Tally, left_out: int, answers: Tally) -> References:
    """Return the numbers of reference solutions, next to those of the base's own answers.

    Args:
        tally: sums of all references, with one training setting.
        left_out: number of references that were too long.
        answers: sums of the base's answers.
    """
    number = len(tally.positions)
    everything = torch.ones(number, dtype=torch.bool)
    rows = _Answers(tally, torch.zeros(number, dtype=torch.int64), None)

    def groups(sums: Tensor) -> tuple[Group, ...]:
        members = [
            rows.group(everything, dict(zip(DECODED, each.unbind(1), strict=True)))
            for each in sums.unbind(1)
        ]
        return tuple(each for each in members if each is not None)

    return References(
        solutions=number,
        left_out=left_out,
        tokens=int(tally.positions.sum()),
        log_likelihood=float(tally.log_base.sum() / tally.positions.sum()),
        log_likelihood_of_answers=float(answers.log_base.sum() / answers.positions.sum()),
        student=groups(tally.student[:, 0]),
        base=groups(tally.base),
    )


class _Answers:
    """The sums of a tally, with the problem and the outcome of each answer."""

    def __init__(self, tally: Tally, owners: Tensor, passed: Tensor | None) -> None:
        self._tally = tally
        self._owners = owners
        self._passed = passed
        self._positions = tally.positions.double()

    def mean(self, sums: Tensor) -> float:
        """Return a mean over positions."""
        return float(sums.sum() / self._positions.sum())

    def cell(self, place: int, setting: Setting, base: Sequence[Decoded]) -> TrainingCell:
        """Return the numbers of a training setting."""
        columns = dict(zip(TRAINING, self._tally.training[:, place].unbind(1), strict=True))
        student = tuple(
            self.decoded(evaluation, self._tally.student[:, place, number])
            for number, evaluation in enumerate(self._tally.grid.evaluations)
        )
        return TrainingCell(
            temperature=setting.temperature,
            top_k=setting.top_k,
            top_p=setting.top_p,
            size=self.mean(columns["size"]),
            one=ratio(columns["one"], self._positions, self._owners),
            two=self.mean(columns["two"]),
            kept_mass=self.mean(columns["kept_mass"]),
            start=self.mean(columns["start"]),
            floor=self.mean(columns["floor"]),
            gap=ratio(columns["start"] - columns["floor"], self._positions, self._owners),
            crossing=crossing(
                self._tally.grid.temperatures,
                [each.entropy for each in student],
                [each.entropy for each in base[: len(student)]],
            ),
            student=student,
        )

    def decoded(self, setting: Setting, sums: Tensor) -> Decoded:
        """Return the numbers of a decoding, of its sums, [answers, DECODED]."""
        columns = dict(zip(DECODED, sums.unbind(1), strict=True))
        passed = self._passed
        everything = torch.ones(len(sums), dtype=torch.bool)
        return Decoded(
            temperature=setting.temperature,
            top_k=setting.top_k,
            top_p=setting.top_p,
            survivors=self.mean(columns["survivors"]),
            entropy=self.mean(columns["entropy"]),
            accepted=None if passed is None else self.group(passed, columns),
            rejected=self.group(everything if passed is None else ~passed, columns),
            prediction=None if passed is None else self._prediction(passed, columns),
        )

    def group(self, members: Tensor, columns: dict[str, Tensor]) -> Group | None:
        """Return the numbers of some answers under a decoding; None without answers."""
        if not members.any():
            return None
        cut = columns["cut"][members]
        kept = self._positions[members] - cut
        num_kept = float(kept.sum())
        return Group(
            answers=int(members.sum()),
            survived=int((cut == 0).sum()),
            tokens_kept=num_kept / float(self._positions[members].sum()),
            log_likelihood=(
                float(columns["log_likelihood"][members].sum()) / num_kept if num_kept else None
            ),
        )

    def _prediction(self, passed: Tensor, columns: dict[str, Tensor]) -> Prediction | None:
        log_weights = columns["log_likelihood"] - self._tally.log_base
        # An answer with a token cut is impossible under the decoding.
        log_weights = log_weights.masked_fill(columns["cut"] > 0, -torch.inf)
        if not (log_weights > -torch.inf).any():
            return None
        # The largest weight is 1: those of long answers would overflow. Ratios stay the same.
        weights = (log_weights - log_weights.max()).exp()
        return Prediction(
            success=ratio(weights * passed, weights, self._owners),
            effective_answers=float(weights.sum() ** 2 / weights.square().sum()),
        )


def ratio(numerators: Tensor, denominators: Tensor, owners: Tensor) -> Estimate:
    """Return a ratio of sums with its interval over problems (linearized)."""
    num_problems = int(owners.max()) + 1
    above, below = (
        torch.zeros(num_problems, dtype=torch.float64).index_add_(0, owners, values.double())
        for values in (numerators, denominators)
    )
    value = float(above.sum() / below.sum())
    residuals = above - value * below
    variance = num_problems / (num_problems - 1) * float(residuals.square().sum())
    error = math.sqrt(variance) / float(below.sum())
    half = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2) * error
    return Estimate(value=value, low=value - half, high=value + half)


def crossing(
    temperatures: Sequence[float], student: Sequence[float], base: Sequence[float]
) -> float | None:
    """Return the temperature above which the student stays below the base.

    It is interpolated between the values of a grid. It is 0 if the student never is above the base,
    and None if it is not below it at the highest temperature.
    """
    excess = [own - other for own, other in zip(student, base, strict=True)]
    if excess[-1] >= 0:
        return None
    if max(excess) <= 0:
        return 0.0
    pairs = list(itertools.pairwise(zip(temperatures, excess, strict=True)))
    for (low, above), (high, below) in reversed(pairs):
        if above >= 0:
            return low + (high - low) * above / (above - below)
    raise AssertionError("a grid with a value above 0 and one below has a crossing")
