"""Load a Hugging Face directory for training, under ZeRO-3 into partitions.

- Under ZeRO-3, transformers lets every worker read all weights and merge all experts. DeepSpeed
  then broadcasts the first worker's, module by module, and each worker keeps its partition.
- So only the first worker reads weights here. The others read names and shapes.
- Reads a Hugging Face directory; writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.machine.garbage import collector_paused
from ssd_ray.models import loading

_NOISE = ("dropout", "pdrop", "layerdrop", "jitter")
"""Parts of the names of settings that make a model's training random."""


def load(directory: Path, train: TrainConfig, config: dict[str, object]) -> Any:
    """Return the model of a directory; every worker calls it with DeepSpeed's configuration.

    Raises:
        UserError: the directory lacks weights.
    """
    with collector_paused():
        from transformers import AutoModelForCausalLM
        from transformers.integrations import HfDeepSpeedConfig

    settings = loading.load_config(directory)
    switch_noise_off(settings)
    with first_worker_reads(settings, is_partitioned=train.zero_stage == 3):
        # While this object is alive, transformers loads weights into ZeRO-3 partitions.
        partitioned = HfDeepSpeedConfig(config)
        model, info = AutoModelForCausalLM.from_pretrained(
            directory,
            config=settings,
            dtype=getattr(torch, train.dtype),
            attn_implementation=train.attention,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        del partitioned
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"{directory} lacks weights of {type(model).__name__} ({lacking}): "
            "download the model again"
        )
    return model


@contextmanager
def first_worker_reads(config: Any, *, is_partitioned: bool) -> Iterator[None]:
    """Let all workers but the first read only names and shapes, if ZeRO-3 partitions the model.

    Buffers among the weights are read by every worker, because only parameters are broadcast.
    """
    from transformers import modeling_utils

    if not is_partitioned or distributed.get_rank() == 0:
        yield
        return
    read = modeling_utils.load_state_dict
    modeling_utils.load_state_dict = partial(_read_shapes, read, _buffers(config))
    try:
        yield
    finally:
        modeling_utils.load_state_dict = read


def _read_shapes(read: Any, buffers: set[str], path: str, **_: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of a weight file without their data, except `buffers`."""
    from safetensors import safe_open

    tensors: dict[str, torch.Tensor] = read(path, map_location="meta")
    needed = [name for name in tensors if name.rpartition(".")[2] in buffers]
    if needed:
        with safe_open(path, framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in needed}
    return tensors


def _buffers(config: Any) -> set[str]:
    """Return the last names of the buffers that belong to a model's weights."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    parameters = {name for name, _ in skeleton.named_parameters(remove_duplicate=False)}
    return {name.rpartition(".")[2] for name in skeleton.state_dict().keys() - parameters}


def switch_noise_off(config: Any) -> None:
    """Set every dropout and jitter of a transformers configuration to 0, nested ones included.

    With noise, the loss of a batch would depend on its micro-batches, and a resumed run would draw
    other noise.
    """
    for name, value in list(vars(config).items()):
        if hasattr(value, "get_text_config"):
            switch_noise_off(value)
        elif isinstance(value, float | int) and any(noise in name for noise in _NOISE):
            setattr(config, name, type(value)(0))
