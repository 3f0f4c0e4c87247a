"""Checks before a training starts.

- `check_model` needs config.json and the installed packages, and can run before hours of sampling.
- `check_weight_names` looks at the names of weight files.
- `check_samples` reads the data set's index.
- None writes anything.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.dataset_facts import TokenizerFacts
from ssd_ray.artifacts.files import read_json
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.machine.installed import attention_packages, lacking_package
from ssd_ray.models import loading, quantized, weights
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.model import adapters, expert_parallel, moe, sequence_parallel
from ssd_ray.training.observe import trackers
from ssd_ray.training.observe.heldout import split


def check_model(model: Path, train: TrainConfig, cluster: ClusterConfig) -> None:
    """Check a model directory against the choices of a training and the installed packages.

    Raises:
        UserError: the choices cannot train this model on this machine.
    """
    if not (model / "config.json").exists():
        raise UserError(f"{model} is not a Hugging Face model directory: it has no config.json")
    if method := quantized.method_of(model):
        raise UserError(": ".join(quantized.refusal(str(model), method)))
    try:
        train.check_workers(cluster.train_workers)
    except ValueError as error:
        raise UserError(str(error)) from error
    if cluster.device == "cpu" and train.needs_cuda:
        raise UserError(f"{train.needs_cuda} needs cluster.device=cuda")
    config = loading.load_config(model)
    sequence_parallel.check_heads(config, train)
    expert_parallel.check_experts(config, train)
    _check_attention(config, train)
    trackers.check(train.trackers)
    if train.loss_kernel == "liger" and importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            "train.loss_kernel is 'liger', and its package is not installed: "
            "pip install liger-kernel"
        )
    _check_modules(config, train)


def check_weight_names(model: Path) -> None:
    """Check a model directory for weights under the names known to transformers.

    Raises:
        UserError: there are none. vLLM reads any *.safetensors, so without this check training
            would fail only after sampling.
    """
    names = ("model.safetensors", weights.INDEX)
    if not any((model / name).exists() for name in names):
        raise UserError(
            f"{model} holds neither {' nor '.join(names)}, by which training finds weights: "
            "download the file that belongs to the model"
        )


def _check_attention(config: Any, train: TrainConfig) -> None:
    """Check the kernel of `train.attention` for the model's kind of attention.

    Raises:
        UserError: the kernel lacks this attention in transformers, or its package is missing.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    # For GPT-OSS, transformers declares that sdpa lacks the attention sinks. For Gemma 2 it
    # declares nothing: sdpa silently leaves out the soft cap of its scores.
    kind = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    name = getattr(kind, "__name__", config.model_type)
    is_capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    in_sdpa = getattr(kind, "_supports_sdpa", True) and not is_capped
    in_flash = getattr(kind, "_supports_flash_attn", True)
    if not in_sdpa and not in_flash:
        raise UserError(
            f"{name} cannot be trained here: transformers has its layers neither for sdpa "
            "nor for flash attention"
        )
    if train.attention == "sdpa":
        if not in_sdpa:
            raise _no_sdpa(name, is_capped=is_capped)
        return
    if not in_flash:
        raise UserError(
            f"train.attention {train.attention!r} cannot compute the attention of {name}: "
            "set it to sdpa"
        )
    if reason := lacking_package(train.attention, attention_packages()):
        raise UserError(f"{reason}: pip install kernels")


def _no_sdpa(name: str, *, is_capped: bool) -> UserError:
    """Return the error for a model class whose attention sdpa cannot compute."""
    reason = ", whose scores are capped" if is_capped else ""
    flash = "flash_attention_2" if is_capped else "flash_attention_3"
    return UserError(
        f"train.attention 'sdpa' cannot compute the attention of {name}{reason}: "
        f"set train.attention={flash}, which needs CUDA and the package kernels"
    )


def _check_modules(config: Any, train: TrainConfig) -> None:
    """Check the modules named by LoRA and the router loss, on a skeleton without weights."""
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
                f"train.lora cannot adapt {type(skeleton).__name__}, whose layers are of the kind "
                "Conv1D: leave train.lora out"
            )
        adapters.check_targets(skeleton, train.lora)


def check_samples(dataset: Path, model: Path, train: TrainConfig, seed: int) -> None:
    """Check a data set against the model: its tokenizer, its token ids, its longest sequence.

    Raises:
        UserError: there is no response to train on, or the model cannot read some sequence.
    """
    examples = Examples(dataset)
    text = loading.load_config(model).get_text_config()
    if not examples.response_lengths.any():
        raise UserError(
            f"the data set {dataset} holds no response to train on, only masked sequences: "
            "set a policy of prepare.policies to keep"
        )
    digests = loading.tokenizer_digests(model)
    recorded = _tokenizer_of(dataset)
    if any(recorded[name] != digest for name, digest in digests.items() if name in recorded):
        raise UserError(
            f"the samples in {dataset} were made with another tokenizer than that of {model}: "
            "train the model that drew them, or draw new samples"
        )
    smallest, largest = examples.extreme_ids
    if smallest < 0 or largest >= text.vocab_size:
        raise UserError(
            f"the data set {dataset} holds the token id {smallest if smallest < 0 else largest}, "
            f"and the vocabulary of {model} has {text.vocab_size} entries: "
            "these are samples of another model"
        )
    context = getattr(text, "max_position_embeddings", None)
    longest = int(examples.lengths.max())
    if context is not None and longest > context:
        raise UserError(
            f"the data set {dataset} holds a sequence of {longest} tokens, "
            f"and the context of {model} is {context}: set prepare.max_length={context}"
        )
    split(examples, train.heldout_samples, seed)


def _tokenizer_of(dataset: Path) -> Mapping[str, str]:
    """Return digests of tokenizer files from a data set's manifest; empty without a manifest."""
    manifest = dataset / "manifest.json"
    if not manifest.exists():
        return {}
    facts = TokenizerFacts.parse(read_json(manifest)["facts"], str(manifest))
    return facts.provenance.tokenizer_sha256 or {}
