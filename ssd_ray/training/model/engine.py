"""The DeepSpeed engine: its configuration as a pure function, and a model loaded straight into ZeRO-3 partitions.

On CUDA, parameters are gathered layer by layer and gradients reduced as they appear (models larger than a device). On CPU,
where a gather crosses loopback sockets, every worker keeps the gathered parameters and gradients are reduced once a step.
Gradients are summed and reduced in float32 and the master weights are float32, whatever the precision of the forward.
Reads a Hugging Face directory; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ssd_ray.cluster import import_path
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.models import loading
from ssd_ray.training.model import sequence_parallel
from ssd_ray.training.model.adapters import add_adapters
from ssd_ray.training.model.cpu_kernels import use_fast_products
from ssd_ray.training.model.loss import ResponseLoss
from ssd_ray.training.model.moe import take_blocks_whole

EVERYTHING = 10**12
_NOISE = ("dropout", "pdrop", "layerdrop", "jitter")
"""What is in the names of a model's settings that make its training random."""
_BUCKET = 20_000_000
"""Elements that are reduced at a time on a CPU: their copy is 80 MB."""


def deepspeed_config(train: TrainConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """The DeepSpeed configuration of a run; the loop sets the learning rate and the end of accumulation at every step."""
    optimizer = {
        "lr": train.learning_rate,
        "betas": [train.beta1, train.beta2],
        "eps": 1e-8,
        "weight_decay": train.weight_decay,
    }
    if train.offload == "none":  # offloaded states are updated by DeepSpeed's own CPU kernel
        optimizer |= {"torch_adam": True, "fused": True}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": max_micro_steps(train, cluster),
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": optimizer},
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": _zero(train, on_cpu=cluster.device == "cpu"),
        "sequence_parallel_size": train.sequence_parallel_size,
        "steps_per_print": EVERYTHING,
    }


