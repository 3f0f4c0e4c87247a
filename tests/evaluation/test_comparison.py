"""Comparison of outputs, returned values and final numbers."""

import json
import math
import time
from decimal import Decimal

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ssd_ray.evaluation.judging.comparison import (
    first_difference,
    numeric_answer,
    same,
    same_answer,
    same_value,
)
from ssd_ray.evaluation.judging.evalplus_comparison import FLOAT_ATOL, RTOL, tolerance
from ssd_ray.evaluation.sandbox import Unsupported
from tests.support.numpy_reference import evalplus_by_numpy

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=12,
)


def as_tuples(value):
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return (
        {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value
    )


def same_output(actual, expected):
    return not first_difference(actual, expected)


@given(st.text())
def test_every_output_equals_itself(text):
    assert same_output(text, text)


@given(
    st.lists(
        st.text(st.characters(blacklist_categories=["Cs", "Zs", "Cc"]), min_size=1), min_size=1
    )
)
def test_space_around_lines_and_around_the_text_does_not_matter(rows):
    assert same_output("\n \n" + "  \r\n".join(rows) + "\t\n\n", "\n".join(rows))


@given(st.text(), st.text())
def test_comparing_outputs_is_symmetric(left, right):
    assert same_output(left, right) == same_output(right, left)


@given(st.lists(st.integers(), min_size=1))
def test_integers_may_be_written_as_decimals(numbers):
    assert same_output(" ".join(f"{number}.0" for number in numbers), "  ".join(map(str, numbers)))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("6.0", "6"),
        ("1e3", "1000"),
        ("1   2", "1 2"),
        ("-0", "0"),
        ("", "\n"),
        ("a\r\nb", "a\nb"),
        ("inf", "inf"),
    ],
)
def test_the_same_numbers_or_text_are_right(actual, expected):
    assert same_output(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ("0.30000000000000004", "0.3"),
        ("a  b", "a b"),
        ("Yes", "YES"),
        ("1\n2", "1 2"),
        ("1\n\n2", "1\n2"),
        ("1 2 3", "1 2"),
        ("NaN", "nan"),
        ("Infinity", "inf"),
        ("sNaN", "1"),
        ("1 x", "1.0 x"),
        ("", "0"),
        ("1e999999999", "1e999999998"),
    ],
)
def test_different_output_is_wrong(actual, expected):
    assert not same_output(actual, expected)


def test_the_first_difference_is_named_by_line():
    assert first_difference("1\n2\n3", "1\n2.0\n4\n5") == "line 3 is '3' and should be '4'"
    assert first_difference("1", "1\n2") == "line 2 is missing"
    assert first_difference("1\n2", "1") == "line 2 is one too many"


@given(json_values)
def test_every_json_value_equals_itself_and_its_tuples(value):
    again = json.loads(json.dumps(value))
    assert same_value(again, value)
    assert same_value(as_tuples(value), value)


@given(json_values, json_values)
def test_values_compare_as_in_python_except_bools_and_tolerance(left, right):
    if left == right and json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True):
        assert same_value(left, right)
    if not same_value(left, right):
        assert left != right or json.dumps(left, sort_keys=True) != json.dumps(
            right, sort_keys=True
        )


@given(st.floats(allow_nan=True, allow_infinity=True), json_values)
def test_nan_is_never_right(number, value):
    assert not same_value(math.nan, value)
    assert not same_value(number, math.nan)
    assert not same_value([math.nan], [math.nan])


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (6, 6.0),
        (6.0, 6),
        (0.1 + 0.2, 0.3),
        (1e12 + 1, 1e12),
        ((1, (2,)), [1, [2]]),
        ({"a": (1,)}, {"a": [1]}),
        (math.inf, math.inf),
        (10**400, 10**400),
    ],
)
def test_the_same_value_in_another_form_is_right(actual, expected):
    assert same_value(actual, expected)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (True, 1),
        (1, True),
        (0, False),
        (False, None),
        (0, None),
        (6.0000001, 6),
        (6.001, 6.0),
        (2**53 + 1.0, 2**53 + 1),
        ("1", 1),
        ([1], 1),
        ([1, 2], [1]),
        ([1], [1, 2]),
        ({1: "a"}, {"1": "a"}),
        ({"a": 1, "b": 2}, {"a": 1}),
        ({1, 2}, [1, 2]),
        (b"a", "a"),
        ("ab", ["a", "b"]),
        (10**400, 1.0),
        (math.inf, -math.inf),
        (1e308, math.inf),
        (object(), None),
    ],
)
def test_another_value_is_wrong(actual, expected):
    assert not same_value(actual, expected)


