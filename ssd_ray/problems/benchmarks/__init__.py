"""Benchmarks in the formats that they are published in: one reader a format, found by the columns of the first row.

`read_problems` streams `Problem`s from JSONL, JSONL.gz or Parquet. A row that cannot be read is an error that names the file,
the row and the field, or, where asked for, one of the `bad_rows`; it is never left out in silence. Reads the files given.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks import evalplus, gsm8k, humaneval, livecodebench, mbpp, native
from ssd_ray.problems.benchmarks.columns import require_known
from ssd_ray.problems.benchmarks.files import Row, RowError, list_files, read_rows
from ssd_ray.schema import Problem

__all__ = ["FORMATS", "BadRow", "Format", "Loaded", "find_format", "open_problems", "read_problems"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """A benchmark's row format: the columns that tell it, those that it never has, and its reader.

    The reader takes a row and its number and raises `RowError`. `known` are all columns that it reads, or leaves out for a
    reason in docs/benchmarks.md; `files` says which files have this form.
    """

    name: str
    columns: frozenset[str]
    without: frozenset[str]
    known: frozenset[str]
    files: str
    read: Callable[[Row, int], Problem]

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns of this format."""
        return self.columns <= row.keys() and not self.without & row.keys()


def _format(
    name: str,
    read: Callable[[Row, int], Problem],
    columns: str,
    files: str,
    *,
    without: str = "",
    known: str = "",
) -> Format:
    required = frozenset(columns.split())
    return Format(
        name=name,
        columns=required,
        without=frozenset(without.split()),
        known=required | frozenset(known.split()),
        files=files,
        read=read,
    )


FORMATS = (
    _format(
        "livecodebench",
        livecodebench.problem,
        "question_id question_content public_test_cases private_test_cases metadata",
        "give the files of livecodebench/code_generation_lite",
    ),
    _format(
        "evalplus",
        evalplus.problem,
        "task_id prompt entry_point canonical_solution base_input plus_input",
        "give HumanEvalPlus.jsonl.gz or MbppPlus.jsonl.gz",
        known="atol test test_list test_imports contract assertion",
    ),
    _format(
        "humaneval",
        humaneval.problem,
        "task_id prompt entry_point canonical_solution test",
        "give openai_humaneval or evalplus/humanevalplus of the hub",
        without="base_input",
    ),
    _format(
        "mbpp",
        mbpp.problem,
        "task_id code test_list",
        "give mbpp.jsonl, evalplus/mbppplus of the hub or MbppPlus.jsonl.gz",
        without="entry_point",
        known="test test_imports test_setup_code challenge_test_list",
    ),
    _format(
        "gsm8k",
        gsm8k.problem,
        "question answer",
        "give openai/gsm8k of the hub",
        without="tests",
        known="original_answer",
    ),
    _format("rows", native.problem, "problem_id statement tests", "see docs/benchmarks.md"),
)


@dataclass(frozen=True, kw_only=True)
class BadRow:
    """A row that was left out, as the reader was told to, and why."""

    file: str
    row: int
    reason: str


