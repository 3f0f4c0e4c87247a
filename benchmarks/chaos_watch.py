"""Counts of a run directory under disturbance, and its rows against another run.

- `Stage` names the work of one verb: its role, its artifact, and its units of progress.
- `Watch` is a thread. It records progress and workers twenty times a second.
- `compare` counts rows lost, doubled and different against the undisturbed run.

Reads journals, ledgers, shards, the loss log and heartbeats of engines.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import psutil
from chaos_recovery import Sample
from chaos_target import Target, is_at_work

POLL_S = 0.05
SLICE_ROWS = 16
"""Rows of a slice of answers: the work of a grader between two shards."""
VERDICT_FIELDS = (
    "prompt_id",
    "sample_index",
    "outcome",
    "num_tests",
    "num_passed",
    "code",
    "failed_test",
    "reasoning",
)
"""Columns of a verdict without times and memory."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Work of one verb."""

    verb: str
    role: str
    artifacts: tuple[str, ...]
    """Directories that it fills; the last one's manifest ends it."""
    inputs: tuple[str, ...]
    """Directories of the undisturbed run that it begins from."""


STAGES = {
    "sample": Stage(verb="sample", role="sampler", artifacts=("samples",), inputs=()),
    "train": Stage(
        verb="train",
        role="trainer",
        artifacts=("checkpoint",),
        inputs=("benchmark", "contamination", "prompts", "samples", "dataset"),
    ),
    "grade": Stage(
        verb="grade",
        role="grader",
        artifacts=("verdicts/base", "verdicts/ssd"),
        inputs=(
            "benchmark",
            "contamination",
            "prompts",
            "samples",
            "dataset",
            "checkpoint",
            "eval-prompts",
            "generations",
        ),
    ),
}


def finished_answers(out: Path) -> set[tuple[str, int]]:
    """Return the positions with an answer in a journal or a shard.

    Journals come first: one that goes meanwhile is in the ledger, which is read after it.
    """
    from ssd_ray.artifacts import ledger
    from ssd_ray.inference.work import journal

    positions = set()
    for path in (out / ".journal").glob("*.jsonl"):
        with suppress(FileNotFoundError):
            for line in path.read_bytes().splitlines():
                entry = journal.decode(line)
                if entry is not None:
                    positions.add((journal.span_of(path).source, entry[0]))
    for record in ledger.tail(out).new():
        span = record.span
        positions |= {(span.source, position) for position in range(span.start, span.stop)}
    return positions


def steps_logged(out: Path) -> list[object]:
    """Return the lines of the loss log."""
    from ssd_ray.training.state.logs import read_log

    return list(read_log(out))


def verdict_shards(directories: Iterable[Path]) -> dict[Path, tuple[int, int]]:
    """Return inode and rows of each shard of verdicts."""
    import pyarrow.parquet as parquet

    from ssd_ray.artifacts import shards

    present = {}
    for directory in directories:
        for path in shards.shard_paths(directory):
            with suppress(FileNotFoundError):
                present[path] = (path.stat().st_ino, parquet.read_metadata(path).num_rows)
    return present


def in_flight(run: Path, victims: Iterable[int], most: int) -> int:
    """Return the answers that engines had begun and not finished, by their heartbeats.

    An engine draws at most `most` answers at a time. The others of its spans only wait.
    """
    from ssd_ray.inference.crashes import heartbeat

    pids = set(victims)
    finished = finished_answers(run / "samples")
    begun = 0
    for control in (run / ".engines").glob("*"):
        for status in heartbeat.read(control):
            if status.pid in pids and not status.crashed:
                spans = [unit.span for unit in status.drawing]
                open_positions = sum(
                    (span.source, position) not in finished
                    for span in spans
                    for position in range(span.start, span.stop)
                )
                begun += min(most, open_positions)
    return begun


def ready_engines(run: Path) -> set[int]:
    """Return the processes of engines with a loaded model, by their heartbeats."""
    from ssd_ray.inference.crashes import heartbeat

    statuses = (
        each for control in (run / ".engines").glob("*") for each in heartbeat.read(control)
    )
    return {each.pid for each in statuses if each.state == "ready" and not each.crashed}


