"""A check sees a program in another process as it would see one in its own."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation import soundness
from ssd_ray.evaluation.judging import humaneval_check, output_limit
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.judging.outcomes import UngradableError
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.evaluation.verdicts import is_open
from ssd_ray.pipeline.context import RunContext
from ssd_ray.pipeline.rendering import Benchmark
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Problem, Test
from ssd_ray.standalone.grade_files import Job, grade_files
from ssd_ray.standalone.scores import FileScores
from tests.support.synthetic_run import recipe as synthetic_recipe

RULES = Rules(limits=Limits(time_s=20, memory_mib=512, output_kib=64))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSD_RAY_CACHE", str(tmp_path / "cache"))


def problem(body: str, **fields: Any) -> Problem:
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    test = Test(input=f"def check(candidate):\n{lines}", output="")
    made = Problem(
        problem_id="p/1", source="t", statement="", kind="asserts", entry_point="f", tests=(test,)
    )
    return dataclasses.replace(made, **fields)


def outcome(body: str, code: str, sandbox: Sandbox, **fields: Any) -> str:
    return grade_code(problem(body, **fields), code, RULES, sandbox).outcome


# Keyword arguments


@pytest.mark.parametrize(
    ("call", "code", "expected"),
    [
        ("candidate(x=1, y=2) == 3", "def f(x, y): return x + y", "accepted"),
        ("candidate(1, y=2) == 3", "def f(x, y): return x + y", "accepted"),
        ("candidate(*[1], **{'y': 2}) == 3", "def f(x, y): return x + y", "accepted"),
        (
            "candidate(self=1, args=2, names=3) == 6",
            "def f(self, args, names): return self + args + names",
            "accepted",
        ),
        ("candidate(**{'a b': 3}) == 3", "def f(**all): return all['a b']", "accepted"),
        (
            "candidate(x=[1, 2]) == 3",
            "class Solution:\n    def f(self, x): return sum(x)",
            "accepted",
        ),
        ("candidate(y=1, x=2) == 1", "def f(x, y): return x - y", "accepted"),
        ("candidate(x=1) == 1", "def f(x): return 2", "wrong_answer"),
        ("candidate(x=1) == 1", "def f(a): return a", "runtime_error"),
        ("candidate(x=1) == 1", "def f(x, /): return x", "runtime_error"),
    ],
)
def test_a_check_may_call_with_keyword_arguments(call, code, expected, sandbox):
    assert outcome(f"assert {call}", code, sandbox) == expected


# Changes in place


@pytest.mark.parametrize(
    ("body", "right", "wrong"),
    [
        ("v = [3, 1]\ncandidate(v)\nassert v == [1, 3]", "x.sort()", "return sorted(x)"),
        ("v = [3, 1]\ncandidate(x=v)\nassert v == [1, 3]", "x.sort()", "x = sorted(x)"),
        (
            "v = [3, 1]\nassert candidate(v) is None and v == [1, 3]",
            "x.sort()",
            "x.sort(); return x",
        ),
        (
            "d = {'a': [1]}\ncandidate(d)\nassert d == {'a': [1, 2], 'b': 3}",
            "x['a'].append(2); x['b'] = 3",
            "x['b'] = 3",
        ),
        ("d = {2: 0, 1: 0}\ncandidate(d)\nassert list(d) == [1, 2]", "x[2] = x.pop(2)", "pass"),
        ("s = {1}\ncandidate(s)\nassert s == {1, 2}", "x.add(2)", "x = x | {2}"),
        (
            (
                "from collections import deque\nq = deque([1, 2])\ncandidate(q)\n"
                "assert list(q) == [2, 1]"
            ),
            "x.rotate()",
            "x = list(x)[::-1]",
        ),
        (
            (
                "from array import array\na = array('i', [1, 2])\ncandidate(a)\n"
                "assert a.tolist() == [2, 1]"
            ),
            "x.reverse()",
            "x = x[::-1]",
        ),
        (
            "import numpy\na = numpy.array([1, 2])\ncandidate(a)\nassert (a == [2, 1]).all()",
            "x[:] = x[::-1].copy()",
            "x = x[::-1]",
        ),
        (
            "b = bytearray(b'ab')\ncandidate(b)\nassert b == b'ba'",
            "x.reverse()",
            "return bytes(x[::-1])",
        ),
        (
            "g = [[1, 2], [3, 4]]\ncandidate(g)\nassert g == [[3, 1], [4, 2]]",
            "x[:] = map(list, zip(*x[::-1]))",
            "x.reverse()",
        ),
        (
            "g = [[1], [2]]\nr = g[0]\ncandidate(g)\nassert r == [1, 9]",
            "x[0].append(9)",
            "x[0] = [1, 9]",
        ),
        (
            "g = [[1], [2]]\nr = g[0]\ncandidate(g)\nassert g[1] is r",
            "x.reverse()",
            "x[:] = [[2], [1]]",
        ),
        ("t = ([1], 2)\ncandidate(t)\nassert t == ([], 2)", "x[0].clear()", "x = ([], 2)"),
        (
            "g = [[0] * 2] * 2\ncandidate(g)\nassert g == [[1, 0], [1, 0]]",
            "x[0][0] = 1",
            "x[0] = [1, 0]",
        ),
        ("v = [2, 1]\nassert candidate(v) is v", "x.sort(); return x", "return x[:]"),
        (
            "v = [2, 1]\nw = candidate(v)\nassert w == [1, 2] and w is not v",
            "return sorted(x)",
            "x.sort(); return x",
        ),
        (
            "v = [2, 1]\nassert candidate(v) == [1, 2] and v == [2, 1]",
            "return sorted(x)",
            "x.sort(); return x",
        ),
        (
            "g = [[1]]\nc = candidate(g)\nc[0][0] = 2\nassert g == [[1]]",
            "return [r[:] for r in x]",
            "return x[:]",
        ),
        ("v = [1]\ncandidate(v)\ncandidate(v)\nassert v == [1, 1, 1, 1]", "x += x", "x.append(1)"),
        (
            "n = {'v': 1}\nn['me'] = n\ncandidate(n)\nassert n['me']['v'] == 2 and n['me'] is n",
            "x['v'] = 2",
            "return {'v': 2}",
        ),
    ],
)
def test_a_check_sees_arguments_as_the_program_left_them(body, right, wrong, sandbox):
    assert outcome(body, f"def f(x): {right}", sandbox) == "accepted"
    assert outcome(body, f"def f(x): {wrong}", sandbox) == "wrong_answer"
    assert outcome(body, "def f(x): pass", sandbox) == "wrong_answer"


@pytest.mark.parametrize(
    ("made", "right", "wrong", "holds"),
    [
        (
            "Counter('aab')",
            "x.update('a'); return x.most_common(1)",
            "x['a'] = 2",
            "v == {'a': 3, 'b': 1} and v['zz'] == 0",
        ),
        (
            "OrderedDict(a=1, b=2)",
            "x.move_to_end('a'); x['c'] = 3",
            "x['c'] = 3",
            "list(v) == ['b', 'a', 'c']",
        ),
        (
            "OrderedDict(a=1, b=2)",
            "x.popitem(last=False)",
            "x.popitem()",
            "[*v.items()] == [('b', 2)]",
        ),
        (
            "defaultdict(list)",
            "x['k'].append(1)",
            "x.clear()",
            "v == {'k': [1]} and v['new'] == []",
        ),
        (
            "defaultdict(int, a=1)",
            "x['b'] += 2",
            "x['b'] = 3",
            "v == {'a': 1, 'b': 2} and v['new'] == 0",
        ),
        (
            "deque([1, 2], 2)",
            "x.append(3)",
            "x.pop(); x.append(3)",
            "[*v] == [2, 3] and v.maxlen == 2",
        ),
        (
            "[Counter('a'), {}]",
            "x[1]['n'] = x[0].total()",
            "x[1]['n'] = 2",
            "v[1] == {'n': 1} and v[0].total() == 1",
        ),
    ],
)
def test_containers_keep_their_types_on_both_sides(made, right, wrong, holds, sandbox):
    names = "Counter, OrderedDict, defaultdict, deque"
    body = f"from collections import {names}\nv = {made}\ncandidate(v)\nassert {holds}"
    assert outcome(body, f"def f(x): {right}", sandbox) == "accepted"
    assert outcome(body, f"def f(x): {wrong}", sandbox) == "wrong_answer"
    assert outcome(body, "def f(x): pass", sandbox) == "wrong_answer"


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("candidate().most_common(1) == [('a', 2)]", "Counter('aab')"),
        ("candidate()['missing'] == 0", "defaultdict(int)"),
        ("list(candidate()) == ['b', 'a']", "moved"),
        ("list(candidate()[0].items()) == [('b', 2), ('a', 1)]", "[moved, moved]"),
        ("candidate() != OrderedDict(a=1, b=2) and candidate() == {'a': 1, 'b': 2}", "moved"),
        ("candidate().maxlen == 3", "deque([1], 3)"),
        ("candidate() == {1: 2} and dict(candidate()) == {1: 2}", "defaultdict(lambda: 7, {1: 2})"),
    ],
)
def test_containers_of_collections_come_back_as_they_are(condition, value, sandbox):
    code = (
        "from collections import *\nmoved = OrderedDict(a=1, b=2)\nmoved.move_to_end('a')\n"
        f"def f(): return {value}"
    )
    assert (
        outcome(f"from collections import OrderedDict\nassert {condition}", code, sandbox)
        == "accepted"
    )
    assert (
        outcome(
            f"from collections import OrderedDict\nassert {condition}",
            "def f(): return {3: 4}",
            sandbox,
        )
        != "accepted"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "awaiting",
    [
        "assert asyncio.run(candidate(1)) == 2",
        (
            "async def main():\n    return await asyncio.gather(candidate(1), candidate(x=2))\n"
            "assert asyncio.run(main()) == [2, 3]"
        ),
        "loop = asyncio.new_event_loop()\nassert loop.run_until_complete(candidate(1)) == 2",
        (
            "async def main():\n    return await asyncio.wait_for(candidate(1), 5)\n"
            "assert asyncio.run(main()) == 2"
        ),
    ],
)
def test_a_check_may_await_the_program(awaiting, sandbox):
    body = f"import asyncio\n{awaiting}"
    code = "import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1"
    assert outcome(body, code, sandbox) == "accepted"
    assert (
        outcome(body, code, sandbox, reference=code, starter_code="async def f(x):\n") == "accepted"
    )
    assert outcome(body, code.replace("+ 1", "+ 2"), sandbox) == "wrong_answer"
    assert outcome(body, "def f(x): return x + 1", sandbox) == "wrong_answer"
    assert outcome(body, code.replace("x + 1", "1 / 0"), sandbox) in {
        "runtime_error",
        "wrong_answer",
    }
    assert outcome("assert candidate(1) == 2", code, sandbox) == "wrong_answer"


def test_a_check_may_expect_an_exception_of_what_it_awaits(sandbox):
    body = (
        "import asyncio\nv = []\ntry:\n    asyncio.run(candidate(v))\nexcept KeyError:\n"
        "    assert v == [1]\nelse:\n    assert 0"
    )
    assert (
        outcome(body, "async def f(x):\n    x.append(1)\n    raise KeyError(1)", sandbox)
        == "accepted"
    )
    assert outcome(body, "async def f(x):\n    x.append(1)", sandbox) == "wrong_answer"
    assert outcome(body, "async def f(x):\n    raise KeyError(1)", sandbox) == "wrong_answer"


@pytest.mark.slow
@pytest.mark.parametrize(
    "argument",
    [
        "collections.ChainMap({1: 2})",
        "collections.UserDict({1: 2})",
        "types.MappingProxyType({1: 2})",
        "collections.Counter([1, 1])",
        "collections.OrderedDict({1: 2})",
        "collections.defaultdict(int, {1: 2})",
        "collections.UserList([1])",
        "{1: 2}.keys()",
        "frozenset([1])",
        "collections.namedtuple('P', 'x')([1])",
        "numpy.array(1)",
        "numpy.float64(1)",
        "numpy.matrix([[1]])",
        "numpy.ma.array([1])",
        "fractions.Fraction(1, 2)",
    ],
)
def test_other_argument_types_keep_object_numbers(argument, sandbox):
    body = (
        "import collections, fractions, numpy, types\nv = [3, 1]\n"
        f"candidate({argument}, v, {argument})\nassert v == [1, 3]"
    )
    assert outcome(body, "def f(x, y, z): y.sort()", sandbox) == "accepted"
    assert outcome(body, "def f(x, y, z): return sorted(y)", sandbox) == "wrong_answer"
    listed = body.replace(f"v, {argument}", f"v, [v, {argument}]")
    assert outcome(listed, "def f(x, y, z): y.sort()", sandbox) == "accepted"


def test_the_same_list_twice_is_the_same_list_to_the_program(sandbox):
    body = "v = [1]\ncandidate(v, v)\nassert v == [1, 2, 3]"
    assert outcome(body, "def f(a, b): a.append(2); b.append(3)", sandbox) == "accepted"


def test_arguments_are_changed_even_if_the_program_raises(sandbox):
    body = "v = [1]\ntry:\n    candidate(v)\nexcept ValueError:\n    pass\nassert v == [1]"
    assert outcome(body, "def f(x): raise ValueError", sandbox) == "accepted"
    assert (
        outcome(body, "def f(x):\n    x.clear()\n    raise ValueError", sandbox) == "wrong_answer"
    )


def test_a_lost_value_matters_only_to_a_check_that_reads_it(sandbox):
    code = "class Yes:\n    __eq__ = lambda *_: True\ndef f(x):\n    x[0] = Yes()\n    return 1"
    assert outcome("assert candidate([1]) == 1", code, sandbox) == "accepted"
    assert (
        outcome("v = [1]\nassert candidate(v) == 1\nassert v == [1]", code, sandbox)
        == "wrong_answer"
    )


def test_arguments_larger_than_the_output_limit_come_back(sandbox):
    body = "v = list(range(200_000))\ncandidate(v)\nassert v[0] == 199_999"
    assert outcome(body, "def f(x): x.reverse()", sandbox) == "accepted"
    assert outcome(body, "def f(x): x[1:] = []", sandbox) == "wrong_answer"


# Exceptions that a check expects


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        ("ValueError('negative')", "accepted"),
        ("type('Own', (ValueError,), {})('negative')", "accepted"),
        ("UnicodeDecodeError('utf-8', b'', 0, 1, 'negative')", "accepted"),
        ("ValueError('other')", "wrong_answer"),
        ("TypeError('negative')", "runtime_error"),
        ("type('ValueError', (Exception,), {})('negative')", "accepted"),
        ("SystemExit('negative')", "runtime_error"),
        ("KeyboardInterrupt('negative')", "runtime_error"),
        ("MemoryError('negative')", "memory_limit"),
    ],
)
def test_a_check_may_expect_an_exception(raised, expected, sandbox):
    body = (
        "try:\n    candidate(-1)\nexcept ValueError as error:\n"
        "    assert 'negative' in str(error)\nelse:\n    assert False"
    )
    assert outcome(body, f"def f(x): raise {raised}", sandbox) == expected
    assert outcome(body, "def f(x): return None", sandbox) == "wrong_answer"


@pytest.mark.parametrize(
    ("expected", "raised"),
    [
        ("json.JSONDecodeError", "json.loads('{')"),
        ("decimal.InvalidOperation", "decimal.Decimal('x')"),
        ("queue.Empty", "queue.Queue().get_nowait()"),
        ("struct.error", "struct.unpack('i', b'')"),
        ("statistics.StatisticsError", "statistics.mean([])"),
        ("numpy.linalg.LinAlgError", "numpy.linalg.inv([[0.0]])"),
    ],
)
def test_an_exception_of_a_library_is_known_to_the_check(expected, raised, sandbox):
    modules = "import decimal, json, numpy, queue, statistics, struct"
    body = f"{modules}\ntry:\n    candidate()\nexcept {expected}:\n    return\nassert False"
    assert outcome(body, f"{modules}\ndef f(): {raised}", sandbox) == "accepted"
    assert outcome(body, "def f(): raise Exception", sandbox) == "runtime_error"


@pytest.mark.parametrize(
    ("condition", "raised"),
    [
        ("error.args == ('a',)", "KeyError('a')"),
        ("str(error) == repr('a')", "KeyError('a')"),
        ("error.args == (1, 'two')", "ValueError(1, 'two')"),
        (
            "error.start == 3 and isinstance(error, ValueError)",
            "UnicodeDecodeError('utf-8', b'abc', 3, 4, 'x')",
        ),
        ("str(error) == 'no'", "ImportError('no')"),
        ("isinstance(error, StopIteration) and error.value == 3", "StopIteration(3)"),
        ("error.errno == 2 and type(error) is FileNotFoundError", "OSError(2, 'none')"),
        ("type(error).__name__ == 'TooSmall'", "type('TooSmall', (Exception,), {})('x')"),
        (
            "type(error).__name__ == 'TooSmall' and isinstance(error, ValueError)",
            "type('TooSmall', (ValueError,), {})()",
        ),
        (
            "str(error) == 'own' and error.args == (3,)",
            "type('Own', (Exception,), {'__str__': lambda _: 'own'})(3)",
        ),
        ("str(error) == 'x'", "ValueError([1], 2) if 0 else ValueError('x')"),
    ],
)
def test_an_exception_keeps_its_type_name_and_arguments(condition, raised, sandbox):
    body = (
        f"try:\n    candidate()\nexcept Exception as error:\n    assert {condition}\nelse:\n"
        "    assert False"
    )
    assert outcome(body, f"def f(): raise {raised}", sandbox) == "accepted"
    assert outcome(body, "def f(): raise LookupError('other')", sandbox) == "wrong_answer"


@pytest.mark.parametrize(
    "loop",
    [
        "for got, want in zip(map(candidate, [1, 2]), [2, 3]):\n    assert got == want",
        "assert all(map(lambda case: candidate(case[0]) == case[1], [(1, 2)]))",
        "assert not any(map(lambda case: candidate(case[0]) != case[1], [(1, 2)]))",
        "for value in iter(lambda: candidate(1), None):\n    assert value == 2\n    break",
    ],
)
@pytest.mark.parametrize(
    "ending", ["StopIteration", "type('Own', (StopIteration,), {})", "StopAsyncIteration"]
)
def test_no_program_ends_the_loop_of_a_check(loop, ending, sandbox):
    assert outcome(loop, f"def f(x): raise {ending}", sandbox) == "runtime_error"
    assert outcome(loop, "def f(x): return x + 1", sandbox) == "accepted"
    expecting = (
        "try:\n    candidate(1)\nexcept (StopIteration, StopAsyncIteration):\n    return\n"
        "assert False"
    )
    assert outcome(expecting, "def f(x): raise StopIteration", sandbox) == "accepted"


@pytest.mark.parametrize(
    "ending", ["unittest.SkipTest", "unittest.case._ShouldStop", "doctest.SkipDocTestCase"]
)
def test_no_program_skips_the_tests_of_a_check(ending, sandbox):
    body = """import unittest