def test_livecodebench_compares_the_outer_tuple_as_a_list():
    for actual, expected in [((1, 2), [1, 2]), (1, True), (1.0, 1), ([1.0], [1]), ({1: 2}, {1: 2})]:
        assert same("lcb", actual, expected, 0.0, [])
    for actual, expected in [
        ([(1,)], [[1]]),
        ({1}, [1]),
        (6.0000000001, 6),
        (math.nan, math.nan),
        ("1", 1),
    ]:
        assert not same("lcb", actual, expected, 0.0, [])


# EvalPlus, against its own rule written with numpy.

numbers = st.sampled_from(
    [
        0,
        1,
        1.0,
        True,
        1 + 1e-8,
        1 + 1e-5,
        -1.5,
        1e9,
        10**9 + 1,
        2**63,
        2**64,
        1e308,
        -1e308,
        math.inf,
        -math.inf,
    ]
)
numbers |= (
    st.sampled_from([math.nan, 1j, 1 + 1e-9j, complex(math.inf, 0), "a", None, False])
    | st.integers()
    | st.floats()
)
arrays = st.recursive(
    numbers,
    lambda inner: (
        st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.sets(numbers)
    ),
    max_leaves=8,
)


@pytest.mark.slow
@settings(max_examples=1000)
@given(arrays, arrays, st.sampled_from([0.0, 1e-6, 1e-4]))
def test_evalplus_decides_as_numpy_does(actual, expected, atol):
    # numpy broadcasts one member over none: [[None]] is "close" to [[]]. Here it is not.
    assume(not any(empty in repr((actual, expected)) for empty in ("[]", "()", "set()")))
    assert same("evalplus", actual, expected, atol, []) == evalplus_by_numpy(actual, expected, atol)


@pytest.mark.slow
@settings(max_examples=1000)
@given(arrays, st.sampled_from([0.0, 1e-9, 5e-7, 2e-6, 1e-3]), st.sampled_from([0.0, 1e-6, 1e-4]))
def test_evalplus_decides_as_numpy_does_about_near_values(expected, by, atol):
    def moved(value):
        if isinstance(value, list | tuple):
            return type(value)(map(moved, value))
        return value + by if isinstance(value, float) else value

    actual = moved(expected)
    assert same("evalplus", actual, expected, atol, []) == evalplus_by_numpy(actual, expected, atol)


def test_arrays_of_other_shapes_are_broadcast_as_in_numpy():
    for actual, expected in [
        ([1.0, 1.0], [[1.0], [1.0]]),
        ([[1.0, 2.0], [1.0, 2.0]], [[1.0, 2.0000001], [1.0, 2.0]]),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0], [3.0]]),
        ([[], []], [[1.0], [1.0]]),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [1.0, 2.0]),
        ([[1.0], [1.0, 2.0]], [[1.0], [1.0, 2.0000001]]),
    ]:
        assert same("evalplus", actual, expected, 1e-6, []) == evalplus_by_numpy(
            actual, expected, 1e-6
        ), (actual, expected)


def test_a_float_sets_the_tolerance_of_later_tests():
    assert tolerance(0.0, 1.5) == tolerance(0.0, [1.5, 2.0]) == tolerance(0.0, (0.5,)) == FLOAT_ATOL
    assert (
        tolerance(0.0, [1.5, 2])
        == tolerance(0.0, [])
        == tolerance(0.0, [[1.5]])
        == tolerance(0.0, 1)
        == 0
    )
    assert tolerance(1e-4, 1.5) == 1e-4
    assert same("evalplus", 1.5 + 9e-7, 1.5, 0.0, [])
    assert not same("evalplus", 1.5 + 2e-6, 1.5, 0.0, [])
    assert not same("evalplus", [1, 0.5 + 1e-9], [1, 0.5], 0.0, [])
    assert same("evalplus", [1, 0.5 + 1e-9], [1, 0.5], tolerance(0.0, 1.5), [])
    assert RTOL == 1e-7


