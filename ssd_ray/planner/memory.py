"""Bytes that one training worker holds at its fullest, part by part.

One idea: the peak is the states that are always there, plus the larger of the two moments that a step has: the backward pass,
with its activations, one layer's or the head's working set and the buckets of gradients under way; or the optimiser's step.
What DeepSpeed keeps is read from its source (version 0.19, `runtime/zero`), what autograd keeps from the layers of
transformers; `benchmarks/planner.py` holds the sum against measurement, a test against DeepSpeed's own estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssd_ray.models.architecture import Architecture

# DeepSpeed's defaults (runtime/zero/config.py), in elements; a test compares them.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP = 1_000_000_000
CPU_BUCKET = 20_000_000
"""Reduce bucket and sub-group on a CPU, as `training/model/engine.py` sets them."""

Offload = Literal["none", "optimizer", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, as far as memory depends on it; `micro_batch_tokens` counts padding.

    `lora_parameters` are those of adapters, None where all weights are trained; `mask_tokens` is the side of the square mask
    that attention is given, 0 where it is told to be causal; `heldout_tokens` are those kept out of training at most.
    """

    num_workers: int
    zero_stage: int
    offload: Offload
    sequence_parallel: int
    micro_batch_tokens: int
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    chunk_tokens: int
    lora_parameters: int | None = None
    mask_tokens: int = 0
    heldout_tokens: int = 0
    on_cpu: bool = False
    whole_gradient: bool = False

    @property
    def width(self) -> int:
        """Bytes of a parameter or activation."""
        return 4 if self.precision == "float32" else 2

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch that are on one worker."""
        return -(-self.micro_batch_tokens // self.sequence_parallel)

    def trained(self, model: Architecture) -> int:
        """Parameters that have a gradient."""
        return model.parameters if self.lora_parameters is None else self.lora_parameters


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker: what is on the device by part, and what is in its host's memory beside a GPU.

    `host` is offloaded, `kept` is for measuring held-out samples; `export` is the whole model, which the first worker has in
    its host's memory while it is written.
    """

    parts: dict[str, int]
    host: int
    kept: int
    export: int

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return sum(self.parts.values())

    @property
    def states(self) -> int:
        """Bytes of parameters, gradients and optimiser on device and host: what DeepSpeed's estimator calls model states."""
        return (
            sum(self.parts[name] for name in ("parameters", "gradients", "optimiser")) + self.host
        )


def memory(model: Architecture, setting: Setting) -> Memory:
    """Bytes of one worker at its fullest moment."""
    parameters, gradients, optimiser = _states(model, setting)
    saved, layer, head = _activations(model, setting)
    buckets = _buckets(model, setting)
    backward = saved + max(layer, head) + buckets
    extra = max(
        0, _step(model, setting) - backward
    )  # where short sequences make the optimiser's step the fullest moment
    offloaded, kept = setting.offload != "none", _kept(model, setting)
    parts = {
        "parameters": 0 if setting.offload == "parameters" else parameters,
        "gathered parameters": _gathered(model, setting),
        "gradients": 0 if offloaded else gradients,
        "optimiser": 0 if offloaded else optimiser,
        "activations": saved,
        "one layer at work" if layer >= head else "logits chunk": max(layer, head),
        "communication buffers": buckets,
        "optimiser's step": extra,
        "base for held-out samples": kept if setting.on_cpu else 0,
    }
    return Memory(
        parts=parts,
        host=(optimiser + gradients if offloaded else 0)
        + (parameters if setting.offload == "parameters" else 0),
        kept=0 if setting.on_cpu else kept,
        export=setting.width * model.parameters,
    )


