"""Which outputs and values count as right."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray.evaluation.comparison import first_difference, same_output, same_value

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=12,
)


def as_tuples(value):
    if isinstance(value, list):
        return tuple(as_tuples(item) for item in value)
    return {key: as_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


@given(st.text())
def test_every_output_equals_itself(text):
    assert same_output(text, text)


@given(st.lists(st.text(st.characters(blacklist_categories=["Cs", "Zs", "Cc"]), min_size=1), min_size=1))
def test_space_around_lines_and_around_the_whole_does_not_matter(rows):
    assert same_output("\n \n" + "  \r\n".join(rows) + "\t\n\n", "\n".join(rows))


@given(st.text(), st.text())
def test_comparing_outputs_is_symmetric(left, right):
    assert same_output(left, right) == same_output(right, left)


@given(st.lists(st.integers(), min_size=1))
def test_integers_may_be_written_as_decimals(numbers):
    assert same_output(" ".join(f"{number}.0" for number in numbers), "  ".join(map(str, numbers)))


@pytest.mark.parametrize(
    ("actual", "expected"),
    [("6.0", "6"), ("1e3", "1000"), ("1   2", "1 2"), ("-0", "0"), ("", "\n"), ("a\r\nb", "a\nb"), ("inf", "inf")],
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
    assert first_difference("1\n2\n3", "1\n2.0\n4\n5") == (3, "3", "4")
    assert first_difference("1", "1\n2") == (2, None, "2")
    assert first_difference("1\n2", "1") == (2, "2", None)


@given(json_values)
def test_every_json_value_equals_itself_and_its_tuples(value):
    again = json.loads(json.dumps(value))
    assert same_value(again, value)
    assert same_value(as_tuples(value), value)


@given(json_values, json_values)
def test_equal_values_are_equal_to_python_but_for_bools_and_tolerance(left, right):
    if left == right and json.dumps(left, sort_keys=True) == json.dumps(right, sort_keys=True):
        assert same_value(left, right)
    if not same_value(left, right):
        assert left != right or json.dumps(left, sort_keys=True) != json.dumps(right, sort_keys=True)


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
