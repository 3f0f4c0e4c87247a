"""No output limit rejects a right answer, and outputs beyond any limit are named in advance."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import wire
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging import output_limit
from ssd_ray.evaluation.judging.judge import Rules, grade_code
from ssd_ray.evaluation.judging.strict import require_gradable
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.evaluation.tests_on_disk import store_problems
from ssd_ray.schema import Problem, Test
from tests.support.problems import check_problem, function_problem

LIMITS = Limits(time_s=20, memory_mib=1024, output_kib=16)
RULES = {profile: Rules(limits=LIMITS, profile=profile) for profile in ("strict", "lcb-compat")}


def stdin(output, comparison="value"):
    tests = (Test(input="1\n", output="1\n"), Test(input="9\n", output=output))
    return Problem(problem_id="p", source="t", statement="", tests=tests, comparison=comparison)


def function(expected, comparison="value"):
    return function_problem(9, expected, comparison=comparison)


PRINTED = {
    "lines": "12\n" * 20_000,
    "one line": "x" * 60_000,
    "other alphabets": "\u00fc\u4e2d\U0001f600\n" * 9_000,
    "a little more than the limit": "x" * (LIMITS.output_kib << 10) + "y",
}


@pytest.mark.parametrize("name", PRINTED)
@pytest.mark.parametrize("comparison", ["value", "lcb"])
def test_an_expected_output_above_the_limit_can_be_printed(name, comparison, sandbox):
    problem = stdin(PRINTED[name], comparison)
    code = f"print({PRINTED[name]!r} if int(input()) == 9 else 1)"
    for profile, rules in RULES.items():
        graded = grade_code(problem, code, rules, sandbox)
        assert graded.outcome == "accepted", (profile, graded)
        graded = grade_code(problem, f"{code}\nprint('more')", rules, sandbox)
        assert graded.outcome == "wrong_answer", (profile, graded)
        graded = grade_code(problem, "print('z' * 10**7)", rules, sandbox)
        assert graded.outcome == "output_limit", (profile, graded)


def test_an_equal_output_with_decimals_fits_the_limit(sandbox):
    problem = stdin("1\n" * 20_000)
    code = "n = int(input())\nprint('1.0\\n' * 20_000 if n == 9 else 1)"
    assert grade_code(problem, code, RULES["strict"], sandbox).outcome == "accepted"


RETURNED = {
    "numbers": ([0.1] * 9_000, "[0.1 + 1e-16] * 9_000"),
    "tuples": ([[1, 2]] * 9_000, "[(1, 2)] * 9_000"),
    "numpy's numbers": ([[1, 2]] * 4_000, "[list(row) for row in numpy.full((4_000, 2), [1, 2])]"),
    "a text": ("x" * 60_000, "'x' * 60_000"),
    "a text of other alphabets": ("\u4e2d" * 9_000, "'\\u4e2d' * 9_000"),
}


@pytest.mark.parametrize("name", RETURNED)
def test_an_expected_value_above_the_limit_can_be_returned(name, sandbox):
    expected, ending = RETURNED[name]
    code = f"import numpy\ndef f(n):\n    return {ending}\n"
    graded = grade_code(function(expected), code, RULES["strict"], sandbox)
    assert graded.outcome == "accepted", graded
    flood = grade_code(
        function(expected), "def f(n):\n    return 'x' * 10**7\n", RULES["strict"], sandbox
    )
    assert flood.outcome == "output_limit"
    if name in ("a text", "a text of other alphabets"):
        for profile in RULES:
            assert (
                grade_code(function(expected, "lcb"), code, RULES[profile], sandbox).outcome
                == "accepted"
            )


def test_a_value_that_a_check_spells_out_can_be_returned(sandbox):
    check = f"def check(candidate):\n    assert candidate(9) == {['ab'] * 20_000!r}\n"
    graded = grade_code(
        check_problem(check), "def f(n):\n    return ['ab'] * 20_000\n", RULES["strict"], sandbox
    )
    assert graded.outcome == "accepted", graded


def test_arguments_that_a_check_spells_out_can_be_given(sandbox):
    check = f"def check(candidate):\n    assert candidate({'x' * 100_000!r}) == 100_000\n"
    graded = grade_code(
        check_problem(check), "def f(text):\n    return len(text)\n", RULES["strict"], sandbox
    )
    assert graded.outcome == "accepted", graded


def test_large_inputs_meet_no_limit_of_outputs(sandbox):
    numbers = " ".join(map(str, range(500_000)))
    problem = dataclasses.replace(stdin(""), tests=(Test(input=numbers, output="499999"),))
    assert (
        grade_code(
            problem, "print(max(map(int, input().split())))", RULES["strict"], sandbox
        ).outcome
        == "accepted"
    )
    tests = (Test(input=wire.dumps([list(range(500_000))]), output="499999"),)
    problem = dataclasses.replace(function(0), tests=tests)
    assert grade_code(problem, "f = max", RULES["strict"], sandbox).outcome == "accepted"


@pytest.mark.slow
def test_as_many_tuples_as_expected_lists_fit():
    rows = [(1, 2)] * (wire.MAX_CONTAINERS - 2)
    assert wire.loads(wire.dumps(rows)) == rows
    assert wire.loads(wire.dumps([[*np.ones(2)]] * 100_000)) == [[1, 1]] * 100_000


@given(st.text(), st.integers(1, 2000))
def test_there_is_room_for_twice_an_expected_text(text, limit_kib):
    problem = stdin(text * 500)
    limits = dataclasses.replace(LIMITS, output_kib=limit_kib)
    roomy = output_limit.fitting_limits(limits, problem, problem.tests)
    replies = output_limit.fitting_limits_for_replies(limits, problem.tests)
    assert roomy.output_kib << 10 >= 2 * len((text * 500).encode("utf-8", "surrogatepass"))
    assert replies.output_kib << 10 >= 2 * len(wire.dumps(text * 500))
    assert min(roomy.output_kib, replies.output_kib) >= limit_kib


def test_a_sufficient_limit_is_kept():
    assert output_limit.fitting_limits(LIMITS, stdin("1\n"), stdin("1\n").tests) is LIMITS
    assert output_limit.fitting_limits_for_replies(LIMITS, stdin("1\n").tests) is LIMITS


def test_an_oversized_expected_output_is_named_before_grading(monkeypatch):
    monkeypatch.setattr(output_limit, "MOST_OUTPUT_KIB", 1024)
    require_gradable(stdin("x" * (1 << 20)))
    for problem in (
        stdin("x" * (1 << 20) + "yy"),
        stdin("\u4e2d" * (1 << 19)),
        function("x" * (1 << 20)),
    ):
        with pytest.raises(
            UserError,
            match=r"problem p cannot be graded: its test [12] expects 1 MiB .* leave the test out",
        ):
            require_gradable(problem)


def test_a_problem_with_such_an_output_is_left_out_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(output_limit, "MOST_OUTPUT_KIB", 1)
    wire_too_large = dataclasses.replace(
        function(0),
        problem_id="wide",
        tests=(Test(input="[" + "[]," * 500_001 + "0]", output="0"),),
    )
    ungradable = {}
    problems = [
        stdin("x" * 4000),
        dataclasses.replace(stdin("y"), problem_id="fine"),
        wire_too_large,
    ]
    kept = list(store_problems(problems, tmp_path, "L0", [], ungradable))
    assert [problem.problem_id for problem in kept] == ["fine"]
    assert "its test 2 expects" in ungradable["p"]
    assert (
        "its test 1 has no form on the wire, more values than a document may hold"
        in ungradable["wide"]
    )
