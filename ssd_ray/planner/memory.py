"""Bytes that one training worker holds at its fullest, part by part.

One idea: the peak is the states that are always there, plus the larger of the two moments that a step has: the backward pass,
with its activations, one layer's or the head's working set and the buckets of gradients under way; or the optimiser's step.
What DeepSpeed keeps is read from its source (version 0.19, `runtime/zero`), what autograd keeps from the layers of
transformers; `benchmarks/planner.py` holds the sum against measurement, a test against DeepSpeed's own estimator.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ssd_ray.planner.architecture import Architecture

# DeepSpeed's defaults (runtime/zero/config.py), in elements; a test compares them.
REDUCE_BUCKET = 500_000_000
MAX_LIVE_PARAMETERS = 1_000_000_000
SUB_GROUP = 1_000_000_000
CPU_BUCKET = 20_000_000
"""Reduce bucket and sub-group on a CPU, as `training/engine.py` sets them."""

Offload = Literal["none", "optimizer", "parameters"]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How a model is trained, as far as memory depends on it; `micro_batch_tokens` counts padding."""

    num_workers: int
    zero_stage: int
    offload: Offload
    sequence_parallel: int
    micro_batch_tokens: int
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    chunk_tokens: int
    lora_parameters: int = 0
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


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker: what is on the device by part, and what offloading puts into the host's memory."""

    parts: dict[str, int]
    host: int

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return sum(self.parts.values())

    @property
    def states(self) -> int:
        """Bytes of parameters, gradients and optimiser on device and host: what DeepSpeed's estimator calls model states."""
        return sum(self.parts[name] for name in ("parameters", "gradients", "optimiser")) + self.host


def memory(model: Architecture, setting: Setting) -> Memory:
    """Bytes of one worker at its fullest moment."""
    parameters, gradients, optimiser = _states(model, setting)
    saved, layer, head = _activations(model, setting)
    buckets = _buckets(model, setting)
    backward = saved + max(layer, head) + buckets
    step = _step(model, setting)
    extra = max(0, step - backward)  # where short sequences make the optimiser's step the fullest moment
    host = (optimiser + gradients if setting.offload != "none" else 0) + (parameters if setting.offload == "parameters" else 0)
    parts = {
        "parameters": 0 if setting.offload == "parameters" else parameters,
        "gathered parameters": _gathered(model, setting),
        "gradients": 0 if setting.offload != "none" else gradients,
        "optimiser": 0 if setting.offload != "none" else optimiser,
        "activations": saved,
        "one layer at work" if layer >= head else "logits chunk": max(layer, head),
        "communication buffers": buckets,
        "optimiser's step": extra,
    }
    return Memory(parts=parts, host=host)


def _states(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """Parameters in the working precision, gradients in float32, and the optimiser's float32 master copy and two moments."""
    trained = setting.lora_parameters or model.parameters
    share = setting.num_workers
    parameters = setting.width * (model.parameters + setting.lora_parameters) // (share if setting.zero_stage == 3 else 1)
    gradients = 4 * trained // (share if setting.zero_stage >= 2 else 1)
    if setting.whole_gradient:  # a CPU worker that adds its micro-batches up holds them beside its partition
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
    """Gradients under way: a bucket in the working precision and, where that is not float32, its float32 copy to reduce."""
    if setting.num_workers == 1 and setting.zero_stage == 0:
        return 0
    bucket = min(model.parameters, CPU_BUCKET) if setting.on_cpu else REDUCE_BUCKET
    return bucket * (setting.width + (4 if setting.width < 4 else 0))


def _step(model: Architecture, setting: Setting) -> int:
    """The gradient of one sub-group laid flat for the optimiser."""
    trained = setting.lora_parameters or model.parameters
    group = CPU_BUCKET if setting.on_cpu else SUB_GROUP
    return 4 * min(trained // (setting.num_workers if setting.zero_stage else 1), group)


def _activations(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """What waits for the backward pass, what one layer at work adds, and what the output head at work adds."""
    tokens, width = setting.tokens, setting.width
    inputs = tokens * model.hidden * width
    layer = tokens * _kept_by_layer(model, setting)
    gradients = tokens * width * (2 * model.hidden + 3 * _mlp_width(model))
    ends = 3 * inputs + (tokens * model.hidden * 4 if width < 4 else 0)  # embeddings, last norm, its gradient
    if setting.gradient_checkpointing:
        saved = model.layers * inputs + ends
        return saved, layer + gradients, _head(model, setting)
    return model.layers * layer + ends, gradients, _head(model, setting)


def _kept_by_layer(model: Architecture, setting: Setting) -> int:
    """Bytes for a token that one layer keeps for its backward pass; attention never holds positions times positions."""
    width, wide = setting.width, 4 if setting.width < 4 else 0
    norms = 2 * model.hidden * (wide + 2 * width) + model.hidden * width
    qkv = model.query + 2 * model.key_value
    attention = qkv * width + (model.query + model.key_value) * width + 2 * model.query * width + 4 * model.heads
    if model.qk_norm:
        attention += (model.query + model.key_value) * (wide + width)
    if setting.sequence_parallel > 1:  # Ulysses sends queries, keys, values and the output around
        attention += (qkv + model.query) * width
    routed = 4 * model.experts + 2 * model.experts_per_token * model.hidden * width if model.sparse_layers else 0
    return norms + attention + routed + 4 * _mlp_width(model) * width


def _mlp_width(model: Architecture) -> int:
    """Width of the MLP that a token passes through: of its experts together, where it has some."""
    return model.experts_per_token * model.expert_intermediate if model.sparse_layers else model.intermediate


def _head(model: Architecture, setting: Setting) -> int:
    """The output head at work on one chunk: logits, their log-probabilities and gradient, and the head's own gradient."""
    chunk = min(setting.chunk_tokens, setting.tokens)
    logits = chunk * model.vocabulary * (12 + (setting.width if setting.width < 4 else 0))
    trained = (
        0 if setting.lora_parameters else model.vocabulary * model.hidden * (4 + (setting.width if setting.width < 4 else 0))
    )
    return logits + trained + 2 * setting.tokens * model.hidden * setting.width
