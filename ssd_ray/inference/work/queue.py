"""Hand out work units of all jobs of a pool, while prompts are still being rendered.

- Runs in a Ray task next to the driver. The driver sees neither rows nor keys.
- Units of the job opened first go out first. Where it has none, those of the next job do.
- At most `window` units are in flight. This bounds memory, whatever the number of prompts.
- Once all are out, units of lost nodes go out again while an engine is idle: no node may come.

Reads Parquet footers, ledgers, heartbeats and the files of jobs.
"""

from __future__ import annotations

import json
import pickle
import time
from collections import deque
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray.artifacts import ledger, shards
from ssd_ray.artifacts.ledger import Span
from ssd_ray.artifacts.shards import row_groups
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.work import jobs
from ssd_ray.inference.work.jobs import JobSpan, OpenJob

if TYPE_CHECKING:
    import pyarrow as pa

_RETURNED = "returned"
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 0.5
_POLLS_A_WINDOW = 4
_LOST_PERIOD_S = 5.0
"""Time between two looks for units of lost nodes."""


@dataclass(frozen=True, kw_only=True)
class QueuePlan:
    """The control directory of a pool, and the bound on its units in flight."""

    control: Path
    window: int


def prompt_rows(path: Path) -> int:
    """Return the number of rows of a prompt shard, from its footer."""
    return sum(row_groups(path))


def growing(prompts: Path) -> Iterator[Path | None]:
    """Yield the shards of a growing directory in order, until its manifest exists.

    Yields None while there is no new shard.
    """
    seen: set[Path] = set()
    while True:
        # Checked before the shards are listed, since the manifest is written after them.
        complete = (prompts / "manifest.json").exists()
        fresh = [path for path in shards.shard_paths(prompts) if path not in seen]
        seen.update(fresh)
        yield from fresh
        if complete:
            return
        yield None


def units(job: OpenJob) -> Iterator[Span | None]:
    """Yield every uncovered span, at most `shard_rows` long; None while there is none."""
    for path in growing(job.spec.prompts):
        if path is None:
            yield None
            continue
        shard = Span(path.stem, 0, prompt_rows(path) * job.spec.samples)
        yield from ledger.uncovered(shard, job.covered.get(path.stem, ()), job.spec.shard_rows)


class _JobQueue:
    """Units of one job: those to hand out, in flight, and given back by engines."""

    def __init__(self, job: OpenJob) -> None:
        self.job = job
        self.in_flight: set[Span] = set()
        self.again: deque[Span] = deque()
        self.all_out = False
        self.drained = False
        self._units = units(job)
        self._recorded = ledger.tail(job.spec.out)
        # Earlier lines belong to earlier attempts.
        for _ in self._recorded.new():
            pass

    def poll(self) -> None:
        """Read new records, if any can come."""
        if not self.in_flight:
            return
        self.in_flight.difference_update(record.span for record in self._recorded.new())

    def given_back(self, span: Span) -> None:
        """Take a unit back, unless it is on record by now."""
        if span in self.in_flight:
            self.in_flight.discard(span)
            self.again.append(span)

    def next(self) -> Span | None:
        """Return the next unit and count it as in flight; None if there is none now."""
        span = self.again.popleft() if self.again else self._next_new()
        if span is not None:
            self.in_flight.add(span)
        return span

    def _next_new(self) -> Span | None:
        if self.all_out:
            return None
        try:
            return next(self._units)
        except StopIteration:
            self.all_out = True
            return None

    @property
    def is_drained(self) -> bool:
        """True if every unit is on record."""
        return self.all_out and not self.in_flight and not self.again


