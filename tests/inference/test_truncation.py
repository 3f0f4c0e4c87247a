"""Temperature, top-k, then top-p, against a plain definition and against vLLM's own code."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.analysis.operator import Setting, distribution
from ssd_ray.config import Decoding, EngineConfig
from ssd_ray.inference.vllm.arguments import truncates_exactly
from ssd_ray.inference.vllm.truncation import Bounds, truncate
from tests.support.device_steps import DeviceSteps
from tests.support.operator_reference import borderline, survivors


def _kept(
    logits: np.ndarray, top_k: list[int], top_p: list[float], may_read: bool = True
) -> list[set[int]]:
    """Return the ids kept by `truncate`, row by row, and check their logits."""
    before = torch.tensor(logits, dtype=torch.float32)
    bounds = Bounds(list(zip(top_k, top_p, strict=True)), before.shape[1], may_read=may_read)
    after = truncate(before.clone(), bounds)
    kept = torch.isfinite(after)
    assert torch.equal(after[kept], before[kept])
    return [set(np.flatnonzero(row).tolist()) for row in kept.numpy()]


@st.composite
def batches(draw: st.DrawFn) -> tuple[np.ndarray, list[int], list[float]]:
    """Logits with and without ties, flat and peaked, each row with a k and a p of its own."""
    rows = draw(st.integers(1, 5))
    vocabulary = draw(st.sampled_from([1, 2, 7, 40, 700, 3000]))
    noise = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = noise.normal(
        scale=draw(st.sampled_from([0.0, 0.3, 1.0, 4.0])), size=(rows, vocabulary)
    )
    step = draw(st.sampled_from([0.0, 0.0625, 0.5, 2.0]))
    logits = (np.round(logits / step) * step if step else logits).astype(np.float32)
    some = st.one_of(st.just(vocabulary), st.integers(1, vocabulary), st.just(vocabulary + 9))
    top_k = draw(st.lists(some, min_size=rows, max_size=rows))
    top_p = draw(
        st.lists(
            st.sampled_from([1.0, 0.99, 0.95, 0.8, 0.5, 0.1, 1e-6]), min_size=rows, max_size=rows
        )
    )
    return logits, top_k, top_p


@settings(max_examples=300, deadline=None)
@given(batches(), st.booleans())
@pytest.mark.slow
def test_survivors_match_the_definition(
    batch: tuple[np.ndarray, list[int], list[float]], may_read: bool
) -> None:
    kept = _kept(*batch, may_read=may_read)
    for row, (scores, k, p, ids) in enumerate(zip(*batch, kept, strict=True)):
        if not may_read and p < 1 and _num_ties(scores, k) > 32:
            continue
        assert ids == survivors(scores, k, p) or borderline(scores, k, p), row


def _num_ties(scores: np.ndarray, k: int) -> int:
    """Count the logits equal to the k-th, beyond the k largest."""
    if k >= len(scores):
        return 0
    return int((scores >= np.sort(scores)[-k]).sum()) - k


@pytest.mark.parametrize(
    ("k", "p", "most"), [(20, 0.8, 15), (20, 1.0, 15), (None, 0.95, 15), (None, 1.0, 0)]
)
def test_a_step_on_a_gpu_reads_nothing_back(k: int | None, p: float, most: int) -> None:
    """A read makes the driver wait for the device, and ends vLLM's asynchronous scheduling."""
    scores = torch.randn(64, 5000)
    bounds = Bounds([(k, p)] * 64, 5000, may_read=False)
    with DeviceSteps() as counter:
        truncate(scores, bounds)
    assert counter.count <= most


@pytest.mark.parametrize(
    "read",
    [
        lambda scores: scores.max().item(),
        lambda scores: scores.nonzero(),
        lambda scores: scores[scores > 0],
        lambda scores: scores.masked_select(scores > 0),
        lambda scores: scores.unique(),
    ],
    ids=["item", "nonzero", "mask", "masked_select", "unique"],
)
def test_operations_that_wait_for_the_device_are_refused(
    read: Callable[[torch.Tensor], object],
) -> None:
    with pytest.raises(AssertionError, match="aten"), DeviceSteps():
        read(torch.randn(10))


def test_a_mixed_batch_on_a_gpu_reads_nothing_back() -> None:
    scores = torch.randn(6, 5000)
    chosen = [(20, 0.8), (None, 0.9), (None, 1.0), (7, 1.0), (5000, 0.5), (40, 0.95)]
    after = scores.clone()
    bounds = Bounds(chosen, 5000, may_read=False)
    with DeviceSteps() as counter:
        truncate(after, bounds)
    assert counter.count <= 33
    assert torch.equal(after, truncate(scores.clone(), Bounds(chosen, 5000)))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(batches())
