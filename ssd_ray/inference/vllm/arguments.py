"""Translate a recipe into arguments and environment of vLLM.

CPU and CUDA differ here and nowhere else. Pure functions.
"""

from __future__ import annotations

from pathlib import Path

from ssd_ray.cluster import import_path
from ssd_ray.config import REPLACES_SAMPLER, EngineConfig, ModelConfig

_GIB = 1 << 30
_EXACT_SAMPLER = "ssd_ray.inference.vllm.sampler:ExactTopKTopP"


def engine_environment(engine: EngineConfig, device: str) -> dict[str, str]:
    """Return the environment for vLLM and torch, to be set before they load.

    It sets threads, keeps the core in this process, and switches usage reports off.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **import_path.SAFE,
    }
    if truncates_exactly(engine):
        # With Triton, vLLM takes its second model runner, with another interface for processors.
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "0"
    if device == "cpu":
        environment |= {
            "OMP_NUM_THREADS": str(max(1, round(engine.cpus))),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        }
        # The logits of a step are megabytes. With many threads, glibc returns them to the kernel
        # after each step and maps them again page by page, at a tenth of the speed.
        environment |= {
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_TRIM_THRESHOLD_": str(4 * _GIB),
            "MALLOC_MMAP_THRESHOLD_": str(_GIB),
        }
    return environment


def engine_arguments(
    directory: Path, model: ModelConfig, engine: EngineConfig, device: str
) -> dict[str, object]:
    """Return the arguments of a vLLM engine for a model directory."""
    arguments: dict[str, object] = {
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
        # On a CPU, chunked prefill does not work with per-request seeds.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(model.max_model_len, 2048),
            # With vLLM's 128, samples of a shorter prompt share none of it. Attention is as fast.
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
    """Return True if this package truncates to top-k and top-p.

    vLLM takes no logits processors together with speculative decoding.
    """
    return engine.sampler == "exact" or (
        engine.sampler == "auto" and not engine.extra.keys() & REPLACES_SAMPLER
    )


def num_workers(engine: EngineConfig, device: str) -> int:
    """Return the number of devices of one engine."""
    return engine.tensor_parallel_size * engine.pipeline_parallel_size if device == "cuda" else 1