@pytest.mark.parametrize(
    ("comparison", "actual", "expected", "arguments", "right"),
    [
        ("evalplus", (1, 2), [1, 2], [], False),
        ("evalplus", [1, 2], [1, 2.0], [], True),
        ("evalplus", 1, 1.0, [], True),
        ("evalplus", True, 1, [], True),
        ("evalplus", {1, 2}, {2, 1}, [], True),
        ("evalplus", Unsupported(reason="a generator"), None, [], False),
        ("evalplus-set", (2, 1, 1), [1, 2], [], True),
        ("evalplus-set", [1], [1, 2], [], False),
        ("evalplus-set", [[1]], [[1]], [], False),
        ("evalplus-set", 3, [3], [], False),
        ("evalplus-set", {1: "a"}, {1}, [], True),
        ("evalplus-not-none", "match", True, [], True),
        ("evalplus-not-none", Unsupported(reason="a match"), True, [], True),
        ("evalplus-not-none", None, True, [], False),
        ("evalplus-not-none", None, False, [], True),
        ("evalplus-not-none", False, False, [], True),
        ("evalplus-not-none", False, True, [], False),
        ("evalplus-not-none", 0, True, [], True),
        ("evalplus-root", 1.0, None, [[-1, 1]], True),
        ("evalplus-root", 1, None, [[-1, 1]], True),
        ("evalplus-root", 1.00005, 1.0, [[-1, 1]], True),
        ("evalplus-root", 1.001, 1.001, [[-1, 1]], False),
        ("evalplus-root", math.nan, None, [[-1, 1]], False),
        ("evalplus-root", 1e300, None, [[-1, 1, 1]], False),
        ("evalplus-root", 10**400, None, [[-1, 1]], False),
        ("evalplus-root", None, None, [[-1, 1]], False),
        ("evalplus-root", 1 + 0j, None, [[-1, 1]], False),
        ("evalplus-any", None, 3, [], True),
        ("evalplus-zero", 0, 7, [10], True),
        ("evalplus-zero", 7, 7, [10], True),
        ("evalplus-zero", 1, 7, [10], False),
        ("evalplus-digits", 1, 1, [1, 2], True),
        ("evalplus-digits", 5, 7, [23, 118], False),
        ("evalplus-digits", 1 + 1 + 5, 6, [23, 118], True),
        ("evalplus-digits", 6, 7, [-23, 118], False),
        ("evalplus-pyramid", 33, 34, [3, 4], False),
        ("evalplus-pyramid", 34, 34, [3, 4], True),
        ("evalplus-pyramid", 35, 34, [3, 4], True),
        ("evalplus-pyramid", 36, 34, [3, 4], False),
        ("evalplus-pyramid", "34", 34, [3, 4], False),
    ],
)
def test_evalplus_compares_some_tasks_by_rules_of_their_own(
    comparison, actual, expected, arguments, right
):
    assert same(comparison, actual, expected, 1e-4, arguments) is right


def test_an_unknown_comparison_is_an_error_and_not_a_verdict():
    with pytest.raises(ValueError, match="no comparison"):
        same("evalplus-maybe", 1, 1, 0.0, [])


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 18.", "18"),
        ("#### 1,234", "1234"),
        ("so she makes $1,234,567.50.", "1234567.50"),
        ("-5", "-5"),
        ("x = -5 apples", "-5"),
        ("10 - 4 is what? 10-4", "4"),
        ("range 3-5", "5"),
        ("$-5$ or -$7", "-7"),
        ("\u22127", "-7"),
        ("about 50%", "50"),
        ("1, 2, 3", "3"),
        (".5", "0.5"),
        ("1e3", "1000"),
        ("\\boxed{42} and not 7", "42"),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{\\text{\\$}1{,}234\\,000} 9", "1234000"),
        ("\\boxed{x = 3} 9", "3"),
        ("\\boxed{none} 9", "9"),
        ("\\boxed{4", "4"),
        ("no number", None),
        ("", None),
    ],
)
def test_the_number_of_an_answer_is_the_boxed_one_or_the_last(text, number):
    assert numeric_answer(text) == (None if number is None else Decimal(number))


@given(
    st.integers(-(10**12), 10**12),
    st.text(
        st.characters(exclude_categories=["Nd", "Cs"], exclude_characters="-+.,^\u2212$\\{}eE")
    ),
)
def test_a_number_is_found_however_it_is_written(number, before):
    for written in (
        f"{number}",
        f"{number:,}",
        f"${number:,}.",
        f"{number}.00",
        f"\\boxed{{{number:,}}} which is 1",
    ):
        assert same_answer(f"{before} {written}", str(number))


@given(st.text())
def test_no_text_breaks_the_reader_of_numbers(text):
    numeric_answer(text)
    numeric_answer(f"\\boxed{{{text}")


def test_the_number_of_a_long_answer_is_found_in_seconds():
    began = time.monotonic()
    for text in (
        "1" * 3_000_000,
        "1," * 1_000_000,
        "\\boxed{" * 300_000,
        "{" * 1_000_000 + "\\boxed{",
        "-." * 1_000_000,
    ):
        numeric_answer(text)
    assert time.monotonic() - began < 5
