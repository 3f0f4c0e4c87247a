"""The decoder that adapts to each token, held against its formula."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.config import Arm, Decoding
from ssd_ray.inference.vllm.arguments import decoding_params

VOCABULARY = 300


def reference(logits: np.ndarray, arm: Arm) -> np.ndarray:
    """Return the logits of one token by brute force, float64."""
    scores = logits.astype(np.float64)
    shares = np.exp(scores - scores.max())
    shares /= shares.sum()
    nonzero = shares[shares > 0]
    entropy = max(-(nonzero * np.log(nonzero)).sum(), 1e-4)
    theta = arm.entropy_theta or 0.0
    tempered = scores / max(arm.temperature * 0.8 ** (theta / entropy), 0.01)
    if arm.min_p:
        ratio = np.exp(tempered - tempered.max())
        tempered[ratio < arm.min_p] = -np.inf
    return tempered


def params(decoding: Decoding, *, exactly: bool = False) -> object:
    from vllm.sampling_params import SamplingParams

    return SamplingParams(**decoding_params(decoding, exactly=exactly))


def first_runner(decodings: list[Decoding], logits: np.ndarray) -> np.ndarray:
    from vllm.v1.sample.logits_processor import BatchUpdate

    from ssd_ray.inference.vllm.adaptive import Adaptive

    processor = Adaptive(None, torch.device("cpu"), False)
    added = [(row, params(each), [1], []) for row, each in enumerate(decodings)]
    processor.update_state(BatchUpdate(len(added), removed=[], added=added, moved=[]))
    return processor.apply(torch.tensor(logits)).numpy()


def second_runner(decodings: list[Decoding], logits: np.ndarray) -> np.ndarray:
    from ssd_ray.inference.vllm.adaptive_v2 import AdaptiveV2

    processor = AdaptiveV2(None, SimpleNamespace(device=torch.device("cpu")))
    # Slots are not rows: a step may come in any order.
    slots = np.arange(len(decodings), dtype=np.int32)[::-1]
    for slot, each in zip(slots, decodings, strict=True):
        adapted = processor.add_request(int(slot), params(each))
        assert adapted == (isinstance(each, Arm) and each.is_adaptive)
    return processor.apply(torch.tensor(logits), SimpleNamespace(idx_mapping_np=slots)).numpy()


adaptive_arms = st.builds(
    Arm,
    model=st.just("base"),
    temperature=st.floats(0.1, 2),
    entropy_theta=st.none() | st.floats(0.01, 1),
    min_p=st.sampled_from([0.05, 0.1, 0.5]),
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(adaptive_arms | st.just(Decoding(temperature=0.7)), min_size=1, max_size=6),
    st.integers(0, 99),
    st.sampled_from([0.1, 2.0, 30.0]),
)
def test_both_runners_follow_the_formula(
    decodings: list[Decoding], seed: int, scale: float
) -> None:
    logits = np.random.default_rng(seed).normal(scale=scale, size=(len(decodings), VOCABULARY))
    logits = logits.astype(np.float32)
    logits[:, 0] = -np.inf
    for run in (first_runner, second_runner):
        after = run(decodings, logits)
        for row, each in enumerate(decodings):
            if not isinstance(each, Arm):
                assert np.array_equal(after[row], logits[row]), "other requests stay as they are"
                continue
            expected = reference(logits[row], each)
            kept = np.isfinite(expected)
            # A token at the border of min-p is a matter of rounding.
            ratio = expected - expected.max()
            if each.min_p and np.any(np.abs(ratio[kept] - np.log(each.min_p)) < 1e-3):
                continue
            assert np.array_equal(np.isfinite(after[row]), kept)
            np.testing.assert_allclose(after[row][kept], expected[kept], rtol=1e-3, atol=1e-3)


def test_a_sure_token_is_sharpened_and_an_open_one_kept() -> None:
    arm = Arm(model="base", temperature=1.0, entropy_theta=0.1)
    lock = np.full((1, VOCABULARY), -8.0, np.float32)
    lock[0, 5] = 4.0
    fork = np.zeros((1, VOCABULARY), np.float32)
    fork[0, 5] = 1.0
    assert first_runner([arm], lock)[0, 5] > 1.4 * lock[0, 5]
    assert first_runner([arm], fork)[0, 5] < 1.05 * fork[0, 5]


def test_requests_of_the_decoder_carry_the_exact_truncation_too() -> None:
    arm = Arm(model="base", temperature=0.7, entropy_theta=0.1, top_k=20)
    asked = decoding_params(arm, exactly=True)
    assert (asked["temperature"], asked["top_k"], asked["top_p"]) == (1.0, 0, 1.0)
    assert asked["extra_args"] == {
        "adaptive_temperature": 0.7,
        "adaptive_theta": 0.1,
        "adaptive_min_p": 0.0,
        "exact_top_k": 20,
        "exact_top_p": 1.0,
    }


def test_a_decoding_outside_its_range_is_refused() -> None:
    from vllm.sampling_params import SamplingParams

    from ssd_ray.inference.vllm.adaptive import Adaptive

    extra = {"adaptive_temperature": 0.0, "adaptive_theta": 0.1, "adaptive_min_p": 0.0}
    with pytest.raises(ValueError, match="adaptive_temperature must be above 0"):
        Adaptive.validate_params(SamplingParams(extra_args=extra))
