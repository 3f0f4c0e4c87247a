"""The start of an engine in its worker."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from ssd_ray.config import EngineConfig, ModelConfig
from ssd_ray.inference.engines import EngineSettings
from ssd_ray.inference.vllm import engine


@pytest.mark.parametrize("fails", [False, True])
def test_garbage_collection_pauses_while_an_engine_starts(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enabled: list[bool] = []

    def start(directory: Path, **_: object) -> None:
        enabled.append(gc.isenabled())
        if fails:
            raise MemoryError

    monkeypatch.setattr(engine, "Engine", start)
    model = ModelConfig(source=str(tmp_path))
    settings = EngineSettings(directory=tmp_path, model=model, engine=EngineConfig(), device="cpu")
    try:
        settings.make()()
    except MemoryError:
        assert fails
    assert enabled == [False]
    assert gc.isenabled()
