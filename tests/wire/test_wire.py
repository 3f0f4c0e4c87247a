"""Values cross the sandbox's border completely, or not at all."""

import collections
import contextlib
import enum
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import wire

keys = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.complex_numbers()
    | st.text()
    | st.binary()
    | st.tuples(st.integers())
)
values = st.recursive(
    keys,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=4)
    ),
    max_leaves=15,
)


def typed(value):
    """Return a form in which 1, 1.0 and True differ, and so do tuples and lists."""
    if isinstance(value, list | tuple):
        return type(value), [typed(item) for item in value]
    if isinstance(value, dict):
        return dict, [(typed(key), typed(item)) for key, item in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, value))
    return type(value), repr(value)


@given(values)
def test_a_value_arrives_with_its_types(value):
    line = wire.dumps(value)
    assert "\n" not in line
    assert line.isascii()
    assert typed(wire.loads(line)) == typed(value)


flat = st.one_of(
    st.integers(), st.floats(allow_nan=False), st.booleans(), st.text(max_size=3), st.none()
)


@given(
    st.sampled_from(
        [st.integers(), st.floats(allow_nan=False), st.booleans(), st.text(max_size=3), flat]
    ),
    st.data(),
)
def test_long_lists_keep_the_types_of_their_items(items, data):
    row = data.draw(st.lists(items, min_size=9, max_size=20))
    for value in (row, [row, tuple(row)], {"key": row}):
        assert typed(wire.loads(wire.dumps(value))) == typed(value)


def test_the_limit_of_depth_is_the_same_for_tagged_values():
    for levels in (wire.MAX_DEPTH + 1, wire.MAX_DEPTH + 2):
        for line in (
            "[" * levels + "]" * levels,
            "[" * (levels - 1) + '{"tuple":[]}' + "]" * (levels - 1),
        ):
            if levels > wire.MAX_DEPTH + 1:
                with pytest.raises(wire.MalformedError):
                    wire.loads(line)
            else:
                wire.loads(line)
    wide = [[number] for number in range(10 * wire.MAX_DEPTH)]
    assert wire.loads(wire.dumps(wide)) == wide


def test_values_that_json_lacks_arrive_too():
    for number in (math.inf, -math.inf, 2**53, -(10**5000), 1.5):
        assert wire.loads(wire.dumps(number)) == number
    assert math.isnan(wire.loads(wire.dumps(math.nan)))
    assert wire.loads(wire.dumps("\ud800\0")) == "\ud800\0"
    assert (
        repr(wire.loads(wire.dumps([complex(-0.0, math.inf), complex(math.nan, 1)])))
        == "[(-0+infj), (nan+1j)]"
    )


def test_subclasses_arrive_as_their_base_without_methods():
    class Liar(int):
        def __eq__(self, other):
            return True

        def __repr__(self):
            return "42"

        __hash__ = int.__hash__

    class Colour(enum.IntEnum):
        RED = 1

    arrived = wire.loads(
        wire.dumps([Liar(7), Colour.RED, collections.Counter("a"), collections.OrderedDict(a=1)])
    )
    assert typed(arrived) == typed([7, 1, {"a": 1}, {"a": 1}])


@pytest.mark.slow
def test_values_without_a_wire_form_are_refused():
    cyclic: list[object] = []
    cyclic.append(cyclic)
    deep: object = 1
    for _ in range(5000):
        deep = [deep]
    aliased: object = 1
    for _ in range(40):
        aliased = [aliased, aliased]
    for value in (object(), len, int, cyclic, deep, aliased):
        with pytest.raises(wire.UnsupportedValueError):
            wire.dumps(value)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "x",
        "[1",
        "[" * 100_000,
        "[" * 200 + "]" * 200,
        "NaN",
        "Infinity",
        "1e999",
        "9" * 100_000,
        "{}",
        '{"tuple": [], "set": []}',
        '{"pickle": "gASVAA=="}',
        '{"tuple": 1}',
        '{"set": [[]]}',
        '{"dict": [[1]]}',
        '{"dict": [[[], 1]]}',
        '{"float": "1"}',
        '{"complex": [1, 2]}',
        '{"complex": [1.0]}',
        '{"complex": ["1.0", 2.0]}',
        '{"big": "zz"}',
        '{"bytes": "0"}',
        b"\xff\xfe",
        b'"\xff"',
    ],
)
def test_anything_else_is_malformed(line):
    with pytest.raises(wire.MalformedError):
        wire.loads(line)


def test_colliding_keys_are_refused_before_they_take_time():
    modulus = 2**61 - 1
    colliding = ",".join(f'{{"big": "{hex(1 + i * modulus)}"}}' for i in range(20_000))
    with pytest.raises(wire.MalformedError):
        wire.loads(f'{{"set": [{colliding}]}}')


@given(st.text() | st.binary())
def test_no_line_raises_anything_but_malformed(line):
    with contextlib.suppress(wire.MalformedError):
        wire.loads(line)
