"""DeepSpeed engine: configuration as a pure function, and the engine around a loaded model.

- On CUDA, parameters are gathered layer by layer and gradients reduced as they appear, for models
  larger than a device.
- On a CPU, where a gather crosses loopback sockets, every worker keeps the gathered parameters, and
  gradients are reduced once a step.
- Gradients are summed and reduced in float32, and master weights are float32, for any precision of
  the forward pass.
- Reads a Hugging Face directory; writes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.distributed import distributed_c10d

from ssd_ray.cluster import import_path
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.machine.garbage import collector_paused
from ssd_ray.models.cpu_kernels import use_fast_products
from ssd_ray.training.model import expert_parallel, sequence_parallel
from ssd_ray.training.model.adapters import add_adapters
from ssd_ray.training.model.loss import ResponseLoss
from ssd_ray.training.model.moe import make_blocks_leaves, sparse_blocks
from ssd_ray.training.model.pretrained import load

EVERYTHING = 10**12
_BUCKET = 20_000_000
"""Elements reduced at a time on a CPU; their copy takes 80 MB."""


def deepspeed_config(train: TrainConfig, cluster: ClusterConfig) -> dict[str, object]:
    """Return the DeepSpeed configuration of a run.

    At every step, `worker.py` sets the learning rate, and `accumulate` the end of accumulation.
    """
    optimizer = {
        "lr": train.learning_rate,
        "betas": [train.beta1, train.beta2],
        "eps": 1e-8,
        "weight_decay": train.weight_decay,
    }
    # DeepSpeed's own CPU kernel updates offloaded states.
    if train.offload == "none":
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


def _zero(train: TrainConfig, *, on_cpu: bool) -> dict[str, object]:
    zero: dict[str, object] = {"stage": train.zero_stage}
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


def numel(parameter: torch.nn.Parameter) -> int:
    """Return the number of elements of a parameter, also where ZeRO-3 has partitioned it."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def fetch_sizes(model: torch.nn.Module, expert_parallel_size: int = 1) -> dict[str, object]:
    """Return how many elements ZeRO-3 gathers ahead of use, and holds at a time.

    - The largest layer is gathered while the one before it computes.
    - DeepSpeed's defaults are the minimum. They are too small for the layers of large mixtures of
      experts: Qwen3-30B-A3B has 623M parameters in each.
    - A worker gathers only its own experts.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    shares = {
        parameter: expert_parallel_size
        for block in sparse_blocks(model)
        for parameter in block.experts.parameters()
    }
    sizes = [
        sum(numel(each) // shares.get(each, 1) for each in layer.parameters())
        for layer in model.modules()
        if isinstance(layer, GradientCheckpointingLayer)
    ]
    largest = max(sizes, default=0)
    return {
        "stage3_prefetch_bucket_size": max(50_000_000, largest),
        "stage3_max_live_parameters": max(1_000_000_000, 2 * largest),
    }


def num_shares(train: TrainConfig, cluster: ClusterConfig) -> int:
    """Return the number of shares of a global batch: workers, or groups sharing a sequence."""
    return cluster.train_workers // train.sequence_parallel_size


def gradient_divisor(train: TrainConfig, cluster: ClusterConfig) -> int:
    """Return the number by which DeepSpeed divides the sum of all workers' gradients.

    ZeRO-3 divides by all workers (`reduce_scatter_coalesced`). The other stages divide by the
    groups sharing a sequence, a different number under Ulysses.
    """
    return cluster.train_workers if train.zero_stage == 3 else num_shares(train, cluster)


def max_micro_steps(train: TrainConfig, cluster: ClusterConfig) -> int:
    """Return the micro-batches of a worker's step if every sequence went alone."""
    return train.global_batch_size // num_shares(train, cluster)


def process_environment(train: TrainConfig, cluster: ClusterConfig) -> dict[str, str]:
    """Return environment variables to set before a worker starts.

    - On a CPU, memory stays mapped between micro-batches. By default glibc returns memory freed by
      a micro-batch to the system. Mapping it again takes a tenth of the next micro-batch's time.
    - The cost is fragmentation: some hundred MiB of mapped memory are unused. `release_memory`
      of `cpu_kernels.py` returns them.
    - A single worker on all cores pins each thread to a core.
    - DeepSpeed compiles an unused optimizer, which loads torch's compiler: 2.5 s at each start.
    """
    if cluster.device != "cpu":
        # Sequences of many lengths leave holes in segments of fixed size.
        return import_path.SAFE | {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    memory = {
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 27),
        "MALLOC_TRIM_THRESHOLD_": str(1 << 29),
    }
    alone = cluster.train_workers == 1 and cluster.cpus_per_train_worker >= len(
        os.sched_getaffinity(0)
    )
    pinned = {"OMP_PROC_BIND": "true"} if alone else {}
    compiler = {} if train.compile else {"TORCHDYNAMO_DISABLE": "1"}
    return import_path.SAFE | memory | pinned | compiler


def prepare_process(cluster: ClusterConfig) -> None:
    """Set device and threads of this process before DeepSpeed is imported.

    DeepSpeed would compile a shared-memory op for the process group on a CPU, and fail without a
    compiler. Instead, its table of compatible ops is replaced by one without any. A comment in
    `deepspeed/ops/__init__.py` allows edits of the table.
    """
    if cluster.device != "cpu":
        return
    os.environ["DS_ACCELERATOR"] = "cpu"
    torch.set_num_threads(max(1, int(cluster.cpus_per_train_worker)))
    with collector_paused():
        import deepspeed
        from deepspeed.ops.op_builder.all_ops import ALL_OPS

    deepspeed.ops.__compatible_ops__ = dict.fromkeys(ALL_OPS, False)


