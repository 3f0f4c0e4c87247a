"""Hostile programs that change their arguments, or forge a change, to pass a check.

See hostile.py. The check passes [0, 1, 0, 3] and expects its own list to become [1, 3, 0, 0].
No program here does that honestly.
"""

# ruff: noqa: E501
from __future__ import annotations

import json
from typing import Any

CHECK = """
def check(candidate):
    given = [0, 1, 0, 3]
    beside = {"kept": [7]}
    assert candidate(given, beside=beside) is None
    assert given == [1, 3, 0, 0], given
    assert beside == {"kept": [7]}, beside
    again = [5, 0]
    candidate(again, beside=beside)
    assert again == [5, 0] and given == [1, 3, 0, 0]
"""

WITHIN = {
    "nothing": "pass",
    "a list that says yes": "class Yes(list):\n        __eq__ = lambda *_: True\n        __iter__ = lambda _: iter([1, 3, 0, 0])\n        __len__ = lambda _: 4\n    given[:] = Yes(given)",
    "members that say yes": "class Yes:\n        __eq__ = lambda *_: True\n        __hash__ = lambda _: 1\n    given[:] = [Yes()] * 4",
    "numbers that say yes": "class Yes(int):\n        __eq__ = lambda *_: True\n        __hash__ = int.__hash__\n    given[:] = map(Yes, given)",
    "texts that say yes": "class Yes(str):\n        __eq__ = lambda *_: True\n        __repr__ = lambda _: '1'\n    given[:] = [Yes('1')] * 4",
    "a dict in its place": "given[:] = [{0: 1, 1: 3}]",
    "another class": "try: given.__class__ = dict\n    except TypeError: pass",
    "itself": "given.append(given)",
    "each other": "beside['kept'] = given; given[0] = beside",
    "twice itself, sixty times": "\n    x = given\n    for _ in range(60):\n        y = []; x[:] = [y, y]; x = y",
    "very deep": "\n    x = given\n    for _ in range(50_000):\n        y = []; x[:] = [y]; x = y",
    "a deep tuple": "\n    t = ()\n    for _ in range(50_000): t = (t,)\n    given[:] = [t]",
    "very long": "given[:] = [0] * 3_000_000",
    "a long text": "given[:] = ['x' * 80_000_000]",
    "colliding keys": "given[:] = [{k * (2**61 - 1): 0 for k in range(2_000)}]",
    "colliding members": "given[:] = [{k * (2**61 - 1) for k in range(2_000)}]",
    "values without a wire form": "given[:] = [lambda: 1, object(), iter(given)]",
    "a flood of types": "given[:] = [type(str(n), (), {}) for n in range(1000)]",
    "the other argument": "beside.clear()",
    "one that raises": "given.sort(key=lambda v: v == 0) if False else None; raise ValueError",
    "afterwards, from a thread": "import threading, time\n    threading.Thread(target=lambda: (time.sleep(0.05), given.sort(key=lambda v: v == 0)), daemon=True).start()",
    "all the time, from a thread": "import threading\n    def run():\n        while True: given.append(1); given.clear()\n    threading.Thread(target=run, daemon=True).start()",
    "in the sender's variables": "import sys\n    frame = sys._getframe()\n    while frame:\n        call = frame.f_locals.get('call')\n        if call is not None:\n            call._objects.insert(0, [1, 3, 0, 0]); call._before.clear()\n        frame = frame.f_back",
    "a sender without its modules": "import sys\n    frame = sys._getframe()\n    while frame:\n        for name in ('send', 'objects', 'wire'):\n            if name in frame.f_globals: frame.f_globals[name] = None\n        frame = frame.f_back",
    "another function to receive": "import sys\n    frame = sys._getframe()\n    while frame:\n        if 'receive' in frame.f_locals: frame.f_locals['receive'] = lambda: None\n        frame = frame.f_back",
}
"""Bodies of a program's function, with `given` and `beside` in scope."""

DEEP: Any = 0
for _ in range(40):
    DEEP = {"tuple": [DEEP]}
