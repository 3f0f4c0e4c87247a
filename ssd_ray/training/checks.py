"""What can be wrong with a training before it starts: first what shows without samples, then the samples.

`check_model` needs the model's config.json and looks for packages, so it can come before hours of sampling; `check_samples` reads
the data set's index. Reads a model directory and a data set; writes nothing.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import read_json
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models import loading, weights
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.model import adapters, moe, sequence_parallel
from ssd_ray.training.observe import trackers
from ssd_ray.training.observe.heldout import split

_FLASH_PACKAGES = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}


def check_model(model: Path, train: TrainConfig, cluster: ClusterConfig) -> None:
    """Whether these choices can train the model in this directory, with the packages of this machine.

    Raises:
        UserError: they cannot.
    """
    if not (model / "config.json").exists():
        raise UserError(f"{model} is not a Hugging Face model directory: it has no config.json")
    if "quantization_config" in read_json(model / "config.json"):
        raise UserError(
            f"{model} holds quantised weights, which cannot be trained: use a model.source with plain weights"
        )
    try:
        train.check_workers(cluster.train_workers)
    except ValueError as error:
        raise UserError(str(error)) from error
    if cluster.device == "cpu" and train.needs_cuda:
        raise UserError(f"{train.needs_cuda} needs cluster.device=cuda")
    config = loading.load_config(model)
    sequence_parallel.check_heads(config, train)
    _check_attention(config, train)
    trackers.check(train.trackers)
    if train.loss_kernel == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "train.loss_kernel is 'liger', and its package is not installed: pip install liger-kernel"
        )
    _check_modules(config, train)


def check_weight_names(model: Path) -> None:
    """Check that transformers finds the weights of a model directory by their names.

    Raises:
        UserError: it does not, although vLLM would read every *.safetensors.
    """
    names = ("model.safetensors", weights.INDEX)
    if not any((model / name).exists() for name in names):
        raise UserError(
            f"{model} holds neither {' nor '.join(names)}, by which training finds weights: "
            "download the one that the model comes with"
        )


def _check_attention(config: Any, train: TrainConfig) -> None:
    """Whether transformers has the model's attention in the kernel that is asked for.

    `sdpa` leaves out the sinks of GPT-OSS, and says so, and the soft cap of Gemma 2's attention scores, and does not say so.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = getattr(kind, "__name__", config.model_type)
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    in_sdpa = getattr(kind, "_supports_sdpa", True) and not is_capped
    in_flash = getattr(kind, "_supports_flash_attn", True)
    if not in_sdpa and not in_flash:
        raise UserError(
            f"{name} cannot be trained here: transformers has its layers neither for sdpa nor for flash attention"
        )
    if train.attention == "sdpa":
        if not in_sdpa:
            why, flash = (
                (", whose scores are capped", "flash_attention_2")
                if is_capped
                else ("", "flash_attention_3")
            )
            raise UserError(
                f"train.attention 'sdpa' cannot compute the attention of {name}{why}: set train.attention={flash}, "
                "which needs CUDA and the package kernels"
            )
        return
    if not in_flash:
        raise UserError(
            f"train.attention {train.attention!r} cannot compute the attention of {name}: set it to sdpa"
        )
    packages = (
        _FLASH_PACKAGES[train.attention],
        "kernels",
    )  # transformers fetches a built kernel where the first is missing
    if not any(importlib.util.find_spec(package) for package in packages):
        raise UserError(
            f"train.attention is {train.attention!r}, and neither package {packages[0]} nor kernels is installed: pip install "
            "kernels"
        )


def _check_modules(config: Any, train: TrainConfig) -> None:
    """Whether the model has the modules that LoRA and the router's loss name, from its skeleton without weights."""
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    if not train.router_aux_loss and train.lora is None:
        return
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    if train.router_aux_loss:
        moe.check_router(skeleton)
    if train.lora is not None:
        if any(isinstance(module, Conv1D) for module in skeleton.modules()):
            raise UserError(
                f"train.lora cannot adapt {type(skeleton).__name__}, whose layers are of the kind Conv1D: leave train.lora out"
            )
        adapters.check_targets(skeleton, train.lora)


def check_samples(dataset: Path, model: Path, train: TrainConfig, seed: int) -> None:
    """Whether there is a response to train on, and the model can read every sequence: its tokenizer, its ids, its length.

    Raises:
        UserError: there is none, or it cannot.
    """
    examples = Examples(dataset)
    text = loading.load_config(model).get_text_config()
    if not examples.response_lengths.any():
        raise UserError(
            f"the data set {dataset} holds no response to train on, only masked sequences: set a policy of "
            "prepare.policies to keep"
        )
    here, made_with = loading.tokenizer_digests(model), _tokenizer_of(dataset)
    if any(made_with[name] != digest for name, digest in here.items() if name in made_with):
        raise UserError(
            f"the samples in {dataset} were made with another tokenizer than that of {model}: train the model that "
            "drew them, or sample anew"
        )
    smallest, largest = examples.extreme_ids
    if smallest < 0 or largest >= text.vocab_size:
        raise UserError(
            f"the data set {dataset} holds the token id {smallest if smallest < 0 else largest}, and the vocabulary of "
            f"{model} has {text.vocab_size} entries: these are samples of another model"
        )
    context, longest = getattr(text, "max_position_embeddings", None), int(examples.lengths.max())
    if context is not None and longest > context:
        raise UserError(
            f"the data set {dataset} holds a sequence of {longest} tokens, and the context of {model} is {context}: "
            f"set prepare.max_length={context}"
        )
    split(examples, train.heldout_samples, seed)


def _tokenizer_of(dataset: Path) -> dict[str, str]:
    """Digests of the tokenizer's files that a data set's manifest names; empty where there is none."""
    manifest = dataset / "manifest.json"
    provenance = read_json(manifest)["facts"].get("provenance", {}) if manifest.exists() else {}
    return provenance.get("tokenizer_sha256") or {}
