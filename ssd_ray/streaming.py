"""Rows in, shards out, exactly once: the Ray Data skeleton under sampling and grading.

The driver knows only keys, (`prompt_id`, `sample_index`), and cuts those that are not on disk yet into slices; a worker of
the pool reads the rows of a slice from Parquet and writes its results as one shard, by rename. No row reaches the driver,
whose memory is the keys. Workers say how far they are in small files that the driver polls.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssd_ray import artifacts
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.progress import Progress, Task

if TYPE_CHECKING:
    import pyarrow as pa

Key = tuple[str, int]
_POLL_S = 0.5


@dataclass(frozen=True, kw_only=True)
class Pool:
    """The workers of a stage: a class called with Arrow tables, its arguments, how many, and what each reserves."""

    worker: type
    arguments: Mapping[str, Any]
    min_size: int
    max_size: int
    concurrent_batches: int
    remote_args: Mapping[str, Any]
    max_failures: int


def keys_on_disk(out: Path) -> set[Key]:
    """The keys of every row in whole shards."""
    return set(artifacts.read_columns(out, "prompt_id", "sample_index"))


def shard_name(keys: list[Key]) -> str:
    """The name of the shard that holds exactly these keys: a redone batch replaces its own shard and no other."""
    return hashlib.blake2b(json.dumps(keys).encode(), digest_size=10).hexdigest()


def stream_shards(
    source: Path,
    pool: Pool,
    *,
    samples: int | None,
    shard_rows: int,
    total: int,
    out: Path,
    stage: str,
    unit: str,
    progress: Progress,
) -> None:
    """Send every row of `source` whose key is not yet in `out` through the pool; `samples` repeats a row under that many indices.

    Raises:
        UserError: a worker found a mistake in its input.
        InfrastructureError: workers crashed more often than `pool.max_failures`; what is on disk stays.
    """
    done = keys_on_disk(out)
    for partial in out.glob(".*.partial"):
        partial.unlink()
    with progress.task(stage, total=total, unit=unit, done=len(done)) as task, _polled(out, task, len(done)) as poll:
        if len(done) < total:
            try:
                _check_room(pool, progress)
                slices = [piece for path in artifacts.shard_paths(source) for piece in slices_of(path, done, samples, shard_rows)]
                for _ in _dataset(slices, pool).iter_batches(batch_size=None):
                    poll()
            except Exception as error:
                raise _plain(error, stage) from error
        task.update(len(keys_on_disk(out)), tokens=poll())
    _record_pace(out)
    missing = total - len(keys_on_disk(out))
    if missing:
        raise InfrastructureError(
            f"{stage}: {missing} of {total} {unit} are missing after the last worker ended; run again to resume"
        )


def _check_room(pool: Pool, progress: Progress) -> None:
    """Ray waits without a word for what a cluster does not have: refuse on this machine, say so on a cluster that may grow."""
    import ray

    there = ray.cluster_resources()
    for name, field in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        wanted, have = float(pool.remote_args.get(field, 0)), float(there.get(name, 0))
        if wanted > have and not os.environ.get("RAY_ADDRESS"):
            raise UserError(
                f"a worker reserves {wanted:g} {name} and this machine has {have:g}: lower engine.cpus or cluster.grader_cpus"
            )
        if wanted > have:
            progress.say(f"waiting for {wanted:g} {name}; the cluster has {have:g} now")


def slices_of(path: Path, done: set[Key], samples: int | None, shard_rows: int) -> Iterator[dict[str, Any]]:
    """The work that is left in one file, one record a shard: the file, the rows of it to read, the sample index of each."""
    import pyarrow.parquet as pq

    columns = ["prompt_id"] if samples is not None else ["prompt_id", "sample_index"]
    table = pq.read_table(path, columns=columns)
    prompt_ids = table.column("prompt_id").to_pylist()
    if samples is None:
        keys = list(zip(range(len(prompt_ids)), table.column("sample_index").to_pylist(), strict=True))
    else:
        keys = [(row, index) for row in range(len(prompt_ids)) for index in range(samples)]
    left = [(row, index) for row, index in keys if (prompt_ids[row], index) not in done]
    for start in range(0, len(left), shard_rows):
        rows, indices = zip(*left[start : start + shard_rows], strict=True)
        yield {"file": str(path.resolve()), "rows": list(rows), "indices": list(indices)}


def read_slice(record: Mapping[str, Any]) -> pa.Table:
    """The rows of one slice, with their `sample_index`; for workers."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(record["file"]).take(pa.array(record["rows"], type=pa.int64()))
    if "sample_index" in table.column_names:
        return table
    return table.append_column("sample_index", pa.array(record["indices"], type=pa.int64()))


