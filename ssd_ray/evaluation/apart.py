"""The verb `grade` with graders apart from Ray: wait for verdicts and take them over.

- The run publishes an order (`orders.py`). `ssd-ray grade --follow RUN` works on it.
- Shards of verdicts that arrive are checked (`returned.py`), and their rows written again.
- The verdicts are those of graders on Ray, shard by shard.

Reads keys of completions and `graded/` of the run. Writes shards of verdicts.
"""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import audit, files, shards, slices
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.artifacts.slices import Key, Slice
from ssd_ray.errors import OutsideError
from ssd_ray.evaluation.following import Answers, require_all
from ssd_ray.evaluation.orders import GRADED, Order
from ssd_ray.evaluation.returned import (
    Expected,
    Inbox,
    RefusedShardError,
    checked,
    num_tests_of,
)
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_keys
from ssd_ray.progress import Progress, Task
from ssd_ray.quantities import clock
from ssd_ray.schema import Verdict

_POLL_S = 0.5
_SLOWEST_POLL_S = 5.0
_LINE_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Collection:
    """An order, the run directory, and the directory of its verdicts."""

    order: Order
    run: Path
    out: Path


def collect(job: Collection, answers: Answers, progress: Progress) -> VerdictFacts:
    """Wait for the verdicts on all completions, and take them over as they arrive.

    Returns:
        The facts of the artifact (`verdicts.facts`).

    Raises:
        OutsideError: a shard of the graders fails a check.
        InfrastructureError: the run was stopped, or completions are missing.
    """
    stage = job.order.name
    inbox = Inbox(job.run, job.order.place)
    before = _names(job.out)
    done = graded_keys(job.out)
    # Shards with errors of the machine were dropped, for graders to make them again.
    for name in before - _names(job.out):
        inbox.delete(name)
    taker = _Taker(job, inbox, done)
    with progress.task(stage, total=answers.total, unit="verdicts", done=len(done)) as task:
        _take_all(taker, answers, task, _Lines(stage, job.run, progress))
    if extra := inbox.names() - _names(job.out):
        progress.say(
            f"{stage}: {len(extra)} files in {inbox.path} answer no slice, and were not read"
        )
    result = facts(job.order.spec(job.run, job.out))
    require_all(answers, result, stage)
    return result


def _names(out: Path) -> set[str]:
    """Return the names of the shards of verdicts."""
    return {path.stem for path in shards.shard_paths(out)}


def _take_all(taker: _Taker, answers: Answers, task: Task, lines: _Lines) -> None:
    """Take verdicts over until the completions have ended and all have one."""
    arrivals = audit.Arrivals(answers.directory)
    poll_s = _POLL_S
    ended = False
    while not ended or taker.expected:
        # Asked before looking, so that a shard that arrives in between is not missed.
        ended = answers.ended()
        for path in arrivals.new():
            taker.expect(path)
        if taker.take():
            poll_s = _POLL_S
            lines.arrived()
            task.update(len(taker.done))
            continue
        if taker.expected or not ended:
            what = "verdicts of graders apart" if taker.expected else "answers"
            task.wait(f"waiting for {what}")
            lines.wait(len(taker.done), len(taker.expected))
            time.sleep(poll_s)
            # Listing a directory of network storage has a price.
            poll_s = min(1.2 * poll_s, _SLOWEST_POLL_S)
    task.update(len(taker.done))


class _Taker:
    """The slices without a verdict, and the way of their verdicts into the artifact."""

    def __init__(self, job: Collection, inbox: Inbox, done: set[Key]) -> None:
        self.done = done
        self.expected: dict[str, Slice] = {}
        """Slices to come, by the name of their shard."""
        self._job = job
        self._inbox = inbox
        self._num_tests = num_tests_of(job.run / job.order.problems)
        self._levels: set[str] = set()

    def expect(self, path: Path) -> None:
        """Expect verdicts on the completions of one shard."""
        files.require_regular(path)
        for keys, piece in slices.cut(path, SLICE_ROWS):
            if not self.done.issuperset(keys):
                self.expected[slices.shard_name(keys)] = piece

    def take(self) -> int:
        """Take over all shards that have arrived; return their number.

        Raises:
            OutsideError: a shard fails a check.
        """
        arrived = sorted(self._inbox.names() & self.expected.keys())
        for name in arrived:
            self._write(name, self._checked(name, self.expected[name]))
            del self.expected[name]
        return len(arrived)

    def _checked(self, name: str, piece: Slice) -> list[Verdict]:
        expected = Expected(piece=piece, num_tests=self._num_tests, floor=self._job.order.floor)
        try:
            return checked(self._inbox.read(name), expected)
        except RefusedShardError as error:
            raise OutsideError(
                f"{self._inbox.path / name}.parquet {error}, so it is no work of a grader of "
                "this run: delete it, and start the graders and the run again"
            ) from error

    def _write(self, name: str, rows: list[Verdict]) -> None:
        """Write the rows of one shard that have no verdict yet."""
        # Another version of this package may have cut slices elsewhere.
        new = [row for row in rows if (row.prompt_id, row.sample_index) not in self.done]
        if not new:
            return
        for level in {row.sandbox_level for row in new} - self._levels:
            path = self._job.out / "sandbox" / f"{level}.json"
            files.write_atomic(path, json.dumps({"level": level}))
            self._levels.add(level)
        # Written again, not copied: no byte of the graders' file reaches the artifact.
        shards.write_shard(self._job.out, name, new, Verdict)
        self.done.update((row.prompt_id, row.sample_index) for row in new)


class _Lines:
    """A line a minute while nothing arrives, with the remedy."""

    def __init__(self, stage: str, run: Path, progress: Progress) -> None:
        self._stage = stage
        self._progress = progress
        self._command = shlex.join(["ssd-ray", "grade", "--follow", str(run)])
        self._graded = run / GRADED
        self._any = False
        self._since = time.monotonic()
        self._said = self._since

    def arrived(self) -> None:
        """Count the wait from now on."""
        self._any = True
        self._since = self._said = time.monotonic()

    def wait(self, num_done: int, num_slices: int) -> None:
        """Print a line if verdicts are due and a minute has passed since the last one."""
        now = time.monotonic()
        if not num_slices:
            # Answers are still to come, and their stage has lines of its own.
            self._since = now
        if not num_slices or now - self._said < _LINE_S:
            return
        self._said = now
        waited = clock(now - self._since)
        state = f"none has arrived for {waited}" if self._any else f"none has come in {waited}"
        self._progress.say(
            f"{self._stage}: waiting for verdicts of graders apart ({num_done:,} are here, "
            f"{num_slices:,} slices are due); {state}: see that `{self._command}` is at work and "
            f"writes to {self._graded}"
        )
