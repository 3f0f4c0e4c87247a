"""Benchmarks in their published formats, one reader for each, detected by columns.

`read_problems` streams `Problem`s from JSONL, JSONL.gz or Parquet. An unreadable row is an error
with file, row and field, or, on request, an entry of `bad_rows`. No row is left out silently.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ssd_ray.artifacts.problem_facts import BadRow
from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks import evalplus, gsm8k, humaneval, livecodebench, mbpp, native
from ssd_ray.problems.benchmarks.columns import require_known
from ssd_ray.problems.benchmarks.files import Row, RowError, list_files, read_rows
from ssd_ray.schema import Problem

__all__ = ["FORMATS", "BadRow", "Format", "Loaded", "find_format", "open_problems", "read_problems"]


@dataclass(frozen=True, kw_only=True)
class Format:
    """Row format of a benchmark."""

    name: str
    columns: frozenset[str]
    """Columns of every row."""
    without: frozenset[str]
    """Columns of no row, to tell similar formats apart."""
    known: frozenset[str]
    """Columns used by the reader, or ignored for a reason in docs/benchmarks.md."""
    files: str
    """Advice on published files of this format, for error messages."""
    read: Callable[[Row, int], Problem]
    """Reader of a row and its number; it raises `RowError`."""

    def fits(self, row: Row) -> bool:
        """Return True if a row has the columns of this format."""
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


# No row should fit two formats: `find_format` refuses such a row as ambiguous.
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


FIELD = "skip_bad_rows"
OPTION = "--skip-bad-rows"


@dataclass(kw_only=True)
class Loaded:
    """Problems of some files, read while iterating. Each iteration starts over.

    Counts and lists are complete at the end of an iteration.
    """

    files: Sequence[Path]
    format: str
    skip_bad_rows: bool = False
    skip_name: str = FIELD
    """Name of the choice `skip_bad_rows` for its user: a field or an option."""
    source: str | None = None
    chosen: Callable[[Row], bool] | None = None
    num_read: int = 0
    """All rows."""
    num_chosen: int = 0
    """Rows selected by `chosen`, bad ones included."""
    num_public_only: int = 0
    """LiveCodeBench problems without private tests. Their scores are too high."""
    bad_rows: list[BadRow] = field(default_factory=list)
    """Rows left out as unreadable."""
    places: dict[str, str] = field(default_factory=dict)
    """File and row of each problem, by id."""

    def __iter__(self) -> Iterator[Problem]:
        """Yield the problems in the order of their rows.

        Raises:
            UserError: A row is bad and `skip_bad_rows` is false, or a file cannot be read.
        """
        self.num_read = 0
        self.num_chosen = 0
        self.num_public_only = 0
        self.bad_rows.clear()
        self.places.clear()
        for file in self.files:
            for number, row in read_rows(file):
                problem = self._read(file, number, row)
                if problem is not None:
                    yield problem

    def _read(self, file: Path, number: int, row: Row | RowError) -> Problem | None:
        """Return the problem of a row, or None if the row is not chosen, or bad and skipped."""
        form = next(known for known in FORMATS if known.name == self.format)
        self.num_read += 1
        # A row that cannot be read counts as chosen: its date or split is unknown.
        self.num_chosen += 1
        try:
            if isinstance(row, RowError):
                raise row
            if self.chosen is not None and not self.chosen(row):
                self.num_chosen -= 1
                return None
            problem = self._problem(form, file, number, row)
        except RowError as error:
            if not self.skip_bad_rows:
                raise UserError(
                    f"{file}, row {number}: {error} ({self.skip_name} leaves such rows out)"
                ) from error
            self.bad_rows.append(BadRow(file=str(file), row=number, reason=str(error)))
            return None
        self.places[problem.problem_id] = f"{file}, row {number}"
        self.num_public_only += (
            form.name == "livecodebench" and not livecodebench.has_private_tests(row)
        )
        return problem

    def _problem(self, form: Format, file: Path, number: int, row: Row) -> Problem:
        if not form.fits(row):
            raise RowError(
                f"it is not of format {form.name}, as the first row is: "
                f"columns {', '.join(sorted(row))}"
            )
        # The native reader refuses unknown columns itself.
        if form.name != "rows":
            require_known(row, form.known, form.name, form.files)
        problem = form.read(row, number)
        problem = dataclasses.replace(problem, source=self.source or problem.source or _stem(file))
        _require_utf8(problem)
        if problem.problem_id in self.places:
            first = self.places[problem.problem_id]
            raise RowError(
                f"id {problem.problem_id!r} occurs twice, first at {first}; ids must be unique"
            )
        return problem


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").rpartition(".")[0]


def _require_utf8(problem: Problem) -> None:
    """Refuse lone surrogates: neither Parquet nor a program's standard input can hold them."""
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
                f"it holds text that is not Unicode ({error.reason}): "
                f"{text[error.start : error.end]!a}"
            ) from error


def find_format(row: Row) -> Format:
    """Return the format of a row, detected by its columns.

    Raises:
        UserError: No format fits, or several do. The message lists the formats.
    """
    fitting = [known for known in FORMATS if known.fits(row)]
    if len(fitting) == 1:
        return fitting[0]
    known = "; ".join(
        f"{known.name} ({', '.join(sorted(known.columns))})" for known in fitting or FORMATS
    )
    problem = "fit several formats" if fitting else "fit no known format"
    raise UserError(f"columns {', '.join(sorted(row)) or 'none'} {problem}: {known}")


def read_problems(path: Path, *, skip_bad_rows: bool = False) -> Loaded:
    """Open the problems of a file or of a directory's files, for a command without a recipe.

    Messages name an option, not a field. Files are JSONL, JSONL.gz or Parquet.

    Raises:
        UserError: There is no such file, no row in it, or the first row has no known format.
            Iterating raises the rest.
    """
    loaded = open_problems(list_files(path, "problems"), skip_bad_rows=skip_bad_rows)
    loaded.skip_name = OPTION
    return loaded


def open_problems(
    files: Sequence[Path],
    *,
    skip_bad_rows: bool = False,
    source: str | None = None,
    chosen: Callable[[Row], bool] | None = None,
) -> Loaded:
    """Return the problems of these files, to iterate over.

    Args:
        files: The files, in order.
        skip_bad_rows: Leave out unreadable rows.
        source: Name of the benchmark for its problems.
        chosen: Predicate of the rows to read as problems; None reads all.

    Raises:
        UserError: As for `read_problems`.
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
        f"{files[0] if len(files) == 1 else files[0].parent}: no row to read; "
        "a benchmark has at least one problem"
    )
