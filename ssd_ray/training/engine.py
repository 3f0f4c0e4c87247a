"""The DeepSpeed engine: its configuration as a pure function, and a model loaded straight into ZeRO-3 partitions.

On CUDA, parameters are gathered layer by layer and gradients reduced as they appear (models larger than a device). On CPU,
where a gather crosses loopback sockets, every worker keeps the gathered parameters and gradients are reduced once a step.
Gradients are summed and reduced in float32 and the master weights are float32, whatever the precision of the forward.
Reads a Hugging Face directory; writes nothing.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.training.loss import ResponseLoss

EVERYTHING = 10**12


def deepspeed_config(train: TrainConfig, cluster: ClusterConfig) -> dict[str, Any]:
    """The DeepSpeed configuration of a run; the learning rate is set by the loop at every step."""
    on_cpu = cluster.device == "cpu"
    accumulation = train.global_batch_size // (cluster.train_workers * train.micro_batch_size)
    optimizer = {
        "lr": train.learning_rate,
        "betas": [train.beta1, train.beta2],
        "eps": 1e-8,
        "weight_decay": train.weight_decay,
        "torch_adam": True,
        "fused": True,
    }
    zero: dict[str, Any] = {"stage": 3, "contiguous_gradients": True, "overlap_comm": not on_cpu}
    if on_cpu:
        zero |= {"stage3_param_persistence_threshold": EVERYTHING, "stage3_model_persistence_threshold": EVERYTHING}
        zero |= {"reduce_bucket_size": 20_000_000, "sub_group_size": 20_000_000}
    return {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": 1 if reduces_once(train, cluster) else accumulation,
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {"type": "AdamW", "params": optimizer},
        "bf16": {"enabled": train.dtype == "bfloat16"},
        "communication_data_type": "fp32",
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_optimization": zero,
        "steps_per_print": EVERYTHING,
    }


def process_environment(cluster: ClusterConfig) -> dict[str, str]:
    """Environment that must stand before a worker starts: on a CPU, large tensors go back to the system when freed.

    Left alone, the allocator raises its threshold to the largest tensor it saw and keeps about a GiB of holes a worker.
    """
    return {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 24)} if cluster.device == "cpu" else {}


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


def build_engine(directory: Path, train: TrainConfig, cluster: ClusterConfig) -> Any:
    """A DeepSpeed engine around `ResponseLoss` of the model in `directory`; every worker calls it.

    Raises:
        UserError: the directory lacks some of the model's weights, or its architecture cannot be trained exactly.
    """
    import deepspeed

    config = deepspeed_config(train, cluster)
    model = _load(directory, train, config)
    if train.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": True})
    loss = ResponseLoss(model, train.loss_chunk_tokens)
    groups = parameter_groups(loss, train.weight_decay)
    engine, *_ = deepspeed.initialize(model=loss, model_parameters=groups, config=config)
    engine.eval()
    loss.check(torch.arange(8, device=engine.device)[None])
    engine.train()
    return engine


def _load(directory: Path, train: TrainConfig, config: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    partitioned = HfDeepSpeedConfig(config)  # transformers looks at it for as long as it lives: load into partitions
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=getattr(torch, train.dtype), local_files_only=True, output_loading_info=True
    )
    del partitioned
    if info["missing_keys"]:
        lacking = ", ".join(sorted(info["missing_keys"])[:3])
        raise UserError(f"{directory} lacks weights of {type(model).__name__} ({lacking}): download the model again")
    return model


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices with weight decay, vectors (norms, biases) without; shapes are those before ZeRO-3 partitioned them."""
    groups: tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]] = ([], [])
    for parameter in module.parameters():
        shape = getattr(parameter, "ds_shape", parameter.shape)
        groups[len(shape) < 2].append(parameter)
    both = ({"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0})
    return [group for group in both if group["params"]]


def reduces_once(train: TrainConfig, cluster: ClusterConfig) -> bool:
    """Whether a step's micro-batches add their gradients up locally and reduce once: on a CPU, unless the recipe saves memory."""
    return cluster.device == "cpu" and train.accumulate_locally


def accumulation(engine: Any, once: bool, num_micro_batches: int) -> AbstractContextManager[None]:
    """Where the micro-batches of one step run: with `once`, several add their gradients up locally and reduce on exit.

    That holds a whole gradient; otherwise each micro-batch reduces as it goes, which holds a bucket.
    """
    if once and num_micro_batches > 1:
        coalesced: AbstractContextManager[None] = engine.coalesce_grad_reduction()
        return coalesced
    return nullcontext()
