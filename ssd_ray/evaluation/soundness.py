"""Problems made ready for grading: expected values, and tests tried on their references.

- A test without an expected value gets the return value of the reference (`expected_outputs.py`).
- A reference has to pass its own check. Without one, the check has to reach its first call.
- A problem without sound tests would fail every program alike. It is left out and named; the others
  stay.
- Passed checks are recorded in the user's cache by content, and are not tried again.

Reads and writes `sound-tests` in the cache directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts.problem_facts import ProblemLeftOut
from ssd_ray.errors import InfrastructureError
from ssd_ray.evaluation.judging.expected_outputs import needs_expected, with_expected
from ssd_ray.evaluation.judging.humaneval_check import (
    BrokenCheckError,
    NoCallError,
    run_check,
    try_check,
)
from ssd_ray.evaluation.judging.outcomes import UngradableError, ungradable
from ssd_ray.evaluation.judging.source_texts import (
    check_units,
    entry_points,
    program_units,
    starter_preamble,
)
from ssd_ray.evaluation.judging.strict import require_gradable
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.models import cache_directory
from ssd_ray.schema import Problem, Test

REFERENCE_LIMITS = Limits(time_s=60, memory_mib=4096, output_kib=65536)
"""Limits of one call of a reference. Some are slow on EvalPlus's inputs."""
_MOST_THREADS = 4
_JOINT = """
def check(candidate):
    for source in {sources!r}:
        num_calls, names = candidate.num_calls, dict(globals())
        exec(source, names)
        names["check"](candidate)
        assert candidate.num_calls > num_calls
"""
"""A check made of several checks in one process, with a call required from each."""


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A problem ready for grading, or the reason why it cannot be graded."""

    problem: Problem
    ungradable: str = ""
    """The reason, else empty."""
    tests_left_out: tuple[str, ...] = ()
    """Tests whose expected value no grader could hold, in words."""


def records(reasons: Mapping[str, str], places: Mapping[str, str]) -> tuple[ProblemLeftOut, ...]:
    """Return records of the problems left out: id, file and row, reason."""
    return tuple(
        ProblemLeftOut(problem_id=name, place=places.get(name, ""), reason=reason)
        for name, reason in reasons.items()
    )


def describe(left_out: Sequence[ProblemLeftOut], most: int = 10) -> list[str]:
    """Return a line for each problem left out, at most `most` and a count of the rest."""
    lines = [
        f"left out: {row.reason}" + (f" ({row.place})" if row.place else "") for row in left_out
    ]
    return [
        *lines[:most],
        *([f"left out as well: {len(lines) - most} more problems"] if lines[most:] else []),
    ]


def make_ready(problems: Iterable[Problem], floor: str, *, tried: bool) -> Iterator[Ready]:
    """Make problems ready, a few at a time, and yield them in order.

    - `floor`: the weakest sandbox level allowed.
    - `tried`: try the tests on their references.

    Raises:
        UserError: a problem lacks a field of its kind, the sandbox is below the floor, or
            `problems` raises it.
        InfrastructureError: a sandbox failed.
    """
    record = _Record(cache_directory() / "sound-tests")
    # A sandbox at L4 has a kernel of its own, with a cost in memory and time.
    threads = 1 if floor == "L4" else min(_MOST_THREADS, os.cpu_count() or 1)
    pending: deque[Future[Ready]] = deque()
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(threads) as pool:
        sandboxes = _ThreadSandboxes(floor, stack)
        try:
            for problem in problems:
                ready = _ready_without_run(problem, record if tried else None)
                if ready is None:
                    pending.append(
                        pool.submit(_make_one_ready, problem, sandboxes, record if tried else None)
                    )
                # A problem that is ready waits for those before it, which keeps the order.
                while pending and (ready is not None or len(pending) > 2 * threads):
                    yield pending.popleft().result()
                if ready is not None:
                    yield ready
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _ready_without_run(problem: Problem, record: _Record | None) -> Ready | None:
    """Return a problem if nothing has to be run for it, else None."""
    try:
        require_gradable(problem)
    except UngradableError as error:
        return Ready(problem=problem, ungradable=str(error))
    if needs_expected(problem) or _needs_trial(problem, record):
        return None
    return Ready(problem=problem)


class _ThreadSandboxes:
    """One sandbox per thread, all with the same floor."""

    def __init__(self, floor: str, stack: contextlib.ExitStack) -> None:
        self._floor = floor
        self._stack = stack
        self._local = threading.local()

    def sandbox(self) -> Sandbox:
        """Return the calling thread's sandbox, started at its first call."""
        if not hasattr(self._local, "sandbox"):
            self._local.sandbox = self._stack.enter_context(Sandbox(floor=self._floor))
        sandbox: Sandbox = self._local.sandbox
        return sandbox


