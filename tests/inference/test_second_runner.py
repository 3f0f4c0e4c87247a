"""The exact sampler on CUDA: the interface of vLLM's second model runner, and its cost."""

from __future__ import annotations

import functools
import importlib
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch

from ssd_ray.config import Decoding, EngineConfig
from ssd_ray.inference.vllm import truncation
from ssd_ray.inference.vllm.arguments import (
    decoding_params,
    engine_arguments,
    engine_environment,
    truncates_exactly,
)
from ssd_ray.inference.vllm.truncation import Bounds
from tests.support.device_steps import DeviceSteps

VOCABULARY = 5000


def _processors(device: Literal["cpu", "cuda"], engine: EngineConfig) -> list[Any]:
    from pathlib import Path

    from ssd_ray.config import ModelConfig

    arguments = engine_arguments(Path("x"), ModelConfig(source="x"), engine, device)
    names: Any = arguments.get("logits_processors", [])
    return list(names)


def test_each_model_runner_gets_a_processor_of_its_interface() -> None:
    """vLLM's own loaders take them by these names."""
    from vllm.v1.sample.logits_processor import LogitsProcessor
    from vllm.v1.worker.gpu.sample.logits_processor import loader

    names = _processors("cuda", EngineConfig())
    loaded = loader._load_v2_logitsprocs_by_fqcns(names)
    # The temperature of a token comes before the truncation.
    assert [each.__name__ for each in loaded] == ["AdaptiveV2", "ExactTopKTopPV2"]
    loader.build_custom_logits_processors_params_validator(names)
    assert engine_environment(EngineConfig(), "cuda")["VLLM_USE_V2_MODEL_RUNNER"] == "1"
    for name in _processors("cpu", EngineConfig()):
        module, _, attribute = name.partition(":")
        assert issubclass(getattr(importlib.import_module(module), attribute), LogitsProcessor)
    assert engine_environment(EngineConfig(), "cpu")["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    for device in ("cpu", "cuda"):
        own = EngineConfig(sampler="vllm")
        assert not _processors(device, own)
        assert "VLLM_USE_V2_MODEL_RUNNER" not in engine_environment(own, device)


@pytest.mark.parametrize(
    ("decoding", "on_cpu", "on_cuda", "chosen"),
    [
        (Decoding(top_k=20, top_p=0.8), True, True, True),
        (Decoding(top_k=20), True, True, True),
        (Decoding(top_p=0.8), True, False, True),
        (Decoding(), False, False, False),
        (Decoding(temperature=0, top_k=20), False, False, False),
    ],
)
def test_auto_sorts_no_vocabulary_on_cuda(
    decoding: Decoding, on_cpu: bool, on_cuda: bool, chosen: bool
) -> None:
    assert truncates_exactly(EngineConfig(), "cpu", decoding) == on_cpu
    assert truncates_exactly(EngineConfig(), "cuda", decoding) == on_cuda
    assert truncates_exactly(EngineConfig(sampler="exact"), "cuda", decoding) == chosen
    assert not truncates_exactly(EngineConfig(sampler="vllm"), "cpu", decoding)
    asked = decoding_params(decoding, exactly=on_cuda)
    left_to_vllm = (asked["top_k"], asked["top_p"]) != (0, 1.0)
    assert left_to_vllm == (not on_cuda and decoding != Decoding())


def test_a_step_of_the_second_runner_reads_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps after the first of a batch also copy nothing to the device."""
    from vllm.sampling_params import SamplingParams

    from ssd_ray.inference.vllm.sampler_v2 import ExactTopKTopPV2

    monkeypatch.setattr(truncation, "Bounds", functools.partial(Bounds, may_read=False))
    processor = ExactTopKTopPV2(
        None, SimpleNamespace(device=torch.device("cpu"), vocab_size=VOCABULARY)
    )
    params = decoding_params(Decoding(top_k=20, top_p=0.8, temperature=1.6), exactly=True)
    for slot in range(64):
        assert processor.add_request(slot, SamplingParams(**params))
    context = SimpleNamespace(idx_mapping_np=np.arange(64, dtype=np.int32))
    counts = []
    for _ in range(3):
        with DeviceSteps() as steps:
            processor.apply(torch.randn(64, VOCABULARY), context)
        # One of them makes the logits.
        counts.append(steps.count - 1)
    assert counts[1] == counts[2] < counts[0]
    assert counts[1] <= 15


def test_bounds_are_copied_without_waiting_for_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A copy from memory that is not pinned waits for all earlier work."""
    make, copies = torch.tensor, list[tuple[str, bool]]()

    class Pinned:
        def __init__(self, tensor: torch.Tensor) -> None:
            self._tensor = tensor

        def to(self, device: torch.device, *, non_blocking: bool = False) -> torch.Tensor:
            copies.append((device.type, non_blocking))
            return self._tensor

    def tensor(values: Any, *, device: Any = None, pin_memory: bool = False, **more: Any) -> Any:
        assert device is None, "a copy that waits"
        return Pinned(make(values, **more)) if pin_memory else make(values, **more)

    monkeypatch.setattr(torch, "tensor", tensor)
    Bounds([(20, 0.8), (None, 1.0), (7, 1.0)], VOCABULARY, "cuda", temperatures=[1.0, 1.0, 0.5])
    assert len(copies) == 9
    assert set(copies) == {("cuda", True)}
