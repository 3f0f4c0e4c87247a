"""Doubles of the engine: they answer at once, after wall time, or crash their process."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path

from ssd_ray.errors import UserError
from ssd_ray.inference.vllm.engine import Answer, Request


def answer_to(request: Request) -> Answer:
    """Return the answer of every double; its text names the seed."""
    return Answer(
        output_token_ids=(*request.prompt_token_ids[-4:], 7),
        text=f"seed {request.seed}",
        finish_reason="stop",
    )


@dataclass
class InstantEngine:
    """Answers at once in the calling thread, or after `seconds` in a timer's."""

    seconds: float = 0.0
    tokens_drawn: Mapping[str, int] = field(default_factory=dict)

    def submit(self, request: Request) -> Future[Answer]:
        """Answer now, or after `seconds`."""
        future: Future[Answer] = Future()
        if self.seconds:
            threading.Timer(self.seconds, lambda: future.set_result(answer_to(request))).start()
        else:
            future.set_result(answer_to(request))
        return future


class TimedEngine:
    """Answers one request after another, each after `seconds` of wall time, idle."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.tokens_drawn: Mapping[str, int] = {}
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Answer]]] = queue.SimpleQueue()
        threading.Thread(target=self._loop, daemon=True).start()

    def submit(self, request: Request) -> Future[Answer]:
        """Queue the request."""
        future: Future[Answer] = Future()
        self._waiting.put((request, future))
        return future

    def _loop(self) -> None:
        while True:
            request, future = self._waiting.get()
            time.sleep(self._seconds)
            future.set_result(answer_to(request))


class MortalEngine(InstantEngine):
    """Crashes, refuses, or fails to start, by token ids.

    - `kills`: prompts (by first token) that crash the process at every request.
    - `kills_once`: the same, until `marker` exists.
    - `refuses`: prompts that raise.
    - `start`: a call before anything else.
    """

    def __init__(
        self,
        *,
        seconds: float = 0.01,
        kills: frozenset[int] = frozenset(),
        kills_once: frozenset[int] = frozenset(),
        refuses: frozenset[int] = frozenset(),
        marker: Path | None = None,
        start: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(seconds)
        self._kills, self._once, self._refuses, self._marker = kills, kills_once, refuses, marker
        if start is not None:
            start()

    def submit(self, request: Request) -> Future[Answer]:
        first = request.prompt_token_ids[0]
        if first in self._once and self._marker is not None and not self._marker.exists():
            self._marker.touch()
            os._exit(70)
        if first in self._kills:
            threading.Timer(0.05, lambda: os._exit(70)).start()
            return Future()
        if first in self._refuses:
            future: Future[Answer] = Future()
            future.set_exception(ValueError(f"no answer to {first}"))
            return future
        return super().submit(request)


class FaultyBesideGood(TimedEngine):
    """The second actor crashes at its first request, in every process; others answer."""

    def __init__(self, directory: Path, seconds: float = 0.2) -> None:
        import ray

        super().__init__(seconds)
        own = ray.get_runtime_context().get_actor_id()
        (directory / own).touch()
        self._faulty = (
            min(directory.iterdir(), key=lambda path: path.stat().st_ctime_ns).name != own
        )

    def submit(self, request: Request) -> Future[Answer]:
        """Crash, or queue the request."""
        if self._faulty:
            os._exit(70)
        return super().submit(request)


def loses_storage(directory: Path) -> None:
    """Crash; the successor is on a node without the shared directory."""
    directory.rename(directory.with_name("elsewhere"))
    os._exit(9)


def cannot_start() -> None:
    """Fail as a broken model does."""
    raise UserError("vLLM does not take this model: it is no good")


def breaks_at_start() -> None:
    """Fail as a broken machine does."""
    raise RuntimeError("no device")


def lacks_memory_at_start() -> None:
    """Fail with an exception of a type and no text."""
    raise MemoryError


def hangs_at_start() -> None:
    """Crash before any reason is recorded."""
    time.sleep(0.1)
    os._exit(9)
