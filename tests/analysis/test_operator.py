"""The operator against its definition, and its invariances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from ssd_ray.analysis.decode_only import decode_interval, normal_form, prefix_mass
from ssd_ray.analysis.operator import (
    Ranking,
    Setting,
    chunks,
    distribution,
    require_finite,
    support,
)
from ssd_ray.analysis.theory import LogProbabilities
from ssd_ray.errors import UserError
from tests.support.logit_strategies import (
    DISTINCT,
    SETTINGS,
    TEMPERATURES,
    TIED,
    VOCABULARY,
    near_border,
    row,
)
from tests.support.operator_reference import probabilities, tempered


@settings(max_examples=300)
@given(st.one_of(DISTINCT, TIED), SETTINGS)
def test_the_operator_follows_its_definition(logits: list[float], setting: Setting) -> None:
    assume(not near_border(logits, setting))
    scores = tempered(np.array(logits), setting.temperature)
    expected = probabilities(scores, setting.top_k or VOCABULARY, setting.top_p)
    for dtype in (torch.float64, torch.float32):
        q = distribution(row(logits, dtype), setting)[0]
        assert np.array_equal(q.numpy() > 0, expected > 0)
        assert q.numpy() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("top_k", [7, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_temperatures_cut_together_equal_each_alone(top_k: int | None, dtype: torch.dtype) -> None:
    """Flat rows fetch more logits at some temperatures and not at others."""
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(5, 3000, generator=generator).to(dtype) * torch.tensor([[0.1], *[[4]] * 4])
    ranking, temperatures = Ranking(logits), (0.3, 1.0, 1.7, 2.0)
    together = ranking.supports(temperatures, top_k, 0.9).dense(3000).chunk(len(temperatures))
    for temperature, cut in zip(temperatures, together, strict=True):
        alone = ranking.support(Setting(temperature, top_k, 0.9)).dense(3000)
        assert torch.equal(cut > -torch.inf, alone > -torch.inf)
        assert torch.allclose(cut.exp(), alone.exp(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale", [0.0, 0.02, 1.0, 6.0])
@pytest.mark.parametrize("setting", [Setting(1.6, 20, 0.8), Setting(1.3, None, 0.9), Setting(2.0)])
def test_supports_of_any_width_match_a_sort_of_the_vocabulary(
    scale: float, setting: Setting
) -> None:
    """Flat logits keep thousands of tokens, peaked ones a few: both in one batch."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(6, 5000, generator=generator) * scale
    logits[:3] *= 4
    together = distribution(logits, setting)
    for scores, q in zip(logits.numpy(), together.numpy(), strict=True):
        expected = probabilities(
            tempered(scores, setting.temperature), setting.top_k or 5000, setting.top_p
        )
        # Of many equal logits at the border, rounding decides on one.
        assert abs(int((q > 0).sum()) - int((expected > 0).sum())) <= 1
        assert np.abs(q - expected).sum() < 1e-3


@settings(max_examples=100)
@given(
    st.lists(st.one_of(DISTINCT, TIED), min_size=2, max_size=5),
    SETTINGS,
    st.floats(-50, 50),
    st.permutations(range(VOCABULARY)),
)
@pytest.mark.slow
def test_constants_order_and_batch_change_nothing(
    batch: list[list[float]], setting: Setting, constant: float, order: list[int]
) -> None:
    assume(not any(near_border(logits, setting) for logits in batch))
    together = torch.tensor(batch, dtype=torch.float64)
    q = distribution(together, setting)
    close = {"rtol": 0.0, "atol": 1e-9}
    torch.testing.assert_close(distribution(together + constant, setting), q, **close)
    for index, logits in enumerate(batch):
        torch.testing.assert_close(distribution(row(logits), setting)[0], q[index], **close)
        if len(set(logits)) == VOCABULARY:
            permuted = distribution(row(logits)[:, order], setting)[0]
            torch.testing.assert_close(permuted, q[index, order], **close)
        padded = torch.nn.functional.pad(row(logits), (0, 200), value=-math.inf)
        torch.testing.assert_close(distribution(padded, setting)[0, :VOCABULARY], q[index], **close)


@settings(max_examples=200)
@given(st.one_of(DISTINCT, TIED), SETTINGS, TEMPERATURES)
def test_survivors_never_fall_with_temperature(
    logits: list[float], setting: Setting, warmer: float
) -> None:
    other = Setting(warmer, setting.top_k, setting.top_p)
    assume(not near_border(logits, setting))
    assume(not near_border(logits, other))
    sizes = {each.temperature: int(support(row(logits), each).sizes) for each in (setting, other)}
    assert sizes[min(sizes)] <= sizes[max(sizes)]


Step = Callable[[Tensor], Tensor]


@pytest.mark.parametrize("order", list(itertools.permutations(["T", "k", "p"])))
@settings(max_examples=60)
@given(DISTINCT, TEMPERATURES, st.sampled_from([1, 2, 5]), st.sampled_from([0.951, 0.803, 0.502]))
def test_any_order_of_the_operators_has_the_normal_form(
    order: tuple[str, ...], logits: list[float], temperature: float, k: int, p: float
) -> None:
    """2604.01193, Eq. 35: a power of the base on a prefix of its ranking."""
    alone = {"T": Setting(temperature), "k": Setting(top_k=k), "p": Setting(top_p=p)}
    log_q = row(logits)
    for name in order:
        log_q = support(log_q, alone[name]).dense(VOCABULARY)
    size = int((log_q > -torch.inf).sum())
    form = normal_form(row(logits), 1 / temperature, size)
    torch.testing.assert_close(log_q.exp(), form, rtol=0, atol=1e-9)
    if order == ("T", "k", "p"):
        torch.testing.assert_close(distribution(row(logits), Setting(temperature, k, p)), form)


