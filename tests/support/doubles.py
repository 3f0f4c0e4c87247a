"""Doubles of the engine: they answer at once, after wall time, or crash their process."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.errors import UserError
from ssd_ray.inference.vllm.engine import Answer, Request


def answer_to(request: Request) -> Answer:
    """What every double answers: its text names the seed, so that a draw can be told from another."""
    return Answer(
        output_token_ids=(*request.prompt_token_ids[-4:], 7),
        text=f"seed {request.seed}",
        finish_reason="stop",
    )


@dataclass
class InstantEngine:
    """Answers at once, on the thread that asks; `seconds` is how long an answer takes where it takes time."""

    seconds: float = 0.0
    tokens_drawn: int = 0

    def submit(self, request: Request) -> Future[Answer]:
        """Answer now, or after a while."""
        future: Future[Answer] = Future()
        if self.seconds:
            threading.Timer(self.seconds, lambda: future.set_result(answer_to(request))).start()
        else:
            future.set_result(answer_to(request))
        return future


class TimedEngine:
    """Answers one request after another, each after `seconds` of wall time and none of the processor's."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self.tokens_drawn = 0
        self._waiting: queue.SimpleQueue[tuple[Request, Future[Answer]]] = queue.SimpleQueue()
        threading.Thread(target=self._loop, daemon=True).start()

    def submit(self, request: Request) -> Future[Answer]:
        """Stand in line."""
        future: Future[Answer] = Future()
        self._waiting.put((request, future))
        return future

    def _loop(self) -> None:
        while True:
            request, future = self._waiting.get()
            time.sleep(self._seconds)
            future.set_result(answer_to(request))


class MortalEngine(InstantEngine):
    """Ends its process, refuses, or cannot start, as a test says by token ids.

    `kills`: prompts (by first token) that end the process whenever they are asked for; `kills_once` the same, until `marker`
    exists; `refuses`: prompts that raise. `start`: a call before anything else.
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
    """The second actor of a stage dies at its first request, in each of its processes; all others answer."""

    def __init__(self, directory: Path, seconds: float = 0.2) -> None:
        import ray

        super().__init__(seconds)
        own = ray.get_runtime_context().get_actor_id()
        (directory / own).touch()
        self._faulty = (
            min(directory.iterdir(), key=lambda path: path.stat().st_ctime_ns).name != own
        )

    def submit(self, request: Request) -> Future[Answer]:
        """Die, or stand in line."""
        if self._faulty:
            os._exit(70)
        return super().submit(request)


def loses_storage(directory: Path) -> None:
    """A process that dies, and its successor finds itself on a node that does not see a directory."""
    directory.rename(directory.with_name("elsewhere"))
    os._exit(9)


def cannot_start() -> None:
    """A model that is no good."""
    raise UserError("vLLM does not take this model: it is no good")


def breaks_at_start() -> None:
    """A machine that is no good."""
    raise RuntimeError("no device")


def lacks_memory_at_start() -> None:
    """A machine whose exception has a type and no text."""
    raise MemoryError


def hangs_at_start() -> None:
    """A process that dies before it can say why."""
    time.sleep(0.1)
    os._exit(9)
