"""Only a definition of the program is its answer, never a provided or built-in name."""

from __future__ import annotations

import builtins
import dataclasses
import keyword
from typing import Any

import pytest

from ssd_ray.evaluation.judging import outcomes, source_texts
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.schema import Problem, Test
from tests.support.problems import condition_problem, function_problem

LIMITS = Limits(time_s=20, memory_mib=512, output_kib=256)
STRICT = Rules(limits=LIMITS)
COMPATIBLE = Rules(limits=LIMITS, profile="lcb-compat")
NOT_ACCEPTED = {"runtime_error", "wrong_answer"}


def lent_names() -> list[str]:
    """Return public names of LeetCode's imports, each fit to name a method."""
    namespace: dict[str, Any] = {}
    exec(source_texts._LEETCODE_IMPORTS, namespace)
    return sorted(
        name for name in namespace if not name.startswith("_") and not keyword.iskeyword(name)
    )


def function(name: str, comparison: str = "lcb", **fields: Any) -> Problem:
    """Return a problem with the answer x + 71, which no provided function returns."""
    names = {"problem_id": name, "entry_point": name}
    return function_problem(6, 77, comparison=comparison, **names, **fields)


def asserts(name: str, **fields: Any) -> Problem:
    """Return the same problem with a check."""
    return condition_problem("candidate(6) == 77", problem_id=name, entry_point=name, **fields)


def outcome(problem: Problem, code: str, sandbox: Sandbox, rules: Rules = STRICT) -> str:
    return grade_code(problem, code, rules, sandbox).outcome


@pytest.mark.slow
def test_no_provided_name_is_the_programs_answer(sandbox):
    """Every name of LeetCode's imports, with a right, a wrong and an empty program."""
    names = lent_names()
    assert {"gcd", "mean", "prod", "comb", "fsum", "sum", "Counter", "List", "math"} <= set(names)
    assert len(names) > 400
    surprises = {}
    for name in names:
        method = f"class Solution:\n    def {name}(self, x):\n        return "
        problem = function(name)
        outcomes = [
            outcome(problem, code, sandbox) for code in (f"{method}x + 71", f"{method}-1", "x = 1")
        ]
        if outcomes != ["accepted", "wrong_answer", "runtime_error"]:
            surprises[name] = outcomes
    assert surprises == {}


def gcd_problem() -> Problem:
    return dataclasses.replace(
        function("gcd"),
        tests=(Test(input="[12, 18]", output="6"), Test(input="[5, 7]", output="1")),
    )


@pytest.mark.parametrize(
    ("code", "accepted"),
    [
        ("class Solution:\n    def gcd(self, a, b): return gcd(a, b)", True),
        ("class Solution:\n    def gcd(self, a, b): return math.gcd(a, b)", True),
        ("def gcd(a, b):\n    while b: a, b = b, a % b\n    return a", True),
        (
            "def gcd(a): return a\nclass Solution:\n    def gcd(self, a, b): return math.gcd(a, b)",
            True,
        ),
        ("class Solution: pass\ndef gcd(a, b): return math.gcd(a, b)", True),
        ("from math import gcd", True),
        ("from math import *", True),
        ("import math\ngcd = math.gcd", True),
        ("gcd = gcd", True),
        ("gcd = lambda a, b: math.gcd(a, b)", True),
        ("gcd = functools.partial(math.gcd)", True),
        ("globals()['gcd'] = math.gcd", True),
        ("exec('def gcd(a, b): return math.gcd(a, b)')", True),
        ("if True:\n    def gcd(a, b): return math.gcd(a, b)", True),
        ("def make():\n    global gcd\n    gcd = math.gcd\nmake()", True),
        ("class gcd:\n    def __new__(cls, a, b): return math.gcd(a, b)", True),
        ("def solve():\n    def gcd(a, b): return math.gcd(a, b)", False),
        ("if False:\n    def gcd(a, b): return math.gcd(a, b)", False),
        ("def gcd(a, b): return math.gcd(a, b)\ndel gcd", False),
        ("class Solution:\n    def gdc(self, a, b): return math.gcd(a, b)", False),
        ("class Other:\n    def gcd(self, a, b): return math.gcd(a, b)", False),
        ("Solution = None", False),
        ("gcd: object", False),
        ("print(gcd(12, 18))", False),
        ("return_value = gcd(12, 18)", False),
        ("return -1", False),
        ("pass", False),
        ("", False),
    ],
)
def test_a_name_that_the_program_binds_is_its_answer(code, accepted, sandbox):
    result = outcome(gcd_problem(), code, sandbox)
    assert (result == "accepted") == accepted, result
    assert accepted or result in NOT_ACCEPTED


def test_the_compatible_profile_accepts_provided_names(sandbox):
    for code in ("x = 1", "def unrelated(): pass"):
        assert outcome(gcd_problem(), code, sandbox, COMPATIBLE) == "accepted"
        assert outcome(gcd_problem(), code, sandbox) == "runtime_error"


