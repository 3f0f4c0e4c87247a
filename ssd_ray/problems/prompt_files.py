"""Plain rows as training problems: which columns are read, and what is wrong with a row that cannot be one.

Every mistake names the file, the row and the column, and is found while prompts are rendered.
Reads JSONL, JSONL.gz and Parquet files, and streams rStar-Coder and other data sets from the hub. Writes the note that keeps a
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
from ssd_ray.problems.benchmarks import native as own_rows
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
"""Characters of an id or a difficulty, which name rows and groups in messages, tables and other people's files."""
_OWN = ("kind", "entry_point", "comparison", "atol")


def file_rows(source: str) -> Iterator[Placed]:
    """The rows of a prompt file, or of every file of a directory.

    Raises:
        UserError: no such file, or one that cannot be read.
    """
    for file in list_files(source, "prompts.source"):
        for number, row in read_rows(file):
            yield f"{file}, row {number}", row


def hub_rows(source: str, hub: HubSource) -> Iterator[Placed]:
    """Rows of a data set of the hub, streamed; rStar-Coder's `is_passed` is a property of a row's stored solution.

    Raises:
        UserError: the hub does not give it.
    """
    from datasets import load_dataset

    only = (
        {"columns": ["question", "starter_code", "question_id", "is_passed"]}
        if source == "rstar-coder"
        else {}
    )
    try:
        rows = load_dataset(
            hub.name, hub.config, split=hub.split, revision=hub.revision, streaming=True, **only
        )
        for number, row in enumerate(rows, start=1):
            yield f"{source}, row {number}", row
    except (
        Exception
    ) as error:  # datasets, the hub's client and two HTTP libraries each have their own
        raise _not_streamed(source, error) from error


def pinned(source: str, hub: HubSource, note: Path) -> HubSource:
    """The data set at the commit that a run got first, noted in `note`: positions in the stream are what a resumed run goes by.

    Raises:
        UserError: the hub does not say which commit it has.
    """
    from huggingface_hub import HfApi

    noted = note.read_text().rstrip("\n").rpartition(" ") if note.exists() else ("", "", "")
    if noted[0] == source:
        return replace(hub, revision=noted[2])
    try:
        commit = HfApi().dataset_info(hub.name, revision=hub.revision).sha
    except Exception as error:  # as above
        raise _not_streamed(source, error) from error
    files.write_atomic(note, f"{source} {commit}\n")
    return replace(hub, revision=commit)


def _not_streamed(source: str, error: Exception) -> UserError:
    return UserError(
        f"prompts.source {source!r} could not be streamed from the hub ({one_line(error)}): check name and network, or give files"
    )


def problems(placed: Iterable[Placed], choices: PromptsConfig) -> Iterator[Problem]:
    """Problems from plain rows; ids come from `id_column` or the row's place in the source, and are unique.

    Raises:
        UserError: a row that is no problem, with its file, number and column.
    """
    hub = hub_source(choices.source)
    name = (
        choices.source
        if choices.source == "rstar-coder"
        else Path(hub.name if hub else choices.source).stem
    )
    seen: set[str] = set()
    for number, (place, row) in enumerate(placed):
        try:
            if isinstance(row, RowError):
                raise row
            problem = _problem(row, f"{name}/{number}", name, choices)
            if problem.problem_id in seen:
                raise RowError(
                    f"field {choices.id_column!r}: the id {problem.problem_id!r} was there before; ids must be unique"
                )
        except RowError as error:
            raise UserError(f"{place}: {error}") from error
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
    given: dict[str, Any] = {key: row[key] for key in _OWN if row.get(key) is not None}
    kind = "function" if starter or "entry_point" in given else "stdin"
    return own_rows.problem(
        {
            "kind": kind,
            **given,
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
        have = ", ".join(sorted(row)) or "none"
        raise RowError(f"there is no column {column!r} (columns: {have}); set prompts.{choice}")


def _difficulty(row: Row) -> str:
    value = row.get("difficulty")
    if value is None or value == "":
        return "unknown"
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise RowError(f"field 'difficulty' must hold text or a number, not {shown(value)}")
    return _label(str(value), "difficulty")


def _label(value: str, column: str) -> str:
    """Text that names something: one short line."""
    _clean(value, column)
    if len(value) > LONGEST_LABEL:
        raise RowError(
            f"field {column!r} holds {len(value):,} characters; at most {LONGEST_LABEL} can name something"
        )
    for place, letter in enumerate(value):
        if unicodedata.category(letter) in {"Cc", "Zl", "Zp"}:
            raise RowError(
                f"field {column!r} holds the control character {letter!a}, at place {place}"
            )
    return value


def _clean(value: str | None, column: str) -> str | None:
    """Text that a tokenizer, Parquet and a program's input can hold."""
    try:
        (value or "").encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"field {column!r} holds text that is no Unicode: {error.object[error.start : error.end]!a}"
        ) from error
    if value and "\0" in value:
        raise RowError(f"field {column!r} holds a NUL character, at place {value.index(chr(0))}")
    return value