@dataclass(kw_only=True)
class Loaded:
    """The problems of some files, read while iterating; each iteration starts over.

    `num_read` counts all rows, `num_chosen` those that the choice holds, `bad_rows` lists those of them that were left out, and
    `num_public_only` counts LiveCodeBench problems without private tests, whose scores are too high. `places` says by id in
    which file and row a problem is. All are complete after the iteration.
    """

    files: Sequence[Path]
    format: str
    skip_bad_rows: bool = False
    source: str | None = None
    chosen: Callable[[Row], bool] | None = None
    num_read: int = 0
    num_chosen: int = 0
    num_public_only: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    places: dict[str, str] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Problem]:
        """The problems in the order of their rows.

        Raises:
            UserError: a bad row, unless they are skipped; a duplicate id; a file that cannot be read.
        """
        self.num_read, self.num_chosen, self.num_public_only = 0, 0, 0
        self.bad_rows.clear()
        self.places.clear()
        for file in self.files:
            for number, row in read_rows(file):
                problem = self._read(file, number, row)
                if problem is not None:
                    yield problem

    def _read(self, file: Path, number: int, row: Row | RowError) -> Problem | None:
        """One row's problem; None where it is not chosen, or bad and skipped."""
        form = next(known for known in FORMATS if known.name == self.format)
        self.num_read += 1
        self.num_chosen += 1
        try:
            if isinstance(row, RowError):
                raise row
            if self.chosen is not None and not self.chosen(row):
                self.num_chosen -= 1
                return None
            if not form.fits(row):
                raise RowError(
                    f"it is not of format {form.name}, as the first row is: columns {', '.join(sorted(row))}"
                )
            if form.name != "rows":  # which knows every column that a row may have
                require_known(row, form.known, form.name, form.files)
            problem = form.read(row, number)
            problem = dataclasses.replace(
                problem, source=self.source or problem.source or _stem(file)
            )
            _require_utf8(problem)
            if problem.problem_id in self.places:
                first = self.places[problem.problem_id]
                raise RowError(
                    f"id {problem.problem_id!r} occurs twice, first at {first}; ids must be unique"
                )
        except RowError as error:
            if not self.skip_bad_rows:
                raise UserError(
                    f"{file}, row {number}: {error} (skip_bad_rows leaves such rows out)"
                ) from error
            self.bad_rows.append(BadRow(file=str(file), row=number, reason=str(error)))
            return None
        self.places[problem.problem_id] = f"{file}, row {number}"
        self.num_public_only += (
            form.name == "livecodebench" and not livecodebench.has_private_tests(row)
        )
        return problem


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0]


def _require_utf8(problem: Problem) -> None:
    """Refuse lone surrogates, which neither Parquet nor a program's standard input can hold."""
    texts = [
        getattr(problem, name)
        for name in (
            "problem_id",
            "source",
            "statement",
            "difficulty",
            "starter_code",
            "entry_point",
        )
    ]
    tests = itertools.chain.from_iterable((test.input, test.output) for test in problem.tests)
    for text in itertools.chain(filter(None, [*texts, problem.reference]), tests):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RowError(
                f"it holds text that is no Unicode ({error.reason}): {text[error.start : error.end]!a}"
            ) from error


def find_format(row: Row) -> Format:
    """The one format whose columns a row has.

    Raises:
        UserError: none or several; the message lists the formats.
    """
    fitting = [known for known in FORMATS if known.fits(row)]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(
        f"{known.name} ({', '.join(sorted(known.columns))})" for known in fitting or FORMATS
    )
    told = "fit several formats" if fitting else "fit no known format"
    raise UserError(f"columns {', '.join(sorted(row)) or 'none'} {told}: {known}")


def read_problems(path: Path, *, skip_bad_rows: bool = False) -> Loaded:
    """The problems of a JSONL, JSONL.gz or Parquet file, or of all such files of a directory, to iterate over.

    Raises:
        UserError: no such file, no row in it, or a first row of no known format; the rest while iterating.
    """
    return open_problems(list_files(path, "problems"), skip_bad_rows=skip_bad_rows)


def open_problems(
    files: Sequence[Path],
    *,
    skip_bad_rows: bool = False,
    source: str | None = None,
    chosen: Callable[[Row], bool] | None = None,
) -> Loaded:
    """As `read_problems`, from given files; `source` names the problems, `chosen` says which rows count.

    Raises:
        UserError: as there.
    """
    for file in files:
        for number, row in read_rows(file):
            if isinstance(row, RowError):
                if skip_bad_rows:
                    continue
                raise UserError(f"{file}, row {number}: {row}")
            try:
                form = find_format(row)
            except UserError as error:
                raise UserError(f"{file}, row {number}: {error}") from None
            return Loaded(
                files=tuple(files),
                format=form.name,
                skip_bad_rows=skip_bad_rows,
                source=source,
                chosen=chosen,
            )
    raise UserError(
        f"{files[0] if len(files) == 1 else files[0].parent}: no row to read; a benchmark has at least one problem"
    )