@pytest.mark.parametrize(
    "make",
    [lambda **more: function("target", "value", **more), lambda **more: asserts("target", **more)],
)
@pytest.mark.parametrize(
    "lent",
    [
        "from helpers import target\n",
        "def helper(x): return x + 71\ntarget = helper\n",
        "def target(x): return x + 71\ntarget = target\n",
        "class Base:\n    def target(self, x): return x + 71\nSolution = Base\n",
    ],
)
def test_a_definition_of_starter_code_is_not_the_answer(make, lent, sandbox):
    lent = lent.replace("from helpers import target", "from operator import pos as target")
    problem = make(starter_code=f"{lent}\n\n# Add 71.\ndef target(x):\n")
    assert outcome(problem, "y = 2", sandbox) in NOT_ACCEPTED
    assert outcome(problem, "def target(x): return 0", sandbox) in NOT_ACCEPTED
    assert outcome(problem, "def target(x): return x + 71", sandbox) == "accepted"
    assert (
        outcome(problem, "class Solution:\n    def target(self, x): return x + 71", sandbox)
        == "accepted"
    )


def test_helpers_of_starter_code_call_the_programs_function(sandbox):
    starter = (
        "from operator import neg as target\ndef twice(x): return target(target(x))\n\n"
        "def target(x):\n"
    )
    problem = function("target", "value", starter_code=starter)
    assert (
        outcome(problem, "def target(x): return twice(10) if x == 6 else x + 33.5", sandbox)
        == "accepted"
    )
    assert outcome(problem, "def other(x): return twice(x)", sandbox) == "runtime_error"


@pytest.mark.parametrize("name", ["sum", "abs", "print", "len", "Exception", "open"])
@pytest.mark.parametrize(
    "make", [asserts, lambda name: function(name, "value"), lambda name: function(name, "evalplus")]
)
def test_a_builtin_is_no_answer_to_a_problem_of_its_name(make, name, sandbox):
    assert hasattr(builtins, name)
    assert outcome(make(name), "x = 1", sandbox) == "runtime_error"
    assert outcome(make(name), f"def {name}(x): return 1", sandbox) == "wrong_answer"
    assert outcome(make(name), f"def {name}(x): return x + 71", sandbox) == "accepted"


@pytest.mark.parametrize("name", ["__init__", "__str__", "__eq__", "__hash__"])
def test_a_method_of_every_class_is_no_answer(name, sandbox):
    problem = function(name, "value")
    assert outcome(problem, "class Solution: pass", sandbox) == "runtime_error"
    right = (
        f"class Solution:\n    def {name}(self, x=6): return x + 71\n"
        "    def __new__(cls): return object.__new__(cls)"
    )
    assert outcome(problem, right, sandbox) == (
        "runtime_error" if name == "__init__" else "accepted"
    )


def test_a_method_entry_point_is_that_method_alone(sandbox):
    problem = dataclasses.replace(asserts("target"), entry_point="Solution().target")
    assert (
        outcome(problem, "class Solution:\n    def target(self, x): return x + 71", sandbox)
        == "accepted"
    )
    assert outcome(problem, "def target(x): return x + 71", sandbox) == "runtime_error"
    assert (
        outcome(problem, "class Solution:\n    def target(self, x): return 0", sandbox)
        == "wrong_answer"
    )
    assert outcome(problem, "class Solution: pass", sandbox) == "runtime_error"


@pytest.mark.parametrize(
    "reference",
    ["def target(x): return x + 71", "class Solution:\n    def target(self, x): return x + 71"],
)
def test_a_check_that_names_the_function_means_the_program(reference, sandbox):
    called = "Solution().target" if "class" in reference else "target"
    check = f"def check(candidate):\n    assert candidate(6) == 77\n    assert {called}(1) == 72\n"
    problem = dataclasses.replace(
        asserts("target"),
        entry_point=called,
        reference=reference,
        tests=(Test(input=check, output=""),),
    )
    assert outcome(problem, reference, sandbox) == "accepted"
    assert outcome(problem, reference.replace("x + 71", "77"), sandbox) == "wrong_answer"


def test_a_check_that_names_a_builtin_means_the_builtin(sandbox):
    check = "def check(candidate):\n    assert abs(candidate(-3) - 3) < 1e-9\n"
    reference = "def abs(x): return x if x > 0 else -x"
    problem = dataclasses.replace(
        asserts("abs"), reference=reference, tests=(Test(input=check, output=""),)
    )
    assert outcome(problem, reference, sandbox) == "accepted"
    assert outcome(problem, "def abs(x): return -1", sandbox) == "wrong_answer"


def test_a_check_is_the_tests_own_and_not_a_helper(sandbox):
    lent = "def check(candidate): candidate(6)\n\ndef target(x):\n"
    nested = "class Tests:\n    def check(candidate):\n        assert candidate(6) == 77\n"
    problem = dataclasses.replace(
        asserts("target", starter_code=lent), tests=(Test(input=nested, output=""),)
    )
    with pytest.raises(outcomes.UngradableError, match="target"):
        grade_code(problem, "def target(x): return 0", STRICT, sandbox)


@pytest.mark.parametrize("comparison", ["value", "evalplus"])
def test_a_function_that_the_program_imports_is_its_answer(comparison, sandbox):
    problem = dataclasses.replace(gcd_problem(), comparison=comparison)
    assert outcome(problem, "from math import gcd", sandbox) == "accepted"
    assert outcome(problem, "import math", sandbox) == "runtime_error"
    tests = (Test(input="def check(candidate):\n    assert candidate(12, 18) == 6\n", output=""),)
    problem = dataclasses.replace(
        asserts("gcd", starter_code="from math import gcd\n\ndef gcd(a, b):\n"), tests=tests
    )
    assert outcome(problem, "from math import gcd", sandbox) == "accepted"
    assert outcome(problem, "import math", sandbox) == "runtime_error"
