"""Values of types foreign to the wire count exactly where the official graders count them."""

import array
import collections
import datetime
import enum
import itertools
import types
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sortedcontainers import SortedDict, SortedList, SortedSet

from ssd_ray import wire
from ssd_ray.evaluation.judging.comparison import same
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.wire import foreign, restored
from tests.support.numpy_reference import evalplus_by_numpy
from tests.support.problems import condition_problem, function_problem

RULES = {
    profile: Rules(limits=Limits(time_s=20, memory_mib=1024, output_kib=1024), profile=profile)
    for profile in ("strict", "lcb-compat")
}


def crossed(value):
    """Return the grader's copy of a program's value."""
    return wire.loads(wire.dumps(value))


def judged(comparison, actual, expected):
    try:
        return same(comparison, actual, expected, 0.0, [])
    except restored.AmbiguousError:
        return False


def by_python(actual, expected):
    """Compare as HumanEval's assertions and LiveCodeBench do: by the truth of `==`."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            return bool((list(actual) if isinstance(actual, tuple) else actual) == expected)
        except (ValueError, OverflowError, ArithmeticError):
            return False


class Color(enum.IntEnum):
    RED = 6


class Word(enum.StrEnum):
    A = "a"


class Amount:
    """A program's own class of numbers, whose `__eq__` accepts plain ones."""

    def __int__(self):
        return 6

    def __eq__(self, other):
        return other == 6

    __hash__ = None


Point = collections.namedtuple("Point", "x y")
RETURNED = [
    np.int64(6), np.uint8(6), np.bool_(True), np.bool_(False), np.float16(0.1), np.float32(0.1),
    np.float32(1.5), np.float64(0.1),
    np.float64("nan"), np.longdouble("0.1"), np.longdouble(6), np.str_("a"), np.bytes_(b"a"),
    np.complex64(6), np.complex128(6),
    np.array(6), np.array([6]), np.array([[6]]), np.array([6, 6]), np.array([]), np.array(["a"]),
    np.array([True]),
    np.array([None]),
    [np.int64(6), np.int64(6)], [np.array([6])], (np.int64(6), np.int64(6)),
    {np.str_("a"): np.int64(6)}, [np.float32(0.1)] * 2,
    Fraction(12, 2), Fraction(1, 10), Fraction(3, 2), Decimal(6), Decimal("0.1"), Decimal("1.5"),
    Decimal("NaN"),
    Decimal("1E+400"),
    range(6, 7), range(10**18), collections.deque([6]), {6: 1}.keys(), {1: 6}.values(),
    {6: 6}.items(), bytearray(b"a"),
    memoryview(b"a"), array.array("i", [6]), collections.UserList([6, 6]),
    collections.UserDict(a=6), collections.UserString("a"),
    collections.ChainMap({"a": 6}), collections.OrderedDict(a=6), collections.defaultdict(int,
    a=6), collections.Counter("a" * 6),
    types.MappingProxyType({"a": 6}), Point(6, 6), Color.RED, Word.A, SortedList([6, 6]),
    SortedSet([6]), SortedDict(a=6),
    complex(6), 6.0, True, frozenset([6]), Amount(), datetime.date(2024, 2, 29),
    datetime.timedelta(6), datetime.time(6),
    datetime.datetime(2024, 2, 29, 6), [range(6, 7)], [collections.deque([6])], [Fraction(12,
    2)] * 2,
]  # fmt: skip
EXPECTED = [
    6, 6.0, 0.1, 0.10000000149011612, 1.5, True, False, 0, 1, 10**400, None, "a", b"a", "", [6],
    [6, 6], [[6]], [True], ["a"], [],
    [[6, 6]], [None], {"a": 6}, {6}, {(6, 6)}, [0.1, 0.1], (6, 6), datetime.date(2024, 2, 29),
    datetime.timedelta(6),
]  # fmt: skip


NAMES = [f"{number}-{foreign.type_name(value)}" for number, value in enumerate(RETURNED)]
"""No repr: an address in it differs from one process of tests to the next."""


@pytest.mark.parametrize("value", RETURNED, ids=NAMES)
def test_equal_values_of_other_types_count_as_in_python(value):
    for expected in EXPECTED:
        assert judged("lcb", crossed(value), expected) is by_python(value, expected), expected


@pytest.mark.parametrize("value", RETURNED, ids=NAMES)
@pytest.mark.parametrize("atol", [0.0, 1e-6])
def test_equal_values_of_other_types_count_as_in_evalplus(value, atol):
    for expected in EXPECTED:
        try:
            official = evalplus_by_numpy(value, expected, atol)
        except (ValueError, OverflowError):
            official = False
        assert same("evalplus", crossed(value), expected, atol, []) is official, expected