class Tests(unittest.TestCase):
    def test(self):
        self.assertEqual(candidate(1), 2)
result = unittest.TestResult()
unittest.defaultTestLoader.loadTestsFromTestCase(Tests).run(result)
assert result.wasSuccessful(), result.errors"""
    code = f"import doctest, unittest, unittest.case\ndef f(x): raise {ending}"
    assert outcome(body, code, sandbox) in {"wrong_answer", "runtime_error"}
    assert outcome(body, "def f(x): return x + 1", sandbox) == "accepted"


def test_an_exception_of_the_starter_code_is_known_by_its_name(sandbox):
    starter = "class TooSmall(Exception):\n    def __init__(self, by, unit): pass\n\ndef f(x):\n"
    body = "try:\n    candidate(-1)\nexcept TooSmall:\n    return\nassert False"
    for code in (
        "def f(x): raise TooSmall(1, 2)",
        "class TooSmall(Exception): pass\ndef f(x): raise TooSmall",
    ):
        assert outcome(body, code, sandbox, starter_code=starter) == "accepted"
    assert (
        outcome(body, "def f(x): raise Exception", sandbox, starter_code=starter) == "runtime_error"
    )


def test_no_program_can_raise_an_exception_defined_by_the_check(sandbox):
    body = (
        "class Done(Exception): pass\ntry:\n    candidate(1)\nexcept Done:\n    return\n"
        "assert False"
    )
    test = Test(
        input="class Done(Exception): pass\n" + problem(body.partition("\n")[2]).tests[0].input,
        output="",
    )
    assert (
        outcome("", "class Done(Exception): pass\ndef f(x): raise Done", sandbox, tests=(test,))
        == "runtime_error"
    )


# Prompts and starter code that end in a header


STARTERS = [
    "def f(x):\n",
    "def f(x):",
    "def f(x: int) -> int:\n    ",
    "# Add one.\ndef f(x):\n",
    "def f(x):\n    # Add one.\n",
    "def f(\n    x: int,\n) -> int:\n",
    "import functools\n\n@functools.cache\ndef f(x):\n",
    (
        "import functools\n\n@functools.lru_cache(\n    maxsize=None,\n)\n@functools.wraps(int)\n"
        "def f(x):\n"
    ),
    "from typing import *\n\nclass Solution:\n    def f(self, x: int) -> int:\n        ",
    "class Solution:\n    # Add one.\n    def f(self, x):\n",
    "async def f(x):\n",
    '"""\nSee\ndef f(x):\n"""\ndef f(x):\n',
    'def f(x):\n    """Add one',
    'def f(x):\n    """Add one."""\n',
    "def f(x):\n\tpass\n",
    "import math\r\n\r\n@staticmethod\r\ndef f(x):\r\n",
]


