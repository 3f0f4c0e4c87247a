"""Export the trained model into a directory that vLLM and transformers load.

- Weights are gathered from all workers, and LoRA adapters merged.
- Configuration and tokenizer are the base's, but for what `Serving` states.
- Files appear by rename, `training.json` last: with it, the model is complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssd_ray.artifacts.files import read_json, replace_directory, sync
from ssd_ray.config import Decoding, TrainConfig
from ssd_ray.training.model.adapters import adapter_of, is_adapter, plain_name

FINISHED = "training.json"
STEPS = "steps"
_COPIED_SUFFIXES = {".json", ".jinja", ".model", ".tiktoken", ".txt"}
_NOT_COPIED = {"fingerprint.json", "manifest.json", "timing.json", FINISHED}
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
    """How an exported model is to be prompted and decoded; what is None stays as the base has it."""

    decoding: Decoding | None = None
    chat_template: str | None = None
    end_tokens: tuple[int, ...] = ()
    """All ids that end an answer; empty where they are those of the base."""


AS_THE_BASE = Serving()


def export(
    engine: Any, base: Path, out: Path, train: TrainConfig, serving: Serving = AS_THE_BASE
) -> None:
    """Write the model as a Hugging Face directory into `out`; every worker calls it, the first writes.

    Weights keep the base directory's names and precision (float32 after float32 training); configuration, tokenizer and
    chat template are the base's files, and so are the generation settings, but for what `serving` says. The whole model is in
    the first worker's memory once.
    """
    config = json.loads((base / "config.json").read_text())
    field = "torch_dtype" if "torch_dtype" in config else "dtype"
    saved = "float32" if train.dtype == "float32" else config.get(field) or train.dtype
    weights = _gather(engine, getattr(torch, saved), from_master=saved != train.dtype)
    if engine.global_rank == 0:
        aside = out / ".weights.partial"
        shutil.rmtree(aside, ignore_errors=True)
        _save(engine.module.model, weights, aside)
        _copy_others(base, aside)
        if serving.decoding is not None:
            state_decoding(aside, serving.decoding)
        if serving.end_tokens:
            state_end_tokens(aside, serving.end_tokens)
        if serving.chat_template is not None:
            state_template(aside, serving.chat_template)
        (aside / "config.json").write_text(json.dumps({**config, field: saved}, indent=2) + "\n")
        sync([*aside.iterdir(), aside])
        for path in sorted(
            aside.iterdir(), key=lambda path: (path.name == "config.json", path.name)
        ):
            path.replace(out / path.name)
        aside.rmdir()
    torch.distributed.barrier()


def step_directory(out: Path, step: int) -> Path:
    """Where the model after `step` steps lies, if it was exported."""
    return out / STEPS / f"step-{step}"


def export_step(
    engine: Any,
    base: Path,
    out: Path,
    train: TrainConfig,
    step: int,
    serving: Serving = AS_THE_BASE,
) -> None:
    """Write the model after `step` steps as `export` does, into a directory of its own; every worker calls it."""
    whole = step_directory(out, step)
    aside = whole.with_name(f".{whole.name}.partial")
    if engine.global_rank == 0:
        shutil.rmtree(aside, ignore_errors=True)
    export(engine, base, aside, train, serving)
    if engine.global_rank == 0:
        replace_directory(
            aside, whole
        )  # one of an attempt that ended before its next resume state: the same weights
        sync([whole.parent])
    torch.distributed.barrier()


def _gather(engine: Any, dtype: torch.dtype, *, from_master: bool) -> dict[str, torch.Tensor]:
    """The model's weights by name on the first worker, gathered one at a time; adapters are merged, tied weights appear once."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    model, first = engine.module.model, engine.global_rank == 0

    def whole(parameter: torch.nn.Parameter) -> torch.Tensor:
        master = (
            safe_get_full_fp32_param(parameter) if from_master and parameter.requires_grad else None
        )
        return parameter.detach() if master is None else master

    weights: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        if is_adapter(name):
            continue
        adapter = adapter_of(model, name)
        with deepspeed.zero.GatheredParameters([parameter, *(adapter[:2] if adapter else ())]):
            value = whole(parameter)
            if adapter is not None:
                low, high, factor = adapter
                value = value.float() + factor * (whole(high).float() @ whole(low).float())
            if first:
                weights[plain_name(name)] = value.to(device="cpu", dtype=dtype, copy=True)
    kept = {plain_name(name) for name in model.state_dict()}
    if first:
        buffers = ((plain_name(name), buffer) for name, buffer in model.named_buffers())
        weights |= {name: buffer.detach().cpu() for name, buffer in buffers if name in kept}
    return weights


def _save(model: Any, weights: dict[str, torch.Tensor], directory: Path) -> None:
    """Let transformers name and shard the weights as the base directory has them."""
    from transformers import GenerationConfig

    model.generation_config = (
        GenerationConfig()
    )  # the base's file is copied; its rules are not checked anew here
    model.save_pretrained(directory, state_dict=weights, max_shard_size="5GB")
    for path in directory.glob(
        "*.safetensors"
    ):  # which nobody else could read: safetensors makes its files so
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
    """Have generation_config.json of a model directory say `decoding` and nothing else of the kind; tokens and lengths stay.

    Greedy decoding is stated as top-k 1: vLLM does not read `do_sample`, and transformers saves no temperature of 0.
    """
    path = directory / "generation_config.json"
    if path.exists():
        before = read_json(path)
    else:  # vLLM takes the tokens of config.json only as long as there is no such file
        config = (
            read_json(directory / "config.json") if (directory / "config.json").exists() else {}
        )
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
    """Have generation_config.json of a model directory say that these tokens end an answer."""
    path = directory / "generation_config.json"
    before = read_json(path) if path.exists() else {}
    path.write_text(json.dumps({**before, "eos_token_id": list(token_ids)}, indent=2) + "\n")


def state_template(directory: Path, template: str) -> None:
    """Have a model directory's tokenizer put messages through `template` and no other."""
    (directory / "chat_template.jinja").write_text(template)
    path = directory / "tokenizer_config.json"
    if path.exists():
        rest = {name: value for name, value in read_json(path).items() if name != "chat_template"}
        path.write_text(json.dumps(rest, indent=2, ensure_ascii=False) + "\n")
