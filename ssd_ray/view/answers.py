"""One answer with all that is known of it: prompt, text, program, verdict, failing test.

Reads the shard of the answer, its prompt, its verdicts, and the benchmark's tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ssd_ray.artifacts.files import Json
from ssd_ray.artifacts.shards import shard_paths
from ssd_ray.errors import UserError
from ssd_ray.view import rendering
from ssd_ray.view.index import Index
from ssd_ray.view.parquet import Value, literal
from ssd_ray.view.queries import Row
from ssd_ray.view.runs import Source, contained

_DIFFERENT = re.compile(
    r"(?:line \d+ is|returned|answered) (?P<got>.+) "
    r"and should (?:be|have returned|have answered) (?P<expected>.+)"
)
"""Details of `evaluation/judging`, which name the value and the right one."""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict under one profile."""

    profile: str
    outcome: str
    num_tests: int
    num_passed: int
    time_s: float
    peak_bytes: int
    code: str
    detail: str
    failed_test: int
    sandbox_level: str
    outcome_base: str
    reasoning: str
    rule: str
    """Rule by which the program was cut out, "" if it is not on record."""


@dataclass(frozen=True, kw_only=True)
class FailingTest:
    """The first test not passed, or the reason why it cannot be shown."""

    number: int
    input: str
    expected: str
    missing: str
    compared: tuple[rendering.Line, ...] = ()
    """The differing part by the verdict's detail: "-" expected, "+" got; () if it names none."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer and its verdicts."""

    row: Row
    source: Source
    text: str
    seed: int
    num_prompt_tokens: int
    token_ids: tuple[int, ...]
    """Output ids; () in a file without them."""
    file: str
    judged: tuple[Judged, ...]

    @property
    def program(self) -> str:
        """The program of the first verdict, "" without one."""
        return self.judged[0].code if self.judged else ""


def read_answer(index: Index, row: Row) -> Answer:
    """Read an answer and its verdicts.

    Raises:
        UserError: its shard was deleted or changed.
    """
    path, place = index.place(row.position)
    record = _record(
        index,
        path,
        "text, seed, len(prompt_token_ids) AS prompt_tokens, output_token_ids, prompt_id",
        "file_row_number = ?",
        [place],
    )
    if record is None or record["prompt_id"] != row.prompt_id:
        raise UserError(
            f"the shard {path.name} of this answer was deleted or drawn again: "
            "go back to the table, which reads it again"
        )
    source = index.sources[row.place]
    return Answer(
        row=row,
        source=source,
        text=record["text"] or "",
        seed=record["seed"],
        num_prompt_tokens=record["prompt_tokens"] or 0,
        token_ids=tuple(record["output_token_ids"] or ()),
        file=str(path.relative_to(index.run.path)),
        judged=tuple(_verdicts(index, source, row)),
    )


def _verdicts(index: Index, source: Source, row: Row) -> Iterator[Judged]:
    """Yield the verdict of the first profile by its place, then of the second by its key."""
    if source.verdicts is not None and row.verdict is not None:
        path, place = index.place(row.verdict)
        record = _record(index, path, "*", "file_row_number = ?", [place])
        if record is not None and record["prompt_id"] == row.prompt_id:
            yield _judged(record, "strict", _choices(source.verdicts))
    if source.other_verdicts is not None:
        paths = _shards(index, source.other_verdicts)
        where = "prompt_id = ? AND sample_index = ?"
        record = _record(index, paths, "*", where, [row.prompt_id, row.sample_index])
        if record is not None:
            yield _judged(record, "lcb-compat", _choices(source.other_verdicts))


def _judged(record: dict[str, Value], profile: str, choices: Json) -> Judged:
    return Judged(
        profile=str(choices.get("profile") or profile),
        outcome=record["outcome"],
        num_tests=record["num_tests"],
        num_passed=record["num_passed"],
        time_s=record["time_s"],
        peak_bytes=record.get("peak_bytes") or 0,
        code=record.get("code") or "",
        detail=record.get("detail") or "",
        failed_test=-1 if record.get("failed_test") is None else record["failed_test"],
        sandbox_level=record.get("sandbox_level") or "",
        outcome_base=record.get("outcome_base") or "",
        reasoning=record.get("reasoning") or "",
        rule=str(choices.get("extract") or ""),
    )


