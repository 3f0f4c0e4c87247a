"""HumanEval+ and MBPP+ in EvalPlus's files (Liu et al. 2023, arXiv 2305.01210).

- The files hold inputs only. Expected outputs are those of the reference solution, run in the
  sandbox by `ssd_ray.evaluation.judging.expected_outputs`. Until then they are empty.
- MBPP+ stores tuples, sets and complex numbers as lists and text. Types of a task's arguments are
  those of evalplus 0.3.1 (`evalplus/data/mbpp.py`).
- Comparisons of answers are those of `evalplus/eval`.

Does no I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ssd_ray import wire
from ssd_ray.problems.benchmarks.files import Row, RowError, json_field, shown, text
from ssd_ray.schema import Comparison, Problem, Test

_SETS = (
    "similar_elements find_char_long common_in_nested_lists extract_singly larg_nnum "
    "intersection_array find_dissimilar Diff"
)
_NOT_NONE = "check_str text_match_three text_starta_endb"
_MBPP_COMPARISONS: dict[str, Comparison] = {
    **dict.fromkeys(_SETS.split(), "evalplus-set"),
    **dict.fromkeys(_NOT_NONE.split(), "evalplus-not-none"),
    "are_equivalent": "evalplus-any",
    "sum_div": "evalplus-zero",
    "digit_distance_nums": "evalplus-digits",
    "surface_Area": "evalplus-pyramid",
}
_HUMANEVAL_COMPARISONS: dict[str, Comparison] = {"find_zero": "evalplus-root"}


def problem(row: Row, number: int) -> Problem:
    """Return the problem of a row of HumanEval+ or MBPP+, with empty expected outputs.

    Base tests come first, then plus tests.

    Raises:
        RowError: A field is missing or has another form, or there are no base inputs.
    """
    task_id = text(row, "task_id")
    entry_point = text(row, "entry_point")
    prompt = text(row, "prompt")
    family, _, ordinal = task_id.partition("/")
    if family not in {"HumanEval", "Mbpp"} or not ordinal.isdecimal():
        raise RowError(f"field 'task_id' must be HumanEval/N or Mbpp/N, not {shown(task_id)}")
    comparisons = _MBPP_COMPARISONS if family == "Mbpp" else _HUMANEVAL_COMPARISONS
    shape = _MBPP_SHAPES.get(int(ordinal), list) if family == "Mbpp" else list
    base = _tests(row, "base_input", "base", shape)
    plus = _tests(row, "plus_input", "plus", shape)
    if not base:
        raise RowError("field 'base_input' is empty, so nothing could be graded")
    return Problem(
        problem_id=task_id,
        source="mbpp+" if family == "Mbpp" else "humaneval+",
        statement=prompt,
        kind="function",
        entry_point=entry_point,
        reference=prompt + text(row, "canonical_solution"),
        tests=(*base, *plus),
        comparison=comparisons.get(entry_point, "evalplus"),
        atol=_tolerance(row),
    )


def _tolerance(row: Row) -> float:
    atol = row.get("atol")
    if isinstance(atol, bool) or not isinstance(atol, int | float) or not 0 <= atol < 1:
        raise RowError(f"field 'atol' must hold a number from 0 to below 1, not {shown(atol)}")
    return float(atol)


Shape = Callable[[list[Any]], list[Any]]


def _tests(row: Row, field: str, group: str, shape: Shape) -> Iterable[Test]:
    tests = []
    # Mbpp/793 of v0.2.0 has an empty object in place of a list of plus inputs.
    inputs = [] if row.get(field) == {} else json_field(row, field, list)
    for index, stored in enumerate(inputs, start=1):
        try:
            if not isinstance(stored, list):
                raise TypeError(f"a list of arguments is needed, not {shown(stored)}")
            tests.append(Test(input=wire.dumps(shape(stored)), output="", group=group))
        except (TypeError, ValueError, AttributeError, wire.UnsupportedValueError) as error:
            raise RowError(f"field {field!r}, input {index}: {error}") from error
    return tests


# Conversions of one stored argument to its type in evalplus.


def _as_is(value: Any) -> Any:
    return value


def _list_of_tuples(value: list[Any]) -> list[Any]:
    return [tuple(item) for item in value]


def _tuple_of_tuples(value: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(item) for item in value)


def _tuple_with_tuples(value: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(item) if isinstance(item, list) else item for item in value)


def _deep_tuples(value: Any) -> Any:
    return tuple(_deep_tuples(item) for item in value) if isinstance(value, list) else value


def _sets_or_dicts(value: list[Any]) -> list[Any]:
    # As evalplus does: only a filled list is a set, and anything else is an empty dict.
    return [set(item) if isinstance(item, list) and item else {} for item in value]


def _tuple_values(value: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(item) for key, item in value.items()}


def _every(convert: Callable[[Any], Any]) -> Shape:
    """Return a shape with one conversion for all arguments."""
    return lambda arguments: [convert(argument) for argument in arguments]


def _each(*converts: Callable[[Any], Any]) -> Shape:
    """Return a shape with a conversion for each argument, as many as there are arguments."""
    return lambda arguments: [
        convert(argument) for convert, argument in zip(converts, arguments, strict=True)
    ]


def _table(rules: Iterable[tuple[str, Shape]]) -> dict[int, Shape]:
    return {int(ordinal): shape for ordinals, shape in rules for ordinal in ordinals.split()}


# Task ids of MBPP+ by the shape of their arguments; the arguments of all others are as stored.
_MBPP_SHAPES = _table(
    [
        (
            "2 116 132 143 222 261 273 394 399 421 424 429 470 560 579 596 616 630 726 740 744 809",
            _every(tuple),
        ),
        ("63 64 70 94 120 237 272 299 400 409 417 438 473 614 780", _every(_list_of_tuples)),
        ("75 413 444 753", _each(_list_of_tuples, _as_is)),
        ("106 750", _each(_as_is, tuple)),
        ("115", _each(_sets_or_dicts)),
        ("124", _each(float, complex)),
        ("250 405 446 617 720 763 808", _each(tuple, _as_is)),
        ("259 401 445", _every(_tuple_of_tuples)),
        ("278", _each(_tuple_with_tuples)),
        ("307", _each(tuple, _as_is, _as_is)),
        ("722", _each(_tuple_values, _as_is, _as_is)),
        ("252", _each(complex)),
        ("580 615 791", _every(_deep_tuples)),
    ]
)
