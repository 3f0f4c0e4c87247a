"""Held-out measures, against brute force on tiny vocabularies and the paper's toy numbers."""

from __future__ import annotations

import itertools
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.analysis.operator import distribution, support
from ssd_ray.config import Decoding
from ssd_ray.errors import UserError
from ssd_ray.schema import Example
from ssd_ray.training.observe.distributions import (
    MEASURES,
    NUM_COLUMNS,
    SIGNALS,
    measure,
    summarize,
)

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from fixed_point import memorizing_floor


def _softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(value - max(logits)) for value in logits]
    return [power / sum(powers) for power in powers]


def _drawn_from(logits: list[float], decoding: Decoding) -> list[float]:
    """Return q by the words of the paper's appendix A, for one row, in Python's floats."""
    tempered = [value / decoding.temperature for value in logits]
    if decoding.top_k is not None and decoding.top_k < len(logits):
        kth = sorted(tempered)[-decoding.top_k]
        tempered = [value if value >= kth else -math.inf for value in tempered]
    probabilities = _softmax(tempered)
    if decoding.top_p < 1:
        order, mass = sorted(range(len(logits)), key=lambda index: probabilities[index]), 0.0
        for index in order[:-1]:
            mass += probabilities[index]
            if mass > 1 - decoding.top_p:
                break
            tempered[index] = -math.inf
    return _softmax(tempered)


def _entropy(distribution: list[float]) -> float:
    return -sum(value * math.log(value) for value in distribution if value > 0)


def _brute(
    model: list[float], base: list[float], drawn: int, decoding: Decoding
) -> dict[str, float]:
    p, p0, q = _softmax(model), _softmax(base), _drawn_from(base, decoding)
    kept = [value > 0 for value in q]
    mass = sum(value for value, inside in zip(p, kept, strict=True) if inside)
    head = [value / mass for value, inside in zip(p, kept, strict=True) if inside]
    tail = [value / (1 - mass) for value, inside in zip(p, kept, strict=True) if not inside]
    temperature = decoding.temperature
    powers = [value ** (1 / temperature) for value in head]
    aligned = [power / sum(powers) for power in powers]
    inside = [value for value in q if value > 0]
    return {
        "nll": -math.log(p[drawn]),
        "floor": _entropy(q),
        "support_compression": -math.log(mass),
        "reshaping": -temperature * math.log(sum(powers)),
        "alignment": temperature
        * sum(a * math.log(a / b) for a, b in zip(inside, aligned, strict=True)),
        "constant": temperature * _entropy(q),
        "cross_entropy": -sum(a * math.log(b) for a, b in zip(q, p, strict=True)),
        "kl_to_base": sum(a * math.log(a / b) for a, b in zip(p, p0, strict=True)),
        "entropy": _entropy(p),
        "entropy_gate": _entropy([mass, 1 - mass]) if tail else 0.0,
        "entropy_head": mass * _entropy(head),
        "entropy_tail": (1 - mass) * _entropy(tail),
        "kept_mass": mass,
        "base_kept_mass": sum(value for value, inside in zip(p0, kept, strict=True) if inside),
        "outside_support": float(not kept[drawn]),
    }


def _means(model: Any, base: Any, drawn: Any, decoding: Decoding) -> dict[str, Any]:
    return summarize(measure(model, base, drawn, decoding).sum(0), len(drawn))


LOGITS = st.lists(
    st.integers(-60, 60).map(lambda tenths: tenths / 10), min_size=7, max_size=7, unique=True
)
DECODINGS = st.builds(
    Decoding,
    temperature=st.sampled_from([0.6, 0.9, 1.0, 1.6]),
    top_k=st.sampled_from([None, 1, 3, 20]),
    top_p=st.sampled_from([1.0, 0.951, 0.803, 0.502]),
)


@pytest.mark.slow
@settings(deadline=None, max_examples=300)
@given(model=LOGITS, base=LOGITS, drawn=st.integers(0, 6), decoding=DECODINGS)
def test_every_measure_is_what_brute_force_finds(
    model: list[float], base: list[float], drawn: int, decoding: Decoding
) -> None:
    ours = _means(torch.tensor([model]), torch.tensor([base]), torch.tensor([drawn]), decoding)
    theirs = _brute(model, base, drawn, decoding)
    assert set(theirs) == set(MEASURES) == set(ours) - set(SIGNALS)
    for name in MEASURES:
        assert ours[name] == pytest.approx(theirs[name], abs=2e-5), name


@settings(deadline=None)
@given(model=LOGITS, base=LOGITS, decoding=DECODINGS)
def test_cross_entropy_is_above_the_floor_and_entropy_adds_up(
    model: list[float], base: list[float], decoding: Decoding
) -> None:
    measured = _means(torch.tensor([model]), torch.tensor([base]), torch.tensor([0]), decoding)
    assert measured["cross_entropy"] >= measured["floor"] - 1e-6
    assert measured["kl_to_base"] >= -1e-6
    terms = ("support_compression", "reshaping", "alignment", "constant")
    assert measured["cross_entropy"] == pytest.approx(
        sum(measured[name] for name in terms), abs=1e-9
    )
    assert measured["entropy"] == pytest.approx(
        sum(measured[f"entropy_{part}"] for part in ("gate", "head", "tail")), abs=1e-9
    )