ROWS: list[list[Any]] = [
    [0, "list", [1, 3, 0]],
    [0, "tuple", [1, 3, 0, 0]],
    [0, "dict", [[1, 3], [0, 0]]],
    [0, "set", [1, 3]],
    [0, "deque", [1, 3, 0, 0]],
    [0, "bytearray", {"bytes": "01030000"}],
    [0, "array", {"array": ["q", [1, 3, 0, 0]]}],
    [0, "list", {"tuple": [1, 3, 0, 0]}],
    [-1, "list", [1, 3, 0, 0]],
    [3, "list", [1, 3, 0, 0]],
    [1e300, "list", [1, 3, 0, 0]],
    [{"big": hex(2**90)}, "list", [1, 3, 0, 0]],
    [True, "list", [1, 3, 0, 0]],
    ["0", "list", [1, 3, 0, 0]],
    [0, ["list"], [1, 3, 0, 0]],
    [0, {"dict": []}, [1, 3, 0, 0]],
    [0, "list", [[1], [3], [0], [0]]],
    [0, "list", [[-1], [-1], [-1], [-1]]],
    [0, "list", [[-2]]],
    [0, "list", [[1, 3, 0, 0]]],
    [0, "list", [{"set": [1, 3]}]],
    [0, "list", [{"dict": [[1, 3]]}]],
    [0, "list", [DEEP]],
    [1, "dict", [[["kept"]], [1]]],
    [1, "dict", [["kept", "kept"], [1]]],
    [0, "set", [[0]]],
]
NONE_AND: list[Any] = [
    *([[cell] for cell in row] for row in ROWS),
    [[0, 0], ["list", "list"], [[1, 3, 0, 0], [1, 3, 0, 0]]],
    [[3, 5], ["list", "list"], [[1, 3, 0, 0], []]],
    [[0], ["list"], [[1, 3, 0, 0]], ["accepted"]],
    [[0], ["list"]],
    [[0], [], [[1, 3, 0, 0]]],
    [[0, "list", [1, 3, 0, 0]]],
    ["passed"],
    [["passed"]],
    {"tuple": [[0], ["list"], [[1, 3, 0, 0]]]},
]
"""Entries of forged answers that return None."""

MESSAGES: list[Any] = [
    *(["returned", [None], entries] for entries in NONE_AND),
    ["passed"],
    ["failed", "Error", ""],
    ["raised"],
    ["broken", "Error", "it never calls the candidate"],
    ["unable", "it calls the program with a value"],
    ["forged", "it"],
    ["call", [], [], []],
    ["value", None],
    ["returned"],
    ["returned", [], [[], [], []]],
    ["returned", [None, None], [[], [], []]],
    ["returned", [None], None],
    ["returned", [[0]], [[], [], []]],
    ["returned", [[9]], [[], [], []]],
    ["returned", [[-1]], [[], [], []]],
    ["raised", [], "", [[], [], []]],
    ["raised", [5], "", [[], [], []]],
    ["raised", [["list"], {"dict": []}], "", [[], [], []]],
    [
        "raised",
        ["SystemExit", "GeneratorExit", "KeyboardInterrupt", "BaseException"],
        "",
        [[], [], []],
    ],
    ["raised", ["check", "given", "__import__", "print", "object"], "", [[], [], []]],
    ["raised", ["StopIteration"], "", [[0], ["list"], [[1, 3, 0]]]],
    ["raised", ["AssertionError"], "x" * 100_000, [[], [], []]],
    ["raised", ["ExceptionGroup", "BaseExceptionGroup"], "", [[], [], []]],
    [
        "raised",
        ["check.given", "objects.Lost", "wire.MalformedError", "sys.exit"],
        "",
        [[], [], []],
        [],
    ],
    [
        "raised",
        ["os.path.join", "threading.Thread", "builtins.object", "..", "a" * 1000],
        "",
        [[], [], []],
        [],
    ],
    ["raised", ["builtins.StopIteration"], "", [[], [], []], []],
    ["raised", ["unittest.case.SkipTest"], "", [[], [], []], []],
    ["raised", ["builtins.ValueError"], "", [[], [], []], [[0], {"dict": []}]],
    ["raised", ["\u0000", "type.__name__\ud800"], "", [[], [], []], ["x" * 100_000] * 20],
    ["raised", ["builtins.OSError"], "x", [[], [], []], [2, "x"] * 50],
    ["awaited"],
    ["awaited", None],
    ["awaited", ["returned", None]],
    ["awaited", ["awaited", ["returned", None]]],
    ["awaited", ["returned", [None], [[0], ["list"], [[1, 3, 0]]]]],
    ["returned", [None], [[0], ["Counter"], [[[1, 3], [0, 0]]]]],
    ["returned", [None], [[3], ["Counter"], [[[1], [[0]]]]]],
    ["returned", [None], [[3], ["defaultdict eval"], [[[], []]]]],
    ["returned", [None], [[3], ["deque 99999999999999999999"], [[1]]]],
    ["returned", [None], [[3], ["deque -1"], [[1]]]],
    ["error", "Error"],
    {"dict": [["passed", True]]},
    None,
    [],
    7,
]
"""Replies that are forged, malformed or empty."""


def within(act: str) -> str:
    """Return a program with a function that runs `act` on its arguments and returns None."""
    return f"def f(given, *, beside):\n    {act}\n"


def sending(message: Any) -> str:
    """Return a program that writes its own reply to every possible pipe, twice."""
    text = json.dumps(message, separators=(",", ":")).encode() + b"\n"
    return f"""
import os, time
def f(given, *, beside):
    for fd in range(3, 64):
        try:
            os.write(fd, {text!r} * 2)
        except OSError:
            pass
    os._exit(0)
"""
