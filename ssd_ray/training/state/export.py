"""Export the trained model into a directory that vLLM and transformers load.

- Weights are gathered from all workers, and LoRA adapters merged.
- Configuration and tokenizer are the base's, except the fields of `Serving`.
- Files appear by rename. With `training.json`, the last one, the model is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssd_ray.artifacts import device_use, manifests
from ssd_ray.artifacts.files import read_json, replace_directory, sync
from ssd_ray.config import Decoding, TrainConfig
from ssd_ray.training.model import expert_parallel
from ssd_ray.training.model.adapters import adapter_of, is_adapter, plain_name

FINISHED = "training.json"
STEPS = "steps"
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
_NOT_COPIED = {
    "fingerprint.json",
    "manifest.json",
    manifests.MADE_FROM,
    "timing.json",
    device_use.NAME,
    FINISHED,
}
"""Records of an artifact: a base that this package trained has them, and they are not its own."""
_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
_NOT_DECODING = {
    *_TOKENS,
    "stop_strings",
    "max_length",
    "max_new_tokens",
    "use_cache",
    "transformers_version",
}


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Prompting and decoding of an exported model; None leaves the base's."""

    decoding: Decoding | None = None
    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    """All ids that end an answer; empty leaves the base's."""


AS_THE_BASE = Serving()


def export(
    engine: Any, base: Path, out: Path, train: TrainConfig, serving: Serving = AS_THE_BASE
) -> None:
    """Write the model as a Hugging Face directory into `out`.

    - Every worker calls it; the first writes.
    - Weights keep the base's names and precision; after float32 training they are float32.
    - Configuration, tokenizer, chat template and generation settings are the base's files, except
      the fields of `serving`.
    - The first worker holds the complete model in memory once.
    """
    config = json.loads((base / "config.json").read_text())
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    saved = "float32" if train.dtype == "float32" else config.get(field) or train.dtype
    weights = _gather(engine, getattr(torch, saved), from_master=saved != train.dtype)
    if engine.global_rank == 0:
        partial = out / ".weights.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _save(engine.module.model, weights, partial)
        _copy_others(base, partial)
        if serving.decoding is not None:
            state_decoding(partial, serving.decoding)
        if serving.end_tokens:
            state_end_tokens(partial, serving.end_tokens)
        if serving.chat_template is not None:
            state_template(partial, serving.chat_template)
        (partial / "config.json").write_text(json.dumps({**config, field: saved}, indent=2) + "\n")
        sync([*partial.iterdir(), partial])
        # config.json last: without it, a directory is not a model.
        for path in sorted(
            partial.iterdir(), key=lambda path: (path.name == "config.json", path.name)
        ):
            path.replace(out / path.name)
        partial.rmdir()
    torch.distributed.barrier()


def step_directory(out: Path, step: int) -> Path:
    """Return the directory of the model exported after `step` steps."""
    return out / STEPS / f"step-{step}"


def export_step(
    engine: Any,
    base: Path,
    out: Path,
    train: TrainConfig,
    step: int,
    serving: Serving = AS_THE_BASE,
) -> None:
    """Write the model after `step` steps into `step_directory`, as `export` does.

    Every worker calls it.
    """
    final = step_directory(out, step)
    partial = final.with_name(f".{final.name}.partial")
    if engine.global_rank == 0:
        shutil.rmtree(partial, ignore_errors=True)
    export(engine, base, partial, train, serving)
    if engine.global_rank == 0:
        # The directory may exist: an earlier attempt exported this step, and ended before its next
        # resume state.
        replace_directory(partial, final)
        sync([final.parent])
    torch.distributed.barrier()