def _states(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """Parameters in the working precision, gradients in float32, and the optimiser's float32 master copy and two moments."""
    trained, share = setting.trained(model), setting.num_workers
    parameters = (
        setting.width
        * (model.parameters + (setting.lora_parameters or 0))
        // (share if setting.zero_stage == 3 else 1)
    )
    gradients = 4 * trained // (share if setting.zero_stage >= 2 else 1)
    if (
        setting.whole_gradient
    ):  # a CPU worker that adds its micro-batches up holds them beside its partition
        gradients += setting.width * trained
    kept = 8 if setting.zero_stage == 0 and setting.precision == "float32" else 12
    return parameters, gradients, kept * trained // (share if setting.zero_stage >= 1 else 1)


def _gathered(model: Architecture, setting: Setting) -> int:
    """Parameters that ZeRO-3 has gathered at a time: all of them on a CPU, else those that DeepSpeed lets live."""
    if setting.zero_stage < 3:
        return 0
    if setting.on_cpu:
        return setting.width * model.parameters
    return setting.width * min(model.parameters, max(MAX_LIVE_PARAMETERS, model.largest_module))


def _buckets(model: Architecture, setting: Setting) -> int:
    """Gradients under way: DeepSpeed's buckets, which a GPU has whole from the start, and their copies while they are reduced."""
    trained = setting.trained(model)
    size = CPU_BUCKET if setting.on_cpu else REDUCE_BUCKET
    filled = min(trained, size)
    if setting.zero_stage == 0:
        return 0 if setting.num_workers == 1 else 4 * filled
    if setting.zero_stage == 1 and setting.width < 4 and setting.offload == "none":
        return (
            4 * trained if trained <= size else 0
        )  # BF16_Optimizer's own gradient, reduced in place unless it is in parts
    buffers, copies = bucket_bytes(setting)
    return buffers * (filled if setting.on_cpu else size) + copies * filled


def bucket_bytes(setting: Setting) -> tuple[int, int]:
    """Bytes of a bucket's element that stay, and of its copies while it is reduced, from ZeRO-1 on."""
    if setting.zero_stage == 3:
        return (
            4,
            8 if setting.on_cpu else 4,
        )  # in float32: its parts by the workers that they go to, and gloo's copy of those
    width = 4 if setting.zero_stage == 1 else setting.width
    buffers = (
        width if setting.on_cpu else 2 * width
    )  # overlapping communication fills one while the other is reduced
    return buffers, width + (4 if width < 4 else 0)


def _kept(model: Architecture, setting: Setting) -> int:
    """What measuring held-out samples keeps of the base: its last hidden states, and its output head where that is trained."""
    if not setting.heldout_tokens:
        return 0
    head = model.vocabulary * model.hidden if setting.lora_parameters is None else 0
    return setting.width * (head + setting.heldout_tokens * model.hidden // setting.num_workers)


def _step(model: Architecture, setting: Setting) -> int:
    """The gradient of one sub-group laid flat for the optimiser."""
    group = CPU_BUCKET if setting.on_cpu else SUB_GROUP
    return 4 * min(
        setting.trained(model) // (setting.num_workers if setting.zero_stage else 1), group
    )


def _activations(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """What waits for the backward pass, what one layer at work adds, and what the output head at work adds."""
    tokens, width = setting.tokens, setting.width
    inputs = tokens * model.hidden * width
    layer = (
        tokens * _kept_by_layer(model, setting) + width * setting.mask_tokens**2
    )  # sdpa makes numbers of its mask
    gradients = tokens * width * (2 * model.hidden + 3 * _mlp_width(model))
    ends = 3 * inputs + (
        tokens * model.hidden * 4 if width < 4 else 0
    )  # embeddings, last norm, its gradient
    ends += setting.mask_tokens**2
    if setting.gradient_checkpointing:
        saved = model.layers * inputs + ends
        return saved, layer + gradients, _head(model, setting)
    return model.layers * layer + ends, gradients, _head(model, setting)


def _kept_by_layer(model: Architecture, setting: Setting) -> int:
    """Bytes for a token that one layer keeps for its backward pass; attention holds no positions times positions but a mask."""
    width, wide = setting.width, 4 if setting.width < 4 else 0
    norms = 2 * model.hidden * (wide + 2 * width) + model.hidden * width
    qkv = model.query + 2 * model.key_value
    attention = (
        qkv * width
        + (model.query + model.key_value) * width
        + 2 * model.query * width
        + 4 * model.heads
    )
    if model.qk_norm:
        attention += (model.query + model.key_value) * (wide + width)
    if setting.sequence_parallel > 1:  # Ulysses sends queries, keys, values and the output around
        attention += (qkv + model.query) * width
    routed = (
        4 * model.experts + 2 * model.experts_per_token * model.hidden * width
        if model.sparse_layers
        else 0
    )
    return norms + attention + routed + 4 * _mlp_width(model) * width


def _mlp_width(model: Architecture) -> int:
    """Width of the MLP that a token passes through: of its experts together, where it has some."""
    return (
        model.experts_per_token * model.expert_intermediate
        if model.sparse_layers
        else model.intermediate
    )


def _head(model: Architecture, setting: Setting) -> int:
    """The output head at work on one chunk: logits, their log-probabilities and gradient, and the head's own gradient."""
    chunk = min(setting.chunk_tokens, setting.tokens)
    logits = chunk * model.vocabulary * (12 + (setting.width if setting.width < 4 else 0))
    trained = model.vocabulary * model.hidden * (4 + (setting.width if setting.width < 4 else 0))
    return (
        logits
        + (trained if setting.lora_parameters is None else 0)
        + 2 * setting.tokens * model.hidden * setting.width
    )
