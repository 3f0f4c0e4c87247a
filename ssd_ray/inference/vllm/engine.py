"""Run one vLLM engine in this process, stepped by one thread and fed by many.

- The engine ends with its process, so nothing outlives a killed worker.
- Requests carry exact prompt token ids and a seed.
- Answers keep every sampled id, the end token included. Their text is these ids decoded once.
- Other threads decode finished answers and resolve their futures. So neither the tokenizer nor
  storage delays a step.
"""

from __future__ import annotations

import functools
import hashlib
import os
import queue
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ssd_ray.config import Decoding, EngineConfig, ModelConfig
from ssd_ray.errors import InfrastructureError, UserError, one_line
from ssd_ray.inference.crashes.ending import end_process
from ssd_ray.inference.crashes.start_failure import explain
from ssd_ray.inference.vllm.arguments import (
    decoding_params,
    engine_arguments,
    stat_loggers,
    truncates_exactly,
)
from ssd_ray.inference.vllm.delivery import Delivery
from ssd_ray.models import answers, ends
from ssd_ray.reasoning import special_marks, spelled
from ssd_ray.schema import FinishReason

_COUNT_PERIOD_S = 0.5


class RefusedRequestError(UserError):
    """A request refused by vLLM; the engine and all other requests go on."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request for one answer: prompt ids, seed, decoding."""

    prompt_token_ids: tuple[int, ...]
    seed: int
    decoding: Decoding
    max_tokens: int
    """Longest answer, where the context has room for it."""
    job: str = ""
    """Job to count its tokens for."""


class _Pending(NamedTuple):
    request: Request
    future: Future[Answer]


class _Finished(NamedTuple):
    pending: _Pending
    token_ids: tuple[int, ...]
    reason: Any
    """As vLLM gives it; a reason outside of `FinishReason` is a failure."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer; its last id is the end token, if the model ended by itself.

    `text` is the ids decoded together, without the end token and without special tokens. Special
    tokens marking reasoning keep their names; the text between two of them is decoded together.
    """

    output_token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