def test_the_floor_is_the_samplers_mean_loss_on_its_own_draws() -> None:
    """By drawing: -log q averages to H(q), and -log p to the higher cross-entropy."""
    generator = torch.Generator().manual_seed(0)
    base, model = torch.randn(2, 1, 50, generator=generator) * 2
    decoding = Decoding(temperature=1.6, top_k=20, top_p=0.8)
    q = distribution(base, decoding)[0]
    drawn = torch.multinomial(q, 40_000, replacement=True, generator=generator)
    named = _means(model.expand(len(drawn), -1), base.expand(len(drawn), -1), drawn, decoding)
    assert float(-q[drawn].log().mean()) == pytest.approx(named["floor"], abs=0.02)
    assert named["nll"] == pytest.approx(named["cross_entropy"], abs=0.03)
    assert named["outside_support"] == 0


def test_a_base_has_no_divergence_from_itself() -> None:
    logits = torch.randn(5, 30)
    plain = _means(logits, logits, torch.arange(5), Decoding())
    assert plain["kl_to_base"] == 0
    assert plain["cross_entropy"] == pytest.approx(plain["floor"], abs=1e-6)
    assert plain["kept_mass"] == pytest.approx(1.0)
    assert plain["entropy_gate"] == 0
    assert plain["alignment"] == plain["reshaping"] == plain["support_compression"] == 0
    assert plain["gap_closed"] is None
    assert plain["tail_removed"] is None
    greedy = _means(logits, logits, logits.argmax(1), Decoding(temperature=0))
    assert greedy["floor"] == 0
    assert greedy["nll"] == pytest.approx(greedy["cross_entropy"])


@pytest.mark.parametrize("decoding", [Decoding(temperature=1.6, top_k=20, top_p=0.8), Decoding()])
def test_measures_do_not_depend_on_chunks_and_workers(decoding: Decoding) -> None:
    generator = torch.Generator().manual_seed(7)
    base = 3 * torch.randn(1500, 700, generator=generator)
    model = base + torch.randn(base.shape, generator=generator)
    drawn = base.argmax(1)
    together = measure(model, base, drawn, decoding)
    order = torch.randperm(1500, generator=generator)
    apart = [
        measure(model[rows], base[rows], drawn[rows], decoding)
        for rows in order.split([1, 999, 500])
    ]
    torch.testing.assert_close(torch.cat(apart), together[order], rtol=1e-9, atol=1e-9)
    workers = sum(part.sum(0) for part in apart)
    for name, value in summarize(workers, 1500).items():
        assert value == pytest.approx(summarize(together.sum(0), 1500)[name], abs=1e-9), name


def test_a_broken_position_is_named_by_its_number_among_all() -> None:
    base = torch.zeros(1500, 700)
    model = base.clone()
    model[1403, 5] = math.nan
    with pytest.raises(UserError, match=r"^logits of position 1403 have nan as their largest"):
        measure(model, base, torch.zeros(1500, dtype=torch.int64), Decoding())
    none = measure(base[:0], base[:0], torch.zeros(0, dtype=torch.int64), Decoding())
    assert none.shape == (0, NUM_COLUMNS)


def _geometric(head: list[float], ratio: float, vocabulary: int = 16) -> torch.Tensor:
    tail = [ratio**power for power in range(vocabulary - len(head))]
    rest = 1 - sum(head)
    return torch.tensor([[*head, *(rest * value / sum(tail) for value in tail)]]).log()


def test_the_papers_toy_distributions_are_reproduced() -> None:
    """2604.01193, C.4, with T 0.9 and top-p 0.85.

    The first tokens have 94.8 and 5.2 percent at its `lock`, 34.4 and 16.9 at its `fork`.
    """
    decoding = Decoding(temperature=0.9, top_p=0.85)
    lock = distribution(_geometric([0.750, 0.055, 0.050, 0.037], 0.75), decoding)[0]
    assert [round(100 * value, 1) for value in lock.tolist()[:3]] == [94.8, 5.2, 0.0]
    fork = distribution(_geometric([0.148, 0.280, 0.140, 0.144], 0.5), decoding)[0]
    assert int((fork > 0).sum()) == 5
    assert [round(100 * value, 1) for value in fork.tolist()[:2]] == [16.9, 34.4]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_ties_at_the_k_th_place_all_stay(order: tuple[int, ...]) -> None:
    logits: Any = torch.tensor([2.0, 1.0, 1.0])[list(order)][None]
    assert support(logits, Decoding(top_k=2)).sizes.tolist() == [3]


@settings(deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 3), min_size=3, max_size=3), min_size=1, max_size=8),
    st.integers(0, 2**31),
)
def test_no_model_of_known_samples_is_below_the_memorizing_floor(
    samples: list[list[int]], seed: int
) -> None:
    """Counting next tokens per prefix attains the floor; random models are above it."""
    rows = [
        Example(prompt_id="p", sample_index=0, input_ids=(0, *answer), num_prompt_tokens=1)
        for answer in samples
    ]
    following: dict[tuple[int, ...], list[int]] = {}
    for answer in samples:
        for end in range(3):
            following.setdefault(tuple(answer[:end]), []).append(answer[end])
    counted = random = 0.0
    draw = torch.Generator().manual_seed(seed)
    for tokens in following.values():
        guess = torch.rand(3, generator=draw).softmax(0).tolist()
        counted -= sum(math.log(tokens.count(token) / len(tokens)) for token in tokens)
        random -= sum(math.log(guess[token - 1]) for token in tokens)
    floor = memorizing_floor(rows) * 3 * len(samples)
    assert floor == pytest.approx(counted, abs=1e-9)
    assert random >= floor - 1e-9
