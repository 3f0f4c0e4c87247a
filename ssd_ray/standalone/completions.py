"""Completions from files: JSONL or Parquet rows with a problem id and a `text` or a `code`.

Rows become Completion rows. Reads the files only.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssd_ray.artifacts.problem_facts import BadRow
from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks.files import Row, RowError, list_files, read_rows
from ssd_ray.schema import Completion, Problem

Content = Literal["text", "code"]
_IDS = ("question_id", "task_id", "problem_id")


@dataclass(kw_only=True)
class Completions:
    """Completions of files, read while iterating."""

    files: list[Path]
    content: Content
    """Column of the rows: `text`, an answer, or `code`, a bare program."""
    problems: Mapping[str, Problem]
    left_out: frozenset[str] = frozenset()
    """Ids of problems whose completions are counted and not used."""
    skip_bad_rows: bool = False
    """Collect bad rows in `bad_rows`, instead of raising a UserError at the first."""
    num_left_out: int = 0
    """Completions of `left_out` problems; complete after the iteration."""
    bad_rows: list[BadRow] = field(default_factory=list)
    """File, row and reason; complete after the iteration."""

    def __iter__(self) -> Iterator[Completion]:
        """Yield the completions in the order of their rows.

        Raises:
            UserError: a bad row: no known id, an unknown problem, no text, or the id and index of
                an earlier row.
        """
        self.bad_rows.clear()
        self.num_left_out = 0
        counts: Counter[str] = Counter()
        seen: set[tuple[str, int]] = set()
        for file in self.files:
            for number, row in read_rows(file):
                try:
                    completion = self._completion(row, counts)
                    if completion is None:
                        self.num_left_out += 1
                        continue
                    key = (completion.prompt_id, completion.sample_index)
                    if key in seen:
                        raise RowError(f"problem {key[0]!r} has two completions of index {key[1]}")
                except RowError as error:
                    if not self.skip_bad_rows:
                        raise UserError(
                            f"{file}, row {number}: {error} (--skip-bad-rows leaves such rows out)"
                        ) from error
                    bad = BadRow(file=str(file), row=number, reason=str(error))
                    self.bad_rows.append(bad)
                    continue
                seen.add(key)
                yield completion

    def _completion(self, row: Row | RowError, counts: Counter[str]) -> Completion | None:
        """Return the completion of a row, None for a problem that is left out.

        Raises:
            RowError: the row cannot be used.
        """
        if isinstance(row, RowError):
            raise row
        column = _id_column(row)
        identifier = str(row[column])
        # MBPP's file numbers its problems. Ids here have the benchmark's name before the number.
        identifiers = (identifier, f"mbpp/{identifier}")
        if not self.left_out.isdisjoint(identifiers):
            return None
        identifier = next((name for name in identifiers if name in self.problems), identifier)
        problem = self.problems.get(identifier)
        if problem is None:
            example = next(iter(self.problems))
            raise RowError(
                f"{column} {identifier!r} is not a problem of the problems file, "
                f"whose ids look like {example!r}"
            )
        content = row.get(self.content)
        if not isinstance(content, str):
            raise RowError(
                f"column {self.content!r} holds no text; "
                "all rows need the same column as the first one, text or code"
            )
        index = row.get("index")
        if index is None:
            index = counts[identifier]
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**63:
            raise RowError(f"index must be an integer from 0, not {index!r:.40}")
        counts[identifier] += 1
        return Completion(
            prompt_id=identifier,
            sample_index=index,
            seed=0,
            source=problem.source,
            difficulty=problem.difficulty,
            prompt_token_ids=(),
            output_token_ids=(),
            # Parquet holds no lone surrogates. In a string literal of a program, the escape means
            # the same.
            text=content.encode("utf-8", "backslashreplace").decode(),
            finish_reason="stop",
        )


def _id_column(row: Row) -> str:
    """Return the one column of a row with a problem id."""
    names = [name for name in _IDS if row.get(name) is not None]
    if len(names) != 1:
        raise RowError(
            f"it needs one of the columns {', '.join(_IDS)}, and has {', '.join(names) or 'none'}"
        )
    return names[0]


def open_completions(
    path: Path,
    problems: Mapping[str, Problem],
    *,
    skip_bad_rows: bool,
    left_out: Iterable[str] = (),
) -> Completions:
    """Open the completions of a file or a directory of files.

    The first row decides if they are answers or programs. Completions of problems in `left_out`, on
    which no program can be graded, are counted and not used.

    Raises:
        UserError: as for `content_of`.
    """
    files = list_files(path, "completions")
    # Only ids, sources and difficulties are needed; tests can be gigabytes.
    lean = {
        key: dataclasses.replace(problem, statement="", tests=())
        for key, problem in problems.items()
    }
    content = content_of(files)
    return Completions(
        files=files,
        content=content,
        problems=lean,
        skip_bad_rows=skip_bad_rows,
        left_out=frozenset(left_out),
    )


def content_of(files: list[Path]) -> Content:
    """Return `text` if the rows of the files hold answers, `code` if they hold bare programs.

    The first row decides.

    Raises:
        UserError: no readable row, or a first row with neither or both.
    """
    unreadable = ""
    for file in files:
        for number, row in read_rows(file):
            if isinstance(row, RowError):
                unreadable = unreadable or f"{file}, row {number}: {row}"
                continue
            contents: list[Content] = [
                name for name in ("text", "code") if row.get(name) is not None
            ]
            if len(contents) != 1:
                columns = ", ".join(sorted(row))
                raise UserError(
                    f"{file}, row {number}: it needs either a column text (an answer) or a column "
                    f"code (a bare program); it has {columns}"
                )
            return contents[0]
    raise UserError(
        unreadable
        or f"{files[0]}: no completion in it; each row needs a problem's id and a text or a code"
    )