DTYPES = ["bool", "int8", "int64", "uint16", "uint64", "float16", "float32", "float64", "complex64"]
plain = (
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.integers()
    | st.floats()
    | st.text(max_size=2)
)
expected_values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@st.composite
def numpy_values(draw):
    """Scalars and small arrays with members near the expected ones."""
    members = draw(st.lists(st.integers(0, 120) | st.floats(-4, 120), min_size=1, max_size=3))
    with np.errstate(all="ignore"):
        values = np.abs(np.array(members)).astype(draw(st.sampled_from(DTYPES)))
    return draw(
        st.sampled_from(
            [values[0], values, values[:1], values.reshape(-1, 1), list(values), {"a": values[0]}]
        )
    )


@pytest.mark.slow
@settings(max_examples=500)
@given(numpy_values(), expected_values, st.booleans())
def test_values_equal_in_numpy_are_equal_here(value, expected, near):
    if near and isinstance(value, np.generic | np.ndarray):
        expected = value.tolist()
    if (
        isinstance(value, np.generic)
        and isinstance(expected, float)
        and abs(expected) > 1e4
        and value.dtype.kind == "f"
    ):
        return  # numpy makes an infinity of what a short float cannot hold, and warns
    assert judged("lcb", crossed(value), expected) is by_python(value, expected)


@given(
    st.fractions() | st.decimals(allow_nan=False),
    st.integers(-50, 50) | st.floats(-50, 50) | st.none(),
)
def test_fractions_and_decimals_arrive_exactly(value, expected):
    assert crossed(value) == value
    assert type(crossed(value)) is type(value)
    assert judged("lcb", crossed(value), expected) is by_python(value, expected)


@pytest.mark.parametrize(
    ("value", "expected", "right"),
    [
        (np.int64(6), 6, True),
        (np.float32(0.1), 0.1, True),
        (np.bool_(True), True, True),
        (np.bool_(True), 1, False),
        (np.int64(1), True, False),
        ([np.bool_(False)], [False], True),
        (Fraction(1, 3), 0.333333333, True),
        (Fraction(1, 3), 0.33, False),
        (Decimal("4.50"), 4.5, True),
        (Decimal("NaN"), 4.5, False),
        (Decimal("1E+999999"), 4.5, False),
        (complex(6), 6, True),
        (6 + 1j, 6, False),
        (np.complex64(6), 6.0, True),
        (np.array([6]), [6], True),
        (np.array(6), 6, True),
        (np.array([2, 4]), [2, 4], False),
        ([np.int64(2), np.int64(4)], [2, 4], True),
        (((np.int64(2), 4),), [[2, 4]], True),
        (range(2), [0, 1], False),
        (iter([0, 1]), [0, 1], False),
        (collections.deque([0, 1]), [0, 1], False),
        ({"a": np.int64(1)}, {"a": 1}, True),
        ({np.str_("a"): 1}, {"a": 1}, True),
        (collections.Counter("ab"), {"a": 1, "b": 1}, True),
        (collections.ChainMap({"a": np.int64(1)}), {"a": 1.0}, True),
        (collections.UserList([1]), [1], True),
        (Color.RED, 6, True),
        (Amount(), 6, True),
    ],
)
def test_custom_problems_accept_values_of_other_types(value, expected, right):
    assert judged("value", crossed(value), expected) is right


@pytest.mark.parametrize(
    ("comparison", "value", "expected", "arguments", "right"),
    [
        (
            "evalplus",
            np.float64(0.1 + 0.2),
            0.3,
            [],
            False,
        ),  # officially of another type, so no tolerance applies
        ("evalplus", [np.float64(0.1 + 0.2)], [0.3], [], True),
        ("evalplus", 0.1 + 0.2, 0.3, [], True),
        ("evalplus-set", np.array([2, 1, 1]), [1, 2], [], True),
        ("evalplus-set", np.array([[2, 1, 1]]), [1, 2], [], False),
        ("evalplus-set", (x for x in (2, 1)), [1, 2], [], True),
        ("evalplus-set", range(1, 3), [1, 2], [], True),
        ("evalplus-set", range(10**30), [1, 2], [], False),
        ("evalplus-set", {1: 0, 2: 0}.keys(), [1, 2], [], True),
        ("evalplus-set", collections.deque([1, 2]), [1, 2], [], True),
        ("evalplus-set", np.int64(1), [1], [], False),
        ("evalplus-not-none", np.bool_(False), True, [], True),
        ("evalplus-not-none", iter([]), True, [], True),
        ("evalplus-not-none", range(0), True, [], True),
        ("evalplus-root", Fraction(1), None, [[-1, 1]], True),
        ("evalplus-root", Decimal(1), None, [[-1, 1]], True),
        ("evalplus-root", np.float64(1), None, [[-1, 1]], True),
        ("evalplus-zero", np.int64(0), 7, [10], True),
        ("evalplus-digits", np.int64(7), 6, [23, 118], True),
        ("evalplus-pyramid", np.float64(33.0), 34, [3, 4], False),
        ("evalplus-pyramid", np.int64(35), 34, [3, 4], True),
    ],
)
def test_evalplus_rules_for_single_tasks_accept_other_types(
    comparison, value, expected, arguments, right
):
    assert same(comparison, crossed(value), expected, 1e-4, arguments) is right


