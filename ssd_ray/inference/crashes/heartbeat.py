"""Heartbeats: a small file of each engine process with its progress and the spans in flight.

- A process rewrites its file in `.engines/` while there is news.
- Ray replaces a crashed process. The replacement marks its predecessor's file as crashed.
- So crashes, the spans in flight at each, and progress are known from files alone.
- `.engines/attempt` names the attempt at work. Engines of earlier attempts write nothing more.
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
    """One engine process. Times are seconds since the epoch on its machine."""

    engine: str
    """Id of the process."""
    actor: str
    """Id of Ray's actor; it outlives its processes."""
    pid: int
    state: State
    began: float
    node: str = ""
    attempt: str = ""
    ready: float = 0.0
    last: float = 0.0
    """Time of the last answer."""
    rows: int = 0
    """Finished answers."""
    tokens: int = 0
    """Tokens of finished answers."""
    drawn: int = 0
    """Tokens of all answers, those in flight included."""
    refused: int = 0
    """Units without a single answer, although the engine is alive."""
    failed: int = 0
    """Answers on record as failed."""
    retries: int = 0
    """Answers requested again."""
    drawing: tuple[Span, ...] = ()
    """Spans in flight."""
    testing: bool = False
    """True while suspects have the engine for themselves."""
    alone: str = ""
    """The suspect, if it is one prompt."""
    niceness: int = 0
    reason: str = ""
    """Cause of a failure."""
    mistake: bool = False
    """True if the user has to correct the cause."""
    unattributed: bool = False
    """True if something else than the prompts ended the process (`excused` on disk)."""
    crashed: bool = False
    """True if the file is marked as crashed; not stored."""


class Reporter:
    """The heartbeat file of this process, rewritten by a thread while there is news.

    `is_alive` returns True for the id of a live node.
    """

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
        _mark_crashed(self._directory, actor, is_alive)
        self.engine = uuid.uuid4().hex[:12]
        self._status = EngineStatus(
            engine=self.engine,
            actor=actor,
            pid=os.getpid(),
            state="starting",
            began=time.time(),
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
        """Set the state and write the file now."""
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
        """Read tokens in flight from the engine from now on."""
        self._drawn = drawn

    def retried(self, answers: int) -> None:
        """Count answers requested again, on disk before they may crash the engine."""
        with self._lock:
            self._status = replace(self._status, retries=self._status.retries + answers)
            self._write()

    def recorded(self, failed: int = 0) -> None:
        """Count the failed answers of a shard on record."""
        with self._lock:
            self._status = replace(
                self._status, last=time.time(), failed=self._status.failed + failed
            )
            self._write()

    def refused(self, reason: str) -> None:
        """Count a unit without a single answer."""
        with self._lock:
            self._status = replace(self._status, refused=self._status.refused + 1, reason=reason)
            self._write()

    @contextmanager
    def drawing(self, span: Span, alone: str = "", *, testing: bool = False) -> Iterator[None]:
        """Record a span as in flight, before its first request until the last answer."""
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
    record = asdict(status)
    del record["crashed"]
    # The key of earlier versions, whose files a resumed run reads.
    record["excused"] = record.pop("unattributed")
    temporary = path.with_name(f".{path.stem}.tmp")
    temporary.write_text(json.dumps(record))
    temporary.replace(path)


def _mark_crashed(directory: Path, actor: str, is_alive: Callable[[str], bool]) -> None:
    """Mark earlier processes of an actor as crashed, unless they ended in an orderly way.

    A crash caused by node loss is not attributed to prompts.
    """
    for status in _read(directory):
        if status.actor == actor and not status.crashed and status.state != "ended":
            path = directory / f"{status.engine}.json"
            # The rename is the mark, so the file is rewritten before it.
            if status.node and not is_alive(status.node):
                _put(path, replace(status, unattributed=True))
            path.rename(path.with_suffix(".dead"))


def disregard(out: Path, engines: Collection[str]) -> None:
    """Attribute the crashes of these processes to no prompt: something else ended them.

    Crashes of groups of suspects still count, and the next attempt continues the bisection.
    """
    for status in _read(out / ".engines"):
        bisecting = status.testing and not status.alone
        if status.engine in engines and status.crashed and not bisecting:
            path = out / ".engines" / f"{status.engine}.dead"
            _put(path, replace(status, unattributed=True))
    _crashed_status.cache_clear()


def read(out: Path) -> list[EngineStatus]:
    """Return the status of every engine process of a stage, by start time."""
    return sorted(_read(out / ".engines"), key=lambda status: status.began)


def _read(directory: Path) -> Iterator[EngineStatus]:
    for path in (*directory.glob("*.json"), *directory.glob("*.dead")):
        # A file may be renamed between listing and reading, replaced on NFS, or left empty by a
        # power cut. The next look finds it.
        try:
            yield _crashed_status(path) if path.suffix == ".dead" else _parsed(path)
        except (OSError, ValueError):
            continue


def _parsed(path: Path) -> EngineStatus:
    record: dict[str, Any] = json.loads(path.read_text())
    record["drawing"] = tuple(Span(**span) for span in record["drawing"])
    record["unattributed"] = record.pop("excused")
    return EngineStatus(**record, crashed=path.suffix == ".dead")


_crashed_status = functools.cache(_parsed)
"""Read the file of a crashed process; only `disregard` changes it."""


def begin(out: Path, attempt: str) -> None:
    """Begin an attempt: forget processes ended with their driver, and replace survivors."""
    files.write_atomic(out / ".engines" / "attempt", attempt)
    for path in (out / ".engines").glob("*.json"):
        path.unlink(missing_ok=True)


def is_current(out: Path, attempt: str) -> bool:
    """Return True if an attempt is the one at work; none is once the stage is complete."""
    path = out / ".engines" / "attempt"
    try:
        return path.read_text() == attempt
    except FileNotFoundError:
        return False
    except OSError:
        # On NFS, a file that was replaced while it was read. The new one is complete.
        return path.read_text() == attempt
