"""Peak memory of one training worker in bytes, by part.

- The peak is the permanent states plus the larger of two moments of a step.
- One moment is the backward pass: activations, the working set of one layer or of the head, and the
  buckets of gradients in flight. The other is the optimizer's step.
- DeepSpeed's share is read from its source (version 0.19, `runtime/zero`), autograd's from the
  layers of transformers.
- `benchmarks/planner.py` compares the sum with measurements, a test with DeepSpeed's own estimator.
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
    """Choices of a training with an influence on memory."""

    num_workers: int
    zero_stage: int
    offload: Offload
    sequence_parallel: int
    """Workers sharing a sequence."""
    expert_parallel: int = 1
    """Workers dividing the experts of a layer."""
    micro_batch_tokens: int
    """Tokens of a micro-batch, padding included."""
    precision: Literal["float32", "bfloat16"]
    gradient_checkpointing: bool
    chunk_tokens: int
    """Positions of the output head computed at a time."""
    lora_parameters: int | None = None
    """Parameters of adapters; None if all weights are trained."""
    mask_tokens: int = 0
    """Side of the square mask of attention; 0 if attention is causal without a mask."""
    heldout_tokens: int = 0
    """Upper bound of held-out tokens."""
    on_cpu: bool = False
    whole_gradient: bool = False
    """True if a worker adds up a complete gradient of its micro-batches."""

    @property
    def width(self) -> int:
        """Bytes of a parameter or activation."""
        return 4 if self.precision == "float32" else 2

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on one worker."""
        return -(-self.micro_batch_tokens // self.sequence_parallel)

    def gathered(self, model: Architecture) -> int:
        """Return the parameters that one worker computes with: of divided experts, its own."""
        return model.parameters - self._elsewhere(model.parts["experts"])

    def gathered_layer(self, model: Architecture) -> int:
        """Return the parameters of the largest layer that one worker computes with."""
        return model.layer_parameters - self._elsewhere(model.layer_experts)

    def gathered_module(self, model: Architecture) -> int:
        """Return the parameters of the largest module that ZeRO-3 gathers at once."""
        # AutoEP has three matrices of its experts in one module, as transformers has two.
        experts = model.layer_experts - self._elsewhere(model.layer_experts)
        return max(model.largest_matrix, experts)

    def _elsewhere(self, experts: int) -> int:
        return experts - experts // self.expert_parallel

    def trained(self, model: Architecture) -> int:
        """Return the number of parameters with a gradient."""
        return model.parameters if self.lora_parameters is None else self.lora_parameters


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one worker."""

    parts: dict[str, int]
    """Bytes on the device, by part."""
    host: int
    """Offloaded states in the memory of a GPU's host."""
    kept: int
    """States for held-out samples in the memory of a GPU's host."""
    export: int
    """Host memory of the first worker during the export: the complete model, twice."""

    @property
    def device(self) -> int:
        """Bytes on the device."""
        return sum(self.parts.values())

    @property
    def states(self) -> int:
        """Bytes of the model states of DeepSpeed's estimator: parameters, gradients, optimizer."""
        return (
            sum(self.parts[name] for name in ("parameters", "gradients", "optimizer")) + self.host
        )


def memory(model: Architecture, setting: Setting) -> Memory:
    """Return the bytes of one worker at its fullest moment."""
    parameters, gradients, optimizer = _states(model, setting)
    saved, layer, head = _activations(model, setting)
    buckets = _buckets(model, setting)
    backward = saved + max(layer, head) + buckets
    # With short sequences, the optimizer's step is the fullest moment.
    extra = max(0, _step(model, setting) - backward)
    offloaded = setting.offload != "none"
    kept = _kept(model, setting)
    parts = {
        "parameters": 0 if setting.offload == "parameters" else parameters,
        "gathered parameters": _gathered(model, setting),
        "gradients of one block": _block_gradients(model, setting),
        "gradients": 0 if offloaded else gradients,
        "optimizer": 0 if offloaded else optimizer,
        "activations": saved,
        "one layer at work" if layer >= head else "logits chunk": max(layer, head),
        "communication buffers": buckets,
        "optimizer's step": extra,
        "base for held-out samples": kept if setting.on_cpu else 0,
    }
    return Memory(
        parts=parts,
        host=(optimizer + gradients if offloaded else 0)
        + (parameters if setting.offload == "parameters" else 0),
        kept=0 if setting.on_cpu else kept,
        export=2 * setting.width * model.parameters,
    )


def _states(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """Return the bytes of parameters, gradients and optimizer.

    - Parameters have the precision of the forward pass, gradients are float32.
    - The optimizer holds a float32 master copy and two moments.
    """
    trained = setting.trained(model)
    share = setting.num_workers
    parameters = (
        setting.width
        * (model.parameters + (setting.lora_parameters or 0))
        // (share if setting.zero_stage == 3 else 1)
    )
    gradients = 4 * trained // (share if setting.zero_stage >= 2 else 1)
    if setting.whole_gradient:
        # A CPU worker adds its micro-batches up in addition to its partition.
        gradients += setting.width * min(trained, setting.gathered(model))
    # ZeRO-0 in float32 trains the parameters themselves, without a master copy.
    width = 8 if setting.zero_stage == 0 and setting.precision == "float32" else 12
    return parameters, gradients, width * trained // (share if setting.zero_stage >= 1 else 1)


def _gathered(model: Architecture, setting: Setting) -> int:
    """Return the bytes of parameters gathered by ZeRO-3 at a time: on a CPU all of them.

    DeepSpeed gathers a module into one flat buffer and copies every parameter out of it
    (`AllGatherCoalescedHandle.wait`), so the largest module is there twice for a moment. A single
    worker copies nothing.
    """
    if setting.zero_stage < 3:
        return 0
    if setting.on_cpu:
        return setting.width * setting.gathered(model)
    module = setting.gathered_module(model)
    # `training/model/engine.py` lets two layers be gathered, the second one ahead of use.
    live = max(MAX_LIVE_PARAMETERS, 2 * setting.gathered_layer(model), module)
    live = min(setting.gathered(model), live)
    flat = module if setting.num_workers > 1 else 0
    return setting.width * (live + flat)


def _block_gradients(model: Architecture, setting: Setting) -> int:
    """Return the bytes of gradients that wait for the end of a block's backward pass.

    A sparse block is a leaf of ZeRO-3 (`training/model/moe.py`): its gradients go to the bucket
    together. Adapters leave experts frozen. Divided experts are no leaf.
    """
    waits = (
        model.sparse_layers
        and setting.zero_stage == 3
        and setting.lora_parameters is None
        and setting.expert_parallel == 1
    )
    return setting.width * model.block_parameters if waits else 0


def _buckets(model: Architecture, setting: Setting) -> int:
    """Return the bytes of gradients in flight: DeepSpeed's buckets and copies of them.

    Copies exist during reduction. A GPU allocates complete buckets at the start.
    """
    trained = setting.trained(model)
    size = CPU_BUCKET if setting.on_cpu else REDUCE_BUCKET
    filled = min(trained, size)
    if setting.zero_stage == 0:
        return 0 if setting.num_workers == 1 else 4 * filled
    if setting.zero_stage == 1 and setting.width < 4 and setting.offload == "none":
        # BF16_Optimizer reduces its flat gradients in buckets. Several in one bucket are copied
        # into it; one larger than a bucket is reduced in place.
        return 4 * trained if trained <= size else 0
    buffers, copies = bucket_bytes(setting)
    return buffers * (filled if setting.on_cpu else size) + copies * filled


def bucket_bytes(setting: Setting) -> tuple[int, int]:
    """Return the bytes of a bucket's element: permanent ones, and copies during reduction.

    Valid from ZeRO-1 on.
    """
    if setting.zero_stage == 3:
        # Float32: a copy ordered by destination, and on a CPU gloo's copy of that.
        return 4, 8 if setting.on_cpu else 4
    width = 4 if setting.zero_stage == 1 else setting.width
    # Overlapping communication fills one buffer while the other is reduced.
    buffers = width if setting.on_cpu else 2 * width
    return buffers, width + (4 if width < 4 else 0)


def _kept(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the base kept for held-out samples.

    These are its last hidden states, and its output head if that is trained.
    """
    if not setting.heldout_tokens:
        return 0
    head = model.vocabulary * model.hidden if setting.lora_parameters is None else 0
    return setting.width * (head + setting.heldout_tokens * model.hidden // setting.num_workers)


def _step(model: Architecture, setting: Setting) -> int:
    """Return the bytes of one sub-group's flat gradient in the optimizer's step."""
    group = CPU_BUCKET if setting.on_cpu else SUB_GROUP
    return 4 * min(
        setting.trained(model) // (setting.num_workers if setting.zero_stage else 1), group
    )


def _activations(model: Architecture, setting: Setting) -> tuple[int, int, int]:
    """Return bytes saved for the backward pass, of one layer at work, of the head at work."""
    tokens = setting.tokens
    width = setting.width
    inputs = tokens * model.hidden * width
    # sdpa converts its mask of flags to numbers.
    layer = tokens * _kept_by_layer(model, setting) + width * setting.mask_tokens**2
    # Two gradients of the MLP's width are alive at a time. Each routed token has a row of hidden
    # states for each of its experts, and three of their gradients are alive at a time.
    alive = max(2 * _mlp_width(model), 3 * model.experts_per_token * model.hidden)
    if setting.expert_parallel > 1:
        # Rows are exchanged: those sent, those received, and these again in the order of experts.
        # As many are received as sent where the load of experts is even.
        alive += 3 * model.experts_per_token * model.hidden
    gradients = tokens * width * (2 * model.hidden + alive)
    # Embeddings, the last norm, and its gradient.
    ends = 3 * inputs + (tokens * model.hidden * 4 if width < 4 else 0)
    ends += setting.mask_tokens**2
    if setting.gradient_checkpointing:
        saved = model.layers * inputs + ends
        return saved, layer + gradients, _head(model, setting)
    return model.layers * layer + ends, gradients, _head(model, setting)


def _kept_by_layer(model: Architecture, setting: Setting) -> int:
    """Return the bytes kept by one layer for its backward pass, for each token.

    Attention keeps no [positions, positions] tensor except a mask, counted elsewhere.
    """
    width = setting.width
    # Norms compute in float32, and keep their input in it if that is another type.
    wide = 4 if width < 4 else 0
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
    if setting.sequence_parallel > 1:
        # Ulysses exchanges queries, keys, values and the output between workers.
        attention += (qkv + model.query) * width
    routed = 0
    if model.sparse_layers:
        routed = 4 * model.experts + 2 * model.experts_per_token * model.hidden * width
    # GPT-OSS clamps both projections, and multiplies twice.
    mlp = 7 if model.expert_bias else 4
    return norms + attention + routed + mlp * _mlp_width(model) * width


def _mlp_width(model: Architecture) -> int:
    """Return the width of a token's MLP: the sum over its experts if there are any."""
    if model.sparse_layers:
        return model.experts_per_token * model.expert_intermediate
    return model.intermediate


def _head(model: Architecture, setting: Setting) -> int:
    """Return the bytes of the output head at work on one chunk.

    These are logits, log-probabilities and their gradient; the gradient of the head's weight; the
    hidden states and their gradient.
    """
    chunk = min(setting.chunk_tokens, setting.tokens)
    logits = chunk * model.vocabulary * (12 + (setting.width if setting.width < 4 else 0))
    trained = model.vocabulary * model.hidden * (4 + (setting.width if setting.width < 4 else 0))
    return (
        logits
        + (trained if setting.lora_parameters is None else 0)
        + 2 * setting.tokens * model.hidden * setting.width
    )
