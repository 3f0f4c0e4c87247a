"""One pool of engines in the driver, for the jobs of several steps.

- A step opens a job. The first job starts the engines, later ones join them.
- The engines end once no job is open or expected. The last job waits for their end.
- An execution of Ray Data that ends early is started again, with the jobs that are left.

Writes the control directory of the pool.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

from ssd_ray.artifacts import files
from ssd_ray.artifacts.audit import Audit
from ssd_ray.cluster.waiting import Waiting
from ssd_ray.errors import InfrastructureError, UserError, first_line
from ssd_ray.inference import pool
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.watch import PoolWatch
from ssd_ray.inference.work import jobs
from ssd_ray.inference.work.jobs import JobSpec, OpenJob
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import Progress

_END_TIMEOUT_S = 30.0


@dataclass(kw_only=True)
class _Entry:
    """An open job as the driver knows it."""

    job: OpenJob
    positions: int
    """Positions on record when its file was written."""
    audit: Callable[[], Audit]
    """Compare the job's records with its files, and return what is on record."""
    error: Exception | None = None


class JobHandle:
    """An open job in the thread of its step."""

    def __init__(self, engines: EnginePool, entry: _Entry) -> None:
        self._engines = engines
        self._entry = entry

    def wait(self, timeout_s: float) -> bool:
        """Wait for all positions to be on record, at most `timeout_s`; return True once they are.

        Raises:
            UserError: an engine found a mistake of the user.
            InfrastructureError: the pool has ended.
        """
        return self._engines.wait(self._entry, timeout_s)

    def draw_again(self, audit: Audit) -> None:
        """Open the job again, for positions whose records were lost."""
        self._engines.reopen(self._entry, audit)


