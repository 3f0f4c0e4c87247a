"""Heartbeats: a small file of each engine process with its progress and the spans in flight.

- A process rewrites its file in the pool's control directory while there is news.
- Ray replaces a crashed process. The replacement marks its predecessor's file as crashed.
- So crashes, the spans in flight at each, and progress are known from files alone.
- Progress is counted by job. The totals of an engine are sums over its jobs.
- `attempt` names the current attempt. Engines of earlier attempts write nothing more.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files
from ssd_ray.errors import LastingError, OutsideError, UserError
from ssd_ray.inference.crashes.engine_status import Counts, EngineStatus, State, total, values
from ssd_ray.inference.work.jobs import JobSpan

PERIOD_S = 0.5
_CLEAR_S = 10.0


class Reporter:
    """The heartbeat file of this process, rewritten by a thread while there is news.

    `is_alive` returns True for the id of a live node.
    """

    def __init__(
        self,
        control: Path,
        actor: str,
        *,
        node: str = "",
        attempt: str = "",
        is_alive: Callable[[str], bool] = lambda _: True,
        niceness: int = 0,
    ) -> None:
        self._directory = control
        self._directory.mkdir(parents=True, exist_ok=True)
        _mark_crashed(self._directory, actor, is_alive)
        self.engine = uuid.uuid4().hex[:12]
        self._status = EngineStatus(
            engine=self.engine,
            actor=actor,
            pid=os.getpid(),
            state="starting",
            began=time.time(),
            spawned=_process_start(),
            node=node,
            attempt=attempt,
            niceness=niceness,
        )
        self._jobs: dict[str, Counts] = {}
        self._drawing: Counter[JobSpan] = Counter()
        self._held: Counter[JobSpan] = Counter()
        self._lock = threading.Lock()
        # Held while the file is written, so that counting an answer never waits for storage.
        self._writing = threading.Lock()
        self._changes = 1
        self._written = 0
        self._drawn: Callable[[], Mapping[str, int]] = dict
        self._write()
        threading.Thread(target=self._loop, name="status", daemon=True).start()

    def become(self, state: State, reason: str = "", *, mistake: UserError | None = None) -> None:
        """Set the state and write the file now.

        `mistake` is a cause that the user has to correct.
        """
        with self._lock:
            ready = time.time() if state == "ready" else self._status.ready
            self._status = replace(
                self._status,
                state=state,
                ready=ready,
                reason=reason,
                mistake=mistake is not None,
                outside=isinstance(mistake, OutsideError),
                lasting=isinstance(mistake, LastingError),
            )
            self._changes += 1
        self._write()

    def answered(self, job: str, tokens: int) -> None:
        """Count a finished answer."""
        with self._lock:
            counts = self._of(job)
            self._jobs[job] = replace(
                counts, rows=counts.rows + 1, tokens=counts.tokens + tokens, last=time.time()
            )
            self._changes += 1

    def follow(self, drawn: Callable[[], Mapping[str, int]]) -> None:
        """From now on, read the drawn tokens of each job from the engine, with those in flight."""
        self._drawn = drawn

    def retried(self, job: str, answers: int) -> None:
        """Count answers requested again, on disk before they may crash the engine."""
        if not answers:
            return
        with self._lock:
            counts = self._of(job)
            self._jobs[job] = replace(counts, retries=counts.retries + answers)
            self._changes += 1
        self._write()

    def recorded(self, job: str, failed: int = 0) -> None:
        """Count the failed answers of a shard on record."""
        with self._lock:
            counts = self._of(job)
            self._jobs[job] = replace(counts, last=time.time(), failed=counts.failed + failed)
            self._changes += 1
        self._write()

    def refused(self, job: str, reason: str) -> None:
        """Count a unit without a single answer."""
        with self._lock:
            counts = self._of(job)
            self._jobs[job] = replace(counts, refused=counts.refused + 1)
            self._status = replace(self._status, reason=reason)
            self._changes += 1
        self._write()

    def _of(self, job: str) -> Counts:
        return self._jobs.get(job) or Counts(first=time.time())

    @contextmanager
    def holding(self, unit: JobSpan) -> Iterator[None]:
        """Record a unit as held for the length of a block; the next write is soon enough."""
        self._hold(unit, 1)
        try:
            yield
        finally:
            self._hold(unit, -1)

    def _hold(self, unit: JobSpan, change: int) -> None:
        with self._lock:
            self._held[unit] += change
            self._status = replace(self._status, held=tuple(+self._held))
            self._changes += 1

    @contextmanager
    def drawing(self, unit: JobSpan, alone: str = "", *, testing: bool = False) -> Iterator[None]:
        """Record a span as in flight, before its first request until the last answer."""
        self._draw(unit, 1, alone, testing)
        self._write()
        try:
            yield
        finally:
            self._draw(unit, -1, "", False)
            # A suspect must not be blamed for the next crash. All other positions are journaled by
            # now, so no crash counts against them, and the next write is soon enough.
            if testing:
                self._write()

    def _draw(self, unit: JobSpan, change: int, alone: str, testing: bool) -> None:
        with self._lock:
            self._jobs[unit.job] = self._of(unit.job)
            self._drawing[unit] += change
            self._status = replace(
                self._status, drawing=tuple(+self._drawing), alone=alone, testing=testing
            )
            self._changes += 1

    def _loop(self) -> None:
        while True:
            time.sleep(PERIOD_S)
            with self._lock:
                for job, tokens in self._drawn().items():
                    counts = self._of(job)
                    if tokens != counts.drawn:
                        self._jobs[job] = replace(counts, drawn=tokens)
                        self._changes += 1
            # Storage may refuse for a while: a later round writes the same news.
            with suppress(OSError):
                self._write()

    def _write(self) -> None:
        """Write the file, unless another thread wrote the same changes during the wait for it."""
        wanted = self._changes
        with self._writing:
            if self._written >= wanted:
                return
            with self._lock:
                changes = self._changes
                self._status = replace(
                    self._status, jobs=dict(self._jobs), **values(total(self._jobs.values()))
                )
                status = self._status
            _put(self._directory / f"{self.engine}.json", status)
            self._written = changes


def _process_start() -> float:
    """Return the start of this process, in seconds since the epoch.

    Engines have an environment of their own, so Ray starts a process for each.
    """
    # The name of the process comes before, in parentheses.
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    started_s = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - (time.clock_gettime(time.CLOCK_BOOTTIME) - started_s)


def _put(path: Path, status: EngineStatus) -> None:
    record = asdict(status)
    del record["crashed"]
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


def disregard(control: Path, engines: Collection[str]) -> None:
    """Attribute the crashes of these processes to no prompt: something else ended them.

    Crashes of groups of suspects still count, and the next attempt continues the bisection.
    """
    for status in _read(control):
        bisecting = status.testing and not status.alone
        if status.engine in engines and status.crashed and not bisecting:
            path = control / f"{status.engine}.dead"
            _put(path, replace(status, unattributed=True))
    _crashed_status.cache_clear()


def read(control: Path) -> list[EngineStatus]:
    """Return the status of every engine process of a pool, by start time."""
    return sorted(_read(control), key=lambda status: status.began)


def read_after_crashes(control: Path) -> list[EngineStatus]:
    """Return the same as `read`, or nothing if no process has crashed.

    Without a crash it is one operation of storage, however many engines there are.
    """
    crashed = any(name.endswith(".dead") for name in files.names(control))
    return read(control) if crashed else []


def _read(directory: Path) -> Iterator[EngineStatus]:
    for name in files.names(directory):
        path = directory / name
        if path.suffix in (".json", ".dead"):
            # The process may be marked as crashed since its file was listed.
            status = _status(path) or _status(path.with_suffix(".dead"))
            if status is not None:
                yield status


def _status(path: Path) -> EngineStatus | None:
    try:
        return _crashed_status(path) if path.suffix == ".dead" else _parsed(path)
    # A file may be replaced on NFS while it is read, or left empty by a power cut. The next poll
    # finds it.
    except (OSError, ValueError):
        return None


def _parsed(path: Path) -> EngineStatus:
    record: dict[str, Any] = json.loads(path.read_text())
    for name in ("drawing", "held"):
        record[name] = tuple(JobSpan.parse(unit) for unit in record.get(name, ()))
    record["jobs"] = {job: Counts(**counts) for job, counts in record["jobs"].items()}
    return EngineStatus(**record, crashed=path.suffix == ".dead")


_crashed_status = functools.cache(_parsed)
"""Read the file of a crashed process; only `disregard` changes it."""


def begin(control: Path, attempt: str) -> None:
    """Begin an attempt: live engines of earlier ones end, and their heartbeats are removed."""
    files.write_atomic(control / "attempt", attempt)
    for path in control.glob("*.json"):
        path.unlink(missing_ok=True)


def is_current(control: Path, attempt: str) -> bool:
    """Return True if an attempt is the current one; False for all once the pool has ended."""
    path = control / "attempt"
    try:
        return path.read_text() == attempt
    except FileNotFoundError:
        return False
    except OSError:
        # On NFS, a file that was replaced while it was read. The new one is complete.
        return path.read_text() == attempt


def end_attempts(directory: Path) -> None:
    """End the attempts of all control directories below one: their engines write nothing more."""
    for path in directory.glob("*/attempt"):
        path.unlink(missing_ok=True)


def clear(directory: Path) -> None:
    """Remove a directory; engines about to end may write into it once more."""
    until = time.monotonic() + _CLEAR_S
    while directory.exists() and time.monotonic() < until:
        shutil.rmtree(directory, ignore_errors=True)
        time.sleep(0.01)
