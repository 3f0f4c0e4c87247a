"""Files in the hub's own formats: every column with a meaning is read or refused."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_ray.config import PromptsConfig
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.problems import sources
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.problems.rendering import user_message
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Problem
from ssd_ray.standalone.grade_files import Job, grade_files

HELPERS = """
import numpy as np

def is_floats(x) -> bool:
    many = isinstance(x, (list, tuple)) and all(isinstance(i, float) for i in x)
    return isinstance(x, float) or many

def assertion(out, exp, atol):
    if atol == 0 and is_floats(exp):
        atol = 1e-6
    if out != exp and atol != 0:
        assert np.allclose(out, exp, rtol=1e-07, atol=atol)
    else:
        assert out == exp, f"out: {out}, exp: {exp}"
"""
MBPP_PLUS = {
    "task_id": 903,
    "code": "def spread(values):\n    return max(values) - min(values)\n",
    "prompt": "Write a function that returns the distance of the largest and the smallest number.",
    "source_file": "own",
    "test_imports": ["import math"],
    "test_list": ["assert spread([1, 2, 4]) == 3", "assert spread([7]) == 0"],
    "test": f"{HELPERS}\ninputs = [[[1, 2, 4]], [[7]], [[-4, -9]], [[0.1, 0.3]]]\n"
    "results = [3, 0, 5, 0.2]\n"
    "for i, (inp, exp) in enumerate(zip(inputs, results)):\n    assertion(spread(*inp), exp, 0)\n"
    "assert math.pi\n",
}
HUMANEVAL_PLUS = {
    "task_id": "HumanEval/903",
    "prompt": 'def total(values):\n    """The sum of all values."""\n',
    "canonical_solution": "    return float(sum(values))\n",
    "entry_point": "total",
    "test": f"{HELPERS}\ndef check(candidate):\n    inputs = [[[1.0, 2.0]], [[0.1, 0.2]], [[]]]\n"
    "    results = [3.0, 0.3, 0.0]\n"
    "    for inp, exp in zip(inputs, results):\n        assertion(candidate(*inp), exp, 0)\n",
}
MBPP = {
    "task_id": 904,
    "text": "Write a function that doubles.",
    "code": "def double(x):\n    return 2 * x\n",
    "test_list": ["assert double(2) == 4"],
    "test_setup_code": "",
    "challenge_test_list": ["assert double(-1) == -2"],
}
LCB = {
    "question_title": "Echo",
    "question_content": "Print the number.",
    "platform": "own",
    "question_id": "e1",
    "contest_id": "c1",
    "contest_date": "2025-01-01T00:00:00",
    "starter_code": "",
    "difficulty": "easy",
    "public_test_cases": '[{"input": "1\\n", "output": "1\\n", "testtype": "stdin"}]',
    "private_test_cases": "[]",
    "metadata": "{}",
}


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read(tmp_path: Path, row: dict[str, Any]) -> Problem:
    (problem,) = read_problems(_write(tmp_path / "file.jsonl", row))
    return problem


def _outcomes(tmp_path: Path, row: dict[str, Any], *programs: str) -> list[str]:
    """Grade programs on one row, as `ssd-ray grade` does."""
    answers = [
        {"task_id": row["task_id"], "index": index, "code": code}
        for index, code in enumerate(programs)
    ]
    job = Job(
        problems=_write(tmp_path / "problems.jsonl", row),
        completions=_write(tmp_path / "answers.jsonl", *answers),
        out=tmp_path / "out",
        rules=Rules(limits=Limits(time_s=5, memory_mib=512, output_kib=1024)),
        workers=1,
    )
    grade_files(job, LineProgress())
    return [row["outcome"] for row in pq.read_table(job.out / "verdicts.parquet").to_pylist()]


@pytest.mark.slow
def test_mbpp_plus_of_the_hub_is_graded_by_its_test(tmp_path: Path) -> None:
    programs = (
        MBPP_PLUS["code"],
        (
            "def spread(values):\n    return max(max(values), 0) - min(values) if values[0] > 0 "
            "else 0\n"
        ),  # passes test_list
        "def spread(values):\n    return 1\n",
        "x = 1\n",
    )
    outcomes = _outcomes(tmp_path, MBPP_PLUS, *map(str, programs))
    assert outcomes[:3] == ["accepted", "wrong_answer", "wrong_answer"]
    assert outcomes[3] != "accepted"


def test_mbpp_plus_of_the_hub_has_its_name_and_statement(tmp_path: Path) -> None:
    problem = _read(tmp_path, MBPP_PLUS)
    assert (problem.problem_id, problem.source, problem.entry_point) == (
        "mbpp/903",
        "mbpp+",
        "spread",
    )
    assert len(problem.tests) == 1
    assert "assert spread([7]) == 0" in problem.statement
    assert "-9" not in problem.statement, "the tests stay hidden"


@pytest.mark.parametrize("empty", [None, "", "  \n"])
def test_mbpp_rows_without_a_script_keep_their_assertions(
    tmp_path: Path, empty: str | None
) -> None:
    problem = _read(tmp_path, {**MBPP_PLUS, "test": empty})
    assert (problem.source, len(problem.tests)) == ("mbpp", 2)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("assert other([1]) == 0", "field 'test' never calls spread"),
        ("assert spread([1]) ==", "field 'test' is not Python"),
        (["assert spread([1]) == 0"], "field 'test' must hold text"),
    ],
)
def test_a_script_that_cannot_grade_is_refused_by_name(
    tmp_path: Path, script: Any, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        _read(tmp_path, {**MBPP_PLUS, "test": script})


def test_humaneval_plus_of_the_hub_is_graded_right(tmp_path: Path) -> None:
    wrong = "def total(values):\n    return 0.0 if not values else values[0] + values[-1] + 0.001\n"
    right = "def total(values):\n    return float(sum(values))\n"
    assert _outcomes(tmp_path, HUMANEVAL_PLUS, right, wrong) == ["accepted", "wrong_answer"]


@pytest.mark.parametrize(
    ("row", "column", "value"),
    [
        (HUMANEVAL_PLUS, "test_setup", "import random"),  # HumanEvalPack
        (HUMANEVAL_PLUS, "example_test", "def check(f): pass"),
        (HUMANEVAL_PLUS, "import", "import math"),
        (HUMANEVAL_PLUS, "plus_input", [[[1.0]]]),
        (HUMANEVAL_PLUS, "test_list", ["assert total([]) == 0"]),
        (HUMANEVAL_PLUS, "atol", 1e-3),
        (HUMANEVAL_PLUS, "is_passed", False),
        (HUMANEVAL_PLUS, "timeout", 10),
        (MBPP, "tests", "assert double(3) == 6"),
        (MBPP, "ground_truth", "assert double(3) == 6"),
        (MBPP, "verification_info", {"language": "python"}),
        (MBPP, "reward_model", {"style": "rule"}),
        (MBPP, "eval_script", "assert double(3) == 6"),
        (MBPP, "plus_tests", ["assert double(3) == 6"]),
        (MBPP, "hiddenTests", ["assert double(3) == 6"]),
        (MBPP, "base_input", [[3]]),
        (MBPP, "private_test_cases", '[{"input": "3"}]'),
        (LCB, "generated_tests", [{"input": "2\n", "output": "2\n"}]),
        (LCB, "checker", "def check(): ..."),
        ({"question": "Q", "answer": "#### 1"}, "final_answer", "2"),
        ({"question": "Q", "answer": "#### 1"}, "tolerance", 0.5),
    ],
)
def test_a_column_with_a_role_in_grading_is_refused_by_name(
    tmp_path: Path, row: dict[str, Any], column: str, value: Any
) -> None:
    with pytest.raises(
        UserError, match=f"row 1: field {column!r} is not read in format .* drop the column"
    ):
        _read(tmp_path, {**row, column: value})
    assert _read(tmp_path, {**row, column: None}), "an empty column changes nothing"


@pytest.mark.parametrize(
    ("row", "extra"),
    [
        (LCB, {}),
        (LCB, {"x_release": "v5", "x_public_source": "own", "x_private_validated_by": "nobody"}),
        (MBPP, {"notes": "mine", "contest": "a"}),
        (
            HUMANEVAL_PLUS,
            {"signature": "total(values)", "docstring": "...", "language": "Python", "timeout": 0},
        ),
        (
            {**HUMANEVAL_PLUS, "base_input": [[[1.0]]], "plus_input": [], "atol": 0},
            {"contract": "assert values"},
        ),
        (
            {"question": "Q", "answer": "A ** b\n#### 1"},
            {"cleaning_status": "verified", "original_answer": "#### 2"},
        ),
    ],
)
def test_other_columns_are_left_out(
    tmp_path: Path, row: dict[str, Any], extra: dict[str, Any]
) -> None:
    assert _read(tmp_path, {**row, **extra}) == _read(tmp_path, row)


def test_a_benchmark_in_another_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="field 'language' holds 'java': only Python is graded"):
        _read(tmp_path, {**HUMANEVAL_PLUS, "language": "java"})


@pytest.mark.parametrize(
    "columns",
    [
        "problem_id question solutions input_output difficulty url starter_code",  # APPS
        "question solutions starter_code input_output difficulty raw_tags name source tags",  # TACO
        (
            "name description public_tests private_tests generated_tests source difficulty "
            "solutions time_limit"
        ),  # CodeContests
        (
            "style subset question_id question solution test test_info gpt_pass_percentage metadata"
        ),  # KodCode
        (
            "task_id question_id difficulty problem_description prompt completion entry_point "
            "test query"
        ),  # LeetCodeDataset
        (
            "question_id question starter_code inputs outputs is_synthesized test_case_type"
        ),  # rStar-Coder, seed_testcase
        (
            "id description input_format output_format official_tests generated_checker executable"
        ),  # open-r1/codeforces
        (
            "source task_type prompt gold_standard_solution verification_info metadata problem_id"
        ),  # verifiable-coding-problems
        (
            "task_id complete_prompt instruct_prompt canonical_solution code_prompt test "
            "entry_point"
        ),  # BigCodeBench
        "name language prompt doctests tests stop_tokens",  # MultiPL-E
    ],
)
def test_data_sets_in_other_formats_are_refused(tmp_path: Path, columns: str) -> None:
    with pytest.raises(UserError, match="fit no known format"):
        _read(tmp_path, dict.fromkeys(columns.split(), "x"))


RSTAR = [
    {
        "question_id": f"seed_{number}",
        "question": f"Task {number}.",
        "starter_code": "",
        "is_passed": number in (0, 3),
    }
    for number in range(4)
]


def _prompts(source: Path | str, **choices: Any) -> tuple[list[Problem], sources.Tally]:
    tally = sources.Tally()
    chosen = PromptsConfig.model_validate({"source": str(source), **choices})
    return list(sources.training_problems(chosen, tally)), tally


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_only_passed_filters_a_local_copy_of_rstar_coder(tmp_path: Path, suffix: str) -> None:
    path = _write(tmp_path / "seed.jsonl", *RSTAR)
    if suffix == "parquet":
        path = tmp_path / "seed.parquet"
        pq.write_table(pa.Table.from_pylist(RSTAR), path)
    problems, tally = _prompts(path)
    assert [problem.statement for problem in problems] == ["Task 0.", "Task 3."]
    assert (tally.read, tally.dropped) == (4, Counter({"stored solution did not pass": 2}))
    assert len(_prompts(path, only_passed=False)[0]) == 4


def test_only_passed_filters_a_hub_copy_of_rstar_coder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.load_dataset", lambda *_, **__: RSTAR)
    problems, tally = _prompts("hub:microsoft/rStar-Coder:seed_sft")
    assert (len(problems), tally.dropped) == (2, Counter({"stored solution did not pass": 2}))
    assert len(_prompts("hub:microsoft/rStar-Coder:seed_sft", only_passed=False)[0]) == 4


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (True, 1),
        ("True", 1),
        ("true", 1),
        (1, 1),
        (1.0, 1),
        (False, 0),
        ("False", 0),
        ("0", 0),
        (0, 0),
        (None, 0),
    ],
)
def test_is_passed_is_read_in_every_form_of_a_file(tmp_path: Path, value: Any, kept: int) -> None:
    rows = [{"question": "Other.", "is_passed": True}, {"question": "This.", "is_passed": value}]
    assert len(_prompts(_write(tmp_path / "p.jsonl", *rows))[0]) == 1 + kept


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"question": "A.", "is_passed": "perhaps"}],
            "row 1: field 'is_passed' must be true or false, not 'perhaps'",
        ),
        (
            [{"question": "A.", "is_passed": True}, {"question": "B."}],
            "row 2: field 'is_passed' is in some rows and not in",
        ),
        (
            [{"question": "A."}, {"question": "B.", "is_passed": False}],
            "row 2: field 'is_passed' is in some rows and not in",
        ),
        (
            [{"question": "A.", "verified": False}],
            "row 1: field 'verified' looks like 'is_passed'.*prompts.only_passed=false",
        ),
        (
            [{"question": "A.", "r1_correctness": "True"}],
            "field 'r1_correctness' looks like 'is_passed'",
        ),
        ([{"question": "A.", "is_correct": True}], "field 'is_correct' looks like 'is_passed'"),
    ],
)
def test_an_unclear_column_of_verdicts_is_refused(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    path = _write(tmp_path / "p.jsonl", *rows)
    with pytest.raises(UserError, match=message):
        _prompts(path)
    assert len(_prompts(path, only_passed=False)[0]) == len(rows)


@pytest.mark.parametrize(
    "extra", [{}, {"passed_by": "me"}, {"gpt_pass_percentage": 0.4}, {"correct_answer": "1"}]
)
def test_rows_without_a_verdict_all_stay(tmp_path: Path, extra: dict[str, Any]) -> None:
    problems, tally = _prompts(_write(tmp_path / "p.jsonl", {"question": "A.", **extra}))
    assert (len(problems), tally.dropped) == (1, Counter())


def test_a_statement_in_several_columns_is_refused(tmp_path: Path) -> None:
    row = {
        "description": "Add.",
        "input_format": "Two\nnumbers.",
        "output_format": None,
        "prompt": "Add. Two numbers.",
    }
    path = _write(tmp_path / "p.jsonl", row)
    with pytest.raises(
        UserError,
        match="field 'input_format' holds a part of the statement that 'description' lacks: join",
    ):
        _prompts(path, statement_column="description")
    assert _prompts(path, statement_column="prompt")[0][0].statement == "Add. Two numbers."


@pytest.mark.parametrize(
    ("extra", "function"),
    [
        ({"entry_point": "add"}, "add"),
        ({"fn_name": "add"}, "add"),
        ({"test_entry_point": "add"}, "add"),
        (
            {"test_info": [{"function_name": "add", "docstring": ""}, {"function_name": "sub"}]},
            "add",
        ),
        ({"entry_point": "", "test_info": []}, None),
    ],
)
def test_a_prompt_states_the_function_that_a_row_names(
    tmp_path: Path, extra: dict[str, Any], function: str | None
) -> None:
    ((problem,), _) = _prompts(_write(tmp_path / "p.jsonl", {"question": "Add.", **extra}))
    assert (problem.kind, problem.entry_point) == ("function" if function else "stdin", function)
    assert ("reads standard input" in user_message(problem)) == (function is None)
    assert ("`add`" in user_message(problem)) == (function is not None)


def test_starter_code_goes_before_a_named_function(tmp_path: Path) -> None:
    row = {
        "question": "Add.",
        "starter_code": "class Solution:\n    def add(self, a, b):\n",
        "entry_point": "Solution().add",
    }
    ((problem,), _) = _prompts(_write(tmp_path / "p.jsonl", row))
    assert "Start from this code" in user_message(problem)
    with pytest.raises(UserError, match="field 'entry_point' must name a function"):
        _prompts(_write(tmp_path / "bad.jsonl", {"question": "Add.", "entry_point": "no name"}))
