"""What every engine process says of itself on disk, and what a death leaves to be read.

A process keeps one small file in `.engines/`. Ray starts another process in the place of one that dies, which marks its
predecessor's file as a death; so deaths, what was being drawn at each, and progress are known without asking anybody.
`.engines/attempt` says which attempt of the stage is at work: engines of earlier ones, wherever they are, write nothing more.
"""

from __future__ import annotations

import functools
import json
import os
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ssd_ray.artifacts import files
from ssd_ray.artifacts.ledger import Span

PERIOD_S = 0.5
State = Literal["starting", "ready", "draining", "failed", "ended"]


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """One engine process: its actor, node and attempt of the stage, what it has done, and the spans that it is drawing.

    `tokens` counts those of finished answers, `drawn` those of unfinished ones as well.
    `refused` counts units of which no request was answered, although the engine lived, `failed` answers on record as such, and
    `retries` answers that were asked for again. `testing` says that suspects have the engine for themselves, `alone` which
    prompt if it is one; `reason` says what failed, and `mistake` that it is the user's to mend. A death is `excused` where
    something else than the prompts ended the process. Times are seconds since the epoch on the engine's machine.
    """

    engine: str
    actor: str
    pid: int
    state: State
    began: float
    node: str = ""
    attempt: str = ""
    ready: float = 0.0
    last: float = 0.0
    rows: int = 0
    tokens: int = 0
    drawn: int = 0
    refused: int = 0
    failed: int = 0
    retries: int = 0
    drawing: tuple[Span, ...] = ()
    testing: bool = False
    alone: str = ""
    niceness: int = 0
    reason: str = ""
    mistake: bool = False
    excused: bool = False
    dead: bool = False