class _Queue:
    """The queues of all open jobs, in the order of their opening."""

    def __init__(self, plan: QueuePlan) -> None:
        self._plan = plan
        self._jobs: dict[str, _JobQueue] = {}
        self._handed_back = ledger.Tail(_returned(plan.control), _parse)
        self._closed = False
        self._all_out = False
        self._looked_at = time.monotonic()
        self._taken_back: set[tuple[str, JobSpan]] = set()
        # Earlier lines belong to earlier attempts.
        for _ in self._handed_back.new():
            pass

    def poll(self) -> None:
        """Read jobs opened and closed, new records, and units given back."""
        # Read before the jobs are listed: the last job is opened before the pool is closed.
        self._closed = self._closed or jobs.is_closed(self._plan.control)
        self._look_for_jobs()
        for queue in self._jobs.values():
            queue.poll()
        for unit in self._handed_back.new():
            self._given_back(unit)
        if self._all_out and time.monotonic() - self._looked_at >= _LOST_PERIOD_S:
            self._looked_at = time.monotonic()
            self._take_back_lost()

    def _given_back(self, unit: JobSpan) -> None:
        for queue in self._jobs.values():
            if queue.job.spec.key == unit.job:
                queue.given_back(unit.span)

    def _take_back_lost(self) -> None:
        """Take the units of lost nodes back, once from each of their engines."""
        nodes = cluster_state.nodes()
        if not nodes or not any(queue.in_flight for queue in self._jobs.values()):
            return
        for engine, unit in lost_units(heartbeat.read(self._plan.control), nodes):
            if (engine, unit) not in self._taken_back:
                self._taken_back.add((engine, unit))
                self._given_back(unit)

    def mark_drained(self) -> None:
        """Mark jobs whose units are all on record."""
        for name, queue in self._jobs.items():
            if queue.is_drained and not queue.drained:
                queue.drained = True
                jobs.mark_drained(self._plan.control, name)

    def _look_for_jobs(self) -> None:
        names = jobs.names(self._plan.control)
        for name in self._jobs.keys() - set(names):
            del self._jobs[name]
        for name in names:
            if name not in self._jobs and not jobs.is_drained(self._plan.control, name):
                try:
                    self._jobs[name] = _JobQueue(jobs.read(self._plan.control, name))
                except FileNotFoundError:
                    # Closed since it was listed.
                    continue

    def next(self) -> JobSpan | None:
        """Return the next unit; None if no job has one, or the window is full."""
        queues = self._jobs.values()
        if sum(len(queue.in_flight) for queue in queues) >= self._plan.window:
            return None
        # Units given back go first: their engine may have had them for long.
        for queue in sorted(queues, key=lambda queue: not queue.again):
            if (span := queue.next()) is not None:
                return JobSpan(queue.job.spec.key, span)
        if not self._all_out and self._closed and all(queue.all_out for queue in queues):
            self._all_out = True
            all_out(self._plan.control).touch()
        return None

    @property
    def ended(self) -> bool:
        """True if all units of all jobs are on record, and no further job will come."""
        return self._closed and all(queue.drained for queue in self._jobs.values())


def paced(plan: QueuePlan) -> Iterator[JobSpan]:
    """Yield units as fast as they are drawn, and those given back, until all are on record."""
    queue = _Queue(plan)
    pause = _SHORTEST_PAUSE_S
    while True:
        queue.poll()
        # A poll takes several operations of storage, more with each engine, so it serves many
        # units. They are few enough for a unit given back to go out soon.
        for _ in range(max(1, plan.window // _POLLS_A_WINDOW)):
            unit = queue.next()
            if unit is None:
                break
            pause = _SHORTEST_PAUSE_S
            yield unit
        queue.mark_drained()
        if queue.ended:
            all_drawn(plan.control).touch()
            return
        if unit is None:
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE_S)


def lost_units(
    statuses: Iterable[EngineStatus], nodes: Collection[str]
) -> list[tuple[str, JobSpan]]:
    """Return engines of lost nodes, each with a unit that no other engine holds.

    There are none while no engine is idle. A crashed engine on a live node starts again there, and
    keeps its units: they may have caused the crash.
    """
    listed = list(statuses)
    present = [status for status in listed if status.node in nodes and not status.crashed]
    if not any(status.state == "ready" and not status.held for status in present):
        return []
    held = {unit for status in present for unit in status.held}
    lost = [status for status in listed if status.node and status.node not in nodes]
    return [(each.engine, unit) for each in lost for unit in each.held if unit not in held]


def begin(control: Path) -> None:
    """Forget the units given back in earlier executions of a pool."""
    for path in _returned(control).iterdir():
        path.unlink(missing_ok=True)


def give_back(control: Path, engine: str, unit: JobSpan) -> None:
    """Give a unit back, for another engine to draw."""
    ledger.append_line(_returned(control) / f"{engine}.jsonl", json.dumps(asdict(unit)).encode())


def all_out(control: Path) -> Path:
    """Return the file marking all units of all jobs as handed out.

    Once it exists, only units given back by engines are handed out.
    """
    return control / _RETURNED / "all-out"


def all_drawn(control: Path) -> Path:
    """Return the file marking all units of all jobs as on record."""
    return control / _RETURNED / "all-drawn"


def _returned(control: Path) -> Path:
    directory = control / _RETURNED
    directory.mkdir(exist_ok=True)
    return directory


def _parse(line: bytes) -> JobSpan | None:
    return JobSpan.parse(json.loads(line))


def emit(batch: pa.Table) -> Iterator[pa.Table]:
    """Run as a task of Ray Data: a pickled plan in, one table row for each unit out."""
    import pyarrow as pa

    for unit in paced(pickle.loads(batch.column("plan")[0].as_py())):
        span = unit.span
        yield pa.table(
            {
                "job": [unit.job],
                "source": [span.source],
                "start": [span.start],
                "stop": [span.stop],
            }
        )


def span_of(batch: pa.Table) -> JobSpan:
    """Return the unit in a batch."""
    row: dict[str, Any] = batch.to_pylist()[0]
    return JobSpan(row["job"], Span(row["source"], row["start"], row["stop"]))
