"""Arguments passed by number behave like the originals, and no reply is trusted."""

from __future__ import annotations

import array
import copy
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import wire
from ssd_ray.evaluation.sandbox.inside.objects import Lost, Objects

LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=3)
    | st.binary(max_size=3)
)
ACTS = st.lists(
    st.tuples(
        st.integers(0, 9), st.integers(0, 9), st.sampled_from(["put", "new", "clear", "reverse"])
    ),
    max_size=8,
)


MAPPINGS = {
    "dict": dict,
    "Counter": Counter,
    "OrderedDict": OrderedDict,
    "defaultdict": lambda items: defaultdict(list, items),
}
KIND_NAMES = [*MAPPINGS, "list", "set", "deque", "bounded", "bytearray", "array"]


@st.composite
def containers(draw: st.DrawFn) -> list[Any]:
    """A few containers of leaves, and of one another."""
    made: list[Any] = []
    for kind in draw(st.lists(st.sampled_from(KIND_NAMES), min_size=1, max_size=5)):
        leaves = draw(st.lists(LEAVES, max_size=3))
        held = [
            made[place % len(made)]
            for place in draw(st.lists(st.integers(0, 9), max_size=2))
            if made
        ]
        if kind == "list":
            made.append([*leaves, *held, *[tuple(held)] * bool(held)])
        elif kind in MAPPINGS:
            made.append(MAPPINGS[kind]({**dict.fromkeys(leaves), **dict(enumerate(held))}))
        elif kind in ("deque", "bounded"):
            made.append(deque([*leaves, *held], 4 if kind == "bounded" else None))
        elif kind == "array":
            made.append(array.array("q", draw(st.lists(st.integers(-9, 9), max_size=3))))
        else:
            made.append(set(leaves) if kind == "set" else bytearray(draw(st.binary(max_size=3))))
    return made


def act_on(values: list[Any], acts: list[tuple[int, int, str]]) -> Any:
    """Change arguments as a program may; return one, a list holding it, and a copy."""
    for first, second, act in acts:
        here, there = values[first % len(values)], values[second % len(values)]
        if isinstance(here, array.array):
            here.reverse()
        elif act == "clear":
            here.clear()
        elif isinstance(here, deque):
            here.append(there)
        elif isinstance(here, list):
            here[:] = {
                "put": [*here, there],
                "new": [[there, there], *here],
                "reverse": here[::-1],
            }[act]
        elif isinstance(here, dict):
            here[second] = there if act == "put" else {second: there}
        elif isinstance(here, set):
            here.add(second)
        else:
            here.reverse()
    if len(acts) % 2:
        return len(values), [copy.deepcopy(values[0])]
    return values[0], [values[-1], values[-1]], copy.copy(values[0])


def sent(document: object) -> Any:
    return wire.loads(wire.dumps(document))


def by_proxy(values: list[Any], acts: list[tuple[int, int, str]]) -> Any:
    """Do as `act_on`, with the arguments sent to another side and back."""
    ours, theirs = Objects(), Objects()
    if ours.adopt(values):
        copies = sent(values)
        assert theirs.adopt(copies)
    else:
        ours = Objects()
        copies = theirs.read(*sent(list(ours.write(values))))
    theirs.mark()
    returned = act_on(copies, acts)
    if theirs.shows_nothing([returned]):
        return sent(returned)
    (result,) = ours.read(*sent(list(theirs.write([returned]))))
    ours.require_bounded([result])
    return result


def shape(values: list[Any]) -> str:
    """Describe values completely, with sharing and types."""
    slots, (numbers, kinds, contents) = Objects().write(values)
    items = [
        sorted(held, key=repr) if kind == "set" else held
        for kind, held in zip(kinds, contents, strict=True)
    ]
    return repr((slots, numbers, kinds, items))


def rows(*entries: Any) -> Any:
    """Return entries as three lists, from one list for each object."""
    return [list(column) for column in zip(*entries, strict=True)] or [[], [], []]


@given(containers(), ACTS)
def test_a_call_by_proxy_shows_what_the_call_itself_would(
    values: list[Any], acts: list[tuple[int, int, str]]
) -> None:
    expected = copy.deepcopy(values)
    wanted = act_on(expected, acts)
    returned = by_proxy(values, acts)
    assert shape([*values, returned]) == shape([*expected, wanted])


def test_unchanged_objects_are_not_sent_back() -> None:
    ours, theirs = Objects(), Objects()
    copies = theirs.read(*sent(list(ours.write([[1, 2], {"a": [3]}, {4}]))))
    theirs.mark()
    assert theirs.write([None]) == ([None], rows())
    copies[1]["a"][0] = 3.0  # type: ignore[index]
    assert theirs.write([None]) == ([None], rows([3, "list", [3.0]]))


@pytest.mark.parametrize(("before", "after"), [(1, True), (1, 1.0), (0.0, -0.0), ((1,), (True,))])
def test_a_change_between_equal_values_is_a_change(before: object, after: object) -> None:
    ours, theirs, value = Objects(), Objects(), [before]
    (theirs_value,) = theirs.read(*sent(list(ours.write([value]))))
    theirs.mark()
    theirs_value[0] = after  # type: ignore[index]
    ours.read(*sent(list(theirs.write([None]))))
    assert repr(value) == repr([after])