class Reporter:
    """An engine process's own file; a thread rewrites it while there is news. `is_alive` tells of a node whether it is there."""

    def __init__(
        self,
        out: Path,
        actor: str,
        *,
        node: str = "",
        attempt: str = "",
        is_alive: Callable[[str], bool] = lambda _: True,
        niceness: int = 0,
    ) -> None:
        self._directory = out / ".engines"
        self._directory.mkdir(exist_ok=True)
        _bury(self._directory, actor, is_alive)
        self.engine, began = uuid.uuid4().hex[:12], time.time()
        self._status = EngineStatus(
            engine=self.engine,
            actor=actor,
            pid=os.getpid(),
            state="starting",
            began=began,
            node=node,
            attempt=attempt,
            niceness=niceness,
        )
        self._drawing: Counter[Span] = Counter()
        self._lock = threading.Lock()
        self._news = False
        self._drawn: Callable[[], int] | None = None
        self._write()
        threading.Thread(target=self._loop, name="status", daemon=True).start()

    def become(self, state: State, reason: str = "", *, mistake: bool = False) -> None:
        """Take on a state, and write it down now."""
        with self._lock:
            ready = time.time() if state == "ready" else self._status.ready
            self._status = replace(
                self._status, state=state, ready=ready, reason=reason, mistake=mistake
            )
            self._write()

    def answered(self, tokens: int) -> None:
        """Count a finished answer."""
        with self._lock:
            self._status = replace(
                self._status,
                rows=self._status.rows + 1,
                tokens=self._status.tokens + tokens,
                last=time.time(),
            )
            self._news = True

    def follow(self, drawn: Callable[[], int]) -> None:
        """Read tokens in flight from the engine as well, from now on."""
        self._drawn = drawn

    def retried(self, answers: int) -> None:
        """Count answers that are asked for again, on disk before they may crash the engine."""
        with self._lock:
            self._status = replace(self._status, retries=self._status.retries + answers)
            self._write()

    def recorded(self, failed: int = 0) -> None:
        """Note that a shard is on record now, and how many of its answers could not be drawn."""
        with self._lock:
            self._status = replace(
                self._status, last=time.time(), failed=self._status.failed + failed
            )
            self._write()

    def refused(self, reason: str) -> None:
        """Count a unit of which no request was answered."""
        with self._lock:
            self._status = replace(self._status, refused=self._status.refused + 1, reason=reason)
            self._write()

    @contextmanager
    def drawing(self, span: Span, alone: str = "", *, testing: bool = False) -> Iterator[None]:
        """Have it on disk, before and while these positions are drawn, that they are."""
        self._draw(span, 1, alone, testing)
        try:
            yield
        finally:
            self._draw(span, -1, "", False)

    def _draw(self, span: Span, change: int, alone: str, testing: bool) -> None:
        with self._lock:
            self._drawing[span] += change
            self._status = replace(
                self._status, drawing=tuple(+self._drawing), alone=alone, testing=testing
            )
            self._write()

    def _loop(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            with self._lock:
                drawn = self._drawn() if self._drawn is not None else self._status.tokens
                if drawn != self._status.drawn:
                    self._status = replace(self._status, drawn=drawn)
                    self._news = True
                if self._news:
                    self._write()

    def _write(self) -> None:
        _put(self._directory / f"{self.engine}.json", self._status)
        self._news = False


def _put(path: Path, status: EngineStatus) -> None:
    aside = path.with_name(f".{path.stem}.aside")
    aside.write_text(
        json.dumps({name: value for name, value in asdict(status).items() if name != "dead"})
    )
    aside.replace(path)


def _bury(directory: Path, actor: str, is_alive: Callable[[str], bool]) -> None:
    """Mark the earlier processes of an actor that did not end by themselves as dead; one that went with its node was not
    ended by what it drew.
    """
    for status in _read(directory):
        if status.actor == actor and not status.dead and status.state != "ended":
            path = directory / f"{status.engine}.json"
            if status.node and not is_alive(status.node):
                _put(path, replace(status, excused=True))
            path.rename(path.with_suffix(".dead"))


def absolve(out: Path, engines: Collection[str]) -> None:
    """Let deaths of these processes speak against no prompt: what ended them was not the prompts.

    Those of groups of suspects still do, so that the next attempt goes on with finding the one among them.
    """
    for status in _read(out / ".engines"):
        if status.engine in engines and status.dead and not (status.testing and not status.alone):
            _put(out / ".engines" / f"{status.engine}.dead", replace(status, excused=True))
    _buried.cache_clear()


def read(out: Path) -> list[EngineStatus]:
    """What every engine process of this stage says, in the order in which they began."""
    return sorted(_read(out / ".engines"), key=lambda status: status.began)


def _read(directory: Path) -> Iterator[EngineStatus]:
    for path in (*directory.glob("*.json"), *directory.glob("*.dead")):
        try:
            yield _buried(path) if path.suffix == ".dead" else _parsed(path)
        except (OSError, ValueError):  # gone, or on NFS replaced while it was read
            continue  # it was marked as dead between the two, and the next look finds it; or a power cut left it empty


def _parsed(path: Path) -> EngineStatus:
    value: dict[str, Any] = json.loads(path.read_text())
    spans = tuple(Span(**span) for span in value.pop("drawing"))
    return EngineStatus(**{**value, "drawing": spans, "dead": path.suffix == ".dead"})


_buried = functools.cache(_parsed)
"""The file of a dead process has a name of its own and does not change, but for `absolve`."""


def begin(out: Path, attempt: str) -> None:
    """Before a new attempt: processes of the last one that had not died went with its driver, which is nobody's fault, and
    those that nevertheless live learn that they have been replaced.
    """
    files.write_atomic(out / ".engines" / "attempt", attempt)
    for path in (out / ".engines").glob("*.json"):
        path.unlink(missing_ok=True)


def is_current(out: Path, attempt: str) -> bool:
    """Whether an attempt is the one at work; none is once the stage is whole."""
    path = out / ".engines" / "attempt"
    try:
        return path.read_text() == attempt
    except FileNotFoundError:
        return False
    except (
        OSError
    ):  # on NFS, a file that was replaced while it was read: the new one is there by now
        return path.read_text() == attempt
