"""Assumptions of a plan about machines, speeds and lengths.

`--assume NAME=VALUE` replaces one. Does no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ssd_ray.config import Section
from ssd_ray.config.overrides import overridden
from ssd_ray.models.architecture import Architecture


class Assumptions(Section):
    """Assumptions about machines, speeds and lengths."""

    gpu_memory_gib: float = Field(79.0, gt=0)
    """Memory of one GPU in GiB; an H100 sold as 80 GB reports 79.6."""
    context_gib: float = Field(1.5, ge=0)
    """Memory of CUDA and NCCL on a GPU before any tensor, in GiB."""
    fragmentation: float = Field(0.1, ge=0, lt=1)
    """Memory of the allocator beyond its tensors, as a share of these."""
    host_memory_gib: float = Field(1800.0, gt=0)
    """Memory of one node's host in GiB, for offloaded states and the export."""
    host_cores: int = Field(96, ge=1)
    """Cores of one node; its GPUs' training workers share them for offloaded optimizer steps."""
    host_gb_s: float = Field(300.0, gt=0)
    """Memory bandwidth of one node's host in GB/s; an offloaded step moves 30 bytes a parameter."""
    core_updates_m: float = Field(350.0, gt=0)
    """Million parameters that one core updates in a second, in an offloaded optimizer step."""
    gpus_per_node: int = Field(8, ge=1)
    """GPUs of one node."""
    peak_tflops: float = Field(989.0, gt=0)
    """Peak of one GPU in TFLOP/s for train.dtype bfloat16: H100 SXM, dense, by its data sheet."""
    peak_tflops_float32: float = Field(67.0, gt=0)
    """The same for train.dtype float32, computed without tensor cores (no TF32): H100 SXM, by
    its data sheet."""
    mfu_dense: float = Field(0.35, gt=0, le=1)
    """Model FLOPs utilization of a dense model, recomputation not counted; torchtitan states
    33 to 39 % (8B, 8 H100)."""
    mfu_moe: float = Field(0.14, gt=0, le=1)
    """The same for a mixture of experts; prime-rl states 14 % for Qwen3-30B-A3B at 65,536
    tokens. It needs grouped experts: with a loop over experts, ZeRO-3 was seen at a tenth of the
    speed of expert parallelism (ms-swift)."""
    node_gb_s: float = Field(300.0, gt=0)
    """GB/s between a GPU and the others of its node; NVLink of an H100 has 450 each way."""
    network_gb_s: float = Field(200.0, gt=0)
    """GB/s of one node's network; eight adapters of 400 Gbit/s have 400. Exchange and
    computation overlap."""
    local_disk_gb_s: float = Field(2.0, gt=0)
    """GB/s that all workers of a node write to its local disk (cluster.local_states); a round
    figure, not a measurement."""
    shared_volume_gb_s: float = Field(1.0, gt=0)
    """GB/s that the storage of the run directory takes from all nodes together; a round figure,
    not a measurement."""
    mean_prompt_tokens: float = Field(600, ge=0)
    """Mean length of a prompt, until there is a data set."""
    mean_response_tokens: float = Field(2500, ge=1)
    """Mean length of the samples that end, until there is a data set. 99 % of a 4B model's samples
    are below 8,000 (ml-ssd, issue 7); thinking models write several times more."""
    capped_share: float = Field(0.02, ge=0, lt=1)
    """Share of samples at the limit of length, until there is a data set; fewer than 2 % of a 4B
    model's (ml-ssd, issue 7). All workers wait for each of them."""
    usd_per_gpu_hour: float = Field(2.5, ge=0)
    """Price of one GPU for an hour in USD; a round figure, not a quotation."""

    def peak_flops(self, precision: Literal["float32", "bfloat16"]) -> float:
        """Return the peak of one GPU in FLOP/s at a training precision."""
        return 1e12 * (self.peak_tflops if precision == "bfloat16" else self.peak_tflops_float32)

    def mfu(self, model: Architecture) -> float:
        """Return the model FLOPs utilization of a model."""
        return self.mfu_moe if model.sparse_layers else self.mfu_dense


def assumptions(overrides: Sequence[str]) -> Assumptions:
    """Return the assumptions with `NAME=VALUE` overrides.

    Raises:
        UserError: an unknown name, or an invalid value.
    """
    return overridden(Assumptions, "--assume", overrides)
