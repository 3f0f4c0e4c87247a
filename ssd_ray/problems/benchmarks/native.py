"""Native format: custom problems (docs/benchmarks.md), and the rows of a run's `benchmark/`.

Unknown keys are refused: a misspelled key would otherwise be ignored. Does no I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from decimal import Decimal, InvalidOperation
from typing import Any, get_args

from ssd_ray import wire
from ssd_ray.problems.benchmarks.files import (
    Row,
    RowError,
    entry_point,
    identifier,
    json_field,
    optional_text,
    shown,
    text,
)
from ssd_ray.schema import Comparison, Kind, Problem, Test

_FIELDS = {field.name for field in dataclasses.fields(Problem)}


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row.

    Raises:
        RowError: A key is unknown, a field has another form, there are no tests, or tests are of
            another kind.
    """
    unknown = sorted(set(row) - _FIELDS)
    if unknown:
        raise RowError(f"field {unknown[0]!r} is unknown; a row has {', '.join(sorted(_FIELDS))}")
    kind = text(row, "kind")
    comparison = optional_text(row, "comparison") or "value"
    if kind not in _TESTS:
        raise RowError(f"field 'kind' must be one of {', '.join(get_args(Kind))}, not {kind!r}")
    if comparison not in get_args(Comparison):
        raise RowError(
            f"field 'comparison' must be one of {', '.join(get_args(Comparison))}, not "
            f"{comparison!r}"
        )
    called = (
        entry_point(row, "entry_point")
        if kind in {"function", "asserts"}
        else optional_text(row, "entry_point")
    )
    tests = json_field(row, "tests", list)
    if not tests:
        raise RowError("field 'tests' is empty, so nothing could be graded")
    if kind == "numeric" and len(tests) > 1:
        raise RowError(
            f"field 'tests' of a problem of kind numeric holds the one answer, not {len(tests)}"
        )
    return Problem(
        problem_id=identifier(row, "problem_id"),
        source=optional_text(row, "source") or "",
        statement=text(row, "statement"),
        kind=kind,  # type: ignore[arg-type]  # checked above
        difficulty=optional_text(row, "difficulty") or "unknown",
        starter_code=optional_text(row, "starter_code"),
        entry_point=called,
        reference=optional_text(row, "reference"),
        tests=tuple(_test(test, kind, index) for index, test in enumerate(tests, start=1)),
        comparison=comparison,  # type: ignore[arg-type]
        atol=_tolerance(row.get("atol")),
    )


def _tolerance(value: Any) -> float:
    if value is None:
        return 0.0
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value < float("inf")
    ):
        raise RowError(f"field 'atol' must hold a number of at least 0, not {shown(value)}")
    return float(value)


def _test(test: Any, kind: str, index: int) -> Test:
    try:
        if not isinstance(test, Mapping):
            raise RowError(f"must be an object, not {shown(test)}")
        # A Parquet struct has every key; those that a test does not use are null.
        values = {key: value for key, value in test.items() if value is not None}
        group = values.pop("group", "")
        if group not in {"", "base", "plus"}:
            raise RowError(f"its group must be base or plus, not {shown(group)}")
        return dataclasses.replace(_TESTS[kind](values), group=group)
    except RowError as error:
        raise RowError(f"field 'tests', test {index}: {error}") from error


def _stdin(test: Row) -> Test:
    _require(test, {"input", "output"}, "input and output")
    return Test(input=_string(test, "input"), output=_string(test, "output"))


def _function(test: Row) -> Test:
    if set(test) == {"arguments", "expected"} or set(test) == {"arguments"}:
        arguments = test["arguments"]
        if not isinstance(arguments, list):
            raise RowError(f"its arguments must be a list, not {shown(arguments)}")
        try:
            return Test(input=wire.dumps(arguments), output=wire.dumps(test.get("expected")))
        except wire.UnsupportedValueError as error:
            raise RowError(f"it holds {error}") from error
    # A row of a run's `benchmark/`: both are in wire format already.
    _require(test, {"input", "output"}, "arguments and expected")
    try:
        arguments = wire.loads(_string(test, "input"))
        wire.loads(_string(test, "output"))
    except wire.MalformedError as error:
        raise RowError(f"its input and output are not values on the wire: {error}") from error
    if not isinstance(arguments, list):
        raise RowError(f"its input must be a list of arguments, not {shown(arguments)}")
    return Test(input=test["input"], output=test["output"])


def _asserts(test: Row) -> Test:
    source = _string(test, "check" if "check" in test else "input")
    if set(test) - {"check", "input", "output"} or "def check(" not in source:
        raise RowError("it must hold a check: source that defines check(candidate)")
    return Test(input=source, output="")


def _numeric(test: Row) -> Test:
    answer = test.get("answer", test.get("output"))
    try:
        finite = not isinstance(answer, bool) and Decimal(str(answer)).is_finite()
    except InvalidOperation:
        finite = False
    if set(test) - {"answer", "input", "output"} or not finite:
        raise RowError(f"it must hold an answer, a number, not {shown(answer)}")
    return Test(input="", output=str(answer))


def _require(test: Row, keys: set[str], named: str) -> None:
    if set(test) != keys:
        raise RowError(f"it must hold {named}, not {', '.join(sorted(test)) or 'nothing'}")


def _string(test: Row, key: str) -> str:
    value = test.get(key)
    if not isinstance(value, str):
        raise RowError(f"its {key} must be text, not {shown(value)}")
    return value


_TESTS: dict[str, Callable[[Row], Test]] = {
    "stdin": _stdin,
    "function": _function,
    "asserts": _asserts,
    "numeric": _numeric,
}
