"""Completions from anywhere: JSONL or Parquet rows with a problem's id and a `text` or a `code`, as Completion rows.

Reads the files given.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks.files import Row, RowError, list_files, read_rows
from ssd_ray.schema import Completion, Problem

Content = Literal["text", "code"]
_IDS = ("question_id", "task_id", "problem_id")


@dataclass(kw_only=True)
class Completions:
    """The completions of some files, read while iterating; `content` says whether rows hold answers or bare programs.

    Rows that cannot be used end the iteration with a UserError, or with `skip_bad_rows` are counted and listed in `bad_rows`
    as (file, row, reason). Rows that answer one of the problems in `left_out` are counted in `num_left_out` and not used.
    All are complete after the iteration.
    """

    files: list[Path]
    content: Content
    problems: Mapping[str, Problem]
    left_out: frozenset[str] = frozenset()
    skip_bad_rows: bool = False
    num_left_out: int = 0
    bad_rows: list[tuple[str, int, str]] = field(default_factory=list)

    def __iter__(self) -> Iterator[Completion]:
        """The completions in the order of their rows.

        Raises:
            UserError: a bad row: no known id, an unknown problem, no text, a second row with the same id and index.
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
                    self.bad_rows.append((str(file), number, str(error)))
                    continue
                seen.add(key)
                yield completion

    def _completion(self, row: Row | RowError, counts: Counter[str]) -> Completion | None:
        if isinstance(row, RowError):
            raise row
        names = [name for name in _IDS if row.get(name) is not None]
        if len(names) != 1:
            raise RowError(
                f"it needs one of the columns {', '.join(_IDS)}, and has {', '.join(names) or 'none'}"
            )
        identifier = str(row[names[0]])
        # MBPP's file numbers its problems; here the number has the benchmark's name before it.
        identifiers = (identifier, f"mbpp/{identifier}")
        if not self.left_out.isdisjoint(identifiers):
            return None
        identifier = next((name for name in identifiers if name in self.problems), identifier)
        problem = self.problems.get(identifier)
        if problem is None:
            some = next(iter(self.problems))
            raise RowError(
                f"{names[0]} {identifier!r} is no problem of the problems file, whose ids look like {some!r}"
            )
        content = row.get(self.content)
        if not isinstance(content, str):
            raise RowError(
                f"column {self.content!r} holds no text; a file has text throughout or code throughout, as its first row"
            )
        index = row.get("index")
        if index is None:
            index = counts[identifier]
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < 2**63:
            raise RowError(f"index must be a whole number from 0, not {index!r:.40}")
        counts[identifier] += 1
        return Completion(
            prompt_id=identifier,
            sample_index=index,
            seed=0,
            source=problem.source,
            difficulty=problem.difficulty,
            prompt_token_ids=(),
            output_token_ids=(),
            # Parquet holds no lone surrogates; in a program's string literal the escape means the same.
            text=content.encode("utf-8", "backslashreplace").decode(),
            finish_reason="stop",
        )


def open_completions(
    path: Path,
    problems: Mapping[str, Problem],
    *,
    skip_bad_rows: bool,
    left_out: Iterable[str] = (),
) -> Completions:
    """The completions of a file or a directory of files; the first row says whether they are answers or programs.

    `left_out` are ids of problems on which no program can be graded.

    Raises:
        UserError: as for `content_of`.
    """
    files = list_files(path, "completions")
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
    """Whether the rows of some files hold answers, `text`, or bare programs, `code`; the first row decides.

    Raises:
        UserError: no row, or a first row with neither or both.
    """
    for file in files:
        for number, row in read_rows(file):
            if isinstance(row, RowError):
                continue
            contents: list[Content] = [
                name for name in ("text", "code") if row.get(name) is not None
            ]
            if len(contents) != 1:
                have = ", ".join(sorted(row))
                raise UserError(
                    f"{file}, row {number}: it needs a column text (an answer, to be extracted from) or code (a program, as it "
                    f"is), one of them; it has {have}"
                )
            return contents[0]
    raise UserError(
        f"{files[0]}: no completion in it; each row needs a problem's id and a text or a code"
    )
