"""The sums of a forecast against brute force over small vocabularies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssd_ray.analysis.decoded import DECODED
from ssd_ray.analysis.forecast import TRAINING, Tally, grid
from ssd_ray.analysis.operator import Setting
from ssd_ray.analysis.outlook import crossing, outlook, ratio
from ssd_ray.analysis.outlook_figures import Outlook
from ssd_ray.errors import UserError
from tests.support.logit_strategies import DISTINCT, TEMPERATURES, TIED, VOCABULARY
from tests.support.operator_reference import borderline, probabilities

CUTS = st.tuples(st.sampled_from([None, 1, 3, VOCABULARY]), st.sampled_from([1.0, 0.803, 0.502]))
SETTINGS = st.builds(lambda t, cut: Setting(t, *cut), TEMPERATURES, CUTS)
LOGITS = st.one_of(DISTINCT, TIED)


def _decoded(log_p: np.ndarray, setting: Setting) -> np.ndarray:
    """Return a distribution decoded again, over the vocabulary; -inf excludes a token."""
    kept = np.flatnonzero(log_p > -np.inf)
    scores = log_p[kept] / setting.temperature
    decoded = np.zeros(len(log_p))
    decoded[kept] = probabilities(scores, setting.top_k or len(scores), setting.top_p)
    return decoded


def _assume_clear(log_p: np.ndarray, setting: Setting) -> None:
    """Leave out cases in which rounding may put a token on either side of top-p."""
    scores = log_p[log_p > -np.inf] / setting.temperature
    assume(not borderline(scores, setting.top_k or len(scores), setting.top_p))


def _log(p: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(p)


def _entropy(p: np.ndarray) -> float:
    return float(-(p[p > 0] * np.log(p[p > 0])).sum())


def _columns(p: np.ndarray, token: int) -> list[float]:
    cut = p[token] == 0
    return [0.0 if cut else math.log(p[token]), cut, (p > 0).sum(), _entropy(p)]


@settings(max_examples=100, deadline=None)
@given(LOGITS, SETTINGS, SETTINGS, st.integers(0, VOCABULARY - 1))
def test_sums_are_those_of_distributions_decoded_twice(
    logits: list[float], train: Setting, evaluate: Setting, token: int
) -> None:
    row = np.array(logits)
    log_p0 = _log(np.exp(row) / np.exp(row).sum())
    _assume_clear(log_p0, train)
    _assume_clear(log_p0, evaluate)
    q = _decoded(log_p0, train)
    _assume_clear(_log(q), evaluate)
    student = _decoded(_log(q), evaluate)
    tally = Tally(grid([train], evaluate, []), 1)
    tally.add(torch.tensor([0]), torch.tensor([token]), torch.tensor([logits], dtype=torch.float64))
    inside = q > 0
    start = float(-(q[inside] * log_p0[inside]).sum())
    size = inside.sum()
    expected = [size, size == 1, size == 2, np.exp(log_p0)[inside].sum(), start, _entropy(q)]
    np.testing.assert_allclose(tally.training[0, 0], expected, atol=1e-9)
    np.testing.assert_allclose(tally.student[0, 0, 0], _columns(student, token), atol=1e-9)
    base = _decoded(log_p0, evaluate)
    np.testing.assert_allclose(tally.base[0, 0], _columns(base, token), atol=1e-9)
    assert float(tally.log_base[0]) == pytest.approx(float(log_p0[token]), abs=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.lists(LOGITS, min_size=4, max_size=4), SETTINGS, SETTINGS, st.integers(1, 3))
def test_sums_are_the_same_however_positions_are_divided(
    rows: list[list[float]], train: Setting, evaluate: Setting, split: int
) -> None:
    logits, tokens = torch.tensor(rows, dtype=torch.float64), torch.tensor([0, 3, 1, 8])
    owners = torch.tensor([0, 0, 1, 1])
    chosen = grid([train], evaluate, [0.5, 1.0])
    joined, divided = Tally(chosen, 2), Tally(chosen, 2)
    joined.add(owners, tokens, logits)
    for part in (slice(split), slice(split, None)):
        divided.add(owners[part], tokens[part], logits[part])
    for name in ("positions", "log_base", "entropy", "training", "student", "base"):
        torch.testing.assert_close(getattr(joined, name), getattr(divided, name), atol=1e-9, rtol=0)


def _sequences(length: int = 2, vocabulary: int = 3) -> Tensor:
    return torch.cartesian_prod(*[torch.arange(vocabulary)] * length)


def _every_sequence(train: Setting, evaluate: Setting) -> tuple[Tally, Tensor]:
    """Return the tally of every sequence of two tokens, and the logits of a tiny model."""
    generator = torch.Generator().manual_seed(5)
    first = torch.randn(3, generator=generator, dtype=torch.float64)
    second = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    tally = Tally(grid([train], evaluate, []), 9)
    for number, (one, two) in enumerate(_sequences().tolist()):
        logits = torch.stack([first, second[one]])
        tally.add(torch.tensor([number, number]), torch.tensor([one, two]), logits)
    return tally, tally.student[:, 0, 0]


@pytest.mark.parametrize("evaluate", [Setting(1.0, 2, 1.0), Setting(0.7), Setting(1.3, None, 0.9)])
@pytest.mark.parametrize("train", [Setting(1.6, 2, 1.0), Setting(0.8), Setting(1.2, None, 0.7)])
def test_likelihoods_of_all_surviving_sequences_sum_to_one(
    train: Setting, evaluate: Setting
) -> None:
    tally, student = _every_sequence(train, evaluate)
    for sums in (student, tally.base[:, 0]):
        columns = dict(zip(DECODED, sums.unbind(1), strict=True))
        survives = columns["cut"] == 0
        assert float(columns["log_likelihood"][survives].exp().sum()) == pytest.approx(1)
    assert float(tally.log_base.exp().sum()) == pytest.approx(1)


def test_training_without_tempering_or_truncation_asks_nothing() -> None:
    tally, _ = _every_sequence(Setting(), Setting(0.8, 2, 0.9))
    columns = dict(zip(TRAINING, tally.training[:, 0].unbind(1), strict=True))
    assert (columns["start"] - columns["floor"]).tolist() == [0.0] * 9
    assert torch.equal(tally.student[:, 0], tally.base)


def _forecast(accepted: list[bool] | None = None) -> Outlook:
    tally = Tally(grid([Setting(1.0, 2)], Setting(0.9, 2, 1.0), [0.4, 1.4]), 4)
    generator = torch.Generator().manual_seed(1)
    for answer in range(4):
        logits = 2 * torch.randn(3, 6, generator=generator)
        tokens = logits.argmax(1) if answer < 3 else logits.argmin(1)
        tally.add(torch.full((3,), answer), tokens, logits)
    return outlook(tally, ["a", "a", "b", "b"], accepted)


def test_answers_are_grouped_by_their_outcome() -> None:
    numbers = _forecast([True, False, True, False])
    (cell,) = numbers.training
    assert numbers.accepted == 2
    decoded = cell.student[1]
    assert decoded.temperature == 0.9
    assert decoded.accepted is not None
    assert decoded.rejected is not None
    assert (decoded.accepted.survived, decoded.rejected.survived) == (2, 1)
    assert decoded.rejected.tokens_kept == 0.5
    # Of the three answers left, two passed.
    assert decoded.prediction is not None
    assert 0 < decoded.prediction.success.value < 1
    assert decoded.prediction.effective_answers <= 3


def test_without_tests_all_answers_are_one_group() -> None:
    (cell,) = _forecast().training
    assert all(each.accepted is None and each.prediction is None for each in cell.student)
    assert {each.rejected.answers for each in cell.student if each.rejected} == {4}


def test_predicted_success_is_that_of_the_decoding() -> None:
    """Sequences weighted by p0, as if drawn from it, give the exact success of any decoding."""
    train, evaluate = Setting(1.5, 2), Setting(0.8, None, 0.95)
    tally, student = _every_sequence(train, evaluate)
    passed = torch.tensor([number in (0, 4, 5, 7) for number in range(9)])
    survives = student[:, 1] == 0
    exact = float(student[:, 0].exp()[survives & passed].sum())
    copies = (tally.log_base.exp() * 40_000).round().long()
    drawn = Tally(tally.grid, int(copies.sum()))
    for name in ("positions", "log_base", "entropy", "training", "student", "base"):
        setattr(drawn, name, getattr(tally, name).repeat_interleave(copies, dim=0))
    outcomes = passed.repeat_interleave(copies)
    problems = [str(number % 50) for number in range(len(outcomes))]
    predicted = outlook(drawn, problems, outcomes.tolist()).training[0].student[0].prediction
    assert predicted is not None
    assert predicted.success.value == pytest.approx(exact, abs=1e-4)
    assert predicted.is_ranked


def test_intervals_of_ratios_cover_the_truth() -> None:
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(400):
        sizes = torch.randint(20, 200, (40,), generator=generator).double()
        rates = torch.rand(40, generator=generator, dtype=torch.float64)
        estimate = ratio(rates * sizes, sizes, torch.arange(40))
        covered += estimate.low <= 0.5 <= estimate.high
    assert 0.91 <= covered / 400 <= 0.98


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=8))
def test_the_student_is_below_the_base_above_the_crossing(excess: list[int]) -> None:
    grid_of_values = [float(number + 1) for number in range(len(excess))]
    base = [10.0] * len(excess)
    place = crossing(grid_of_values, [10.0 + each for each in excess], base)
    if place is None:
        assert excess[-1] >= 0
    elif place == 0:
        assert max(excess) <= 0
    else:
        below = [each for t, each in zip(grid_of_values, excess, strict=True) if t > place]
        before = [each for t, each in zip(grid_of_values, excess, strict=True) if t <= place]
        assert below
        assert max(below) < 0
        assert before[-1] >= 0


def test_the_crossing_is_that_of_a_fine_grid() -> None:
    """A hot student is more diverse at low temperatures, and bounded at high ones."""
    logits = torch.tensor([[3.0, 2.0, 0.0, -0.5, -1.0, -1.0]], dtype=torch.float64)
    train = Setting(1.8, 3)

    def measured(temperatures: list[float]) -> float | None:
        tally = Tally(grid([train], Setting(0.5), temperatures), 2)
        tally.add(torch.tensor([0, 1]), torch.tensor([0, 1]), logits.repeat(2, 1))
        return outlook(tally, ["a", "b"], None).training[0].crossing

    fine = measured([number / 100 for number in range(20, 200)])
    coarse = measured([0.2, 0.4, 0.6, 0.8, 1.0, 1.2, 1.4, 1.6, 1.8])
    assert fine is not None
    assert coarse is not None
    p0 = logits[0].numpy() - np.log(np.exp(logits[0].numpy()).sum())
    q = _log(_decoded(p0, train))
    below, above = (
        _entropy(_decoded(q, Setting(fine + step))) - _entropy(_decoded(p0, Setting(fine + step)))
        for step in (-0.02, 0.02)
    )
    assert below > 0 > above
    assert coarse == pytest.approx(fine, abs=0.02)


def test_mistakes_are_refused() -> None:
    chosen = grid([Setting(1.0, 7)], Setting(), [])
    with pytest.raises(UserError, match=r"top_k 7 is above the vocabulary of 6 tokens: use"):
        Tally(chosen, 1).add(torch.tensor([0]), torch.tensor([0]), torch.zeros(1, 6))
    tally = Tally(grid([Setting()], Setting(), []), 2)
    broken = torch.tensor([[0.0, 1.0], [0.0, math.nan]])
    with pytest.raises(UserError, match="logits of position 1 have nan"):
        tally.add(torch.tensor([0, 1]), torch.tensor([0, 0]), broken)
    with pytest.raises(UserError, match=r"1 problem, and an interval needs two or more: raise"):
        outlook(tally, ["a", "a"], None)