def test_survivors_match_vllm(batch: tuple[np.ndarray, list[int], list[float]]) -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    logits, top_k, top_p = batch
    k = torch.tensor(top_k, dtype=torch.int32).clamp(max=logits.shape[1])
    theirs = apply_top_k_top_p_pytorch(
        torch.tensor(logits), k, torch.tensor(top_p, dtype=torch.float32)
    )
    for scores, k_row, p, kept, other in zip(
        logits, top_k, top_p, _kept(*batch), torch.isfinite(theirs).numpy(), strict=True
    ):
        # vLLM in a batch with a smaller p drops tokens whose mass float32 rounds to zero.
        if p == 1:
            assert set(np.flatnonzero(other)) <= kept
        # Its sort fixes the number of equal logits at the border of p, but not which of them stay.
        else:
            mine = np.sort(scores[list(kept)])
            assert np.array_equal(mine, np.sort(scores[other])) or borderline(scores, k_row, p)


def _unstable(
    scores: torch.Tensor, dim: int = -1, *, stable: bool = False, descending: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sort as a device may: among equal values the last comes first, unless stable."""
    if stable:
        return torch.sort(scores, dim=dim, descending=descending, stable=True)
    values, order = torch.sort(scores.flip(dim), dim=dim, descending=descending, stable=True)
    return values, scores.shape[dim] - 1 - order


@settings(max_examples=300, deadline=None)
@given(batches(), st.sampled_from([0.3, 0.7, 1.0, 1.6, 2.0]), st.booleans())
@pytest.mark.slow
def test_the_sampler_is_the_operator(
    batch: tuple[np.ndarray, list[int], list[float]], temperature: float, temper_first: bool
) -> None:
    """Tempered by vLLM or by `Bounds`: the same survivors, ties included, and so the same q."""
    logits, top_k, top_p = batch
    tempered = logits / np.float32(temperature)
    bounds = Bounds(
        list(zip(top_k, top_p, strict=True)),
        logits.shape[1],
        temperatures=None if temper_first else [temperature] * len(logits),
    )
    sampled = truncate(torch.tensor(tempered if temper_first else logits), bounds)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "sort", _unstable)
        operator = torch.cat(
            [
                distribution(torch.tensor(scores)[None], Setting(temperature, k, p))
                for scores, k, p in zip(logits, top_k, top_p, strict=True)
            ]
        )
    for row, (q, k, p) in enumerate(zip(operator, top_k, top_p, strict=True)):
        if borderline(tempered[row], k, p):
            continue
        kept = sampled[row] > -torch.inf
        assert torch.equal(q > 0, kept)
        drawn = sampled[row].double() / (1.0 if temper_first else temperature)
        torch.testing.assert_close(q, drawn.softmax(0), rtol=0, atol=2e-6)


def test_all_ties_of_the_kth_survive() -> None:
    scores = np.zeros((1, 5000), np.float32)
    scores[0, :3] = 2.0
    scores[0, 10:400] = 1.0
    assert _kept(scores, [4], [1.0]) == [{0, 1, 2, *range(10, 400)}]
    assert _kept(scores, [3], [1.0]) == [{0, 1, 2}]


@pytest.mark.slow
def test_every_truncation_uses_the_processor_and_keeps_ties() -> None:
    """Top-k alone as well: where Triton is, vLLM keeps exactly k."""
    from vllm.sampling_params import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from ssd_ray.inference.vllm.arguments import decoding_params
    from ssd_ray.inference.vllm.sampler import ExactTopKTopP

    chosen = [
        Decoding(top_k=3),
        Decoding(top_p=0.5),
        Decoding(top_k=3, top_p=0.9),
        Decoding(),
        Decoding(temperature=0, top_k=3),
    ]
    asked = [
        SamplingParams(
            **decoding_params(each, exactly=truncates_exactly(EngineConfig(), "cpu", each))
        )
        for each in chosen
    ]
    ours = [bool(params.extra_args) for params in asked]
    assert ours == [True, True, True, False, False]
    assert all(
        (params.top_k, params.top_p) == (0, 1.0)
        for params, own in zip(asked, ours, strict=True)
        if own
    )
    assert not any(
        SamplingParams(**decoding_params(each, exactly=False)).extra_args for each in chosen
    )
    processor = ExactTopKTopP(None, torch.device("cpu"), False)
    added = [(row, params, [1], []) for row, params in enumerate(asked)]
    processor.update_state(BatchUpdate(batch_size=len(asked), removed=[], added=added, moved=[]))
    scores = np.round(np.random.default_rng(3).normal(size=700), 1).astype(np.float32)
    kept = torch.isfinite(processor.apply(torch.tensor(scores).repeat(len(asked), 1))).numpy()
    for row, each in enumerate(chosen):
        expected = (
            survivors(scores, each.top_k or 700, each.top_p) if ours[row] else set(range(700))
        )
        assert set(np.flatnonzero(kept[row]).tolist()) == expected, each
    assert kept[0].sum() > 3, "the third must have ties for this to say anything"


def test_top_p_applies_to_the_tokens_left_by_top_k() -> None:
    scores = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    assert _kept(scores, [4], [0.65]) == [{0, 1}]
    assert _kept(scores, [2], [0.65]) == [{0, 1}]
    assert _kept(scores, [2], [0.55]) == [{0}]  # 0.4 of 0.7 is 0.57


def test_the_most_likely_token_always_survives() -> None:
    flat = np.zeros((2, 100), np.float32)
    assert _kept(flat, [100, 1], [1e-6, 1e-6]) == [{99}, {99}]


def test_masked_tokens_stay_masked() -> None:
    scores = np.full((1, 50), -np.inf, np.float32)
    scores[0, [7, 9]] = [1.0, 0.0]
    assert _kept(scores, [20], [0.99]) == [{7, 9}]
    assert _kept(scores, [50], [0.6]) == [{7}]


def test_rows_without_truncation_are_left_alone() -> None:
    scores = np.random.default_rng(0).normal(size=(3, 900)).astype(np.float32)
    kept = _kept(scores, [900, 5, 4000], [1.0, 1.0, 1.0])
    assert [len(row) for row in kept] == [900, 5, 900]


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_a_flat_distribution_over_a_large_vocabulary_is_cut(scale: float) -> None:
    scores = np.random.default_rng(1).normal(scale=scale, size=(2, 50_000)).astype(np.float32)
    for row, kept in enumerate(_kept(scores, [50_000, 50_000], [0.8, 0.8])):
        assert abs(len(kept) - len(survivors(scores[row], 50_000, 0.8))) <= 3


@settings(max_examples=200, deadline=None)
@given(batches(), st.sampled_from([0.25, 0.6, 1.0, 1.7]), st.booleans())
@pytest.mark.slow
def test_bounds_with_temperatures_keep_what_tempered_logits_keep(
    batch: tuple[np.ndarray, list[int], list[float]], temperature: float, may_read: bool
) -> None:
    """vLLM's second model runner divides by the temperature after its processors."""
    logits, top_k, top_p = batch
    plain = torch.tensor(logits, dtype=torch.float32)
    chosen = list(zip(top_k, top_p, strict=True))
    vocabulary = plain.shape[1]
    bounds = Bounds(chosen, vocabulary, temperatures=[temperature] * len(chosen), may_read=may_read)
    kept = torch.isfinite(truncate(plain.clone(), bounds))
    tempered = truncate(plain / temperature, Bounds(chosen, vocabulary, may_read=may_read))
    for row, (k, p) in enumerate(chosen):
        scaled = (plain[row] / temperature).numpy()
        if not may_read and p < 1 and _num_ties(scaled, k) > 32:
            continue
        assert torch.equal(kept[row], torch.isfinite(tempered[row])) or borderline(scaled, k, p)


def test_the_second_runners_processor_follows_slots() -> None:
    """Rows are reordered between steps, and slots are used again by later requests."""
    from types import SimpleNamespace

    from vllm.sampling_params import SamplingParams

    from ssd_ray.inference.vllm.arguments import decoding_params
    from ssd_ray.inference.vllm.sampler_v2 import ExactTopKTopPV2

    states = SimpleNamespace(device=torch.device("cpu"), vocab_size=700)
    processor = ExactTopKTopPV2(None, states)
    decodings = {
        4: Decoding(top_k=3, top_p=0.9, temperature=1.5),
        0: Decoding(top_p=0.5, temperature=0.7),
        2: Decoding(temperature=0, top_k=3),
    }

    engine = EngineConfig(sampler="exact")

    def add(slot: int, decoding: Decoding) -> bool:
        exactly = truncates_exactly(engine, "cuda", decoding)
        params = SamplingParams(**decoding_params(decoding, exactly=exactly))
        return processor.add_request(slot, params)

    assert [add(*pair) for pair in decodings.items()] == [True, True, False]
    scores = np.random.default_rng(3).normal(size=700).astype(np.float32)

    def kept(slots: list[int]) -> list[set[int]]:
        batch = torch.tensor(scores).repeat(len(slots), 1)
        context = SimpleNamespace(idx_mapping_np=np.array(slots, np.int32))
        after = processor.apply(batch, context)
        assert torch.equal(after[torch.isfinite(after)], batch[torch.isfinite(after)])
        return [set(np.flatnonzero(row).tolist()) for row in torch.isfinite(after).numpy()]

    def expected(slot: int) -> set[int]:
        decoding = decodings[slot]
        if not decoding.temperature:
            return set(range(700))
        return survivors(scores / decoding.temperature, decoding.top_k or 700, decoding.top_p)

    for slots in ([4, 0, 2], [2, 4, 0], [0, 4]):
        assert kept(slots) == [expected(slot) for slot in slots]
    decodings[4] = Decoding(top_k=50, top_p=0.5)
    assert add(4, decodings[4])
    assert kept([4, 2]) == [expected(4), set(range(700))]
    with pytest.raises(ValueError, match="exact_top_k must be at least 1"):
        ExactTopKTopPV2.validate_params(
            SamplingParams(extra_args={"exact_top_k": 0, "exact_top_p": 1.0})
        )
    with pytest.raises(ValueError, match="speculative"):
        ExactTopKTopPV2(SimpleNamespace(speculative_config=object()), states)
