"""Translate a recipe into arguments and environment of vLLM.

Most differences between CPU and CUDA are here. Pure functions.
"""

from __future__ import annotations

from pathlib import Path

from ssd_ray.cluster import import_path
from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from ssd_ray.config.section import AdaptiveDecoding

_GIB = 1 << 30
_MAX_NUM_SEQS = {"cpu": 64, "cuda": 256}
_PROCESSORS = {
    "cpu": (
        "ssd_ray.inference.vllm.adaptive:Adaptive",
        "ssd_ray.inference.vllm.sampler:ExactTopKTopP",
    ),
    "cuda": (
        "ssd_ray.inference.vllm.adaptive_v2:AdaptiveV2",
        "ssd_ray.inference.vllm.sampler_v2:ExactTopKTopPV2",
    ),
}
"""Processors by device, in their order: a temperature by the token, then truncation."""


def engine_environment(engine: EngineConfig, device: str) -> dict[str, str]:
    """Return the environment for vLLM and torch, to be set before they load.

    It sets threads, keeps vLLM's engine core in this process, and switches usage reports off.
    """
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        **import_path.SAFE,
    }
    if has_exact_sampler(engine):
        # The interface of processors differs between vLLM's two model runners. Left to itself, vLLM
        # takes the second one where Triton is, unless a feature of the engine is missing there.
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "1" if device == "cuda" else "0"
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
        "max_num_seqs": max_num_seqs(engine, device),
        "enforce_eager": engine.enforce_eager,
        "enable_prefix_caching": engine.prefix_caching,
        "disable_log_stats": not engine.metrics,
        "seed": 0,
    }
    if has_exact_sampler(engine):
        arguments["logits_processors"] = list(_PROCESSORS[device])
    if device == "cpu":
        # On a CPU, chunked prefill does not work with per-request seeds.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(model.max_model_len, 2048),
            # With vLLM's 128, samples of a prompt below 128 tokens share no block of the cache.
            # Attention is as fast.
            "block_size": 32,
            "kv_cache_memory_bytes": round(kv_cache_gib(engine) * _GIB),
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


def kv_cache_gib(engine: EngineConfig) -> float:
    """Return the size of a CPU engine's KV cache in GiB."""
    return engine.kv_cache_gib or 4


def max_num_seqs(engine: EngineConfig, device: str) -> int:
    """Return the largest batch of an engine.

    The driver derives from it how many units an engine holds, and may run on a machine without a
    GPU. So this package sets the number: on CUDA the least of vLLM's defaults, which are larger on
    some GPUs.
    """
    return engine.max_num_seqs or _MAX_NUM_SEQS[device]


def has_exact_sampler(engine: EngineConfig) -> bool:
    """Return True if an engine has the processor that truncates to top-k and top-p."""
    return engine.has_processors


def truncates_exactly(engine: EngineConfig, device: str, decoding: Decoding) -> bool:
    """Return True if this package truncates the logits of a decoding.

    `auto` leaves a top-p without a top-k to vLLM on CUDA. Only the logits say how many tokens
    survive there, so this package would sort the vocabulary.
    """
    if not has_exact_sampler(engine) or not decoding.temperature:
        return False
    if decoding.top_k is not None:
        return True
    return decoding.top_p < 1 and (engine.sampler == "exact" or device == "cpu")


def decoding_params(decoding: Decoding, *, exactly: bool) -> dict[str, object]:
    """Return the sampling parameters of a decoding, for truncation by this package if `exactly`.

    vLLM returns finished answers only, and decodes no text.
    """
    from vllm.sampling_params import RequestOutputKind

    params: dict[str, object] = {
        "temperature": decoding.temperature,
        "output_kind": RequestOutputKind.FINAL_ONLY,
        "detokenize": False,
    }
    own: dict[str, object] = {}
    if isinstance(decoding, AdaptiveDecoding) and decoding.is_adaptive:
        from ssd_ray.inference.vllm.adaptive import adaptive_arguments

        # The processor divides by the temperature, so vLLM has to leave logits as they are.
        params["temperature"] = 1.0
        own |= adaptive_arguments(decoding)
    if exactly:
        from ssd_ray.inference.vllm.sampler import exact_arguments

        drawn = exact_arguments(decoding.top_k, decoding.top_p)
        extra = drawn["extra_args"]
        assert isinstance(extra, dict)
        return params | drawn | {"extra_args": own | extra}
    params |= {"top_k": decoding.top_k or 0, "top_p": decoding.top_p}
    return params | ({"extra_args": own} if own else {})


def num_workers(engine: EngineConfig, device: str) -> int:
    """Return the number of devices of one engine."""
    return engine.tensor_parallel_size * engine.pipeline_parallel_size if device == "cuda" else 1


def stat_loggers(engine: EngineConfig) -> list[type[object]] | None:
    """Return vLLM's logger into Ray's metrics, None if vLLM is to count nothing."""
    if not engine.metrics:
        return None
    from ray.util import metrics
    from vllm.v1.metrics import ray_wrappers

    # vLLM sets it to None where Ray Serve is not installed, which these metrics do not need.
    ray_wrappers.ray_metrics = metrics
    return [ray_wrappers.RayPrometheusStatLogger]
