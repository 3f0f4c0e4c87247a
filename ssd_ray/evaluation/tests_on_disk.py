"""Tests of problems on disk: one compressed file per problem, named by its content.

- Problems travel without their tests: those can be gigabytes.
- A grader reads the tests of the problem at hand and checks them against their name.
- It keeps the latest within a bound of memory.

Reads and writes `tests/` of a benchmark artifact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from pathlib import Path

from ssd_ray import wire
from ssd_ray.artifacts import files
from ssd_ray.errors import LastingError
from ssd_ray.evaluation.judging.outcomes import UngradableError, ungradable
from ssd_ray.evaluation.soundness import make_ready
from ssd_ray.schema import Problem, Test

KEPT_BYTES = 256 << 20
"""Bytes of tests in a grader's memory."""


class TestStore:
    """Tests of a benchmark's problems in `directory`, with at most `kept_bytes` in memory."""

    # The name begins with Test, so pytest would collect it.
    __test__ = False

    def __init__(self, directory: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self._directory = directory
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[str, tuple[tuple[Test, ...], int]] = OrderedDict()

    def put(self, problem: Problem) -> Problem:
        """Store a problem's tests; return the problem with their digest and number instead."""
        import pyarrow as pa

        rows = [[test.input, test.output, test.group] for test in problem.tests]
        # Tests may hold lone surrogates, an error in plain UTF-8.
        text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode(
            "utf-8", "surrogatepass"
        )
        digest = hashlib.sha256(text).hexdigest()[:32]
        path = self._path(digest)
        if not path.exists():
            compressed = pa.Codec("zstd").compress(text, asbytes=True)
            files.write_atomic(path, len(text).to_bytes(8, "little") + compressed)
        return dataclasses.replace(problem, tests=(), tests_digest=digest, num_tests=len(rows))

    def get(self, problem: Problem) -> Problem:
        """Return the problem with its tests.

        Raises:
            LastingError: the tests are missing, unreadable or not those of the digest.
        """
        if not problem.tests_digest:
            return problem
        if problem.tests_digest not in self._kept:
            self._kept[problem.tests_digest] = self._read(problem)
        self._kept.move_to_end(problem.tests_digest)
        # The tests at hand stay, however large they are.
        while len(self._kept) > 1 and self._num_bytes > self._kept_bytes:
            self._kept.popitem(last=False)
        return dataclasses.replace(problem, tests=self._kept[problem.tests_digest][0])

    @property
    def _num_bytes(self) -> int:
        return sum(size for _, size in self._kept.values())

    def _read(self, problem: Problem) -> tuple[tuple[Test, ...], int]:
        """Return the tests and the size of their decompressed text in bytes."""
        import pyarrow as pa

        path = self._path(problem.tests_digest)
        remedy = f"delete {self._directory.parent} to make it again"
        try:
            content = path.read_bytes()
            size = int.from_bytes(content[:8], "little")
            text = pa.Codec("zstd").decompress(content[8:], decompressed_size=size, asbytes=True)
        except (OSError, ValueError) as error:
            raise LastingError(
                f"the tests of problem {problem.problem_id} cannot be read ({error}): {remedy}"
            ) from error
        if hashlib.sha256(text).hexdigest()[:32] != problem.tests_digest:
            raise LastingError(
                f"the tests of problem {problem.problem_id} in {path} "
                f"were changed since they were stored: {remedy}"
            )
        rows = json.loads(text.decode("utf-8", "surrogatepass"))
        tests = tuple(
            Test(input=text_in, output=text_out, group=group) for text_in, text_out, group in rows
        )
        return tests, size

    def _path(self, digest: str) -> Path:
        return self._directory / digest[:2] / f"{digest}.json.zst"


def store_problems(
    problems: Iterable[Problem],
    directory: Path,
    floor: str,
    left_out: list[str],
    ungradable: dict[str, str] | None = None,
) -> Iterator[Problem]:
    """Yield problems ready for grading (`soundness.py`), with their tests in a store.

    - `floor`: the weakest sandbox level allowed for references.
    - `left_out`: receives the names of tests too large for a grader.
    - `ungradable`: receives a reason, by problem id, for each problem without sound tests. Such
      problems are not yielded. Without it they are an error, and references are not tried.

    Raises:
        UserError: a problem has no tests, lacks a working reference where one is needed, or cannot
            be graded while `ungradable` is None; or the sandbox is below the floor.
    """
    store = TestStore(directory)
    for ready in make_ready(
        _on_the_wire(problems, ungradable), floor, tried=ungradable is not None
    ):
        left_out += ready.tests_left_out
        if not ready.ungradable:
            yield store.put(ready.problem)
        elif ungradable is None:
            raise UngradableError(ready.ungradable)
        else:
            ungradable[ready.problem.problem_id] = ready.ungradable


def _on_the_wire(problems: Iterable[Problem], left_out: dict[str, str] | None) -> Iterator[Problem]:
    """Yield the problems whose tests have a form on the wire.

    Reasons against the others go into `left_out`; without it they are an error.
    """
    for problem in problems:
        try:
            _require_wire(problem)
        except UngradableError as error:
            if left_out is None:
                raise
            left_out[problem.problem_id] = str(error)
        else:
            yield problem


def _require_wire(problem: Problem) -> None:
    """Raise an error for a function problem with a test that has no form on the wire.

    Raises:
        UngradableError: a test is not text of the wire, or too large.
    """
    if problem.kind != "function":
        return
    for index, test in enumerate(problem.tests, start=1):
        try:
            if not isinstance(wire.loads(test.input), list):
                raise wire.MalformedError("not a list of arguments")
            if test.output:
                wire.loads(test.output)
        except wire.MalformedError as error:
            reason = f"its test {index} has no form on the wire, {error}; see docs/benchmarks.md"
            raise ungradable(problem, reason) from error
