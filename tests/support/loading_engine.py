"""Start an engine that only loads the weights, and print the number of tensors.

python tests/support/loading_engine.py MODEL LOCAL_WEIGHTS
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from ssd_ray.config import EngineConfig, ModelConfig
from ssd_ray.inference.engines import EngineSettings
from ssd_ray.inference.vllm import engine


def settings(model: Path, local_weights: str) -> EngineSettings:
    """Return the settings of an engine with a model of this machine."""
    return EngineSettings(
        directory=model,
        model=ModelConfig(source=str(model)),
        engine=EngineConfig(),
        device="cpu",
        local_weights=local_weights,
    )


def load(directory: Path, **_: Any) -> int:
    """Load the weights of a directory in place of an engine."""
    return len(load_file(directory / "model.safetensors"))


if __name__ == "__main__":
    engine.Engine = load  # type: ignore[assignment, misc]
    print(settings(Path(sys.argv[1]), sys.argv[2]).make()())