def _choices(directory: Path) -> Json:
    try:
        choices = json.loads((directory / "fingerprint.json").read_bytes())["choices"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return choices if isinstance(choices, dict) else {}


def prompt_text(index: Index, source: Source, prompt_id: str) -> tuple[str, str]:
    """Return the rendered prompt and the statement; "" where the run has none."""
    paths = _shards(index, source.prompts)
    record = _record(index, paths, "*", "prompt_id = ?", [prompt_id])
    if record is not None:
        return record.get("text") or "", record.get("statement") or ""
    problem = _problem(index, prompt_id)
    return "", problem.get("statement") or "" if problem else ""


def failing_test(index: Index, answer: Answer) -> FailingTest | None:
    """Return the first test that was not passed, None if all passed or none ran."""
    if not answer.judged or answer.judged[0].failed_test < 0:
        return None
    judged = answer.judged[0]
    problem = _problem(index, answer.row.prompt_id)
    if problem is None:
        return _missing(judged, "the run holds no problem of this id")
    try:
        tests = _tests(index, problem)
    except UserError as error:
        return _missing(judged, str(error))
    if judged.failed_test >= len(tests):
        return _missing(judged, f"the problem has {len(tests)} tests on disk")
    test_input, expected = tests[judged.failed_test]
    return FailingTest(
        number=judged.failed_test + 1,
        input=rendering.bounded(test_input, rendering.MAX_TEXT // 10),
        expected=rendering.bounded(expected, rendering.MAX_TEXT // 10),
        missing="",
        compared=compared_values(judged.detail),
    )


def compared_values(detail: str) -> tuple[rendering.Line, ...]:
    """Return the two values of a detail; verdicts keep no other part of the output."""
    match = _DIFFERENT.search(detail)
    return () if match is None else tuple(rendering.difference(match["expected"], match["got"]))


def _missing(judged: Judged, reason: str) -> FailingTest:
    return FailingTest(number=judged.failed_test + 1, input="", expected="", missing=reason)


def _problem(index: Index, problem_id: str) -> dict[str, Value] | None:
    for name in ("benchmark", "training-problems"):
        paths = _shards(index, index.run.inside(name))
        if record := _record(index, paths, "*", "problem_id = ?", [problem_id]):
            return {**record, "directory": index.run.path / name}
    return None


def _tests(index: Index, problem: dict[str, Value]) -> Sequence[tuple[str, str]]:
    """Return inputs and outputs of a problem's tests."""
    from ssd_ray.evaluation.tests_on_disk import TestStore
    from ssd_ray.schema import Problem

    if not problem.get("tests_digest"):
        return [(test["input"], test["output"]) for test in problem.get("tests") or ()]
    store = problem["directory"] / "tests"
    digest = str(problem["tests_digest"])
    file = store / digest[:2] / f"{digest}.json.zst"
    if not digest.isalnum() or not contained(file, index.run.root):
        raise UserError("its tests are outside of the run")
    stored = TestStore(store).get(
        Problem(
            problem_id=problem["problem_id"],
            source="",
            statement="",
            tests_digest=digest,
            num_tests=problem.get("num_tests") or 0,
        )
    )
    return [(test.input, test.output) for test in stored.tests]


def _shards(index: Index, directory: Path | None) -> list[Path]:
    if directory is None:
        return []
    return [path for path in shard_paths(directory) if contained(path, index.run.root)]


def _record(
    index: Index, paths: Path | Sequence[Path], columns: str, where: str, values: Sequence[Value]
) -> dict[str, Value] | None:
    """Return the first row of shards with a condition, None without one.

    Raises:
        UserError: a shard cannot be read.
    """
    import duckdb

    listed = [paths] if isinstance(paths, Path) else list(paths)
    if not listed:
        return None
    with index.cursor() as cursor:
        try:
            cursor.execute(
                f"SELECT {columns} FROM read_parquet(?, file_row_number=true, "
                f"union_by_name=true, hive_partitioning=false) WHERE {where} LIMIT 1",
                [[literal(path) for path in listed], *values],
            )
            names = [column[0] for column in cursor.description or ()]
            row = cursor.fetchone()
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0][:200]
            raise UserError(
                f"{listed[0].parent.name} cannot be read ({reason}): "
                "it was deleted or is damaged; go back to the table"
            ) from error
    return None if row is None else dict(zip(names, row, strict=True))
