"""Grade the answers of a run apart from it: no Ray, no token, no network.

    grading/, benchmark/, eval-prompts/, generations/ ─ worker processes ─> graded/

- The run writes orders (`evaluation/orders.py`) and answers; both may be read-only here.
- All orders are worked on together, while answers still arrive. The call ends once each has a
  verdict on every completion.
- Verdicts on disk are the state: the same call resumes after a kill at any instant.
- Memory does not grow with the answers: only names of shards are kept.

Imports neither Ray nor torch or vLLM. A tokenizer is loaded where marks of reasoning are special
tokens.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, wait
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts import files, shards, slices
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.lineage import claim_of
from ssd_ray.artifacts.slices import Slice
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation import orders
from ssd_ray.evaluation.following import Answers, Source, hand_in, require_all
from ssd_ray.evaluation.grader import Grader
from ssd_ray.evaluation.orders import Order
from ssd_ray.evaluation.pool import GraderPool
from ssd_ray.evaluation.verdicts import SLICE_ROWS, facts, graded_shards
from ssd_ray.progress import Progress
from ssd_ray.standalone.answer_checks import AnswerChecks
from ssd_ray.standalone.workers import local_pool

_POLL_S = 1.0
_LINE_S = 60.0
_STOP_TIMEOUT_S = 10.0
_PASSES = 3


@dataclass(frozen=True, kw_only=True)
class FollowJob:
    """A run to grade for, and the number of processes."""

    run: Path
    workers: int = 1


class _SupersededError(Exception):
    """The run has replaced the order."""


def follow(job: FollowJob, progress: Progress) -> list[Path]:
    """Grade all orders of a run as its answers arrive; return the directories of verdicts.

    Raises:
        UserError: an answer, an order or a benchmark is not as the run writes it, or the sandbox
            of this machine is below the floor.
        InfrastructureError: workers crashed too often; the same call resumes.
    """
    if not job.run.is_dir():
        raise UserError(f"--follow {str(job.run)!r}: there is no such run directory")
    with locked(job.run / orders.GRADED), local_pool(job.workers) as pool, _Works() as works:
        lines = _Lines(job.run, progress)
        while True:
            wanted = orders.announced(job.run)
            missing = ["orders"] if wanted is None else []
            for name, fingerprint in (wanted or {}).items():
                order = orders.read(job.run, name)
                if order is None or order.fingerprint != fingerprint:
                    missing.append(name)
                elif works.begin(order):
                    works.start(order, _Work(job.run, order, pool, progress, works.stopped))
            if wanted is not None and works.are_done(wanted):
                return [job.run / order.place for order in works.orders(wanted)]
            lines.wait(missing)
            time.sleep(_POLL_S)


class _Lines:
    """A line a minute about the orders that the run has still to write."""

    def __init__(self, run: Path, progress: Progress) -> None:
        self._orders = run / orders.ORDERS
        self._progress = progress
        self._said = time.monotonic()

    def wait(self, missing: Iterable[str]) -> None:
        """Print the line if orders are missing and it is due."""
        names = ", ".join(missing)
        if names and time.monotonic() - self._said >= _LINE_S:
            self._said = time.monotonic()
            self._progress.say(
                f"waiting for {names} in {self._orders}: the run writes an order when its answers "
                "begin, if it has cluster.graders=apart"
            )


class _Work:
    """The grading of one order."""

    def __init__(
        self,
        run: Path,
        order: Order,
        pool: GraderPool,
        progress: Progress,
        stopped: threading.Event,
    ) -> None:
        self._run = run
        self._order = order
        self._pool = pool
        self._progress = progress
        self._stopped = stopped
        self._spec = order.spec(run, run / order.place)
        self._checks = AnswerChecks(run, order)
        self._looked_at = -_POLL_S

    def grade(self) -> None:
        """Grade all completions of the order, until their artifact is complete and all are graded.

        Raises:
            _SupersededError: the run has replaced the order.
            UserError: a completion or the machine is not as it should be.
            InfrastructureError: workers crashed too often, or completions are missing.
        """
        files.make_directory(self._spec.out)
        # A faulty machine or benchmark is reported here, before any process starts.
        Grader(self._spec).close()
        # The run deletes shards with errors of the machine, also behind the back of this pass.
        for _ in range(_PASSES - 1):
            with contextlib.suppress(InfrastructureError):
                return self._pass()
            if self._stopped.is_set():
                break
        return self._pass()

    def _pass(self) -> None:
        """Grade the completions without a verdict on disk."""
        order = self._order
        answers = Answers(
            directory=self._run / order.answers, total=order.total, ended=self._have_ended
        )
        num_done = sum(map(len, graded_shards(self._spec.out)))
        names = {path.stem for path in shards.shard_paths(self._spec.out)}
        with self._progress.task(
            order.name, total=order.total, unit="verdicts", done=num_done
        ) as task:
            source = Source(answers, lambda path: self._slices(path, names))
            with self._pool.work(self._spec, order.name) as work:
                hand_in(work, source, task, num_done)
            graded = facts(self._spec)
            task.update(graded.rows)
        require_all(answers, graded, order.name)

    def _slices(self, path: Path, names: set[str]) -> Iterator[Slice]:
        """Yield the slices of one shard of completions without a shard of verdicts."""
        self._checks.require_own_rows(path)
        for keys, piece in slices.cut(path, SLICE_ROWS):
            if slices.shard_name(keys) not in names:
                yield piece

    def _have_ended(self) -> bool:
        """Return True once the completions are complete."""
        if self._stopped.is_set():
            raise InfrastructureError("grading was stopped")
        # Looked at less often than asked for: the storage may be far away.
        if time.monotonic() - self._looked_at < _POLL_S:
            return False
        self._looked_at = time.monotonic()
        if orders.read(self._run, self._order.name) != self._order:
            raise _SupersededError
        self._checks.require_regular_files()
        directory = self._run / self._order.answers
        # Another claim means other contents, for which the run writes another order.
        return claim_of(directory) == self._order.claim and (directory / "manifest.json").exists()


class _Works:
    """Orders in threads; leaving the context stops those still running."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._begun: dict[str, tuple[Order, Future[None]]] = {}

    def __enter__(self) -> _Works:
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        wait([future for _, future in self._begun.values()], _STOP_TIMEOUT_S)

    def begin(self, order: Order) -> bool:
        """Return True if an order is to be started: it is new, or replaces an ended one.

        Raises:
            UserError, InfrastructureError: its grading failed.
        """
        if order.name not in self._begun:
            return True
        earlier, future = self._begun[order.name]
        if not future.done():
            return False
        error = future.exception()
        if error is not None and not isinstance(error, _SupersededError):
            raise error
        return earlier != order

    def start(self, order: Order, work: _Work) -> None:
        """Grade an order in a thread."""
        future: Future[None] = Future()
        self._begun[order.name] = order, future

        def run() -> None:
            try:
                work.grade()
                future.set_result(None)
            except BaseException as error:
                # The thread of `begin` raises it.
                future.set_exception(error)

        threading.Thread(target=run, name=order.name, daemon=True).start()

    def are_done(self, wanted: Mapping[str, str]) -> bool:
        """Return True if all wanted orders are graded."""
        return all(
            name in self._begun
            and self._begun[name][0].fingerprint == fingerprint
            and self._begun[name][1].done()
            and self._begun[name][1].exception() is None
            for name, fingerprint in wanted.items()
        )

    def orders(self, wanted: Mapping[str, str]) -> list[Order]:
        """Return the wanted orders."""
        return [self._begun[name][0] for name in wanted]
