"""The rows on disk, and nothing else that two stages share.

Every stage reads and writes these frozen dataclasses as Parquet; `arrow_schema` derives the columns from the
annotations, so a field is declared once. Reads and writes nothing itself.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    import pyarrow as pa

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
    """One test of a problem: `stdin` text and expected stdout, or arguments (a list) and result on the wire, or check source.

    `group` is "base" or "plus" for EvalPlus, whose verdicts name both; the base tests come first.
    """

    __test__ = False
    input: str
    output: str
    group: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """A programming task; `kind` says how it is called and compared.

    stdin: the program reads `test.input` and prints `test.output`. function: `entry_point(*loads(test.input))` returns
    `loads(test.output)`, in the tagged JSON of the sandbox's wire, of which plain JSON without objects is a part; `comparison`
    says what counts as equal, `atol` is EvalPlus's absolute tolerance. asserts: `test.input` is the source of a trusted
    `check(candidate)` (HumanEval's form). numeric: the answer's final number is `test.output`; nothing is run.
    Where the tests are kept in a store, `tests` is empty, `tests_digest` names them and `num_tests` counts them.
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
    atol: float = 0.0
    num_tests: int = 0
    tests_digest: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is shown: `text` for a reader, `token_ids` for the engine and for training, `statement` what it is about."""

    prompt_id: str
    source: str
    difficulty: str
    text: str
    token_ids: tuple[int, ...]
    statement: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Completion:
    """One sampled answer, keyed by (`prompt_id`, `sample_index`); the end token, if drawn, is the last of `output_token_ids`."""

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
    """One training sequence: prompt and output ids as sampled; the loss covers `input_ids[num_prompt_tokens:]`.

    A `masked` one has its place in the batches and none of its ids in the loss.
    """

    prompt_id: str
    sample_index: int
    input_ids: tuple[int, ...]
    num_prompt_tokens: int
    masked: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of one completion's program.

    `time_s` is wall time over all of its tests, `failed_test` the index of the first that was not passed (-1 where none was
    run or all were), `peak_bytes` the largest resident size of its processes, `sandbox_level` what it was kept from.
    `outcome_base` is the outcome of EvalPlus's base tests alone, empty for other problems.
    `reasoning` is "none", "ended" or "unfinished" (`ssd_ray.reasoning`), empty where a bare program was graded.
    """

    prompt_id: str
    sample_index: int
    source: str
    difficulty: str
    outcome: Outcome
    num_tests: int
    num_passed: int
    time_s: float
    code: str
    detail: str
    failed_test: int = -1
    peak_bytes: int = 0
    sandbox_level: str = ""
    outcome_base: str = ""
    reasoning: str = ""


Row = Problem | Prompt | Completion | Example | Verdict
RowT = TypeVar("RowT", Problem, Prompt, Completion, Example, Verdict)


def _arrow_type(annotation: Any) -> pa.DataType:
    import pyarrow as pa

    origin = get_origin(annotation)
    if origin in (Union, types.UnionType):
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
    """The Arrow schema of a row type: int is int64, a tuple of int is list<int32> (token ids), Literal is string."""
    import pyarrow as pa

    hints = get_type_hints(row_type)
    return pa.schema(
        [(field.name, _arrow_type(hints[field.name])) for field in dataclasses.fields(row_type)]
    )


def to_table(rows: Iterable[RowT], row_type: type[RowT]) -> pa.Table:
    """Rows as an Arrow table with exactly `arrow_schema(row_type)`."""
    import pyarrow as pa

    return pa.Table.from_pylist(
        [dataclasses.asdict(row) for row in rows], schema=arrow_schema(row_type)
    )


def from_record(record: dict[str, Any], row_type: type[RowT]) -> RowT:
    """One row from a plain mapping, lists made tuples again."""
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in record.items()
    }
    if row_type is Problem:
        values["tests"] = tuple(Test(**test) for test in values["tests"])
    make: Callable[..., RowT] = row_type
    return make(**values)


def from_table(table: pa.Table, row_type: type[RowT]) -> Iterator[RowT]:
    """The rows of a table, one after another."""
    for batch in table.to_batches(max_chunksize=1024):
        for record in batch.to_pylist():
            yield from_record(record, row_type)
