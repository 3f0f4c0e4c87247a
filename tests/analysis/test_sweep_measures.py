"""Distributions of a sweep: distances of decoded models, and the ideal student."""

from __future__ import annotations

import itertools

import pytest
import torch

from ssd_ray.analysis import sweep_measures
from ssd_ray.analysis.operator import Setting, support
from ssd_ray.analysis.sweep_measures import COLUMNS, CellSums, Settings

VOCABULARY = 60
DECODINGS = (
    Setting(0.7, 20, 0.8),
    Setting(1.3, None, 1.0),
    Setting(1.0, None, 0.9),
    Setting(0.0, None, 1.0),
)
PLACE = {name: number for number, name in enumerate(COLUMNS)}


def _logits(seed: int, positions: int = 40) -> torch.Tensor:
    return 3 * torch.randn(positions, VOCABULARY, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("first", "second"), itertools.product(DECODINGS, DECODINGS))
def test_a_distance_is_the_total_variation(first: Setting, second: Setting) -> None:
    one, two = support(_logits(1), first), support(_logits(2), second)
    dense = [each.dense(VOCABULARY).exp() for each in (one, two)]
    expected = (dense[0] - dense[1]).abs().sum(1) / 2
    for pair in ((one, two), (two, one)):
        for vocabulary in (VOCABULARY, 10**9):
            if vocabulary > VOCABULARY and None in (one.ids, two.ids):
                continue
            distance = sweep_measures.variation(*pair, vocabulary)
            assert torch.allclose(distance, expected, atol=1e-12)


@pytest.mark.parametrize("training", [Setting(1.6, 10, 0.9), Setting(1.5, None, 1.0)])
def test_the_ideal_student_has_no_distance_to_itself(training: Setting) -> None:
    base = _logits(3)
    q = support(base, training).dense(VOCABULARY)
    # Minus infinity is the logit of a token that the ideal student never draws.
    sums = CellSums.empty(2, len(DECODINGS))
    rows = torch.arange(len(base)) % 2
    sums.add(rows, base, q.float(), Settings(training=training, decodings=DECODINGS))
    assert sums.positions.tolist() == [20.0, 20.0]
    decoded = sums.decoded.sum(0)
    assert decoded[:, PLACE["distance"]].max() < 1e-3
    assert torch.allclose(
        decoded[:, PLACE["entropy"]], decoded[:, PLACE["ideal_entropy"]], atol=1e-3
    )
    assert decoded[0, PLACE["base_distance"]] > 1


def test_a_model_equal_to_the_base_has_its_numbers() -> None:
    base = _logits(4)
    sums = CellSums.empty(1, len(DECODINGS))
    training = Setting(1.4, 12, 1.0)
    rows = torch.zeros(len(base), dtype=torch.int64)
    sums.add(rows, base, base, Settings(training=training, decodings=DECODINGS))
    decoded = sums.decoded[0]
    for own, other in (("entropy", "base_entropy"), ("distance", "base_distance")):
        assert torch.equal(decoded[:, PLACE[own]], decoded[:, PLACE[other]])