class EnginePool:
    """The engines of one model. A thread of its own runs them while there are jobs.

    `expected` holds the stages that are still to open a job; the engines wait for them.
    """

    def __init__(
        self,
        spec: EngineSpec,
        size: Pool,
        *,
        max_failures: int,
        progress: Progress,
        expected: set[str] | None = None,
    ) -> None:
        self.spec = spec
        self._size = size
        self.max_failures = max_failures
        self._progress = progress
        self._expected = set() if expected is None else expected
        self._changed = threading.Condition()
        self._error: Exception | None = None
        self._entries: dict[str, _Entry] = {}
        self._numbers = itertools.count()
        self._thread: threading.Thread | None = None
        self._failed = False
        self._left_at: float | None = None
        self._watch = self._new_watch()

    def __enter__(self) -> EnginePool:
        """Return the pool; its engines start with the first job."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def gpus(self) -> int:
        """GPUs of one engine; 0 on a CPU."""
        return int(self._size.resources.gpus)

    @property
    def watch(self) -> PoolWatch:
        """The watch over the running engines."""
        return self._watch

    def _new_watch(self) -> PoolWatch:
        waiting = Waiting(self._size.resources.need, self._progress.say, self._size.nodes_timeout_s)
        return PoolWatch(self.spec, self.max_failures, self._progress, self._specs, waiting)

    def _specs(self) -> Mapping[str, JobSpec]:
        return {key: entry.job.spec for key, entry in list(self._entries.items())}

    def take_wait(self) -> float:
        """Return the seconds without an open job before this one, once for each wait."""
        with self._changed:
            left_at, self._left_at = self._left_at, None
        return 0.0 if left_at is None else time.monotonic() - left_at

    def is_next(self, key: str) -> bool:
        """Return True for the job opened first among the open ones."""
        return next(iter(list(self._entries)), key) == key

    @contextmanager
    def open(
        self, spec: JobSpec, on_record: Audit, audit: Callable[[], Audit]
    ) -> Iterator[JobHandle]:
        """Open a job for the length of a block.

        The block of the last job waits at its end until the engines are gone. `audit` is called to
        read the records again before another execution of Ray Data.
        """
        entry = self._enter(spec, on_record, audit)
        try:
            yield JobHandle(self, entry)
        # Also at Ctrl-C: other jobs must not wait for this one.
        except BaseException:
            self._leave(spec, failed=True)
            raise
        self._leave(spec, failed=False)

    def _enter(self, spec: JobSpec, on_record: Audit, audit: Callable[[], Audit]) -> _Entry:
        with self._changed:
            if self._watch.stopped.is_set():
                raise self._error or InfrastructureError("the run was stopped")
            if failed := [each.error for each in self._entries.values() if each.error is not None]:
                raise failed[0]
            if self._thread is None and not self._entries:
                heartbeat.begin(self.spec.control, self.spec.attempt)
                jobs.begin(self.spec.control)
                self._watch = self._new_watch()
                self._failed = False
                self._error = None
                self._left_at = None
            entry = _Entry(
                job=self._write(spec, on_record), positions=on_record.positions, audit=audit
            )
            self._entries[spec.key] = entry
            self._arrive(spec.stage)
            self._ensure_thread()
        return entry

    def _write(self, spec: JobSpec, on_record: Audit) -> OpenJob:
        job = OpenJob(number=next(self._numbers), spec=spec, covered=on_record.coverage)
        jobs.open_job(self.spec.control, job)
        return job

    def forgo(self, stage: str) -> None:
        """Note that a stage needs no engine, since all its positions are on record."""
        with self._changed:
            self._arrive(stage)

    def _arrive(self, stage: str) -> None:
        """Close the pool to further jobs once all expected stages have come."""
        self._expected.discard(stage)
        if not self._expected and self.spec.control.is_dir():
            jobs.close(self.spec.control)

    def _ensure_thread(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="engines", daemon=True)
            self._thread.start()

    def wait(self, entry: _Entry, timeout_s: float) -> bool:
        """Wait for a job; see `JobHandle.wait`."""
        with self._changed:
            self._changed.wait_for(
                lambda: entry.error is not None or self._is_drained(entry), timeout_s
            )
            if entry.error is not None:
                raise entry.error
            return self._is_drained(entry)

    def _is_drained(self, entry: _Entry) -> bool:
        return jobs.is_drained(self.spec.control, entry.job.name)

    def reopen(self, entry: _Entry, audit: Audit) -> None:
        """Open a job again under a new number."""
        with self._changed:
            jobs.close_job(self.spec.control, entry.job.spec.key)
            entry.job = self._write(entry.job.spec, audit)
            self._ensure_thread()

    def _leave(self, spec: JobSpec, *, failed: bool) -> None:
        """Close a job, and wait for the end of the engines if it was the last one."""
        with self._changed:
            jobs.close_job(self.spec.control, spec.key)
            self._entries.pop(spec.key, None)
            self._failed = self._failed or failed
            is_last = not self._entries and (failed or not self._expected)
            if not self._entries and not is_last:
                self._left_at = time.monotonic()
            thread = self._thread
        if not is_last:
            return
        if failed:
            self.stop()
        elif thread is not None:
            thread.join()
        with self._changed:
            if not self._failed and not self._entries and self._thread is None:
                heartbeat.clear(self.spec.control)

    def stop(self) -> None:
        """End the engines, fail the jobs that are open, and refuse later ones."""
        self._watch.stopped.set()
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(_END_TIMEOUT_S)

    def _run(self) -> None:
        """Run the engines until no job is left."""
        try:
            self._run_all()
        # Handed over to the threads of the jobs, which raise it.
        except Exception as error:
            with self._changed:
                self._error = _plain(error)
                for entry in self._entries.values():
                    entry.error = self._error
        finally:
            with self._changed:
                if self._thread is threading.current_thread():
                    self._thread = None
                self._changed.notify_all()

    def _run_all(self) -> None:
        """Start executions until all jobs are drained.

        An execution that ends early is started again, at most `max_failures` times in a row without
        new answers.
        """
        fruitless = 0
        while True:
            with self._changed:
                entries = self._undrained()
                if not entries and not self._expected:
                    # Within the lock: a job opened from here on starts another thread.
                    self._thread = None
                    return
            problem = self._execute()
            remaining = self._undrained()
            gained = [self._refresh(entry) for entry in remaining]
            is_fruitless = bool(remaining) and len(remaining) >= len(entries) and not any(gained)
            fruitless = fruitless + 1 if is_fruitless else 0
            if fruitless > self.max_failures:
                raise InfrastructureError(
                    f"{_stages(remaining)}: answers are missing after {fruitless} attempts "
                    f"({problem})"
                )

    def _undrained(self) -> list[_Entry]:
        return [entry for entry in self._entries.values() if not self._is_drained(entry)]

    def _refresh(self, entry: _Entry) -> bool:
        """Write a job's file again; return True if more positions are on record than before."""
        audit = entry.audit()
        with self._changed:
            if entry.job.spec.key in self._entries:
                jobs.close_job(self.spec.control, entry.job.spec.key)
                entry.job = self._write(entry.job.spec, audit)
        gained = audit.positions > entry.positions
        entry.positions = audit.positions
        return gained

    def _execute(self) -> str:
        """Run the engines once and return why they ended early."""
        pool.check_room(self._size, self._progress)
        try:
            pool.run(self.spec, self._size, self._watch)
        # Errors of engines arrive wrapped; the watch raises its own.
        except (UserError, InfrastructureError):
            raise
        # Ray Data wraps errors of engines, in types without a common base.
        except Exception as error:
            self._watch()  # raises if the run is stopping
            self._watch.poll()  # an engine may have left the reason
            entries = list(self._entries.values())
            for entry in entries:
                files.check_disk(entry.job.spec.out)
            problem = first_line(error)
            self._progress.say(f"{_stages(entries)}: the pool of engines stopped ({problem})")
            return problem
        return "no reason given"


def _stages(entries: list[_Entry]) -> str:
    return ", ".join(entry.job.spec.stage for entry in entries) or "engines"


def _plain(error: Exception) -> Exception:
    """Return an error as it was raised, without the lines of Ray and Ray Data."""
    cause = getattr(error, "cause", None)
    return error if cause is None else type(cause)(str(cause).splitlines()[0])