class _Record:
    """Digests of checks passed by their references, one per line, kept between runs."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._digests: set[str] = set()
        with contextlib.suppress(OSError, UnicodeDecodeError):
            self._digests.update(path.read_text().split())

    def __contains__(self, digest: str) -> bool:
        return digest in self._digests

    def add(self, digest: str) -> None:
        """Add a digest. A read-only cache only costs time."""
        self._digests.add(digest)
        # No lock: a line that another run cut in two matches no digest.
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a") as file:
                file.write(f"{digest}\n")


def _digest(problem: Problem) -> str:
    """Return a digest of everything a trial depends on: texts, way of calling, interpreter."""
    texts = [
        problem.starter_code,
        problem.reference,
        problem.entry_point,
        *(test.input for test in problem.tests),
    ]
    text = json.dumps([1, sys.version, problem.kind, problem.comparison, *texts])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _needs_trial(problem: Problem, record: _Record | None) -> bool:
    """Return True if a problem's tests are to be tried; without a record, none are."""
    tried = problem.kind == "asserts" or (problem.kind == "function" and bool(problem.starter_code))
    return (
        record is not None
        and tried
        and problem.comparison != "lcb"
        and _digest(problem) not in record
    )


def _make_one_ready(problem: Problem, sandboxes: _ThreadSandboxes, record: _Record | None) -> Ready:
    """Compute expected values and try the tests of one problem, in the sandbox of this thread."""
    left_out: list[str] = []
    try:
        complete = with_expected(problem, sandboxes.sandbox(), REFERENCE_LIMITS, left_out=left_out)
        if record is not None and _needs_trial(problem, record):
            require_sound_tests(problem, sandboxes.sandbox(), REFERENCE_LIMITS)
            record.add(_digest(problem))
    except UngradableError as error:
        return Ready(problem=problem, ungradable=str(error))
    return Ready(problem=complete, tests_left_out=tuple(left_out))


def require_sound_tests(problem: Problem, sandbox: Sandbox, limits: Limits) -> None:
    """Run a problem's reference through its checks, before any program is graded by them.

    - Without a reference, each check runs up to its first call.
    - Of a `function` problem, the starter code runs: programs rely on it.

    Raises:
        UngradableError: the reference is not accepted, or a check or starter code fails by itself.
        InfrastructureError: the sandbox failed.
    """
    try:
        if problem.kind == "asserts":
            if not _passes_all_at_once(problem, sandbox, limits):
                for test in problem.tests:
                    _require_sound_check(problem, test, sandbox, limits)
        elif problem.kind == "function" and starter_preamble(problem).strip():
            _require_sound_starter(problem, sandbox, limits)
    except (BrokenCheckError, NoCallError) as error:
        raise ungradable(problem, str(error)) from error


def _passes_all_at_once(problem: Problem, sandbox: Sandbox, limits: Limits) -> bool:
    """Return True if the reference passes all tests in one process.

    For MBPP this takes a third of the time of one process per test.
    """
    if problem.reference is None or len(problem.tests) < 2:
        return False
    # A failure here names no test, so the caller then runs them one by one.
    test = Test(input=_JOINT.format(sources=[test.input for test in problem.tests]), output="")
    program = program_units(problem, problem.reference)
    try:
        result = run_check(
            check_units(problem, test), program, entry_points(problem), limits, sandbox
        )
    except (BrokenCheckError, NoCallError):
        return False
    return result.outcome == "accepted"


def _require_sound_check(problem: Problem, test: Test, sandbox: Sandbox, limits: Limits) -> None:
    """Raise an error if the reference fails a check, or the check fails by itself without one."""
    check = check_units(problem, test)
    entries = entry_points(problem)
    if problem.reference is None:
        return try_check(check, entries, sandbox)
    result = run_check(check, program_units(problem, problem.reference), entries, limits, sandbox)
    if result.outcome != "accepted":
        raise ungradable(
            problem,
            f"its own reference solution is not accepted ({result.outcome}: {result.detail})",
        )
    return None


def _require_sound_starter(problem: Problem, sandbox: Sandbox, limits: Limits) -> None:
    """Raise an error if the starter code before the entry point fails when it runs alone."""
    execution = sandbox.run_program(starter_preamble(problem), "", limits)
    if execution.status == "infrastructure_error":
        raise InfrastructureError(f"problem {problem.problem_id}, starter code: {execution.detail}")
    if execution.status != "ok":
        raise ungradable(
            problem, f"its starter code ends with {execution.status} ({execution.detail})"
        )
