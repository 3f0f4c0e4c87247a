"""Training problems from rows of files and of data sets of the hub.

Every error names the file, the row and the column, and is raised while prompts are rendered. Reads
JSONL, JSONL.gz and Parquet files, and streams data sets from the hub. Writes the note that pins a
run to one commit of its data set.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ssd_ray.artifacts import files
from ssd_ray.config import HubSource, PromptsConfig, hub_source
from ssd_ray.errors import UserError, one_line
from ssd_ray.problems.benchmarks import native
from ssd_ray.problems.benchmarks.files import (
    Row,
    RowError,
    identifier,
    list_files,
    optional_text,
    read_rows,
    shown,
    text,
)
from ssd_ray.problems.prompt_columns import Placed, named_function, require_complete_statement
from ssd_ray.schema import Problem

LONGEST_LABEL = 512
"""Maximum length in characters of an id or a difficulty, as both appear in messages and tables."""
_NATIVE = ("kind", "entry_point", "comparison", "atol")


def file_rows(source: str) -> Iterator[Placed]:
    """Yield the rows of a prompt file, or of every file of a directory.

    Raises:
        UserError: The file does not exist or cannot be read.
    """
    for file in list_files(source, "prompts.source"):
        for number, row in read_rows(file):
            yield f"{file}, row {number}", row


def hub_rows(source: str, hub: HubSource) -> Iterator[Placed]:
    """Yield the rows of a data set of the hub, streamed.

    Raises:
        UserError: The hub does not deliver the rows.
    """
    from datasets import load_dataset

    options: dict[str, Any] = {}
    if source == "rstar-coder":
        # No prompt needs the columns of solutions.
        options["columns"] = ["question", "starter_code", "question_id", "is_passed"]
    try:
        rows = load_dataset(
            hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True, **options
        )
        for number, row in enumerate(rows, start=1):
            yield f"{source}, row {number}", row
    # datasets, the hub's client and two HTTP libraries raise errors without a common base.
    except Exception as error:
        raise _not_streamed(source, error) from error


def pinned(source: str, hub: HubSource, note: Path) -> HubSource:
    """Return the data set at the commit of the run's first read, recorded in the file `note`.

    A resumed run skips rows by their position in the stream, which another commit would move.

    Raises:
        UserError: The hub does not name the commit.
    """
    from huggingface_hub import HfApi

    if note.exists():
        noted_source, _, commit = note.read_text().rstrip("\n").rpartition(" ")
        if noted_source == source:
            return replace(hub, revision=commit)
    try:
        head = HfApi().dataset_info(hub.name, revision=hub.revision).sha
    # No common base here, either.
    except Exception as error:
        raise _not_streamed(source, error) from error
    files.write_atomic(note, f"{source} {head}\n")
    return replace(hub, revision=head)


def _not_streamed(source: str, error: Exception) -> UserError:
    return UserError(
        f"prompts.source {source!r} could not be streamed from the hub ({one_line(error)}): check "
        "name and network, or use files"
    )


def problems(placed: Iterable[Placed], choices: PromptsConfig) -> Iterator[Problem]:
    """Yield problems from rows, with ids from `id_column` or the row's place in the source.

    Raises:
        UserError: A row is not a valid problem, or an id is not unique. The message has file, row
            and column.
    """
    hub = hub_source(choices.source)
    name = choices.source
    if name != "rstar-coder":
        name = Path(hub.name if hub else choices.source).stem
    seen: set[str] = set()
    for number, (place, row) in enumerate(placed):
        try:
            if isinstance(row, RowError):
                raise row
            problem = _problem(row, f"{name}/{number}", name, choices)
            if problem.problem_id in seen:
                raise RowError(
                    f"field {choices.id_column!r}: the id {problem.problem_id!r} occurs twice; "
                    "ids must be unique"
                )
        except RowError as error:
            raise UserError(f"{place}: {error}") from error
        # Numbered rows are unique anyway: no set of ids for a source of millions.
        if choices.id_column is not None:
            seen.add(problem.problem_id)
        yield problem


def _problem(row: Row, problem_id: str, name: str, choices: PromptsConfig) -> Problem:
    statement = _required(row, choices.statement_column, "statement_column")
    require_complete_statement(row, statement, choices.statement_column)
    starter = None
    if choices.starter_code_column is not None:
        starter = _clean(
            optional_text(row, choices.starter_code_column), choices.starter_code_column
        )
    if choices.id_column is not None:
        _require_column(row, choices.id_column, "id_column")
        problem_id = _label(identifier(row, choices.id_column), choices.id_column)
    difficulty = _difficulty(row)
    if choices.tests_column is None:
        function = None if starter else named_function(row)
        return Problem(
            problem_id=problem_id,
            source=name,
            statement=statement,
            kind="function" if starter or function else "stdin",
            difficulty=difficulty,
            starter_code=starter,
            entry_point=function,
        )
    _require_column(row, choices.tests_column, "tests_column")
    # Rows with tests are problems in the native format; its reader checks the remaining columns.
    stated: dict[str, Any] = {key: row[key] for key in _NATIVE if row.get(key) is not None}
    kind = "function" if starter or "entry_point" in stated else "stdin"
    return native.problem(
        {
            "kind": kind,
            **stated,
            "problem_id": problem_id,
            "source": name,
            "statement": statement,
            "difficulty": difficulty,
            "starter_code": starter,
            "tests": row[choices.tests_column],
        },
        0,
    )


def _required(row: Row, column: str, choice: str) -> str:
    _require_column(row, column, choice)
    return _clean(text(row, column), column) or ""


def _require_column(row: Row, column: str, choice: str) -> None:
    if column not in row:
        columns = ", ".join(sorted(row)) or "none"
        raise RowError(f"there is no column {column!r} (columns: {columns}); set prompts.{choice}")


def _difficulty(row: Row) -> str:
    value = row.get("difficulty")
    if value is None or value == "":
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"field 'difficulty' must hold text or a number, not {shown(value)}")
    return _label(str(value), "difficulty")


def _label(value: str, column: str) -> str:
    """Return a name, checked to be one short line."""
    _clean(value, column)
    if len(value) > LONGEST_LABEL:
        raise RowError(
            f"field {column!r} holds {len(value):,} characters; "
            f"at most {LONGEST_LABEL} can name something"
        )
    for place, letter in enumerate(value):
        if unicodedata.category(letter) in {"Cc", "Zl", "Zp"}:
            raise RowError(
                f"field {column!r} holds the control character {letter!a}, at place {place}"
            )
    return value


def _clean(value: str | None, column: str) -> str | None:
    """Return a text, checked for use in a tokenizer, Parquet and a program's input."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"field {column!r} holds text that is not Unicode: "
            f"{error.object[error.start : error.end]!a}"
        ) from error
    if value and "\0" in value:
        raise RowError(f"field {column!r} holds a NUL character, at place {value.index(chr(0))}")
    return value
