"""What a recipe's choices are to vLLM and to Ray: arguments, environment, and what one engine reserves.

CPU and CUDA differ here and nowhere else. Pure functions; reads and writes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ssd_ray.cluster import import_path
from ssd_ray.config import REPLACES_SAMPLER, EngineConfig, ModelConfig

_GIB = 1 << 30
_EXACT_SAMPLER = "ssd_ray.inference.vllm.sampler:ExactTopKTopP"


def engine_environment(engine: EngineConfig, device: str) -> dict[str, str]:
    """Environment that must stand before vLLM and torch load: threads, no child process for the core, no usage reports."""
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **import_path.SAFE,
    }
    if truncates_exactly(engine):
        # The second model runner, which vLLM takes where Triton is, has another interface for logits processors.
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if device == "cpu":
        environment |= {
            "OMP_NUM_THREADS": str(max(1, round(engine.cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        # The logits of every step are megabytes: in a process of many threads glibc gives them back to the kernel after each
        # step and has them mapped page by page in the next, which costs a tenth of the speed.
        environment |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_TRIM_THRESHOLD_": str(4 * _GIB),
            "MALLOC_MMAP_THRESHOLD_": str(_GIB),
        }
    return environment


def engine_arguments(
    directory: Path, model: ModelConfig, engine: EngineConfig, device: str
) -> dict[str, Any]:
    """The arguments of vLLM's engine for a model directory."""
    arguments: dict[str, Any] = {
        "model": str(directory),
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.prefix_caching,
        "disable_log_stats": True,
        "seed": 0,
    }
    if truncates_exactly(engine):
        arguments["logits_processors"] = [_EXACT_SAMPLER]
    if device == "cpu":
        # A per-request seed and a prompt prefilled in pieces do not go together on a CPU.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(model.max_model_len, 2048),
            # vLLM's 128 on a CPU shares nothing of a prompt shorter than that between its samples; attention is as fast with 32.
            "block_size": 32,
            "kv_cache_memory_bytes": round((engine.kv_cache_gib or 4) * _GIB),
        }
    else:
        arguments |= {
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "tensor_parallel_size": engine.tensor_parallel_size,
            "pipeline_parallel_size": engine.pipeline_parallel_size,
            "enable_expert_parallel": engine.expert_parallel,
        }
        if num_workers(engine, device) > 1:
            # Workers are Ray actors that the engine's actor owns: Ray ends them with it.
            arguments["distributed_executor_backend"] = "ray"
    return arguments | dict(engine.extra)


def truncates_exactly(engine: EngineConfig) -> bool:
    """Whether top-k and top-p are this package's; vLLM takes no logits processors beside speculative decoding."""
    return engine.sampler == "exact" or (
        engine.sampler == "auto" and not engine.extra.keys() & REPLACES_SAMPLER
    )


def num_workers(engine: EngineConfig, device: str) -> int:
    """Devices of one engine."""
    return engine.tensor_parallel_size * engine.pipeline_parallel_size if device == "cuda" else 1