def _zero(train: TrainConfig, *, on_cpu: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": train.zero_stage}
    if train.zero_stage:
        zero |= {"contiguous_gradients": True, "overlap_comm": not on_cpu, "reduce_scatter": True}
    if on_cpu and train.zero_stage:
        zero |= {"reduce_bucket_size": _BUCKET}
    if on_cpu and train.zero_stage == 3:
        zero |= {
            "stage3_param_persistence_threshold": EVERYTHING,
            "stage3_model_persistence_threshold": EVERYTHING,
        }
        zero |= {"sub_group_size": _BUCKET}
    if train.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    if train.offload == "parameters":
        zero["offload_param"] = {"device": "cpu", "pin_memory": True}
    return zero


def num_shares(train: TrainConfig, cluster: ClusterConfig) -> int:
    """Workers, or groups of workers with one sequence, that a global batch is shared out to."""
    return cluster.train_workers // train.sequence_parallel_size


def gradient_divisor(train: TrainConfig, cluster: ClusterConfig) -> int:
    """What DeepSpeed divides the sum of all workers' gradients by: under Ulysses, ZeRO-3 and the other stages disagree.

    ZeRO-3 divides by all workers (`reduce_scatter_coalesced`), the others by the groups that share a sequence.
    """
    return cluster.train_workers if train.zero_stage == 3 else num_shares(train, cluster)


def max_micro_steps(train: TrainConfig, cluster: ClusterConfig) -> int:
    """Micro-batches of a step for one worker, if every sequence went alone."""
    return train.global_batch_size // num_shares(train, cluster)


def process_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Environment that must stand before a worker starts: on a CPU, memory stays mapped between micro-batches.

    Left alone, each thread has an arena of its own, and what a micro-batch frees goes back to the system at its end and is
    mapped page by page in the next, a tenth of the time; kept, it has holes of some hundred MiB. One worker on all cores
    keeps each thread on a core of its own.
    """
    if cluster.device != "cpu":
        return dict(import_path.SAFE)
    memory = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 27),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
    }
    alone = cluster.train_workers == 1 and cluster.cpus_per_train_worker >= len(
        os.sched_getaffinity(0)
    )
    return import_path.SAFE | memory | ({"OMP_PROC_BIND": "true"} if alone else {})


def prepare_process(cluster: ClusterConfig) -> None:
    """Set up this process before DeepSpeed is imported: its device, its threads, and nothing compiled on a CPU.

    DeepSpeed would compile a shared-memory op as it wraps the process group on a CPU, and fail without a compiler; the
    table of ops it may load is emptied instead, which its own comment allows (`deepspeed/ops/__init__.py`).
    """
    if cluster.device != "cpu":
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(max(1, int(cluster.cpus_per_train_worker)))
    import deepspeed
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)


def build_engine(directory: Path, train: TrainConfig, cluster: ClusterConfig, *, seed: int) -> Any:
    """A DeepSpeed engine around `ResponseLoss` of the model in `directory`; every worker calls it.

    Raises:
        UserError: the directory lacks some of the model's weights, or its architecture cannot be trained exactly.
    """
    import deepspeed

    config = deepspeed_config(train, cluster)
    parallel = sequence_parallel.register(directory, train)
    model = _load(directory, train, config)
    if train.gradient_checkpointing:
        # Recomputing with autograd's own hooks would compare tensors that ZeRO-3 has partitioned again in between.
        model.gradient_checkpointing_enable({"use_reentrant": train.zero_stage == 3})
    if train.lora is not None:
        add_adapters(model, train.lora, seed)
    take_blocks_whole(model)
    by_ourselves = cluster.device == "cpu" and not train.compile
    if by_ourselves:
        use_fast_products(model)
    loss = ResponseLoss(
        model,
        train.loss_chunk_tokens,
        liger=train.loss_kernel == "liger",
        router_aux_loss=train.router_aux_loss,
        in_place=float(gradient_divisor(train, cluster))
        if by_ourselves and train.zero_stage == 0
        else None,
    )
    groups = parameter_groups(loss, train.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=loss, model_parameters=groups, config=config, mpu=parallel
    )
    if cluster.device == "cpu":  # ZeRO-0 would copy all gradients at once
        engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=_BUCKET)
    engine.eval()
    probe = torch.arange(8, device=engine.device)[None]
    loss.check(probe)
    if train.packing and parallel is None:
        loss.check_packing(probe)
    engine.train()
    if train.compile:
        engine.compile(compile_kwargs={"dynamic": True})
    return engine


def _load(directory: Path, train: TrainConfig, config: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    settings = loading.load_config(directory)
    switch_noise_off(settings)
    partitioned = HfDeepSpeedConfig(
        config
    )  # transformers looks at it for as long as it lives: load into ZeRO-3 partitions
    model, info = AutoModelForCausalLM.from_pretrained(
        directory,
        config=settings,
        dtype=getattr(torch, train.dtype),
        attn_implementation=train.attention,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    del partitioned
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(
            f"{directory} lacks weights of {type(model).__name__} ({lacking}): download the model again"
        )
    return model


def switch_noise_off(config: Any) -> None:
    """Set every dropout and jitter of a transformers configuration, and of those within it, to 0.

    With one of them the loss of a batch would depend on how it is cut up, and a resumed run would draw others.
    """
    for name, value in list(vars(config).items()):
        if hasattr(value, "get_text_config"):
            switch_noise_off(value)
        elif isinstance(value, float | int) and any(noise in name for noise in _NOISE):
            setattr(config, name, type(value)(0))


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable matrices with weight decay, vectors (norms, biases) without; shapes are those before ZeRO-3 partitioned them.

    Experts' biases are stacked to matrices and go by their name.
    """
    groups: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            groups[len(shape) < 2 or name.endswith("bias")].append(parameter)
    both = (
        {"params": groups[0], "weight_decay": weight_decay},
        {"params": groups[1], "weight_decay": 0.0},
    )
    return [group for group in both if group["params"]]


def accumulate(
    engine: Any, micro_batches: Sequence[Callable[[], torch.Tensor]], scale: float, *, once: bool
) -> torch.Tensor:
    """Run forward and backward of every micro-batch and reduce the gradients; the sum of their losses, of this worker.

    With `once`, gradients of several micro-batches add up locally and are reduced at the end, which holds a whole gradient;
    otherwise each micro-batch reduces as its ZeRO stage does.

    Args:
        engine: the DeepSpeed engine, whose `step` is the caller's to call.
        micro_batches: each runs the engine's forward and returns its loss.
        scale: what a loss is multiplied by before its backward pass, since DeepSpeed divides (`gradient_divisor`).
        once: whether to reduce once.
    """
    total = torch.zeros((), device=engine.device)
    together = (
        once and len(micro_batches) > 1 and hasattr(engine.optimizer, "_coalesce_grad_reduction")
    )
    with engine.coalesce_grad_reduction() if together else nullcontext():
        for number, run in enumerate(micro_batches, start=1):
            engine.set_gradient_accumulation_boundary(together or number == len(micro_batches))
            loss = run()
            engine.backward(loss * scale, scale_wrt_gas=False)
            total += loss.detach()
    return total


def step(engine: Any) -> float:
    """Clip, update the weights, and return the gradient's norm before clipping."""
    norm = None
    if not hasattr(engine.optimizer, "_global_grad_norm"):  # ZeRO-0 clips and does not tell
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.module.parameters() if p.grad is not None]
        )
    engine.set_gradient_accumulation_boundary(True)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)