def test_a_subclass_keeps_its_type_and_none_of_its_methods_runs() -> None:
    class Loud(dict):  # type: ignore[type-arg]
        def clear(self) -> None:
            raise AssertionError

        update = __setitem__ = clear  # type: ignore[assignment]

    ours, value = Objects(), Loud(a=1)
    ours.write([value])
    ours.read([], rows([0, "dict", [["b"], [2]]]))
    assert type(value) is Loud
    assert dict(value) == {"b": 2}


def test_contents_that_cannot_cross_equal_nothing() -> None:
    ours, theirs, values = Objects(), Objects(), [[1], {2: 3}, {4}, [5]]
    copies = theirs.read(*sent(list(ours.write(values))))
    theirs.mark()
    copies[0].append(print)  # type: ignore[attr-defined]
    copies[1][2] = print  # type: ignore[index]
    copies[2].add(print)  # type: ignore[attr-defined]
    with pytest.raises(wire.UnsupportedValueError):
        sent(list(theirs.write([7])))
    assert ours.read(*sent(list(theirs.write([7], lost=True)))) == [7]
    assert [type(next(iter(value))) for value in values] == [Lost, Lost, Lost, int]
    assert values[0] != [1]
    assert values[3] == [5]


DEEP: Any = ()
for _ in range(90):
    DEEP = (DEEP,)
ENTRIES = [
    "entries",
    [],
    [[], []],
    [[0], [], []],
    [[0], ["list"], [[]], []],
    [[0, 0], ["list", "list"], [[], []]],
    *(
        rows(row)
        for row in (
            [0, "tuple", []],
            [0, ["list"], []],
            [0, {}, []],
            [0, "dict", []],
            [0, "dict", [[1], []]],
            [0, "list", "text"],
            [0, "list", {1}],
            [0, "bytearray", "text"],
            [0, "bytearray", b"text"],
            [0, "deque", [1]],
            [0, "array", [1]],
            [0, "ndarray", [1]],
            [2, "array", [1]],
            [0, "set", [[1]]],
            [0, "list", [[]]],
            [0, "list", [[1, 2]]],
            [0, "list", [[True]]],
            [0, "list", [[9]]],
            [0, "list", [[-2]]],
            [0, "list", [([0.0],)]],
            [True, "list", []],
            [0.0, "list", []],
            [-1, "list", []],
            [1 << 70, "list", []],
            [3, "list", []],
            [1, "list", []],
            [1, "set", []],
            [1, "dict", [[[0]], [1]]],
            [0, "list", [(DEEP, [44])]],
        )
    ),
    rows([0, "list", [9]], [1, "list", []]),
    rows([1, "dict", [[], []]], [0, "list", [[7]]]),
]


@pytest.mark.parametrize("entries", ENTRIES, ids=lambda entries: repr(entries)[:40])
def test_forged_entries_are_refused_and_change_nothing(entries: Any) -> None:
    ours, values = Objects(), [[1], {2: 3}]
    ours.write(values)
    with pytest.raises(wire.MalformedError):
        ours.read([None], entries)
    assert values == [[1], {2: 3}]


def test_a_reference_to_an_unknown_object_is_refused() -> None:
    for slots in ([[5]], [[1, 2]], [[]], [[-2]], [[True]]):
        ours = Objects()
        ours.write([[1]])
        with pytest.raises(wire.MalformedError):
            ours.read(slots, rows())


def test_an_array_keeps_its_type() -> None:
    for typecode, items in (("d", [1.0]), ("q", [1])):
        ours, value = Objects(), array.array("q", [5, 6])
        ours.write([value])
        entry = rows([0, "array", array.array(typecode, items)])
        if typecode == "q":
            ours.read([], entry)
            assert value == array.array("q", [1])
        else:
            with pytest.raises(wire.MalformedError):
                ours.read([], entry)


def test_colliding_members_are_refused() -> None:
    colliding = [number * (2**61 - 1) for number in range(1, 300)]
    for entry in ([0, "set", colliding], [1, "dict", [colliding, colliding]]):
        ours = Objects()
        ours.write([set(), {}])
        with pytest.raises(wire.MalformedError):
            ours.read([], rows(entry))


def test_few_objects_that_expand_endlessly_are_refused() -> None:
    ours = Objects()
    ours.write([[]])
    doubling = [[number, "list", [[number + 1], [number + 1]]] for number in range(60)]
    values = ours.read([[0]], rows(*doubling, [60, "list", [1]]))
    with pytest.raises(wire.MalformedError, match="too many values"):
        ours.require_bounded(values)


def test_objects_within_themselves_are_bounded() -> None:
    ours = Objects()
    value: list[Any] = [[]]
    ours.write([value])
    ours.read([], rows([0, "list", [[0], [1], ([0],)]], [1, "list", [[0]]]))
    ours.require_bounded([])
    assert value[0] is value
    assert value[1][0] is value


def test_deep_nesting_needs_no_deep_recursion() -> None:
    deep: list[Any] = []
    for _ in range(20_000):
        deep = [deep]
    ours, theirs = Objects(), Objects()
    theirs.read(*sent(list(ours.write([deep]))))
    ours.require_bounded([deep])
