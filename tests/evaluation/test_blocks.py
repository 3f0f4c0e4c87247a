"""A block of another language has its own outcome and never changes a score."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from ssd_ray.evaluation.judging.blocks import wrong_block
from ssd_ray.evaluation.judging.judge import Rules, grade_completion
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.extraction import Extraction, extract, names_other_language
from ssd_ray.progress import LineProgress
from ssd_ray.reasoning import content_of_text
from ssd_ray.schema import Problem, Test, Verdict
from ssd_ray.standalone.grade_files import Job, grade_files
from tests.support.sample_rows import completion

RULES = Rules(limits=Limits(time_s=5, memory_mib=512, output_kib=64))
SUM = Problem(
    problem_id="sum", source="t", statement="Add.", tests=(Test(input="1 2\n", output="3\n"),)
)
GCD = Problem(
    problem_id="gcd",
    source="t",
    statement="The gcd.",
    kind="function",
    entry_point="gcd",
    tests=(Test(input="[4, 6]", output="2"),),
)
CHECKED = dataclasses.replace(
    GCD,
    kind="asserts",
    tests=(Test(input="def check(candidate):\n    assert candidate(4, 6) == 2\n", output=""),),
)
ADD = "```python\na, b = map(int, input().split())\nprint(a + b)\n```\n"
DEFINE = "```python\ndef gcd(a, b):\n    while b:\n        a, b = b, a % b\n    return a\n```\n"
METHOD = (
    "```python\nclass Solution:\n    def gcd(self, a, b):\n"
    "        return b if a % b == 0 else self.gcd(b, a % b)\n```\n"
)


def _graded(problem: Problem, text: str, sandbox: Sandbox, rules: Rules = RULES) -> Verdict:
    return grade_completion(problem, completion(problem.problem_id, text=text), rules, sandbox)


@pytest.mark.parametrize(
    ("problem", "text", "why"),
    [
        (SUM, f"{ADD}Run it:\n```bash\necho '1 2' | python3 add.py\n```\n", "marked bash"),
        (SUM, f"{ADD}Output:\n```text\n3\n```\n", "marked text"),
        (SUM, f"{ADD}```json\n[3]\n```\n", "marked json"),
        (SUM, f"{ADD}```Console\n$ python3 add.py\n```\n", "marked console"),
        (SUM, f"{ADD}```python-repl\n>>> 1 + 2\n3\n```\n", "marked python-repl"),
        (SUM, "```cpp\nint main() { }\n```\n", "marked cpp"),
        (SUM, f"{ADD}It prints\n```\n3\n```\n", "reads no input, an earlier one does"),
        (
            SUM,
            f"{ADD}For example:\n```python\nprint(1 + 2 + 4)\n```\n",
            "reads no input, an earlier one does",
        ),
        (
            GCD,
            f"{DEFINE}A quick check:\n```python\nprint(gcd(4, 6))  # 2\n```\n",
            "does not define gcd, an earlier one does",
        ),
        (
            GCD,
            f"{METHOD}```python\nprint(Solution().gcd(4, 6))\n```\n",
            "does not define gcd, an earlier one does",
        ),
        (
            dataclasses.replace(GCD, entry_point="Solution().gcd"),
            f"{METHOD}```python\nprint(Solution().gcd(4, 6))\n```\n",
            "does not define gcd, an earlier one does",
        ),
        (
            CHECKED,
            f"{DEFINE}```python\nassert gcd(4, 6) == 2\n```\n",
            "does not define gcd, an earlier one does",
        ),
        (CHECKED, f"{DEFINE}```sh\npython -m pytest\n```\n", "marked sh"),
    ],
)
def test_a_last_block_that_is_no_program_is_a_wrong_block(
    problem: Problem, text: str, why: str, sandbox: Sandbox
) -> None:
    verdict = _graded(problem, text, sandbox)
    assert verdict.outcome == "wrong_block"
    assert f"the last block {why}" in verdict.detail.replace("is marked", "marked")
    assert verdict.num_passed == 0


@pytest.mark.parametrize(
    ("problem", "text", "outcome"),
    [
        (SUM, ADD, "accepted"),
        (
            SUM,
            ADD.replace("python", "text"),
            "accepted",
        ),  # the rule runs a block of any fence
        (SUM, f"```python\nprint(0)\n```\n{ADD}", "accepted"),
        (SUM, f"{ADD}Better:\n```python\nx = input()\nprint(x)\n```\n", "wrong_answer"),
        (
            SUM,
            f"{ADD}Better:\n```python3\nimport sys\nprint(sys.stdin.read(1) / 0)\n```\n",
            "runtime_error",
        ),
        (
            SUM,
            "```python\nprint(4)\n```\n",
            "wrong_answer",
        ),  # a program that reads nothing, and no other
        (SUM, "```solution.py\nprint(4)\n```\n", "wrong_answer"),
        (GCD, f"{DEFINE}```python\ngcd = lambda a, b: 1\n```\n", "wrong_answer"),
        (GCD, f"{DEFINE}```python\nfrom math import gcd\n```\n", "accepted"),
        (GCD, "```python\nprint(6)\n```\n", "runtime_error"),
        (GCD, f"{DEFINE}```python\ndef gcd(a, b):\n    raise ValueError\n```\n", "runtime_error"),
        (GCD, f"{DEFINE}```bash\nls", "no_code"),
    ],
)
def test_a_program_that_fails_is_no_wrong_block(
    problem: Problem, text: str, outcome: str, sandbox: Sandbox
) -> None:
    assert _graded(problem, text, sandbox).outcome == outcome


def test_other_rules_name_their_wrong_blocks_too(sandbox: Sandbox) -> None:
    first = dataclasses.replace(RULES, extract="first-block")
    verdict = _graded(GCD, f"```bash\npip install x\n```\n{DEFINE}", sandbox, first)
    assert (verdict.outcome, verdict.detail[:34]) == (
        "wrong_block",
        "the first block is marked bash, no"[:34],
    )
    verdict = _graded(GCD, f"```python\nprint(gcd(4, 6))\n```\n{DEFINE}", sandbox, first)
    assert "the first block does not define gcd, a later one does" in verdict.detail
    official = dataclasses.replace(RULES, extract="lcb")
    assert _graded(SUM, f"{ADD}```bash\nls\n```\n", sandbox, official).outcome == "wrong_block"
    assert (
        _graded(SUM, f"{ADD}It prints\n```\n3\n```\n", sandbox, official).outcome == "wrong_block"
    )
    compatible = dataclasses.replace(RULES, profile="lcb-compat")
    row = dataclasses.replace(SUM, comparison="lcb")
    assert _graded(row, f"{ADD}```bash\nls\n```\n", sandbox, compatible).outcome == "wrong_block"


def test_a_block_that_passes_some_tests_is_a_program(sandbox: Sandbox) -> None:
    both = dataclasses.replace(SUM, tests=(*SUM.tests, Test(input="2 2\n", output="4\n")))
    assert _graded(both, f"{ADD}```text\nprint(3)\n```\n", sandbox).outcome == "wrong_answer"


@pytest.mark.parametrize(
    "word",
    [
        "",
        "python",
        "Python3",
        "py",
        "python3.11",
        "ipython",
        "{.python .numberLines}",
        "main.py",
        "tool_code",
    ],
)
def test_fences_of_python_name_no_other_language(word: str) -> None:
    text = f"```{word}\nprint(1)\n```"
    assert not names_other_language(extract(text, content_of_text(text)).language)


@pytest.mark.parametrize(
    "word",
    [
        "bash",
        "Shell",
        "text",
        "output",
        "json",
        "c++",
        "javascript",
        "console",
        "pycon",
        "toml title=x",
    ],
)
def test_fences_of_other_languages_are_known(word: str) -> None:
    text = f"```{word}\nprint(1)\n```"
    assert names_other_language(extract(text, content_of_text(text)).language)


@pytest.mark.parametrize(
    "unit",
    [
        "\n",
        " ",
        "def ",
        "import ",
        "from x import ",
        "gcd : ",
        "input ",
        "from " + "import " * 29 + "\n",
    ],
)
def test_signs_of_a_program_are_found_in_linear_time(unit: str) -> None:
    started, long = time.monotonic(), unit * (300_000 // len(unit))
    for problem in (SUM, GCD):
        extraction = Extraction(code=long, others=(long, long))
        assert wrong_block(problem, extraction, "last-block") == ""
    assert time.monotonic() - started < 5


@pytest.mark.slow
def test_standalone_scores_count_wrong_blocks_and_reasoning(tmp_path: Path) -> None:
    problems = [
        {
            "problem_id": "sum",
            "statement": "Add.",
            "kind": "stdin",
            "tests": [{"input": "1 2\n", "output": "3\n"}],
        },
        {"problem_id": "gcd", "statement": "Gcd.", "kind": "function", "entry_point": "gcd"}
        | {"tests": [{"arguments": [4, 6], "expected": 2}]},
    ]
    texts: list[tuple[str, str]] = [
        ("sum", f"{ADD}```bash\necho\n```\n"),
        ("gcd", f"<think>hm</think>{DEFINE}```python\nprint(gcd(4, 6))\n```\n"),
        ("sum", ADD),
        ("sum", f"<think>{ADD}"),
    ]

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    job = Job(
        problems=write("problems.jsonl", problems),
        completions=write(
            "answers.jsonl", [{"problem_id": name, "text": text} for name, text in texts]
        ),
        out=tmp_path / "out",
        rules=RULES,
    )
    scores = grade_files(job, LineProgress())
    assert scores.outcomes == {"accepted": 1, "no_code": 1, "wrong_block": 2}
    assert scores.reasoning == {"ended": 1, "none": 2, "unfinished": 1}
    rows = pq.read_table(job.out / "verdicts.parquet").to_pylist()
    assert sorted(row["reasoning"] for row in rows) == ["ended", "none", "none", "unfinished"]