def function(expected, comparison="value"):
    return function_problem(3, expected, comparison=comparison)


ENDINGS = {
    "np.sum(np.arange(n))": 3,
    "np.bool_(n == 3)": True,
    "np.float32(1.5) * 2": 3.0,
    "list(np.arange(n))": [0, 1, 2],
    "np.str_('a') * n": "aaa",
    "Fraction(n, 2)": 1.5,
    "Decimal('0.5') * n": 1.5,
    "OrderedDict(a=np.int64(n))": {"a": 3},
    "UserList([n])": [3],
}
IMPORTS = (
    "import numpy as np\nfrom fractions import Fraction\nfrom decimal import Decimal\n"
    "from collections import *\n"
)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
def test_equal_values_of_other_types_are_accepted_everywhere(ending, sandbox):
    code = f"{IMPORTS}def f(n):\n    return {ending}\n"
    for comparison, profile in (
        ("value", "strict"),
        ("lcb", "strict"),
        ("lcb", "lcb-compat"),
        ("evalplus", "strict"),
    ):
        graded = grade_code(function(ENDINGS[ending], comparison), code, RULES[profile], sandbox)
        assert graded.outcome == "accepted", (comparison, profile, graded)
        wrong = grade_code(
            function([ENDINGS[ending], None], comparison), code, RULES[profile], sandbox
        )
        assert wrong.outcome in ("wrong_answer", "runtime_error")
    graded = grade_code(
        condition_problem(f"candidate(3) == {ENDINGS[ending]!r}"), code, RULES["strict"], sandbox
    )
    assert graded.outcome == "accepted", graded
    refuted = condition_problem("candidate(3) == 'wrong'")
    graded = grade_code(refuted, code, RULES["strict"], sandbox)
    assert graded.outcome == "wrong_answer", graded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("condition", "ending", "outcome"),
    [
        ("list(candidate(7)) == [0, 2, 4, 6]", "(x for x in range(0, n, 2))", "accepted"),
        ("list(candidate(7)) == [0, 2, 4, 6]", "range(0, n, 2)", "accepted"),
        ("list(candidate(7)) == [0, 2, 4, 6]", "map(int, np.arange(0, n, 2))", "accepted"),
        ("list(candidate(7)) == [0, 2, 4, 6]", "deque(range(0, n, 2))", "accepted"),
        ("list(candidate(7)) == [0, 2, 4, 6]", "np.arange(0, n, 2)", "accepted"),
        ("list(candidate(7)) == [0, 2, 4, 6]", "dict.fromkeys(range(0, n, 2)).keys()", "accepted"),
        ("sorted(candidate(7)) == [(0, 0), (1, 1)]", "{0: 0, 1: 1}.items()", "accepted"),
        ("next(candidate(7)) == 7", "zip(iter([n]))", "wrong_answer"),
        ("next(candidate(7)) == (7,)", "zip(iter([n]))", "accepted"),
        ("len(candidate(7)) == 4 and candidate(7)[-1] == 6", "range(0, n, 2)", "accepted"),
        ("candidate(7).tolist() == [0, 2, 4, 6]", "np.arange(0, n, 2)", "accepted"),
        ("candidate(7).shape == (2, 2)", "np.ones((2, 2))", "accepted"),
        ("candidate(7) is True", "np.bool_(True)", "wrong_answer"),
        ("candidate(7) == 0.1", "np.float32(0.1)", "accepted"),
        ("candidate(7) == [0, 2, 4, 6]", "range(0, n, 2)", "wrong_answer"),
        ("candidate(7) == [0, 2, 4, 6]", "np.arange(0, n, 2)", "wrong_answer"),
        ("candidate(7) == [7]", "np.array([n])", "accepted"),
        (
            "candidate(candidate(7)) == [7, 7]",
            "[n, n] if isinstance(n, int) else n[:2]",
            "accepted",
        ),
        ("list(candidate(range(3))) == [1, 2, 3]", "(x + 1 for x in n)", "accepted"),
        ("candidate(__import__('numpy').arange(3)) == 3", "n.sum()", "accepted"),
        ("candidate(__import__('fractions').Fraction(7, 2)) == 3.5", "n", "accepted"),
        (
            "candidate(7) == __import__('datetime').date(2024, 1, 7)",
            "__import__('datetime').date(2024, 1, n)",
            "accepted",
        ),
        ("candidate(7)['missing'] == 0", "dict(a=1)", "wrong_answer"),
    ],
)
def test_a_check_sees_what_the_program_returned(condition, ending, outcome, sandbox):
    code = f"{IMPORTS}def f(n):\n    return {ending}\n"
    graded = grade_code(condition_problem(condition), code, RULES["strict"], sandbox)
    assert graded.outcome == outcome, graded


