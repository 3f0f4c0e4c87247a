"""The recipe's part on fine-tuning: optimiser, schedule, how a step is cut into pieces, and the engine that carries it.

Fields marked `tuning` leave the optimised quantity as it is, within rounding. Reads and writes nothing.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from ssd_ray.config.section import Section, tuning


class LoraConfig(Section):
    rank: int = Field(16, ge=1)
    """Rank of the adapters' matrices."""
    alpha: int = Field(32, ge=1)
    """An adapter's product is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on an adapter's input; above 0 a resumed run draws other masks."""
    target_modules: tuple[str, ...] = ()
    """Last names of the linear layers that get an adapter (`q_proj`); empty is every linear layer but the output head.
    Experts that transformers stores as stacked matrices are no linear layers and stay frozen."""


class TrainConfig(Section):
    steps: int = Field(2500, ge=1)
    """Optimiser steps."""
    global_batch_size: int = Field(32, ge=1)
    """Sequences of one optimiser step, over all workers."""
    loss_mean: Literal["token", "sequence"] = "token"
    """`token`: the mean over all response tokens of the global batch; `sequence`: the mean over its sequences of each
    one's mean over its response tokens, which lets short answers weigh as much as long ones. Not stated in the paper."""
    micro_batch_tokens: int | None = tuning(None, ge=1)
    """Tokens that a worker puts through the model at a time, padding included; a longer sequence goes alone. `null` is
    the longest sequence of the data set, which has to fit in any case."""
    packing: bool = tuning(False)
    """Lay a micro-batch's sequences end to end, each with its own positions and blind to the others, instead of padding
    them; right with flash attention, while `sdpa` then holds a mask of micro_batch_tokens squared bytes."""
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_3"] = tuning("sdpa")
    """Attention kernel; flash attention needs CUDA and its package."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate at the end of the cosine."""
    warmup_steps: int = Field(250, ge=0)
    """Steps of linear warm-up from zero."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW beta 2."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay, on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm; not stated in the paper."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of forward and backward; the optimiser keeps float32 master weights."""
    router_aux_loss: float = Field(0.0, ge=0)
    """Weight of a mixture of experts' load-balancing loss, whatever the model's own configuration says; the paper states none."""
    lora: LoraConfig | None = None
    """Train low-rank adapters instead of all weights, merged into the weights on export; `null` trains everything."""
    zero_stage: Literal[0, 1, 2, 3] = tuning(3)
    """What DeepSpeed's ZeRO splits over the workers: 0 nothing, 1 optimiser states, 2 gradients too, 3 parameters too."""
    offload: Literal["none", "optimizer", "parameters"] = tuning("none")
    """Keep optimiser states, or with ZeRO-3 parameters too, in the host's memory (CUDA): slower, for models that do not fit."""
    sequence_parallel_size: int = tuning(1, ge=1)
    """Workers that share one sequence (Ulysses), for sequences too long for one; a divisor of the attention heads. Each sequence
    then goes through the model alone, whatever micro_batch_tokens says, but where flash attention packs them."""
    compile: bool = tuning(False)
    """Compile the model with torch.compile: minutes at the start, fewer kernels later."""
    heldout_samples: int = Field(0, ge=0)
    """Samples that are kept out of training and measured instead, all of a prompt together; 0 measures nothing."""
    evaluate_every: int = tuning(50, ge=1)
    """Steps between measurements of the held-out samples; the base and the end are always measured."""
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = tuning(("tensorboard",))
    """Where curves go besides the report; TensorBoard's files lie in the run's logs, the others need their package."""
    peak_tflops: float | None = tuning(None, gt=0)
    """Peak of one device in TFLOP/s, for the share that training reaches; `null` is what is known of the GPU, none on a CPU."""
    checkpoint_every: int = tuning(250, ge=1)
    """Steps between checkpoints to resume from; the latest is kept, until training has ended."""
    export_every: int | None = tuning(None, ge=1)
    """Steps between exports of the model as it is, each kept as a model directory `checkpoint/steps/step-N` (the last is
    `checkpoint/` itself); `null` exports it at the end alone. An export is as large as the model, and the whole model is in one
    worker's memory once."""
    accumulate_locally: bool = True
    """On a CPU, in float32, add up a step's gradients and reduce them once: faster, and holds a whole gradient."""
    gradient_checkpointing: bool = tuning(True)
    """Recompute activations in the backward pass to save memory."""
    loss_kernel: Literal["chunked", "liger"] = tuning("chunked")
    """What computes cross-entropy without all logits: chunks of this project, or package liger-kernel's fused kernel (CUDA)."""
    loss_chunk_tokens: int = tuning(1024, ge=1)
    """Response tokens whose logits are in memory at a time (`chunked`)."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is above steps {self.steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above learning_rate {self.learning_rate}"
            )
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload 'parameters' needs zero_stage 3, not {self.zero_stage}")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload 'optimizer' needs zero_stage 1, 2 or 3, not 0")
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError(
                "zero_stage 0 keeps no float32 master weights with bfloat16: set zero_stage 1 or dtype float32"
            )
        if self.attention != "sdpa" and self.dtype == "float32":
            raise ValueError(
                f"attention {self.attention!r} does not compute in dtype 'float32': set dtype bfloat16 or attention sdpa"
            )
        if self.router_aux_loss and self.gradient_checkpointing and self.zero_stage == 3:
            raise ValueError(
                f"router_aux_loss {self.router_aux_loss} has no gradient where ZeRO-3 recomputes activations: set "
                "gradient_checkpointing false or zero_stage 2"
            )
        if self.loss_kernel == "liger" and self.loss_mean == "sequence":
            raise ValueError(
                "loss_kernel 'liger' sums over tokens: set loss_mean 'token' or loss_kernel 'chunked'"
            )
        return self

    @property
    def sequences_alone(self) -> bool:
        """Whether a micro-batch holds one sequence: Ulysses takes one line, on which only flash attention tells several apart."""
        return self.sequence_parallel_size > 1 and not (self.packing and self.attention != "sdpa")

    @property
    def needs_cuda(self) -> str:
        """The first choice that a CPU cannot carry, as `train.FIELD VALUE`; empty where there is none."""
        wanted = {
            "offload": self.offload != "none",
            "loss_kernel": self.loss_kernel == "liger",
            "attention": self.attention != "sdpa",
        }
        return next(
            (f"train.{name} {getattr(self, name)!r}" for name, there in wanted.items() if there), ""
        )

    def check_workers(self, train_workers: int) -> None:
        """Whether so many workers can share a global batch.

        Raises:
            ValueError: they cannot; the message names the fields and the nearest mend.
        """
        if train_workers % self.sequence_parallel_size:
            raise ValueError(
                f"cluster.train_workers {train_workers} is not a multiple of "
                f"train.sequence_parallel_size {self.sequence_parallel_size}"
            )
        groups = train_workers // self.sequence_parallel_size
        if self.global_batch_size % groups:
            raise ValueError(
                f"train.global_batch_size {self.global_batch_size} is not a multiple of the {groups} workers or groups of "
                f"workers that share it (cluster.train_workers {train_workers} / train.sequence_parallel_size "
                f"{self.sequence_parallel_size})"
            )