def _gather(engine: Any, dtype: torch.dtype, *, from_master: bool) -> dict[str, torch.Tensor]:
    """Gather the model's weights on the first worker, one at a time.

    - Adapters are merged, and tied weights appear once. Divided experts are put together.
    - `from_master` takes the optimizer's float32 weights where there are any.
    - The other workers get no weights.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model = engine.module.model
    is_first = engine.global_rank == 0

    def full(parameter: torch.nn.Parameter) -> torch.Tensor:
        master = None
        if from_master and parameter.requires_grad:
            master = safe_get_full_fp32_param(parameter)
        return parameter.detach() if master is None else master

    weights: dict[str, torch.Tensor] = {}
    experts = expert_parallel.Gathering(model)
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        adapter = adapter_of(model, name)
        with deepspeed.zero.GatheredParameters([parameter, *(adapter[:2] if adapter else ())]):
            value = full(parameter)
            if adapter is not None:
                low, high, factor = adapter
                value = value.float() + factor * (full(high).float() @ full(low).float())
            value = experts.complete(name, value)
            if is_first:
                weights[plain_name(name)] = value.to(device="cpu", dtype=dtype, copy=True)
    weights = experts.renamed(weights)
    # Buffers outside of the state dict, such as rotary frequencies, are computed on loading.
    kept = {plain_name(name) for name in model.state_dict()}
    if is_first:
        buffers = ((plain_name(name), buffer) for name, buffer in model.named_buffers())
        weights |= {name: buffer.detach().cpu() for name, buffer in buffers if name in kept}
    return weights


def _save(model: Any, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Save the weights through transformers, for the base's names of weights."""
    from transformers import GenerationConfig

    # The base's file is copied later, so transformers need not check its settings here.
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory, state_dict=weights, max_shard_size="5GB")
    # safetensors creates files that other users cannot read.
    for path in directory.glob("*.safetensors"):
        shutil.copymode(directory / "config.json", path)


def _copy_others(base: Path, directory: Path) -> None:
    (directory / "generation_config.json").unlink(missing_ok=True)
    for path in base.iterdir():
        wanted = path.suffix in _COPIED_SUFFIXES or path.name.startswith(("LICENSE", "NOTICE"))
        if (
            wanted
            and path.is_file()
            and path.name not in _NOT_COPIED
            and not path.name.endswith(".index.json")
        ):
            shutil.copyfile(path, directory / path.name)


def state_decoding(directory: Path, decoding: Decoding) -> None:
    """Write `decoding` to generation_config.json of a model directory.

    - Other settings of decoding are removed; tokens and lengths stay.
    - Greedy decoding is written as top-k 1. vLLM does not read `do_sample`, and transformers saves
      no temperature of 0.
    """
    path = directory / "generation_config.json"
    if path.exists():
        before = read_json(path)
    else:
        # vLLM reads tokens from config.json only if this file does not exist, so they move here.
        base = directory / "config.json"
        config = read_json(base) if base.exists() else {}
        before = {name: config[name] for name in _TOKENS if config.get(name) is not None}
    stated = {
        "temperature": decoding.temperature,
        "top_k": decoding.top_k or 0,
        "top_p": decoding.top_p,
    }
    if not decoding.temperature:
        stated = {"temperature": 1.0, "top_k": 1, "top_p": 1.0}
    rest = {name: value for name, value in before.items() if name in _NOT_DECODING}
    path.write_text(json.dumps({**rest, "do_sample": True, **stated}, indent=2) + "\n")


def state_end_tokens(directory: Path, token_ids: Sequence[int]) -> None:
    """Write the tokens that end an answer to generation_config.json of a model directory."""
    path = directory / "generation_config.json"
    before = read_json(path) if path.exists() else {}
    path.write_text(json.dumps({**before, "eos_token_id": list(token_ids)}, indent=2) + "\n")


def state_template(directory: Path, template: str) -> None:
    """Make `template` the only chat template of a model directory."""
    (directory / "chat_template.jinja").write_text(template)
    path = directory / "tokenizer_config.json"
    if path.exists():
        rest = {name: value for name, value in read_json(path).items() if name != "chat_template"}
        path.write_text(json.dumps(rest, indent=2, ensure_ascii=False) + "\n")