@pytest.mark.parametrize(
    ("ending", "named"),
    [
        ("np.arange(2)", "numpy.array([0, 1])"),
        ("np.bool_(False)", "numpy.bool(False)"),
        ("np.datetime64('2024-01-01')", "numpy.datetime64"),
        ("(x for x in [1])", "generator of [1]"),
        ("Node()", "a value of type Node"),
        ("__import__('enum').Enum('Color', 'RED').RED", "Color"),
        ("Decimal('sNaN')", "decimal.Decimal"),
        ("np.ma.array([1, 2], mask=[0, 1])", "numpy.array([1, None])"),
    ],
)
def test_a_type_that_is_never_right_is_named_with_its_module(ending, named, sandbox):
    code = f"{IMPORTS}class Node: pass\ndef f(n):\n    return {ending}\n"
    graded = grade_code(function("x"), code, RULES["strict"], sandbox)
    assert graded.outcome == "wrong_answer"
    assert named in graded.detail


def test_an_array_of_several_values_is_officially_an_error(sandbox):
    code = f"{IMPORTS}def f(n):\n    return np.arange(n)\n"
    graded = grade_code(function([0, 1, 2], "lcb"), code, RULES["lcb-compat"], sandbox)
    assert (graded.outcome, "official -4: ValueError" in graded.detail) == ("runtime_error", True)


@pytest.mark.slow
def test_long_lists_of_numpy_numbers_arrive():
    for number in (np.int64(3), np.float64(0.5), np.float32(0.5)):
        for length in (2, foreign.MAX_NUMPY_LIST, foreign.MAX_NUMPY_LIST + 1):
            assert crossed([number] * length) == [number.item()] * length
    assert crossed([np.int64(1), np.float64(2)]) == [1, 2]


@pytest.mark.parametrize(
    "line",
    [
        '{"fraction": [1, 0]}',
        '{"fraction": [1]}',
        '{"fraction": [1.0, 2]}',
        '{"fraction": [true, 2]}',
        f'{{"fraction": [{{"big": "0x{"f" * 5000}"}}, 3]}}',
        '{"decimal": "sNaN"}',
        '{"decimal": "1_0"}',
        '{"decimal": "1E9999999999999999999"}',
        '{"decimal": 1}',
        '{"range": [0, 1, 0]}',
        '{"range": [0, 1, 1, 1]}',
        '{"range": ["a", 1, 1]}',
        '{"array": ["z", [1]]}',
        '{"array": ["i", [1099511627776]]}',
        '{"array": ["i"]}',
        '{"keys": [[]]}',
        '{"items": [1]}',
        '{"date": ["datetime_CAPI"]}',
        '{"date": ["date", 2024, 13, 1]}',
        '{"date": ["timedelta", 999999999999, 0, 0]}',
        '{"date": []}',
        '{"numpy": ["int64", "a"]}',
        '{"numpy": ["int64", [1, [2.0]]]}',
        '{"numpy": ["O", 1]}',
        '{"numpy": [["int64"], 1]}',
        '{"numpy": []}',
        '{"numpys": ["int64", 1]}',
        '{"iterator": [1, []]}',
        '{"iterator": ["x", 1]}',
        '{"bytearray": "0"}',
    ],
)
def test_forged_parts_are_malformed(line):
    with pytest.raises(wire.MalformedError):
        wire.loads(line)


def test_iterators_are_read_no_further_than_there_is_room():
    with pytest.raises(wire.UnsupportedValueError, match=r"itertools\.count with more than"):
        wire.dumps(itertools.count())
    with pytest.raises(wire.UnsupportedValueError):
        wire.dumps([itertools.repeat(0), itertools.count()])