def sample_seed(run_seed: int, prompt_id: str, sample_index: int) -> int:
    """Return the seed of a sample, 63 bits.

    It follows from the run's seed and the sample's key alone, so re-sharding changes nothing.
    """
    digest = hashlib.sha256(f"{run_seed}\0{prompt_id}\0{sample_index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class Engine:
    """vLLM behind a queue: `submit` from any thread returns a future.

    Callbacks of futures run in the threads that deliver answers, and may write to slow storage.

    A failure of the engine ends its process, and the pool restarts it with a clean device and
    counts the crash. `tokens_drawn` counts the tokens of all requests by job, those in flight
    included.
    """

    def __init__(
        self,
        directory: Path,
        *,
        model: ModelConfig,
        engine: EngineConfig,
        device: str,
    ):
        if device == "cpu":
            _bind_threads(engine.cpus)
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
        # transformers and tokenizers raise exceptions of many types.
        except Exception as error:
            raise explain(error, directory) from error
        # vLLM adds the end tokens of the model.
        self._end_tokens = sorted(ends.of_recipe(tokenizer, model.end_tokens))
        self._decode = answers.text_decoder(tokenizer)
        self._marks = special_marks(tokenizer)
        self._exactly = functools.partial(truncates_exactly, engine, device)
        self._max_model_len = model.max_model_len
        self._incoming: queue.SimpleQueue[_Pending | None] = queue.SimpleQueue()
        self._running: dict[str, _Pending] = {}
        self._delivery = Delivery(self._deliver)
        # Not every tokenizer may be used by several threads at a time.
        self._decoding = threading.Lock()
        self._built = False
        self._delivered: Counter[str] = Counter()
        self._counted = 0.0
        self.tokens_drawn: Mapping[str, int] = {}
        self._next_id = 0
        self._moved = time.monotonic()
        threading.Thread(
            target=self._watch, args=(engine.stall_s,), name="stall", daemon=True
        ).start()
        ready: Future[Any] = Future()
        arguments = engine_arguments(directory, model, engine, device)
        self._thread = threading.Thread(
            target=self._live,
            args=(arguments, stat_loggers(engine), ready),
            name="engine",
            daemon=True,
        )
        self._thread.start()
        try:
            self._engine = ready.result()
        # The error of the engine's thread, of any type.
        except BaseException as error:
            raise explain(error, directory) from error
        print(f"engine ready at {time.time():.3f}", file=sys.stderr, flush=True)

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; the future has its answer, or a RefusedRequestError."""
        future: Future[Answer] = Future()
        self._incoming.put(_Pending(request, future))
        return future

    def close(self) -> None:
        """Finish queued requests, stop all threads, and free memory and workers of devices."""
        self._incoming.put(None)
        self._thread.join()
        self._delivery.close()
        self._engine.engine_core.shutdown()

    def _live(self, arguments: dict[str, Any], loggers: Any, ready: Future[Any]) -> None:
        """Build the engine and step it, both in this thread.

        Each thread has a pool of OpenMP threads. Two pools on the same cores make each step slower.
        """
        try:
            from vllm import EngineArgs
            from vllm.usage.usage_lib import UsageContext
            from vllm.v1.engine.llm_engine import LLMEngine

            # vLLM looks up the tokens of a step by usage context: 16,384 for this one on an H100.
            # The table lacks the default context, which gets 2,048.
            self._engine = LLMEngine.from_engine_args(
                EngineArgs(**arguments),
                usage_context=UsageContext.LLM_CLASS,
                stat_loggers=loggers,
            )
        # The thread that waits for `ready` raises it.
        except BaseException as error:
            ready.set_exception(error)
            return
        self._moved = time.monotonic()
        self._built = True
        ready.set_result(self._engine)
        self._loop()

    def _loop(self) -> None:
        try:
            while self._take_in():
                self._moved = time.monotonic()
                for output in self._engine.step():
                    if output.finished:
                        self._hand_over(output)
                self._count()
        # This thread has no caller. Without it no request would ever be answered.
        except Exception as error:
            traceback.print_exc()
            end_process(one_line(error))

    def _count(self) -> None:
        """Refresh `tokens_drawn` twice a second.

        vLLM returns final outputs only, so tokens in flight are read from its request states.
        """
        if self._running and self._moved - self._counted < _COUNT_PERIOD_S:
            return
        self._counted = self._moved
        drawn = self._delivered.copy()
        for state in self._engine.output_processor.request_states.values():
            pending = self._running.get(state.external_req_id)
            if pending is not None:
                drawn[pending.request.job] += state.detokenizer.num_output_tokens()
        # Replaced, not changed: another thread reads it.
        self.tokens_drawn = drawn

    def _watch(self, stall_s: float) -> None:
        """End the process if a start, a step or a delivery hangs, as with a failing device."""
        while (
            time.monotonic() - max(self._moved, self._delivery.moved) < stall_s or self._is_idle()
        ):
            time.sleep(min(stall_s / 4, 30.0))
        end_process(f"nothing came back for {stall_s:g} s (engine.stall_s)")

    def _is_idle(self) -> bool:
        return self._built and not self._running and self._delivery.is_idle

    def _take_in(self) -> bool:
        """Move queued requests into the engine, and block only while it has none.

        Returns False once it is closed and has no request left.
        """
        while True:
            try:
                item = self._incoming.get(block=not self._running)
            except queue.Empty:
                return True
            if item is None:
                # Closed. None goes back into the queue for the next call, until all requests end.
                self._incoming.put(None)
                return bool(self._running)
            self._moved = time.monotonic()
            self._add(item)

    def _add(self, pending: _Pending) -> None:
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import SamplingParams

        request = pending.request
        length, request_id = len(request.prompt_token_ids), str(self._next_id)
        self._next_id += 1
        try:
            if length >= self._max_model_len:
                raise ValueError(
                    f"its {length} tokens leave no room for an answer in model.max_model_len "
                    f"{self._max_model_len}"
                )
            limit = min(request.max_tokens, self._max_model_len - length)
            decoding = request.decoding
            drawn = decoding_params(decoding, exactly=self._exactly(decoding))
            params = SamplingParams(
                **drawn, max_tokens=limit, seed=request.seed, stop_token_ids=self._end_tokens
            )
            self._engine.add_request(
                request_id, {"prompt_token_ids": list(request.prompt_token_ids)}, params
            )
        except (VLLMValidationError, ValueError, TypeError) as error:
            pending.future.set_exception(
                RefusedRequestError(f"vLLM does not take this prompt: {one_line(error)}")
            )
        else:
            self._running[request_id] = pending

    def _hand_over(self, output: Any) -> None:
        (completion,) = output.outputs
        pending = self._running.pop(output.request_id)
        ids = tuple(completion.token_ids)
        self._delivered[pending.request.job] += len(ids)
        self._delivery.put(_Finished(pending, ids, completion.finish_reason))

    def _deliver(self, finished: _Finished) -> None:
        (_, future), ids, reason = finished
        if reason not in ("stop", "length"):
            future.set_exception(InfrastructureError(f"vLLM ended a request with {reason!r}"))
            return
        spoken = ids[:-1] if reason == "stop" else ids
        with self._decoding:
            text = spelled(spoken, self._marks, self._decode)
        future.set_result(Answer(output_token_ids=ids, text=text, finish_reason=reason))


def _bind_threads(cpus: float) -> None:
    """Bind each OpenMP thread to a core, if this engine has all cores.

    - Unbound, two threads may share a core for milliseconds while all other threads wait.
    - OpenMP reads its environment when torch is loaded. Set later, it reaches some libraries only,
      and all threads share one core.
    - Engines sharing a machine would be bound to the same cores.
    """
    if "torch" not in sys.modules and round(cpus) >= len(os.sched_getaffinity(0)):
        os.environ.setdefault("OMP_PROC_BIND", "true")
