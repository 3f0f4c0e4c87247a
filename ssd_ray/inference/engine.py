"""One vLLM engine in this process, stepped by one thread and fed by many.

The engine lives and dies with its process, so nothing outlives a killed worker. Requests carry exact prompt token ids and a
seed of their own; answers keep every sampled id, the end token included. CPU and CUDA differ in a few engine arguments.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
import traceback
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from ssd_ray.errors import UserError
from ssd_ray.schema import FinishReason

_GIB = 1 << 30
CRASH_EXIT_CODE = 70


@dataclass(frozen=True, kw_only=True)
class Request:
    """One answer to draw: its prompt ids and seed."""

    prompt_token_ids: tuple[int, ...]
    seed: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What the engine drew; the end token, if the model ended by itself, is the last id."""

    output_token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


def sample_seed(run_seed: int, prompt_id: str, sample_index: int) -> int:
    """The seed of one sample, 63 bits, from the run's seed and the sample's key alone, so re-sharding changes nothing."""
    digest = hashlib.sha256(f"{run_seed}\0{prompt_id}\0{sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def engine_environment(engine: EngineConfig, device: str) -> dict[str, str]:
    """Environment that must stand before vLLM and torch load: threads, no child process for the core, no usage reports."""
    threads = str(max(1, round(engine.cpus)))
    environment = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if device == "cpu":
        environment |= {"OMP_NUM_THREADS": threads, "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    return environment


def engine_arguments(directory: Path, model: ModelConfig, engine: EngineConfig, device: str) -> dict[str, Any]:
    """The arguments of vLLM's engine for a model directory."""
    arguments: dict[str, Any] = {
        "model": str(directory),
        "dtype": model.dtype,
        "max_model_len": model.max_model_len,
        "max_num_seqs": engine.max_num_seqs,
        "enforce_eager": engine.enforce_eager,
        "disable_log_stats": True,
        "seed": 0,
    }
    if device == "cpu":
        # A per-request seed and a prompt prefilled in pieces do not go together on a CPU.
        arguments |= {
            "enable_chunked_prefill": False,
            "max_num_batched_tokens": max(model.max_model_len, 2048),
            "kv_cache_memory_bytes": round((engine.kv_cache_gib or 4) * _GIB),
        }
    else:
        arguments |= {
            "gpu_memory_utilization": engine.gpu_memory_utilization,
            "tensor_parallel_size": engine.tensor_parallel_size,
        }
    return arguments | dict(engine.extra)


class Engine:
    """vLLM behind a queue: `submit` from any thread, a future comes back; a failing engine ends its process.

    Ending the process is deliberate: the pool restarts it with a clean device, and counts the crash.
    """

    def __init__(
        self, directory: Path, *, model: ModelConfig, engine: EngineConfig, decoding: Decoding, max_tokens: int, device: str
    ):
        from vllm import EngineArgs
        from vllm.sampling_params import SamplingParams
        from vllm.v1.engine.llm_engine import LLMEngine

        try:
            self._engine = LLMEngine.from_engine_args(EngineArgs(**engine_arguments(directory, model, engine, device)))
        except (ValueError, TypeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"vLLM does not take this model or its arguments: {reason[:400]}") from error
        self._make_params = SamplingParams
        self._decoding, self._max_tokens, self._max_model_len = decoding, max_tokens, model.max_model_len
        self._incoming: queue.SimpleQueue[tuple[Request, Future[Answer]] | None] = queue.SimpleQueue()
        self._running: dict[str, Future[Answer]] = {}
        self._next_id = 0
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future holds its answer."""
        future: Future[Answer] = Future()
        self._incoming.put((request, future))
        return future

    def close(self) -> None:
        """Finish what was queued and stop the thread."""
        self._incoming.put(None)
        self._thread.join()

    def _loop(self) -> None:
        try:
            while self._take_in():
                for output in self._engine.step():
                    if output.finished:
                        self._deliver(output)
        except Exception:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(CRASH_EXIT_CODE)

    def _take_in(self) -> bool:
        """Move waiting requests into the engine, blocking only when it has nothing to do; False when closed and empty."""
        while True:
            try:
                item = self._incoming.get(block=not self._running)
            except queue.Empty:
                return True
            if item is None:
                self._incoming.put(None)
                return bool(self._running)
            self._add(*item)

    def _add(self, request: Request, future: Future[Answer]) -> None:
        from vllm.sampling_params import RequestOutputKind

        room = self._max_model_len - len(request.prompt_token_ids)
        params = self._make_params(
            temperature=self._decoding.temperature,
            top_k=self._decoding.top_k or 0,
            top_p=self._decoding.top_p,
            max_tokens=min(self._max_tokens, room),
            seed=request.seed,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_special_tokens=True,
        )
        request_id = str(self._next_id)
        self._next_id += 1
        self._running[request_id] = future
        self._engine.add_request(request_id, {"prompt_token_ids": list(request.prompt_token_ids)}, params)

    def _deliver(self, output: Any) -> None:
        (completion,) = output.outputs
        if completion.finish_reason not in ("stop", "length"):
            raise RuntimeError(f"vLLM ended request {output.request_id} with {completion.finish_reason!r}")
        answer = Answer(
            output_token_ids=tuple(completion.token_ids), text=completion.text, finish_reason=completion.finish_reason
        )
        self._running.pop(output.request_id).set_result(answer)