def build_engine(directory: Path, train: TrainConfig, cluster: ClusterConfig, *, seed: int) -> Any:
    """Build a DeepSpeed engine around `ResponseLoss` of the model in `directory`.

    Every worker calls it.

    Raises:
        UserError: the directory lacks weights, or the architecture cannot be trained exactly.
    """
    import deepspeed

    config = deepspeed_config(train, cluster)
    model = load(directory, train, config)
    parallel = sequence_parallel.register(model, train)
    if train.gradient_checkpointing:
        # The non-reentrant kind would compare recomputed tensors with saved ones, some of which
        # ZeRO-3 has partitioned again.
        model.gradient_checkpointing_enable({"use_reentrant": train.zero_stage == 3})
    if train.lora is not None:
        add_adapters(model, train.lora, seed)
    if train.expert_parallel_size > 1:
        config["expert_parallel"] = expert_parallel.section(model.config, train)
    else:
        make_blocks_leaves(model)
    if train.zero_stage == 3 and cluster.device == "cuda":
        config["zero_optimization"] = _zero(train, on_cpu=False) | fetch_sizes(
            model, train.expert_parallel_size
        )
    own_kernels = cluster.device == "cpu" and not train.compile
    if own_kernels:
        use_fast_products(model)
    in_place = None
    if own_kernels and train.zero_stage == 0:
        # `accumulate` multiplies the loss by this number, because DeepSpeed divides by it.
        in_place = float(gradient_divisor(train, cluster))
    loss = ResponseLoss(
        model,
        train.loss_chunk_tokens,
        liger=train.loss_kernel == "liger",
        router_aux_loss=train.router_aux_loss,
        in_place=in_place,
    )
    groups = parameter_groups(loss, train.weight_decay)
    engine, *_ = deepspeed.initialize(
        model=loss, model_parameters=groups, config=config, mpu=parallel
    )
    if train.collective_timeout_s is not None:
        set_timeouts(train.collective_timeout_s)
    if cluster.device == "cpu":
        # By default ZeRO-0 copies all gradients at once.
        engine.allreduce_gradients = partial(engine.allreduce_gradients, bucket_size=_BUCKET)
    _check(loss, engine, train)
    if train.compile:
        engine.compile(compile_kwargs={"dynamic": True})
    return engine


def _check(loss: ResponseLoss, engine: Any, train: TrainConfig) -> None:
    """Check on a few tokens that the architecture can be trained exactly.

    Raises:
        UserError: it cannot.
    """
    engine.eval()
    probe = torch.arange(8, device=engine.device)[None]
    loss.check(probe)
    size = train.sequence_parallel_size
    if size > 1:
        slices = probe[:, :2], engine.global_rank % size, size
        loss.check_slices(*slices)
        if not train.sequences_alone:
            loss.check_packed_slices(*slices)
    elif train.packing:
        loss.check_packing(probe)
    engine.train()


def set_timeouts(seconds: int) -> None:
    """Set the time-out of collectives in all process groups of this process.

    DeepSpeed makes its groups without one, and torch then takes 600 s for NCCL.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def parameter_groups(module: torch.nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split trainable parameters: matrices with weight decay, vectors (norms, biases) without.

    - Shapes are those before partitioning by ZeRO-3.
    - Experts' biases are stacked to matrices, so biases are recognized by name.
    """
    decayed: list[torch.nn.Parameter] = []
    plain: list[torch.nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            shape = getattr(parameter, "ds_shape", parameter.shape)
            group = plain if len(shape) < 2 or name.endswith("bias") else decayed
            group.append(parameter)
    # DeepSpeed takes experts out of a group by its name.
    both: tuple[dict[str, Any], ...] = (
        {"params": decayed, "weight_decay": weight_decay, "name": "decayed"},
        {"params": plain, "weight_decay": 0.0, "name": "plain"},
    )
    return [group for group in both if group["params"]]


def accumulate(
    engine: Any, micro_batches: Sequence[Callable[[], torch.Tensor]], scale: float, *, once: bool
) -> torch.Tensor:
    """Run forward and backward of all micro-batches, reduce gradients, return the summed loss.

    The sum is over this worker's micro-batches. The caller calls the engine's `step`.

    Args:
        engine: the DeepSpeed engine.
        micro_batches: functions to run the engine's forward and return the loss.
        scale: factor of a loss before its backward pass, because DeepSpeed divides
            (`gradient_divisor`).
        once: True to add gradients up locally and reduce them at the end, with a complete gradient
            in memory. False to reduce each micro-batch as its ZeRO stage does.
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
    """Clip, update the weights, and return the gradient norm before clipping."""
    norm = None
    if not hasattr(engine.optimizer, "_global_grad_norm"):
        # ZeRO-0 clips without recording the norm.
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in engine.module.parameters() if p.grad is not None]
        )
    engine.set_gradient_accumulation_boundary(True)
    engine.step()
    return float(engine.get_global_grad_norm() if norm is None else norm)
