"""LiveCodeBench's verdicts, bug for bug, with expected outputs out of the program's reach."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import wire
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.evaluation.judging import lcb_compat
from ssd_ray.evaluation.judging.comparison import first_difference, same
from ssd_ray.evaluation.judging.lcb_compat import grade_lcb
from ssd_ray.evaluation.sandbox import Execution, Limits, Sandbox
from ssd_ray.evaluation.sandbox.inside import lcb_program, lcb_stdin
from ssd_ray.lcb_official import GRADER, reason_of
from ssd_ray.schema import Problem, Test
from tests.support.lcb_idioms import (
    ACCEPTED,
    BELIEVED_OFFICIALLY,
    FUNCTIONS_ACCEPTED,
    FUNCTIONS_REJECTED,
    REJECTED,
    SUM,
    SUMS,
    TWICE,
)

LIMITS = Limits(time_s=6, memory_mib=1024, output_kib=1024)
SHORT = dataclasses.replace(LIMITS, time_s=1)


def limits_of(name: str) -> Limits:
    return SHORT if "slow" in name else LIMITS


def stdin_problem(tests: list[tuple[str, str]], **fields: Any) -> Problem:
    made = tuple(Test(input=text, output=output) for text, output in tests)
    return Problem(
        problem_id="sum",
        source="lcb",
        statement="",
        kind="stdin",
        tests=made,
        comparison="lcb",
        **fields,
    )


def function_problem(tests: list[tuple[list[Any], Any]]) -> Problem:
    made = tuple(Test(input=wire.dumps(args), output=wire.dumps(value)) for args, value in tests)
    return Problem(
        problem_id="f",
        source="lcb",
        statement="",
        kind="function",
        entry_point="f",
        tests=made,
        comparison="lcb",
    )


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(floor="L0") as made:
        yield made


@pytest.mark.slow
@pytest.mark.parametrize("name", ACCEPTED)
def test_an_idiom_that_passes_officially_passes(sandbox: Sandbox, name: str) -> None:
    graded = grade_lcb(stdin_problem(SUMS), ACCEPTED[name], limits_of(name), sandbox)
    assert graded.outcome == "accepted", graded
    assert graded.num_passed == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", REJECTED)
def test_an_idiom_that_fails_officially_fails(sandbox: Sandbox, name: str) -> None:
    graded = grade_lcb(stdin_problem(SUMS), REJECTED[name], limits_of(name), sandbox)
    assert graded.outcome in ("wrong_answer", "runtime_error", "time_limit"), graded
    assert "official -" in graded.detail


@pytest.mark.parametrize("name", FUNCTIONS_ACCEPTED)
def test_a_function_that_passes_officially_passes(sandbox: Sandbox, name: str) -> None:
    code, tests = FUNCTIONS_ACCEPTED[name]
    if "numpy" in code:
        pytest.importorskip("numpy")
    graded = grade_lcb(function_problem(tests), code, limits_of(name), sandbox)
    assert graded.outcome == "accepted", graded


@pytest.mark.parametrize("name", FUNCTIONS_REJECTED)
def test_a_function_that_fails_officially_fails(sandbox: Sandbox, name: str) -> None:
    code, tests = FUNCTIONS_REJECTED[name]
    graded = grade_lcb(function_problem(tests), code, limits_of(name), sandbox)
    assert graded.outcome in ("wrong_answer", "runtime_error", "time_limit"), graded


@pytest.mark.parametrize("name", BELIEVED_OFFICIALLY)
def test_an_object_that_claims_to_be_equal_is_not_believed(sandbox: Sandbox, name: str) -> None:
    graded = grade_lcb(function_problem(TWICE), BELIEVED_OFFICIALLY[name], LIMITS, sandbox)
    assert graded.outcome == "wrong_answer", graded


@pytest.mark.parametrize(
    ("code", "outcome", "official"),
    [
        ("print(31)", "wrong_answer", "test 1: official -2: line 1 is '31' and should be '30'"),
        ("print(30)", "wrong_answer", "test 2: official -2"),
        (
            "print(30)\nprint()\nprint(30)",
            "wrong_answer",
            "test 1: official -2: line 2 is one too many",
        ),
        (
            "print(1 / 0)",
            "runtime_error",
            "test 1: official -4: ZeroDivisionError: division by zero",
        ),
        ("print(", "runtime_error", "loading: official -4: SyntaxError"),
        ("import os\nos._exit(0)", "runtime_error", "test 1: official -5"),
        ("import os\nos.abort()", "runtime_error", "test 1: official -5"),
        ("raise SystemError", "runtime_error", "test 1: official -4"),
        ("x = [0] * 2**40", "memory_limit", "test 1: official -4: MemoryError"),
        ("print('x' * 2**22)", "output_limit", "test 1: official -5"),
        (
            "raise ValueError('\\x1b[2J\\n' * 9)",
            "runtime_error",
            "test 1: official -4: ValueError: \\x1b[2J\\n",
        ),
    ],
)
def test_a_verdict_holds_the_official_code_and_our_outcome(
    sandbox: Sandbox, code: str, outcome: str, official: str
) -> None:
    graded = grade_lcb(stdin_problem(SUMS), code, LIMITS, sandbox)
    assert graded.outcome == outcome
    assert graded.detail.startswith(official), graded.detail
    assert graded.detail.isprintable()


def test_timeouts_have_the_official_codes(
    sandbox: Sandbox,
) -> None:
    endless = "while True: x += 1"
    graded = grade_lcb(stdin_problem(SUMS), f"x = 0\n{endless}", SHORT, sandbox)
    assert (graded.outcome, graded.failed_test) == ("time_limit", 0)
    assert "official -3" in graded.detail
    graded = grade_lcb(function_problem(TWICE), f"x = 0\n{endless}", SHORT, sandbox)
    assert (graded.outcome, graded.failed_test) == ("runtime_error", -1)
    assert "official -4" in graded.detail


@pytest.mark.slow
def test_canceling_the_alarm_does_not_escape_the_total_limit(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lcb_compat, "_GRACE_S", 0)
    graded = grade_lcb(
        stdin_problem(SUMS[:1]),
        "import signal\nsignal.alarm(0)\nx = 0\nwhile True: x += 1",
        SHORT,
        sandbox,
    )
    assert graded.outcome == "time_limit"
    assert "official -5" in graded.detail
    assert 1.8 < graded.time_s < 10


def test_passed_tests_and_resources_are_counted(sandbox: Sandbox) -> None:
    problem = stdin_problem([("1", "1"), ("2", "2"), ("3", "4"), ("4", "4")])
    graded = grade_lcb(problem, "print(input())", LIMITS, sandbox)
    assert (graded.outcome, graded.num_passed, graded.failed_test) == ("wrong_answer", 2, 2)
    assert graded.peak_bytes > 1 << 20
    passed = grade_lcb(stdin_problem([("1", "1")]), "print(input())", LIMITS, sandbox)
    assert (passed.num_passed, passed.failed_test) == (1, -1)
    assert passed.peak_bytes > 1 << 20


def test_an_ungradable_problem_is_refused_and_never_passed(sandbox: Sandbox) -> None:
    good = stdin_problem(SUMS)
    refused = [
        (dataclasses.replace(good, tests=()), "has no tests"),
        (dataclasses.replace(good, kind="asserts", entry_point="f"), "LiveCodeBench does not have"),
        (
            dataclasses.replace(good, kind="function", comparison="evalplus", entry_point="f"),
            "LiveCodeBench does not have",
        ),
        (dataclasses.replace(good, kind="function"), "needs an entry_point"),
        (
            dataclasses.replace(
                good, kind="function", entry_point="f", tests=(Test(input="[1", output="1"),)
            ),
            "test 1: its input",
        ),
        (
            dataclasses.replace(
                good, kind="function", entry_point="f", tests=(Test(input='{"x":1}', output="1"),)
            ),
            "test 1: its input",
        ),
        (
            dataclasses.replace(
                good, kind="function", entry_point="f", tests=(Test(input="1", output="1"),)
            ),
            "list of arguments",
        ),
        (
            dataclasses.replace(
                good, kind="function", entry_point="f", tests=(Test(input="[1]", output="]"),)
            ),
            "test 1: its output",
        ),
    ]
    for problem, reason in refused:
        with pytest.raises(UserError, match=reason):
            grade_lcb(problem, "def f(x): pass", LIMITS, sandbox)
    with pytest.raises(UserError, match="full seconds"):
        grade_lcb(good, SUM, dataclasses.replace(LIMITS, time_s=0.9), sandbox)


def test_a_program_sees_the_names_that_the_header_defines(
    sandbox: Sandbox,
) -> None:
    code = (
        "def f(header):\n    fresh = {}\n    exec(header, fresh)\n    mine = dict(globals())\n"
        "    for name in '__name__ __doc__ __package__ __loader__ __spec__ f'.split():\n"
        "        mine.pop(name, None)\n"
        "    return sorted(name for name in {*fresh, *mine} if mine.get(name, 0) is not "
        "fresh.get(name, 1))"
    )
    graded = grade_lcb(function_problem([([lcb_program.HEADER], [])]), code, LIMITS, sandbox)
    assert graded.outcome == "accepted", graded


STAND_IN = {
    "iterating sys.stdin": "iteration",
    "map over sys.stdin": "iteration",
    "input, then read": "whole",
    "readline, then readlines": "whole",
    "buffer.readline": "buffer",
    "input is buffer.readline": "buffer",
    "buffer.readlines": "buffer",
    "an imported stdin's line without its end": "imported",
    "a wrong answer": "",
    "raising after the answer": "",
    "reading past the end": "",
    "global": "",
}


@pytest.mark.parametrize("name", STAND_IN)
def test_faults_of_the_official_stdin_are_named_in_the_detail(sandbox: Sandbox, name: str) -> None:
    graded = grade_lcb(stdin_problem(SUMS), REJECTED[name], LIMITS, sandbox)
    assert graded.outcome in ("wrong_answer", "runtime_error")
    note = STAND_IN[name]
    assert reason_of(graded.detail) == (
        f"official stand-in for sys.stdin: {lcb_stdin.NOTES[note]}" if note else ""
    )


@pytest.mark.parametrize(
    ("code", "note"),
    [
        ("import sys\nnext(sys.stdin)", "iteration"),
        ("import sys\nprint(sorted(sys.stdin))", "iteration"),
        (
            "import sys\ntry:\n    for line in sys.stdin: pass\nexcept Exception:\n    print(1)",
            "iteration",
        ),
        ("import sys\nprint(sys.stdin.read(2))", "size"),
        ("import sys\nsys.stdin.read()\nprint(len(sys.stdin.read()))", "whole"),
        ("import sys\nsys.stdin.read()\nprint(sys.stdin.readline())", "whole"),
        ("import sys\nprint([int(line) for line in sys.stdin.readlines()])", "lines"),
        ("import sys\nsys.stdin.buffer.read(1)\nprint(1)", "buffer"),
        ("import sys\nprint([line for line in sys.stdin.buffer])", "buffer"),
        ("from sys import stdin\nstdin.readline()\nprint(stdin.read())", "imported"),
        ("from sys import stdin\nstdin.read()\nprint(stdin.read())", "whole"),
        ("import sys\nprint(sys.stdin.read())", ""),
        ("import sys\nprint(sys.stdin.read(-1))", ""),
        ("import sys\nprint(sys.stdin.buffer.readline())", ""),
        ("print(input(), input())", ""),
        ("import sys\nprint(sys.stdin.__next__())", ""),
        ("print('(stand-in for sys.stdin: forged)')", ""),
        ("raise ValueError('by the stand-in for sys.stdin: it cannot be iterated over;')", ""),
    ],
)
def test_only_differences_from_a_file_are_noted(sandbox: Sandbox, code: str, note: str) -> None:
    graded = grade_lcb(stdin_problem([("1\n2\n", "wanted")]), code, LIMITS, sandbox)
    assert graded.outcome in ("wrong_answer", "runtime_error")
    assert reason_of(graded.detail) == (
        f"official stand-in for sys.stdin: {lcb_stdin.NOTES[note]}" if note else ""
    )
    assert graded.detail.startswith("test 1: official -")


def test_a_note_never_makes_a_program_pass_or_fail() -> None:
    for note in lcb_stdin.NOTES:
        replies = [["loaded"], ["printed", "30", note], ["printed", "503", note]]
        assert (
            grade_lcb(stdin_problem(SUMS), "pass", LIMITS, Eavesdropper(replies)).outcome
            == "accepted"
        )
        graded = grade_lcb(
            stdin_problem(SUMS),
            "pass",
            LIMITS,
            Eavesdropper([["loaded"], ["error", "time", "E", "", note]]),
        )
        assert graded.outcome == "time_limit"


def test_the_commit_of_the_official_grader_is_stated() -> None:
    assert GRADER["commit"].startswith("28fef95")
    assert GRADER["date"] == "2025-07-16"
    assert "28fef95 of 16 July 2025" in (lcb_compat.__doc__ or "")


class Eavesdropper:
    """A sandbox that records its calls and answers from a list."""

    level = "L0"

    def __init__(self, answers: Sequence[object]) -> None:
        self._answers, self.told, self.peak_bytes, self.shortage = iter(answers), [], 0, ""

    def converse(
        self, role: str, units: Sequence[str], limits: Limits, *, entry_point: str = ""
    ) -> Eavesdropper:
        self.told.append((role, list(units), limits, entry_point))
        return self

    def __enter__(self) -> Eavesdropper:
        return self

    def __exit__(self, *_: object) -> None:
        return

    def send_texts(self, texts: Iterable[str]) -> None:
        self.told.extend(texts)

    def answer(self, time_s: float | None = None) -> Execution:
        answer = next(self._answers)
        if isinstance(answer, Exception):
            raise answer
        return Execution(status="ok", result=answer)


def test_expected_outputs_never_enter_the_sandbox() -> None:
    secret = "271828182845904523536"
    listener = Eavesdropper([["loaded"], ["printed", secret], ["printed", secret]])
    assert (
        grade_lcb(stdin_problem([("1", secret), ("2", secret)]), "pass", LIMITS, listener).outcome
        == "accepted"
    )
    assert secret not in repr(listener.told)
    assert listener.told[0][2].time_s == (6 + 1) * 2 + 5
    listener = Eavesdropper([["loaded"], ["value", int(secret)]])
    assert (
        grade_lcb(function_problem([([1], int(secret))]), "pass", LIMITS, listener).outcome
        == "accepted"
    )
    assert secret not in repr(listener.told)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        1,
        {},
        [],
        ["loaded"],
        ["printed", 30],
        ["printed", "30", "30"],
        ["value", 30],
        ["error"],
        "time",
        {"printed": "30"},
    ],
)
def test_a_reply_of_another_shape_is_the_programs_failure(reply: object) -> None:
    graded = grade_lcb(stdin_problem(SUMS), "pass", LIMITS, Eavesdropper([["loaded"], reply]))
    assert (graded.outcome, graded.failed_test) == ("runtime_error", 0)
    graded = grade_lcb(stdin_problem(SUMS), "pass", LIMITS, Eavesdropper([["printed", "30"]]))
    assert graded.outcome == "runtime_error"


def test_a_crashed_sandbox_is_never_a_wrong_answer() -> None:
    gone = InfrastructureError("it is gone")
    listener = Eavesdropper([["loaded"], gone, ["loaded"], gone])
    graded = grade_lcb(stdin_problem(SUMS), "pass", LIMITS, listener)
    assert (graded.outcome, graded.detail) == ("infrastructure_error", "it is gone")
    listener = Eavesdropper([gone, ["loaded"], ["printed", "30"], ["printed", "503"]])
    assert grade_lcb(stdin_problem(SUMS), "pass", LIMITS, listener).outcome == "accepted"


def same_text(actual: str, expected: str) -> bool:
    return not first_difference(actual, expected, finite=False)


def same_result(actual: object, expected: object) -> bool:
    return same("lcb", actual, expected, 0.0, [])


@pytest.mark.parametrize(
    ("actual", "expected", "agree"),
    [
        ("6.0", "6", True),
        ("6e0", "6", True),
        ("0_6", "6", True),
        ("Infinity", "inf", True),
        ("-Infinity", "inf", False),
        ("1   2", "1 2", True),
        ("1\t2.50", "1 2.5", True),
        ("0.30000000000000004", "0.3", False),
        ("NaN", "nan", False),
        ("NaN", "NaN", True),
        ("sNaN", "1", False),
        ("1", "sNaN", False),
        ("a   b", "a b", False),
        ("YES", "Yes", False),
        ("1 a", "1.0 a", False),
        ("  6 \n", "6", True),
        ("\n\n6", "6", True),
        ("6\n\n7", "6\n7", False),
        ("6 \r\n7", "6\r\n7\r\n", True),
        ("", "\n", True),
        ("", "0", False),
        ("٣", "3", True),
        ("1e1000000", "1e1000001", False),
        ("1", "True", False),
        ("1\f2", "1 2", True),
        ("50000000000000001", "50000000000000000", False),
    ],
)
def test_printed_texts_are_compared_as_officially(actual: str, expected: str, agree: bool) -> None:
    assert same_text(actual, expected) is agree


numbers = st.one_of(
    st.integers(), st.decimals(allow_nan=False), st.floats(allow_nan=False).map(repr)
)
numeric_lines = st.lists(numbers.map(str), min_size=1, max_size=4)


@given(
    st.lists(st.tuples(numeric_lines, numeric_lines), max_size=4),
    st.sampled_from([" ", "   ", "\t"]),
)
def test_lines_of_numbers_are_equal_when_their_decimals_are(
    pairs: list[tuple[list[str], list[str]]], blank: str
) -> None:
    agree = all(
        len(a) == len(b) and all(Decimal(x) == Decimal(y) for x, y in zip(a, b, strict=True))
        for a, b in pairs
    )
    actual, expected = ["\n".join(blank.join(side[index]) for side in pairs) for index in (0, 1)]
    assert same_text(actual, expected) is agree


@given(st.text(max_size=50), st.text(max_size=50))
def test_the_comparison_of_texts_is_reflexive_and_symmetric(one: str, other: str) -> None:
    assert same_text(one, one)
    assert same_text(one, other) is same_text(other, one)


def test_only_the_outermost_tuple_counts_as_a_list() -> None:
    assert same_result((1, [2]), [1, [2]])
    assert not same_result([(1,)], [[1]])
    assert not same_result({1}, [1])
    assert same_result(True, 1)
    assert not same_result("1", 1)