def test_the_normal_form_of_power_zero_is_uniform_on_its_prefix() -> None:
    assert normal_form(row([3.0, 1.0, 2.0, 0.0]), 0.0, 2).tolist() == [[0.5, 0.0, 0.5, 0.0]]


@settings(max_examples=60)
@given(DISTINCT, st.integers(1, VOCABULARY), TEMPERATURES, TEMPERATURES)
def test_the_mass_of_a_prefix_falls_with_temperature(
    logits: list[float], size: int, first: float, second: float
) -> None:
    """2604.01193, Eq. 39."""
    low, high = sorted((first, second))
    z = row(logits)[0]
    assert prefix_mass(z, size, high) <= prefix_mass(z, size, low) + 1e-12
    assert prefix_mass(z, size, low, top_k=size) == pytest.approx(1)


def test_values_of_top_p_in_the_interval_serve_fork_and_lock() -> None:
    fork, lock = row([2.0, 1.9, 0.0, -1.0])[0], row([6.0, 1.0, 0.5, 0.0])[0]
    interval = decode_interval((fork, 2), (lock, 1), 1.0)
    assert interval.width == interval.high - interval.low > 0
    for top_p, serves in (
        (interval.low - 1e-4, False),
        (interval.low + 1e-4, True),
        (interval.high - 1e-4, True),
        (interval.high + 1e-4, False),
    ):
        kept_of_fork = int(support(fork[None], Setting(top_p=top_p)).sizes)
        kept_of_lock = int(support(lock[None], Setting(top_p=top_p)).sizes)
        assert (kept_of_fork >= 2 and kept_of_lock == 1) is serves


def test_ties_of_the_kth_stay_and_the_largest_survives_any_p() -> None:
    tied = row([2.0, 1.0, 1.0, 1.0, 0.0])
    assert support(tied, Setting(top_k=2)).sizes.tolist() == [4]
    assert support(tied, Setting(top_k=2, top_p=1e-9)).ids.tolist() == [[0]]
    assert support(tied, Setting(0)).ids.tolist() == [[0]]
    # All 40 ties of the first lie beyond the logits that k alone would fetch.
    wide = torch.zeros(1, 3000)
    wide[0, :100] = 1.0
    assert support(wide, Setting(top_k=1)).sizes.tolist() == [100]


def test_of_equal_logits_at_the_border_the_larger_ids_stay() -> None:
    assert distribution(row([0.0, 0.0, 0.0, 0.0]), Setting(top_p=0.4)).tolist() == [
        [0.0, 0.0, 0.5, 0.5]
    ]


def test_a_k_above_the_vocabulary_keeps_all() -> None:
    logits = row([1.0, 0.5, 0.0])
    above, none = (support(logits, Setting(1.2, k)) for k in (3000, None))
    assert torch.equal(above.log_q, none.log_q)
    assert above.complete.tolist() == [True]


def test_excluded_tokens_are_in_no_support() -> None:
    logits = row([1.0, -math.inf, 0.5, -math.inf])
    for setting in (Setting(), Setting(top_k=3), Setting(1.5, 4, 0.999), Setting(1.5)):
        kept = support(logits, setting)
        assert kept.sizes.tolist() == [2]
        assert kept.complete.tolist() == [False]
        assert kept.dense(4)[0].isfinite().tolist() == [True, False, True, False]


def test_a_position_without_tokens_to_rank_is_no_error() -> None:
    assert distribution(torch.zeros(0, 7), Setting(1.6, 3, 0.8)).shape == (0, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("taken", [Ranking, LogProbabilities])
def test_broken_logits_are_refused_with_their_position(
    taken: Callable[[Tensor], object], value: float
) -> None:
    logits = torch.zeros(5, 8)
    logits[3, 2] = value
    with pytest.raises(UserError, match=f"^logits of position 3 have {value} as their largest"):
        taken(logits)


def test_a_position_is_counted_from_the_start_of_all() -> None:
    empty = torch.full((2, 4), -math.inf)
    empty[0, 1] = 0.0
    with pytest.raises(UserError, match=r"position 101 have -inf as their largest: check"):
        require_finite(empty.amax(1), start=100)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"temperature": 1e-6}, "temperature 1e-06 is out of range: use 0 .* or 1e-05 and more"),
        ({"temperature": -1.0}, r"temperature -1\.0 is out of range"),
        ({"temperature": math.nan}, "temperature nan is out of range"),
        ({"temperature": math.inf}, "temperature inf is out of range"),
        ({"top_k": 0}, "top_k 0 keeps no token: use 1 or more, or null for all"),
        ({"top_p": 0.0}, r"top_p 0\.0 is no mass: use more than 0 and up to 1"),
        ({"top_p": 1.01}, r"top_p 1\.01 is no mass"),
        ({"top_p": math.nan}, "top_p nan is no mass"),
    ],
)
def test_a_setting_out_of_range_is_refused_in_a_sentence(
    numbers: dict[str, float], message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Setting(**numbers)


def test_chunks_cover_all_positions_in_bounded_memory() -> None:
    slices = list(chunks(4096, 151_936))
    assert [index for part in slices for index in range(4096)[part]] == list(range(4096))
    assert max(part.stop - part.start for part in slices) * 151_936 * 8 <= 64 << 20
    assert list(chunks(1, 1 << 30)) == [slice(0, 1)]
