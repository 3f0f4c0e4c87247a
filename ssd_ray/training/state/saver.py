"""Write resume states: straight to the run directory, or by way of a disk of each node.

    worker R: DISK/RUN/ID/worker-R/step-N ─copy─> resume/.step-N.ID.partial ─seal─> resume/step-N

- Without `cluster.local_states`, training waits until a state is complete in the run directory.
- With it, training waits until each worker has its files on its node's disk. A thread of the worker
  copies them, digests them on the way, and records them in `part-R.json`.
- The first worker's thread waits for all records and seals the state. Earlier states stay until
  then.
- A worker has one copy under way. The next save waits for it, so a node's disk holds one state.
- The main thread raises the error of a copy after the next step.
- Threads call no collectives: those of training would mix with them.
- A resumed training reads the run directory only. Disks of lost nodes lack parts, and shared ones
  would need a vote on the latest state of all.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ssd_ray.artifacts.files import Json, copy_file, make_directory
from ssd_ray.errors import OutsideError, system_reason
from ssd_ray.training.job import Job
from ssd_ray.training.state import resume

_POLL_S = 0.5


class Saver:
    """Writer of the resume states of one attempt; all workers call its methods together."""

    def __init__(
        self, engine: Any, job: Job, copy: Callable[[Path, Path], str] = copy_file
    ) -> None:
        """Delete what an earlier attempt left on this node's disk.

        `copy` is replaced in tests and measurements of slow storage.

        Raises:
            UserError: the disk cannot be written.
        """
        self._engine = engine
        self._job = job
        self._copy = copy
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self._disk = local_directory(job)
        if self._disk is not None:
            _clear(self._disk)
            # Workers of an earlier attempt may still copy. Each attempt has names of its own.
            self._attempt = resume.gather(engine, uuid.uuid4().hex[:8])[0]

    def save(self, step: int, *, at_once: bool = False) -> None:
        """Write the state after `step` steps.

        With `at_once`, the state is complete on return: it goes straight to the run directory.

        Raises:
            UserError: the copy of an earlier state failed, or a disk cannot be written.
        """
        self.wait()
        job = self._job
        kept = job.train.resume_states
        if self._disk is None or at_once:
            resume.save(self._engine, job.out, step, job.model_digest, kept=kept)
            return
        rank = self._engine.global_rank
        target = job.out / resume.RESUME / f".step-{step}.{self._attempt}.partial"
        if rank == 0:
            make_directory(target)
            resume.sync_logs(job.out)
        folder = self._disk / self._attempt / f"worker-{rank}"
        folder.mkdir(parents=True, exist_ok=True)
        # DeepSpeed waits for all workers, so the target exists before the first copy.
        resume.write(self._engine, folder / f"step-{step}")
        record = resume.record_of(self._engine, step, job.model_digest)
        self._thread = threading.Thread(
            target=self._run, args=(folder, target, record), name="state-copy", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Wait until the state is copied; on the first worker, until it is complete.

        Raises:
            UserError: the copy failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise the error of a failed copy.

        Raises:
            UserError: the copy failed.
        """
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait for the copy, and leave nothing of this worker on its node's disk.

        Raises:
            UserError: the copy failed.
        """
        self.wait()
        if self._disk is not None:
            # The last worker of the node finds them empty.
            with contextlib.suppress(OSError):
                (self._disk / self._attempt).rmdir()
                self._disk.rmdir()

    def _run(self, folder: Path, target: Path, record: Json) -> None:
        """Copy this worker's files; on the first worker, also complete the state."""
        try:
            self._copy_files(folder / f"step-{record['step']}", target)
            shutil.rmtree(folder)
            if self._engine.global_rank == 0:
                _await_parts(target, record["parts"])
                resume.seal(target, record, self._job.train.resume_states)
        except OSError as error:
            self._error = OutsideError(
                f"copying the state after step {record['step']} from {folder} to {target.parent} "
                f"failed: {system_reason(error)}; make room there or repair the storage and run "
                "again, and training resumes from the latest complete state"
            )
        # An error in a thread would only be printed: the main thread raises it.
        except Exception as error:
            self._error = error

    def _copy_files(self, source: Path, target: Path) -> None:
        files: dict[str, Json] = {}
        for path in sorted(source.iterdir()):
            sha256 = self._copy(path, target / path.name)
            files[path.name] = {"bytes": path.stat().st_size, "sha256": sha256}
        resume.write_part(target, self._engine.global_rank, files)


def local_directory(job: Job) -> Path | None:
    """Return the directory of this run on a node's disk, None without `cluster.local_states`."""
    if job.cluster.local_states is None:
        return None
    # Several runs may share the disk, also those of one name.
    name = hashlib.sha256(str(job.out).encode()).hexdigest()[:16]
    return Path(job.cluster.local_states) / f"ssd-ray-{name}"


def _clear(disk: Path) -> None:
    """Empty a run's directory on a node's disk, which all workers of the node do at their start."""
    try:
        shutil.rmtree(disk, ignore_errors=True)
        disk.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutsideError(
            f"cannot write {disk} on a node: {system_reason(error)}; set cluster.local_states to a "
            "directory on a disk of every node, or to null"
        ) from error


def _await_parts(target: Path, parts: int) -> None:
    """Wait until all workers have recorded their files; a failed worker ends the attempt."""
    missing = set(range(parts))
    while missing:
        if not target.is_dir():
            raise FileNotFoundError(2, "another attempt has deleted it", str(target))
        missing = {rank for rank in missing if not (target / resume.part(rank)).exists()}
        if missing:
            time.sleep(_POLL_S)
