"""Section `train` of a recipe: optimizer, schedule, batches, and the engine of training.

Fields marked `tuning` change neither the loss nor its gradient, within rounding. Does no I/O.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from ssd_ray.config.section import Section, tuning


class LoraConfig(Section):
    """Section `train.lora`: low-rank adapters (arXiv 2106.09685)."""

    rank: int = Field(16, ge=1)
    """Rank of the adapters' matrices."""
    alpha: int = Field(32, ge=1)
    """Scale of an adapter: its product is multiplied by alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on an adapter's input. Above 0, a resumed run draws other masks."""
    target_modules: tuple[str, ...] = ()
    """Last names of the linear layers with an adapter, such as `q_proj`. Empty is every linear
    layer except the output head. Experts that transformers stores as stacked matrices stay frozen.
    """


class TrainConfig(Section):
    """Section `train`: fine-tuning on the raw samples."""

    steps: int = Field(2500, ge=1)
    """Optimizer steps."""
    global_batch_size: int = Field(32, ge=1)
    """Sequences of one optimizer step, over all workers."""
    loss_mean: Literal["token", "sequence"] = "token"
    """Averaging of the loss. `token`: the mean over all response tokens of the global batch.
    `sequence`: first over the response tokens of each sequence, then over sequences, so short
    answers weigh as much as long ones. Eq. 2 of the paper is a sum over tokens; its mean is not
    stated. A control `token-mean` or `sequence-mean` trains with the other one as well.
    """
    seeds: int = tuning(1, ge=1, le=100)
    """Trainings of model ssd on the same samples, with seeds from `seed` on. Each arm of model ssd
    is repeated as NAME-seed2 and so on, and the report separates the spread of trainings from that
    of problems. Each further one costs a training.
    """
    micro_batch_tokens: int | None = tuning(None, ge=1)
    """Tokens of one micro-batch of a worker, padding included; a longer sequence goes alone. `null`
    is the longest sequence of the data set, which has to fit in any case.
    """
    packing: bool = tuning(False)
    """Concatenate the sequences of a micro-batch instead of padding them. Each keeps its own
    positions and attends only to itself. Intended for flash attention: `sdpa` allocates a mask of
    micro_batch_tokens squared bytes.
    """
    attention: Literal["sdpa", "flash_attention_2", "flash_attention_3"] = tuning("sdpa")
    """Attention kernel. Flash attention needs CUDA and its package."""
    learning_rate: float = Field(5e-6, gt=0)
    """Peak learning rate of AdamW."""
    min_learning_rate: float = Field(1e-6, ge=0)
    """Learning rate at the end of the cosine schedule."""
    warmup_steps: int = Field(250, ge=0)
    """Steps of linear warm-up from zero."""
    beta1: float = Field(0.9, ge=0, lt=1)
    """AdamW beta 1."""
    beta2: float = Field(0.95, ge=0, lt=1)
    """AdamW beta 2."""
    weight_decay: float = Field(0.1, ge=0)
    """AdamW weight decay, on matrices only."""
    max_grad_norm: float = Field(1.0, gt=0)
    """Gradient clipping by global norm. Not stated in the paper."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the forward and backward passes. The optimizer keeps float32 master weights."""
    router_aux_loss: float = Field(0.0, ge=0)
    """Weight of the load-balancing loss of a mixture of experts, whatever the model's own
    configuration. The paper states none.
    """
    lora: LoraConfig | None = None
    """Train low-rank adapters, merged into the weights on export. `null` trains all weights."""
    zero_stage: Literal[0, 1, 2, 3] = tuning(3)
    """Stage of DeepSpeed's ZeRO, by what is partitioned over workers. 0: nothing. 1: optimizer
    states. 2: gradients too. 3: parameters too.
    """
    offload: Literal["none", "optimizer", "parameters"] = tuning("none")
    """Keep optimizer states, or with ZeRO-3 parameters too, in host memory (CUDA). Slower, for
    models too large for the GPUs.
    """
    sequence_parallel_size: int = tuning(1, ge=1)
    """Number of workers that share one sequence (Ulysses), for sequences too long for one worker; a
    divisor of the attention heads. Each sequence is then a micro-batch of its own, unless flash
    attention packs several.
    """
    expert_parallel_size: int = tuning(1, ge=1)
    """Number of workers that divide the experts of each layer (DeepSpeed's AutoEP), for Qwen3-MoE
    under ZeRO-3; a divisor of the experts. Tokens travel to their experts, and an expert is
    gathered only among the workers that hold it. A resume state fits this size and number of
    workers alone. Never run on a GPU.
    """
    compile: bool = tuning(False)
    """Compile the model with torch.compile. Minutes at the start, fewer kernel launches later."""
    heldout_samples: int = Field(0, ge=0)
    """Number of samples held out of training and measured instead, all samples of a prompt
    together. 0 measures nothing.
    """
    evaluate_every: int = tuning(50, ge=1)
    """Steps between measurements of the held-out samples. The base and the final model are always
    measured.
    """
    trackers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = tuning(("tensorboard",))
    """Trackers that receive the curves, in addition to the report. TensorBoard writes to the logs
    of the run; the others need their package.
    """
    peak_tflops: float | None = tuning(None, gt=0)
    """Peak of one device in TFLOP/s, for the utilization that training reports. `null` is the known
    peak of the GPU, and none on a CPU.
    """
    checkpoint_every: int = tuning(250, ge=1)
    """Steps between resume states."""
    resume_states: int = tuning(2, ge=1)
    """Resume states kept until training has ended. With 2 or more, training goes back from a bad
    one to the one before. While a further one is written, storage holds one more.
    """
    export_every: int | None = tuning(None, ge=1)
    """Steps between exports of the model, each a model directory `checkpoint/steps/step-N`; the
    last is `checkpoint/` itself. `null` exports only at the end. An export is as large as the
    model, and is gathered in the memory of one worker.
    """
    accumulate_locally: bool = True
    """On a CPU in float32, accumulate the gradients of a step locally and reduce them once. Faster,
    and holds a full gradient.
    """
    gradient_checkpointing: bool = tuning(True)
    """Recompute activations in the backward pass to save memory."""
    loss_kernel: Literal["chunked", "liger"] = tuning("chunked")
    """Implementation of cross-entropy without materializing all logits. `chunked`: this project's.
    `liger`: the fused kernel of package liger-kernel (CUDA).
    """
    loss_chunk_tokens: int = tuning(1024, ge=1)
    """Response tokens in a chunk of logits (`chunked`)."""
    collective_timeout_s: int | None = tuning(None, ge=1)
    """Seconds that a worker waits for the others in a collective before training fails and resumes.
    `null` is 1,800 s between all workers (Ray Train), and 600 s on CUDA within the groups of
    sequence parallelism (torch). Raise it where reading weights or writing states takes longer.
    """

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup_steps > self.steps:
            raise ValueError(f"warmup_steps {self.warmup_steps} is above steps {self.steps}")
        if self.min_learning_rate > self.learning_rate:
            raise ValueError(
                f"min_learning_rate {self.min_learning_rate} is above "
                f"learning_rate {self.learning_rate}"
            )
        # DeepSpeed offloads only what ZeRO partitions.
        if self.offload == "parameters" and self.zero_stage != 3:
            raise ValueError(f"offload 'parameters' needs zero_stage 3, not {self.zero_stage}")
        if self.offload == "optimizer" and self.zero_stage == 0:
            raise ValueError("offload 'optimizer' needs zero_stage 1, 2 or 3, not 0")
        if self.zero_stage == 0 and self.dtype == "bfloat16":
            raise ValueError(
                "zero_stage 0 keeps no float32 master weights with bfloat16: set zero_stage 1 or "
                "dtype float32"
            )
        if self.attention != "sdpa" and self.dtype == "float32":
            raise ValueError(
                f"attention {self.attention!r} does not compute in dtype 'float32': set dtype "
                "bfloat16 or attention sdpa"
            )
        if self.router_aux_loss and self.gradient_checkpointing and self.zero_stage == 3:
            raise ValueError(
                f"router_aux_loss {self.router_aux_loss} has no gradient where ZeRO-3 recomputes "
                "activations: set gradient_checkpointing false or zero_stage 2"
            )
        # The fused kernel returns one sum, from which no mean of a sequence can be recovered.
        if self.loss_kernel == "liger" and self.loss_mean == "sequence":
            raise ValueError(
                "loss_kernel 'liger' sums over tokens: set loss_mean 'token' or loss_kernel "
                "'chunked'"
            )
        return self

    @model_validator(mode="after")
    def _check_expert_parallel(self) -> TrainConfig:
        if self.expert_parallel_size == 1:
            return self
        excluded = {
            "sequence_parallel_size 1": self.sequence_parallel_size > 1,
            "zero_stage 3": self.zero_stage != 3,
            "offload 'none'": self.offload != "none",
            "lora null": self.lora is not None,
            "compile false": self.compile,
        }
        for remedy, is_excluded in excluded.items():
            if is_excluded:
                raise ValueError(
                    f"expert_parallel_size {self.expert_parallel_size} needs {remedy}: set that, "
                    "or expert_parallel_size 1"
                )
        return self

    @property
    def sequences_alone(self) -> bool:
        """True if a micro-batch holds a single sequence.

        Ulysses takes one row of tokens. Only flash attention can keep several sequences in it
        apart.
        """
        return self.sequence_parallel_size > 1 and not (self.packing and self.attention != "sdpa")

    @property
    def needs_cuda(self) -> str:
        """First choice that needs CUDA, as `train.FIELD VALUE`; empty if there is none."""
        wanted = {
            "offload": self.offload != "none",
            "loss_kernel": self.loss_kernel == "liger",
            "attention": self.attention != "sdpa",
        }
        return next(
            (f"train.{name} {getattr(self, name)!r}" for name, is_set in wanted.items() if is_set),
            "",
        )

    def check_workers(self, train_workers: int) -> None:
        """Check that the workers can share a global batch evenly.

        Raises:
            ValueError: They cannot. The message names the fields, and values that work.
        """
        reason = self._unshareable(train_workers)
        if reason:
            raise ValueError(f"{reason}: {self._remedy(train_workers)}")

    def worker_counts(self, least: int, most: int) -> list[int]:
        """Return the numbers of workers from `least` to `most` that can share a global batch."""
        return [number for number in range(least, most + 1) if not self._unshareable(number)]

    def _unshareable(self, train_workers: int) -> str:
        """Return the reason why workers cannot share a global batch evenly; empty if they can."""
        for name in ("sequence_parallel_size", "expert_parallel_size"):
            size = getattr(self, name)
            if train_workers % size:
                return (
                    f"cluster.train_workers {train_workers} is not a multiple of "
                    f"train.{name} {size}"
                )
        groups = train_workers // self.sequence_parallel_size
        if self.global_batch_size % groups:
            return (
                f"train.global_batch_size {self.global_batch_size} is not a multiple of the "
                f"{groups} workers or groups of workers that share it (cluster.train_workers "
                f"{train_workers} / train.sequence_parallel_size {self.sequence_parallel_size})"
            )
        return ""

    def _remedy(self, train_workers: int) -> str:
        """Return the nearest numbers of workers that can share a global batch, as a remedy."""
        shared = self.sequence_parallel_size
        # Each group of workers takes one sequence or more.
        sizes = range(shared, shared * self.global_batch_size + 1, shared)
        counts = [size for size in sizes if not self._unshareable(size)]
        if not counts:
            size = math.lcm(shared, self.expert_parallel_size)
            return (
                f"use cluster.train_workers={size} and a multiple of {size // shared} as "
                "train.global_batch_size"
            )
        below = [number for number in counts if number < train_workers][-1:]
        above = [number for number in counts if number > train_workers][:1]
        return f"use cluster.train_workers={' or '.join(map(str, below + above))}"