class Watch:
    """Progress and workers of a run, recorded by a thread until it is closed."""

    def __init__(self, target: Target, stage: Stage, run: Path) -> None:
        self._target = target
        self._stage = stage
        self._run = run
        self._over = threading.Event()
        self._answers: set[tuple[str, int]] = set()
        self._shards: dict[Path, tuple[int, int]] = {}
        self._steps: list[object] = []
        self._looking = threading.Lock()
        self.samples: list[Sample] = []
        self.answers_lost = 0
        """Finished answers that were on disk and went."""
        self.steps_again = 0
        self.verdicts_again = 0
        """Verdicts on disk that were written once more."""
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    @property
    def done(self) -> int:
        """Units on disk at the last look."""
        return self.samples[-1].done if self.samples else 0

    @property
    def workers(self) -> frozenset[int]:
        """Workers at the last look."""
        return self.samples[-1].workers if self.samples else frozenset()

    def look(self) -> Sample:
        """Look now, and record it."""
        with self._looking:
            self.samples.append(self._look())
            return self.samples[-1]

    def _loop(self) -> None:
        while not self._over.wait(POLL_S):
            # A file may go, or be half written, while it is read; the next look finds it.
            with suppress(OSError, ValueError):
                self.look()

    def _look(self) -> Sample:
        done = getattr(self, f"_{self._stage.verb}")([self._run / a for a in self._stage.artifacts])
        workers = filter(is_at_work, self._target.workers(self._stage.role))
        pids = pids_of(workers)
        if self._stage.verb == "sample":
            pids &= ready_engines(self._run)
        return Sample(at=time.monotonic(), done=done, workers=frozenset(pids))

    def _sample(self, directories: list[Path]) -> int:
        present = finished_answers(directories[0])
        self.answers_lost += len(self._answers - present)
        self._answers = present
        return len(present)

    def _train(self, directories: list[Path]) -> int:
        before, now = self._steps, steps_logged(directories[0])
        # A step done again has other seconds. Its line differs, though the log may be longer again.
        changes = (old != new for old, new in zip_longest(before, now[: len(before)]))
        kept = next((number for number, change in enumerate(changes) if change), len(before))
        self.steps_again += len(before) - kept
        self._steps = now
        return len(now)

    def _grade(self, directories: list[Path]) -> int:
        present = verdict_shards(directories)
        for path, (inode, rows) in self._shards.items():
            if present.get(path, (0, 0))[0] != inode:
                self.verdicts_again += rows
        self._shards = present
        return sum(rows for _, rows in present.values())

    def close(self) -> None:
        """Stop the thread."""
        self._over.set()
        self._thread.join()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows of a disturbed run against those of the undisturbed one."""

    lost: int
    doubled: int
    different: int
    files_left: tuple[str, ...]
    digests_equal: bool


def compare(stage: Stage, run: Path, reference: Path) -> Comparison:
    """Compare a finished stage with that of the undisturbed run."""
    lost = doubled = different = 0
    for artifact in stage.artifacts:
        rows, expected = (_rows(stage, each / artifact) for each in (run, reference))
        keys, known = (Counter(key for key, _ in each) for each in (rows, expected))
        lost += len(known.keys() - keys.keys())
        doubled += sum(keys.values()) - len(keys)
        values = dict(expected)
        different += sum(values.get(key) != value for key, value in rows)
    return Comparison(
        lost=lost,
        doubled=doubled,
        different=different,
        files_left=_files_left(run, reference),
        digests_equal=_digest(stage, run) == _digest(stage, reference),
    )


def _rows(stage: Stage, out: Path) -> list[tuple[object, object]]:
    """Return the rows of an artifact with their keys; for a training, the loss of each step."""
    from ssd_ray.artifacts import shards
    from ssd_ray.schema import Completion
    from ssd_ray.training.state.logs import read_log

    if stage.verb == "sample":
        return [((r.prompt_id, r.sample_index), r) for r in shards.read_rows(out, Completion)]
    if stage.verb == "train":
        return [(line["step"], line["loss"]) for line in read_log(out)]
    return [(row[:2], row) for row in shards.read_columns(out, *VERDICT_FIELDS)]


def _digest(stage: Stage, run: Path) -> str:
    """Return a digest of the contents of a stage, or of the trained weights' bytes."""
    digest = hashlib.sha256()
    for artifact in stage.artifacts:
        if stage.verb == "train":
            digest.update((run / artifact / "model.safetensors").read_bytes())
        else:
            rows = sorted(_rows(stage, run / artifact), key=lambda row: str(row[0]))
            digest.update(json.dumps([str(row) for _, row in rows]).encode())
    return digest.hexdigest()


def _files_left(run: Path, reference: Path) -> tuple[str, ...]:
    """Return files that the undisturbed run has not; logs and rows may have other names."""
    left = []
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run)
        is_free = name.parts[0] == "logs" or "ledger" in name.parts or path.suffix == ".parquet"
        if path.is_file() and not is_free and not (reference / name).exists():
            left.append(str(name))
    return tuple(left)


def wait_until(condition: Callable[[], object], timeout_s: float, subject: str) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not hold in time.
    """
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(f"waited {timeout_s:g} s for {subject}")
        time.sleep(0.02)


def pids_of(processes: Iterable[psutil.Process]) -> set[int]:
    """Return the numbers of processes."""
    return {process.pid for process in processes}
