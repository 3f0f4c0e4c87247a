"""Ulysses sequence parallelism with DeepSpeed's library: several workers share one sequence.

- Each worker of a group holds a slice of the tokens. Around attention, slices of all heads are
  exchanged for complete sequences of some heads.
- transformers' attention function is wrapped once per process, under the name that the loaded
  model looks up. `ResponseLoss.check_slices` proves that the wrapper is in use.
- Does no I/O.
"""

from __future__ import annotations

from typing import Any

from ssd_ray.config import TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models.architecture import can_share
from ssd_ray.training.data.batches import MicroBatch

_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}
"""Kinds of layers with no connection between tokens but attention, as Ulysses requires."""


def register(model: Any, train: TrainConfig) -> Any:
    """Wrap the attention of a loaded model and return DeepSpeed's state; None at size 1.

    Every worker calls it once.

    Raises:
        UserError: the model's attention heads cannot be divided by `train.sequence_parallel_size`.
    """
    size = train.sequence_parallel_size
    if size == 1:
        return None
    from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF

    check_heads(model.config, train)
    # Not train.attention: without flash_attn, transformers loads kernels-community/flash-attn2 in
    # its place and calls attention by that name.
    return UlyssesSPAttentionHF.register_with_transformers(
        model_name_or_path=model,
        core_attn_implementation=model.config._attn_implementation,
        sequence_parallel_size=size,
        micro_batch_size=1,
        seq_length_is_variable=True,
    )


def check_heads(config: Any, train: TrainConfig) -> None:
    """Check that workers can share a sequence: heads divide, and all layers are attention.

    Raises:
        UserError: they cannot.
    """
    size = train.sequence_parallel_size
    if size == 1:
        return
    text = config.get_text_config()
    heads = text.num_attention_heads
    shared = text.num_key_value_heads
    if not can_share(heads, shared, size):
        raise UserError(
            f"train.sequence_parallel_size {size} does not divide the model's {heads} attention "
            f"heads and {shared} key-value heads"
        )
    # Convolutions and recurrent layers carry state from token to token; a slice would not get it.
    if stateful := sorted(set(getattr(text, "layer_types", None) or ()) - _ATTENTION):
        raise UserError(
            f"train.sequence_parallel_size {size} cuts sequences, and layers of the kind "
            f"{stateful[0]} would restart in every part: set it to 1"
        )


def slice_of(batch: MicroBatch, size: int, place: int) -> MicroBatch:
    """Return slice `place` of `size` equal slices of a micro-batch along its tokens.

    The number of tokens is a multiple of `size`.
    """
    if size == 1:
        return batch
    width = batch.input_ids.shape[1] // size
    part = slice(place * width, (place + 1) * width)
    return MicroBatch(
        input_ids=batch.input_ids[:, part],
        position_ids=batch.position_ids[:, part],
        targets=batch.targets[:, part],
        weights=batch.weights[:, part],
        real=batch.real[:, part],
        cu_seq_lens=batch.cu_seq_lens,
        max_length=batch.max_length,
    )
