"""Rows on disk: the only data that stages share.

Stages read and write these frozen dataclasses as Parquet. `arrow_schema` derives columns from the
annotations, so each field is declared once. Does no I/O itself.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

if TYPE_CHECKING:
    import pyarrow as pa

Record: TypeAlias = dict[str, Any]
"""A row by column, as Arrow gives it."""
Kind = Literal["stdin", "function", "asserts", "numeric"]
Comparison = Literal[
    "value",
    "lcb",
    "evalplus",
    "evalplus-set",
    "evalplus-not-none",
    "evalplus-root",
    "evalplus-any",
    "evalplus-zero",
    "evalplus-digits",
    "evalplus-pyramid",
]
Profile = Literal["strict", "lcb-compat"]
FinishReason = Literal["stop", "length"]
Outcome = Literal[
    "accepted",
    "wrong_answer",
    "runtime_error",
    "time_limit",
    "memory_limit",
    "output_limit",
    "no_code",
    "wrong_block",
    "infrastructure_error",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Test:
    """One test of a problem; `Problem` describes `input` and `output` by kind."""

    # pytest would collect a class of this name.
    __test__ = False
    input: str
    output: str
    group: str = ""
    """Group of EvalPlus, "base" (first) or "plus"; "" for other problems."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A programming task with its tests.

    By `kind`, a correct answer is:

    - stdin: a program to read `test.input` and print `test.output`.
    - function: `entry_point(*loads(test.input))` returns `loads(test.output)`. Both are tagged
      JSON (`ssd_ray.wire`), which includes plain JSON without objects.
    - asserts: `check(candidate)` passes; `test.input` is its trusted source (HumanEval's form).
    - numeric: the answer's final number is `test.output`; no program runs.

    Tests kept in a store are named by `tests_digest`; `tests` is empty then.
    """

    problem_id: str
    source: str
    statement: str
    kind: Kind = "stdin"
    difficulty: str = "unknown"
    starter_code: str | None = None
    entry_point: str | None = None
    reference: str | None = None
    tests: tuple[Test, ...] = ()
    comparison: Comparison = "value"
    """Rule by which results are equal."""
    atol: float = 0.0
    """EvalPlus's absolute tolerance."""
    num_tests: int = 0
    """Number of tests in the store."""
    tests_digest: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """Input of the model: `token_ids` for engines and training, `text` for a reader."""

    prompt_id: str
    source: str
    difficulty: str
    text: str
    token_ids: tuple[int, ...]
    statement: str = ""
    """The statement of the problem alone."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer, keyed by (`prompt_id`, `sample_index`).

    The last of `output_token_ids` is the end token, if it was drawn.
    """

    prompt_id: str
    sample_index: int
    seed: int
    source: str
    difficulty: str
    prompt_token_ids: tuple[int, ...]
    output_token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One training sequence: prompt and output ids as sampled.

    The loss covers `input_ids[num_prompt_tokens:]`. A masked example keeps its place in the batches
    and adds nothing to the loss.
    """

    prompt_id: str
    sample_index: int
    input_ids: tuple[int, ...]
    num_prompt_tokens: int
    masked: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """Outcome of one completion's program."""

    prompt_id: str
    sample_index: int
    source: str
    difficulty: str
    outcome: Outcome
    num_tests: int
    num_passed: int
    time_s: float
    """Wall time over all tests."""
    code: str
    detail: str
    failed_test: int = -1
    """Index of the first test not passed; -1 if all passed or none ran."""
    peak_bytes: int = 0
    """Largest resident size of the program's processes."""
    sandbox_level: str = ""
    """Level of isolation, L0 to L4."""
    outcome_base: str = ""
    """Outcome of EvalPlus's base tests alone, "" for other problems."""
    reasoning: str = ""
    """State of its reasoning: "none", "ended" or "unfinished"; "" for a bare program."""


Row = Problem | Prompt | Completion | Example | Verdict
RowT = TypeVar("RowT", Problem, Prompt, Completion, Example, Verdict)


def _arrow_type(annotation: Any) -> pa.DataType:
    import pyarrow as pa

    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
        # Only `X | None` is in use; every column may hold null.
        (inner,) = [arg for arg in get_args(annotation) if arg is not type(None)]
        return _arrow_type(inner)
    if origin is Literal:
        return pa.string()
    if origin is tuple:
        item = get_args(annotation)[0]
        return pa.list_(pa.int32() if item is int else _arrow_type(item))
    if dataclasses.is_dataclass(annotation):
        hints = get_type_hints(annotation)
        return pa.struct(
            [
                (field.name, _arrow_type(hints[field.name]))
                for field in dataclasses.fields(annotation)
            ]
        )
    return {int: pa.int64(), float: pa.float64(), str: pa.string(), bool: pa.bool_()}[annotation]


def arrow_schema(row_type: type[Row]) -> pa.Schema:
    """Return the Arrow schema of a row type.

    int becomes int64, a tuple of int list<int32> (token ids), a Literal string.
    """
    import pyarrow as pa

    hints = get_type_hints(row_type)
    return pa.schema(
        [(field.name, _arrow_type(hints[field.name])) for field in dataclasses.fields(row_type)]
    )


def to_table(rows: Iterable[RowT], row_type: type[RowT]) -> pa.Table:
    """Return rows as an Arrow table of `arrow_schema(row_type)`."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [dataclasses.asdict(row) for row in rows], schema=arrow_schema(row_type)
    )


def from_record(record: Record, row_type: type[RowT]) -> RowT:
    """Return one row from a plain mapping, with lists as tuples."""
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
    }
    # Test is the only nested row.
    if row_type is Problem:
        values["tests"] = tuple(Test(**test) for test in values["tests"])
    make: Callable[..., RowT] = row_type
    return make(**values)


def from_table(table: pa.Table, row_type: type[RowT]) -> Iterator[RowT]:
    """Yield the rows of a table, converted in batches to bound memory."""
    for batch in table.to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield from_record(record, row_type)
