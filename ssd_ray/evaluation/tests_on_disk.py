"""Tests at rest: every problem's tests decoded once, in one compressed file named by its content, read by graders as needed.

Problems travel without their tests, which can be gigabytes; a grader reads those of the problem before it, checks them
against their name, and keeps the latest within a bound. Reads and writes `tests/` of a benchmark artifact.
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
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.outcomes import UngradableError
from ssd_ray.evaluation.judging.strict import ungradable
from ssd_ray.evaluation.soundness import made_ready
from ssd_ray.schema import Problem, Test

KEPT_BYTES = 256 << 20
"""Memory for the tests that a grader keeps."""


class TestStore:
    """The tests of a benchmark's problems, in `directory`."""

    __test__ = False

    def __init__(self, directory: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self._directory, self._room = directory, kept_bytes
        self._kept: OrderedDict[str, tuple[tuple[Test, ...], int]] = OrderedDict()

    def put(self, problem: Problem) -> Problem:
        """Store a problem's tests; returns the problem with their digest and number in their place."""
        import pyarrow as pa

        rows = [[test.input, test.output, test.group] for test in problem.tests]
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
        """The problem with its tests.

        Raises:
            UserError: they are missing from the store, or are not what was stored.
        """
        if not problem.tests_digest:
            return problem
        if problem.tests_digest not in self._kept:
            self._kept[problem.tests_digest] = self._read(problem)
        self._kept.move_to_end(problem.tests_digest)
        while len(self._kept) > 1 and sum(size for _, size in self._kept.values()) > self._room:
            self._kept.popitem(last=False)
        return dataclasses.replace(problem, tests=self._kept[problem.tests_digest][0])

    def _read(self, problem: Problem) -> tuple[tuple[Test, ...], int]:
        import pyarrow as pa

        path = self._path(problem.tests_digest)
        mend = f"delete {self._directory.parent} to make it anew"
        try:
            content = path.read_bytes()
            size = int.from_bytes(content[:8], "little")
            text = pa.Codec("zstd").decompress(content[8:], decompressed_size=size, asbytes=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"the tests of problem {problem.problem_id} cannot be read ({error}): {mend}"
            ) from error
        if hashlib.sha256(text).hexdigest()[:32] != problem.tests_digest:
            raise UserError(
                f"the tests of problem {problem.problem_id} in {path} were changed since they were stored: {mend}"
            )
        rows = json.loads(text.decode("utf-8", "surrogatepass"))
        return tuple(
            Test(input=given, output=expected, group=group) for given, expected, group in rows
        ), size

    def _path(self, digest: str) -> Path:
        return self._directory / digest[:2] / f"{digest}.json.zst"


def stored(
    problems: Iterable[Problem],
    directory: Path,
    floor: str,
    left_out: list[str],
    ungradable: dict[str, str] | None = None,
) -> Iterator[Problem]:
    """Yield the problems made ready for grading (`soundness.py`), their tests put into a store.

    Tests that no grader could hold (`references.with_expected`) are left out and named in `left_out`.
    Problems on which no program can be graded are left out, with the reason by id in `ungradable`.
    Without `ungradable`, tests are not tried on their references.

    Raises:
        UserError: a problem without tests, or without a reference
            that works where one is needed; a sandbox below the floor.
    """
    store = TestStore(directory)
    for ready in made_ready(
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
    """Yield the problems whose tests can be told to a program; the others are named in `left_out` where it is given."""
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
    """Refuse a function problem whose tests are not on the wire, before any program is graded on it.

    Raises:
        UngradableError: a test that is not, or is too large.
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
            reason = (
                f"its test {index} is not on the wire, {error}; see docs/benchmarks.md for the form"
            )
            raise ungradable(problem, reason) from error