def _dataset(slices: list[dict[str, Any]], pool: Pool) -> Any:
    """Slices, one a block, through the pool. Blocks are put from here: on a small machine the workers hold every core."""
    import ray
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    # Bounded restarts have no named parameter in the pinned Ray, which warns about the way it has.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    strategy = ray.data.ActorPoolStrategy(
        min_size=min(pool.min_size, len(slices)),
        max_size=min(pool.max_size, len(slices)),
        max_tasks_in_flight_per_actor=pool.concurrent_batches,
        max_concurrent_calls_per_actor=pool.concurrent_batches,
        # Without this, Ray Data lets one batch at a time into the worker, and an engine runs dry at every shard's end.
        enable_true_multi_threading=True,
    )
    return ray.data.from_items(slices, override_num_blocks=len(slices)).map_batches(
        pool.worker,
        fn_constructor_kwargs=dict(pool.arguments),
        batch_format="pyarrow",
        batch_size=1,
        compute=strategy,
        max_restarts=pool.max_failures,
        max_task_retries=pool.max_failures,
        **pool.remote_args,
    )


class Heartbeat:
    """A worker's own small file with the rows and tokens it has done in this attempt, replaced at most every half second."""

    def __init__(self, out: Path) -> None:
        self._path = out / ".progress" / f"{uuid.uuid4().hex}.json"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._rows = self._tokens = 0
        self._began, self._written = time.time(), 0.0

    def add(self, rows: int, tokens: int) -> None:
        """Count finished work and write it down when half a second has gone by."""
        with self._lock:
            self._rows += rows
            self._tokens += tokens
            if time.monotonic() - self._written >= _POLL_S:
                self._write()

    def flush(self) -> None:
        """Write the counts now."""
        with self._lock:
            self._write()

    def _write(self) -> None:
        aside = self._path.with_suffix(".aside")
        beat = {"rows": self._rows, "tokens": self._tokens, "began": self._began, "ended": time.time()}
        aside.write_text(json.dumps(beat))
        aside.replace(self._path)
        self._written = time.monotonic()


@contextmanager
def _polled(out: Path, task: Task, before: int) -> Iterator[Callable[[], int]]:
    """Update the task from the workers' heartbeats; yields a function that does so now and returns the tokens."""
    shutil.rmtree(out / ".progress", ignore_errors=True)
    stop = threading.Event()

    def poll() -> int:
        rows = tokens = 0
        for path in (out / ".progress").glob("*.json"):
            beat = json.loads(path.read_text())
            rows += beat["rows"]
            tokens += beat["tokens"]
        if not stop.is_set():
            task.update(before + rows, tokens=tokens)
        return tokens

    def loop() -> None:
        while not stop.wait(_POLL_S):
            poll()

    task.update(before, note="starting")
    thread = threading.Thread(target=loop, name="progress", daemon=True)
    thread.start()
    try:
        yield poll
    finally:
        stop.set()
        thread.join()


def _record_pace(out: Path) -> None:
    """Write `pace.json`: rows, tokens and seconds of this attempt from the first worker being ready to the last row."""
    beats = [json.loads(path.read_text()) for path in (out / ".progress").glob("*.json")]
    if beats:
        seconds = max(beat["ended"] for beat in beats) - min(beat["began"] for beat in beats)
        pace = {"rows": sum(beat["rows"] for beat in beats), "tokens": sum(beat["tokens"] for beat in beats), "seconds": seconds}
        artifacts.write_atomic(out / "pace.json", json.dumps(pace))
    shutil.rmtree(out / ".progress", ignore_errors=True)


def log_to_file(directory: Path, name: str) -> None:
    """Send this worker process's standard output and error to a file of its own in the run's logs."""
    directory.mkdir(parents=True, exist_ok=True)
    handle = os.open(directory / f"{name}-{os.getpid()}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def _plain(error: Exception, stage: str) -> Exception:
    """What went wrong in a worker, as one sentence: the user's mistake where it was one, else an infrastructure failure.

    Ray Data hands on the text of a worker's traceback, not its exception.
    """
    mistake = re.search(r"^(?:ssd_ray\.errors\.)?UserError: (.+)$", _text(error), re.MULTILINE)
    if mistake:
        return UserError(mistake.group(1))
    first = (str(error).strip().splitlines() or [""])[0].strip()
    return InfrastructureError(f"{stage}: workers kept failing ({type(error).__name__}: {first[:300]}); see the run's logs")


def _text(error: BaseException | None) -> str:
    """The texts of an exception and of its causes, without the colours that Ray puts in."""
    parts = []
    while error is not None:
        parts.append(str(error))
        cause = getattr(error, "cause", None) or error.__cause__
        error = cause if isinstance(cause, BaseException) else None
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(parts))