@pytest.mark.parametrize("starter", STARTERS)
@pytest.mark.parametrize("reference", [None, "def f(x): return x + 1"])
def test_starter_code_may_end_in_a_header(starter, reference, sandbox):
    for kind in ("asserts", "function"):
        tests = (
            problem("assert candidate(1) == 2").tests
            if kind == "asserts"
            else (Test(input="[1]", output="2"),)
        )
        fields: dict[str, Any] = {
            "kind": kind,
            "tests": tests,
            "starter_code": starter,
            "reference": reference,
        }
        assert outcome("", "def f(x): return x + 1", sandbox, **fields) == "accepted"
        assert outcome("", "def f(x): return x", sandbox, **fields) == "wrong_answer"
        soundness.require_sound_tests(problem("", **fields), sandbox, soundness.REFERENCE_LIMITS)


def test_helpers_before_a_header_are_there_for_program_and_check(sandbox):
    starter = "import math\ndef helper(x): return x + 1\n\n@math.floor\ndef f(x):\n"
    body = "assert candidate(1) == helper(1) == math.floor(2.5)"
    assert (
        outcome(body, "def f(x): return helper(x) + math.floor(0.5)", sandbox, starter_code=starter)
        == "accepted"
    )


HEADERS = {
    "header": ("def f(x):\n", "    return x + 1\n"),
    "method": ("class Solution:\n    def f(self, x):\n        ", "    return x + 1\n"),
    "comment": ("def f(x):\n    # Add one.\n", "    return x + 1\n"),
    "whole program after a header": ("def f(x):\n", "def f(x):\n    return x + 1\n"),
    "whole program after imports": ("import math\n", "def f(x):\n    return math.floor(x + 1)\n"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_rows_of_humanevals_form_without_docstrings_are_graded(name, sandbox, tmp_path):
    prompt, solution = HEADERS[name]
    entry_point = "Solution().f" if name == "method" else "f"
    row = {
        "task_id": "a/1",
        "prompt": prompt,
        "canonical_solution": solution,
        "entry_point": entry_point,
    }
    path = tmp_path / "problems.jsonl"
    path.write_text(
        json.dumps({**row, "test": "def check(candidate):\n    assert candidate(x=1) == 2\n"})
        + "\n"
    )
    (made,) = read_problems(path)
    soundness.require_sound_tests(made, sandbox, soundness.REFERENCE_LIMITS)
    right = (
        "class Solution:\n    def f(self, x): return x + 1"
        if name == "method"
        else "def f(x): return x + 1"
    )
    assert grade_code(made, right, RULES, sandbox).outcome == "accepted"
    assert grade_code(made, right.replace("+", "-"), RULES, sandbox).outcome == "wrong_answer"


@pytest.mark.parametrize(
    "entry_point",
    ["", "f()", "Solution.f", "Solution().f()", "Solution().", "().f", "a b", "class", 3],
)
def test_an_entry_point_that_names_nothing_is_a_bad_row(entry_point, tmp_path):
    row = {
        "task_id": "a/1",
        "prompt": "def f(x):\n",
        "canonical_solution": "    return x\n",
        "test": "def check(candidate): 1",
    }
    path = tmp_path / "problems.jsonl"
    path.write_text(json.dumps({**row, "entry_point": entry_point}) + "\n")
    with pytest.raises(UserError, match="entry_point"):
        list(read_problems(path))


# What the proxy cannot do


UNABLE = {
    "a function": "candidate(lambda: 1)",
    "a function by name": "candidate(x=print)",
    "an object": "candidate(object())",
    "a type": "candidate(int)",
    "a function deep down": "candidate([({'a': print},)])",
    "itself": "candidate(candidate)",
    "a deep tuple": "t = ()\nfor _ in range(5000): t = (t,)\ncandidate(t)",
    "too much": "candidate([0] * 3_000_000)",
    "an attribute": "candidate.cache_info()",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNABLE)
@pytest.mark.parametrize("before", ["", "assert candidate(1) == 1\n"])
def test_limits_of_the_proxy_are_never_a_wrong_answer(name, before, sandbox):
    body = "\n".join(f"    {line}" for line in UNABLE[name].splitlines())
    caught = f"{before}try:\n{body}\nexcept Exception:\n    assert False"
    for code in ("def f(x): return 1", "def f(x): return x"):
        with pytest.raises(UngradableError, match="p/1 cannot be graded"):
            outcome(caught, code, sandbox)


def test_errors_from_an_answer_blame_the_program(
    sandbox,
):
    body = "assert candidate(candidate(0)) == 2"
    code = "def f(x):\n    t = ()\n    for _ in range(96): t = (t,)\n    return t"
    wrapped = "assert candidate((((((((candidate(0),),),),),),),)) == 2"
    for text in (body, wrapped):
        assert outcome(text, code, sandbox, reference="def f(x): return 2 if x else 1") in {
            "wrong_answer",
            "runtime_error",
        }


def test_a_check_may_use_the_candidate_like_any_function(sandbox):
    body = (
        "assert candidate.__name__ == 'f' and callable(candidate) and not hasattr(candidate, "
        "'__wrapped__')\n"
    )
    body += (
        "import copy, functools\nassert copy.deepcopy([1])\n"
        "assert functools.partial(candidate, 1)() == 1\n"
    )
    body += (
        "assert list(map(candidate, [1, 2])) == [1, 2] and sorted([2, 1], key=candidate) == [1, 2]"
    )
    assert outcome(body, "def f(x): return x", sandbox) == "accepted"


def test_a_check_may_call_from_threads(sandbox):
    body = (
        "from concurrent.futures import ThreadPoolExecutor\nwith ThreadPoolExecutor(4) as pool:\n"
    )
    body += "    assert list(pool.map(candidate, range(40))) == list(range(40))"
    assert outcome(body, "def f(x): return x", sandbox) == "accepted"


# Problems that cannot be graded are named, alone


def row(
    name: str, test: str, solution: str = "    return x\n", prompt: str = "def f(x):\n"
) -> dict[str, str]:
    return {
        "task_id": f"own/{name}",
        "prompt": prompt,
        "canonical_solution": solution,
        "entry_point": "f",
        "test": test,
    }


GOOD = "def check(candidate):\n    assert candidate(1) == 1\n"
BROKEN = {
    "syntax": row("syntax", "def check(candidate):\n    assert (\n"),
    "no-call": row("no-call", "def check(candidate):\n    pass\n"),
    "import": row("import", f"import no_such_module\n{GOOD}"),
    "reference": row("reference", GOOD, "    return x + 1\n"),
    "reference-raises": row("reference-raises", GOOD, "    raise ValueError\n"),
    "reference-syntax": row("reference-syntax", GOOD, "return (\n"),
    "function": row("function", f"{GOOD}    candidate(print)\n"),
    "object": row(
        "object", "def check(candidate):\n    assert candidate(1).real\n", "    return object()\n"
    ),
    "prompt": row("prompt", GOOD, prompt="Return x.\n\ndef f(x):\n"),
}
OWN = {
    "problem_id": "own",
    "statement": "s",
    "kind": "asserts",
    "entry_point": "f",
    "tests": [{"check": "def check(candidate):\n    1 / 0\n"}],
}
STARTER = {
    **OWN,
    "problem_id": "starter",
    "kind": "function",
    "starter_code": "import no_such_module\ndef f(x):\n",
    "tests": [{"arguments": [1], "expected": 1}],
}


def grade(
    tmp_path: Path, rows: list[dict[str, Any]], names: list[str], **options: Any
) -> tuple[Job, FileScores]:
    problems, completions = tmp_path / "problems.jsonl", tmp_path / "completions.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    completions.write_text(
        "".join(
            json.dumps({"task_id": name, "code": "def f(x): return x"}) + "\n" for name in names
        )
    )
    job = Job(
        problems=problems, completions=completions, out=tmp_path / "out", rules=RULES, **options
    )
    return job, grade_files(job, LineProgress())


@pytest.mark.slow
def test_a_problem_that_cannot_be_graded_is_named_alone(tmp_path, capsys):
    rows = [row("first", GOOD), *BROKEN.values(), row("last", GOOD)]
    names = [row["task_id"] for row in rows]
    job, scores = grade(tmp_path, rows, [*names, *names])
    assert scores.outcomes == {"accepted": 4}
    assert [left_out.problem_id for left_out in scores.problems_left_out] == names[1:-1]
    for number, left_out in enumerate(scores.problems_left_out, start=2):
        assert left_out.problem_id in left_out.reason
        assert left_out.place == f"{job.problems}, row {number}"
    assert scores.completions_left_out == 2 * len(BROKEN)
    assert scores.benchmarks["humaneval"].all.problems == 2
    messages = capsys.readouterr().err
    assert all(f"left out: problem {name} cannot be graded" in messages for name in names[1:-1])
    assert grade_files(job, LineProgress()) == scores


@pytest.mark.slow
@pytest.mark.parametrize("bad", [OWN, STARTER])
def test_rows_without_references_are_tried_to_the_first_call(bad, tmp_path):
    good = {**OWN, "problem_id": "good", "tests": [{"check": GOOD}]}
    _, scores = grade(tmp_path, [good, bad], ["good", bad["problem_id"]])
    assert [left_out.problem_id for left_out in scores.problems_left_out] == [bad["problem_id"]]
    assert scores.outcomes == {"accepted": 1}


def test_a_file_of_ungradable_problems_is_refused_with_reasons(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no problem in it can be graded.*own/no-call.*never calls.*as well: 1 more",
    ):
        grade(tmp_path, [BROKEN["no-call"], BROKEN["syntax"]], ["own/no-call"])


def test_a_check_that_breaks_late_spares_the_other_verdicts(tmp_path):
    late = {**OWN, "problem_id": "late", "tests": [{"check": f"{GOOD}    candidate(print)\n"}]}
    good = {**OWN, "problem_id": "good", "tests": [{"check": GOOD}]}
    job, scores = grade(
        tmp_path, [late, good], ["late", "good", "good"], max_infrastructure_errors=0.5
    )
    assert scores.outcomes == {"accepted": 2, "infrastructure_error": 1}
    assert not is_open(job.out / "verdicts")


@pytest.mark.slow
def test_an_endless_check_is_tried_once_and_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(
        humaneval_check, "CHECK_LIMITS", Limits(time_s=0.5, memory_mib=512, output_kib=64)
    )
    endless = row("endless", "def check(candidate):\n    while True: pass\n")
    _, scores = grade(tmp_path, [row("good", GOOD), endless], ["own/good", "own/endless"])
    assert [left_out.problem_id for left_out in scores.problems_left_out] == ["own/endless"]


def test_a_check_that_its_reference_passed_is_not_tried_again(tmp_path, monkeypatch):
    tried: list[str] = []

    def trial(problem: Problem, *_: object) -> None:
        tried.append(problem.problem_id)

    monkeypatch.setattr(soundness, "require_sound_tests", trial)
    rows = [row("one", GOOD), row("two", f"{GOOD}\n")]
    for _ in range(2):
        assert len(list(soundness.make_ready(problems_of(tmp_path, rows), "L1", tried=True))) == 2
    assert sorted(tried) == ["own/one", "own/two"]
    list(soundness.make_ready(problems_of(tmp_path, [row("one", f"{GOOD}#")]), "L1", tried=True))
    assert len(tried) == 3


def problems_of(tmp_path: Path, rows: list[dict[str, str]]) -> list[Problem]:
    path = tmp_path / "problems.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return list(read_problems(path))


def test_a_machine_that_fails_is_not_the_problems_fault(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise InfrastructureError("the machine is on fire")

    monkeypatch.setattr(soundness, "run_check", fail)
    with pytest.raises(InfrastructureError, match="fire"):
        list(soundness.make_ready(problems_of(tmp_path, [row("one", GOOD)]), "L1", tried=True))


def test_an_oversized_output_spares_the_other_problems(tmp_path, monkeypatch):
    monkeypatch.setattr(output_limit, "MOST_OUTPUT_KIB", 1)
    large = {
        "problem_id": "large",
        "statement": "s",
        "kind": "stdin",
        "tests": [{"input": "", "output": "x" * 2000}],
    }
    good = {**OWN, "problem_id": "good", "tests": [{"check": GOOD}]}
    _, scores = grade(tmp_path, [large, good], ["large", "good"])
    assert [left_out.problem_id for left_out in scores.problems_left_out] == ["large"]


@pytest.mark.parametrize(
    ("checks", "sound"),
    [
        (["assert candidate(1) == 1", "assert candidate(2) == 2"], True),
        (["assert candidate(1) == 1", "assert candidate(2) == 3"], False),
        (["assert candidate(1) == 1", "pass"], False),
        (["assert candidate(1) == 1", "candidate(print)"], False),
        (["assert candidate(1) == 1", "assert f(2) == 3"], False),
    ],
)
def test_all_tests_of_a_problem_are_tried(checks, sound, sandbox):
    tests = tuple(test for check in checks for test in problem(check).tests)
    made = problem("", tests=tests, reference="def f(x): return x")
    if sound:
        soundness.require_sound_tests(made, sandbox, soundness.REFERENCE_LIMITS)
    else:
        with pytest.raises(UngradableError, match="p/1"):
            soundness.require_sound_tests(made, sandbox, soundness.REFERENCE_LIMITS)


def test_tests_passed_in_fresh_processes_are_sound(sandbox):
    reference = "calls = []\ndef f(x):\n    calls.append(x)\n    return len(calls)"
    tests = tuple(problem("assert candidate(1) == 1").tests[0] for _ in range(2))
    soundness.require_sound_tests(
        problem("", tests=tests, reference=reference), sandbox, soundness.REFERENCE_LIMITS
    )


def test_a_run_leaves_broken_problems_out_and_reports_them(tmp_path, capsys):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        "".join(
            json.dumps(made) + "\n"
            for made in [row("good", GOOD), BROKEN["no-call"], BROKEN["import"]]
        )
    )
    recipe = synthetic_recipe(evaluate={"benchmarks": [str(path)]})
    step = Benchmark(name="benchmark", recipe=recipe)
    facts = step.make(
        tmp_path / "run" / "benchmark", RunContext(recipe, tmp_path / "run", LineProgress())
    )
    assert facts.rows == 1
    assert [left_out.problem_id for left_out in facts.problems_left_out] == [
        "own/no-call",
        "own/import",
    ]
    assert all(left_out.place.startswith(str(path)) for left_out in facts.problems_left_out)
    assert "left out: problem own/no-call cannot be graded" in capsys.readouterr().err
    path.write_text(json.dumps(BROKEN["import"]) + "\n")
    with pytest.raises(UserError, match=r"no problem can be graded.*own/import"):
        step.make(
            tmp_path / "other" / "benchmark", RunContext(recipe, tmp_path / "other", LineProgress())
        )
