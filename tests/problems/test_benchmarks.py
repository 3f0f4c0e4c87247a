"""Benchmarks are read in their own formats, row by row, with the published prompts."""

from __future__ import annotations

import gzip
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_ray import wire
from ssd_ray.artifacts import shards
from ssd_ray.config import Benchmark, EvaluateConfig
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.expected_outputs import needs_expected, with_expected
from ssd_ray.evaluation.sandbox import Limits, Sandbox
from ssd_ray.problems import sources
from ssd_ray.problems.benchmarks import FORMATS, evalplus, find_format, read_problems, resolve
from ssd_ray.problems.benchmarks.files import RowError
from ssd_ray.problems.benchmarks.gsm8k import gold_number
from ssd_ray.problems.published_prompts import published, released_evaluation
from ssd_ray.problems.rendering import messages, user_message
from ssd_ray.schema import Problem, Test

DATA = Path(__file__).parents[3] / "shared" / "data"
LIMITS = Limits(time_s=10, memory_mib=1024, output_kib=32 << 10)

HUMANEVAL = {
    "task_id": "HumanEval/0",
    "prompt": 'from typing import List\n\n\ndef double(x: int) -> int:\n    """Twice x."""\n',
    "entry_point": "double",
    "canonical_solution": "    return 2 * x\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n",
}
HUMANEVAL_PLUS = {
    **HUMANEVAL,
    "contract": "",
    "base_input": [[2], [3]],
    "plus_input": [[10**30], [-1]],
    "atol": 0,
}
MBPP_PLUS = {
    "task_id": "Mbpp/2",
    "prompt": (
        '"""\nFind the shared elements.\n'
        'assert set(similar_elements((3, 4),(4, 5))) == set((4,))\n"""\n'
    ),
    "entry_point": "similar_elements",
    "canonical_solution": "\ndef similar_elements(a, b):\n    return tuple(set(a) & set(b))\n",
    "base_input": [[[3, 4], [4, 5]]],
    "plus_input": [[[], []]],
    "atol": 0,
    "contract": "",
    "assertion": "",
}
MBPP = {
    "text": "Write a function to find the shared elements.",
    "code": (
        "import math\r\ndef helper(x):\r\n  return x\r\ndef shared(a, b):\r\n"
        "  return helper(tuple(set(a) & set(b)))"
    ),
    "task_id": 11,
    "test_setup_code": "",
    "test_list": [
        "assert shared((3, 4), (4, 5)) == (4,)",
        'assert set(shared((1,), (1,))) == {1}, "text\\n"',
    ],
    "challenge_test_list": [],
}
GSM8K = {"question": "How many?", "answer": "9 * 2 = <<9*2=18>>18\n#### 1,018"}
OWN = {
    "problem_id": "mine/1",
    "statement": "Echo.",
    "kind": "stdin",
    "tests": [{"input": "1\n", "output": "1\n"}],
}
ROWS = {
    "evalplus": HUMANEVAL_PLUS,
    "humaneval": HUMANEVAL,
    "mbpp": MBPP,
    "gsm8k": GSM8K,
    "rows": OWN,
}


def _write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _read(tmp_path: Path, *rows: dict[str, Any]) -> list[Problem]:
    return list(read_problems(_write(tmp_path / "p.jsonl", *rows)))


@pytest.mark.parametrize(("name", "row"), ROWS.items())
def test_a_format_is_known_by_its_columns_in_any_container(
    tmp_path: Path, name: str, row: dict[str, Any]
) -> None:
    plain = read_problems(_write(tmp_path / "p.jsonl", row))
    with gzip.open(tmp_path / "p.jsonl.gz", "wt") as handle:
        handle.write(json.dumps(row) + "\n")
    packed = {
        key: json.dumps(value) if isinstance(value, list) else value for key, value in row.items()
    }
    pq.write_table(pa.Table.from_pylist([packed]), tmp_path / "p.parquet")
    assert plain.format == name
    first = list(plain)
    assert len(first) == 1
    assert (
        list(read_problems(tmp_path / "p.jsonl.gz"))
        == list(read_problems(tmp_path / "p.parquet"))
        == first
    )


def test_every_format_is_distinguished_from_every_other() -> None:
    for form in FORMATS:
        assert find_format(dict.fromkeys(form.columns)) is form
    with pytest.raises(
        UserError,
        match=r"columns a, b fit no known format: livecodebench \(.*gsm8k \(answer, question\)",
    ):
        find_format({"a": 1, "b": 2})
    several = dict.fromkeys({*ROWS["gsm8k"], *ROWS["mbpp"]})
    with pytest.raises(UserError, match=r"fit several formats: mbpp .*gsm8k"):
        find_format(several)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no row to read"),
        (b'{"a": 1}\n', "row 1: columns a fit no known format"),
        (b"\xff\n", "row 1: not JSONL in UTF-8"),
        (b"[" * 100_000, "row 1: not JSONL"),
        (b'{"n": ' + b"9" * 60_000 + b"}", "row 1: not JSONL"),
        (b"[]\n", "row 1: not a JSON object"),
        (
            json.dumps(GSM8K).encode() + b"\n" + json.dumps(OWN).encode(),
            "row 2: it is not of format gsm8k",
        ),
        (
            json.dumps(OWN).encode() + b"\n\n" + json.dumps(OWN).encode(),
            "row 3: id 'mine/1' occurs twice",
        ),
    ],
)
def test_a_file_of_another_kind_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "p.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        list(read_problems(path))
    assert message in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl.gz").write_bytes(gzip.compress(json.dumps(OWN).encode())[:-9])
    (tmp_path / "p.parquet").write_bytes(b"PAR1")
    for name, message in (
        ("p.jsonl.gz", "cannot be read"),
        ("p.parquet", "not a readable Parquet file"),
        ("q", "no JSONL or Parquet"),
    ):
        with pytest.raises(UserError, match=message):
            list(read_problems(tmp_path / name))


def test_evalplus_keeps_base_tests_before_plus_tests(tmp_path: Path) -> None:
    (problem,) = _read(tmp_path, HUMANEVAL_PLUS)
    assert (problem.kind, problem.source, problem.comparison, problem.atol) == (
        "function",
        "humaneval+",
        "evalplus",
        0.0,
    )
    assert [test.group for test in problem.tests] == ["base", "base", "plus", "plus"]
    assert [wire.loads(test.input) for test in problem.tests] == [[2], [3], [10**30], [-1]]
    assert needs_expected(problem)
    with Sandbox(floor="L0") as sandbox:
        known = with_expected(problem, sandbox, LIMITS)
        assert with_expected(known, sandbox, LIMITS) is known
    assert [wire.loads(test.output) for test in known.tests] == [4, 6, 2 * 10**30, -2]
    assert [test.group for test in known.tests] == ["base", "base", "plus", "plus"]


def _function(reference: str, inputs: list[list[object]], comparison: str = "evalplus") -> Problem:
    tests = tuple(Test(input=wire.dumps(arguments), output="") for arguments in inputs)
    return Problem(
        problem_id="x",
        source="x",
        statement="s",
        kind="function",
        entry_point="f",
        reference=reference,
        tests=tests,
        comparison=comparison,  # type: ignore[arg-type]
    )


def test_a_reference_may_change_its_inputs() -> None:
    shared: list[object] = [1]
    reference = (
        "n = 0\ndef f(xs):\n    global n\n    n += 1\n    xs.append(n)\n"
        "    return xs, {1j}, float('nan')"
    )
    with Sandbox(floor="L0") as sandbox:
        known = with_expected(_function(reference, [[shared], [shared]]), sandbox, LIMITS)
    assert [repr(wire.loads(test.output)) for test in known.tests] == [
        "([1, 1], {1j}, nan)",
        "([1, 2], {1j}, nan)",
    ]


def test_a_not_none_comparison_stores_only_presence() -> None:
    with Sandbox(floor="L0") as sandbox:
        reference = "import re\ndef f(t):\n    return re.search('a', t)"
        known = with_expected(
            _function(reference, [["a"], ["b"]], "evalplus-not-none"), sandbox, LIMITS
        )
    assert [wire.loads(test.output) for test in known.tests] == [True, False]


def test_a_reference_that_fails_is_never_an_expected_value() -> None:
    reference = "def f(x):\n    return 1 / x if x else (i for i in ())"
    with Sandbox(floor="L0") as sandbox:
        for bad, message in (
            ("0.0 + 's'", "runtime_error"),
            ("iter(())", "returns a value of type"),
        ):
            problem = _function(f"def f(x):\n    return {bad}", [[1]])
            with pytest.raises(UserError, match=message):
                with_expected(problem, sandbox, LIMITS)
        left_out: list[str] = []
        known = with_expected(
            _function(reference, [[1], [0], [2]]), sandbox, LIMITS, left_out=left_out
        )
    assert [wire.loads(test.output) for test in known.tests] == [1.0, 0.5]
    assert len(left_out) == 1
    assert left_out[0].startswith("problem x, test 2: its reference returns")


@pytest.mark.parametrize(
    ("ordinal", "stored", "meant"),
    [
        (2, [[1], [2]], [(1,), (2,)]),
        (63, [[[1, 2], [3]]], [[(1, 2), (3,)]]),
        (75, [[[1], [2]], 6], [[(1,), (2,)], 6]),
        (106, [[1], [2]], [[1], (2,)]),
        (115, [[[1, 2], [], {}]], [[{1, 2}, {}, {}]]),
        (124, ["0", "1j"], [0.0, 1j]),
        (250, [[1], 2], [(1,), 2]),
        (252, ["(1+2j)"], [1 + 2j]),
        (259, [[[1], [2]], [[3]]], [((1,), (2,)), ((3,),)]),
        (278, [[[1], 2]], [((1,), 2)]),
        (307, [[1], 2, 3], [(1,), 2, 3]),
        (722, [{"a": [1, 2]}, 3, 4], [{"a": (1, 2)}, 3, 4]),
        (580, [[1, [2, [3]]]], [(1, (2, (3,)))]),
        (404, [float("inf"), 1], [float("inf"), 1]),
    ],
)
def test_mbpp_plus_inputs_get_the_types_of_their_task(
    tmp_path: Path, ordinal: int, stored: list[object], meant: list[object]
) -> None:
    row = {**MBPP_PLUS, "task_id": f"Mbpp/{ordinal}", "base_input": [stored], "plus_input": {}}
    (problem,) = _read(tmp_path, row)
    assert repr(wire.loads(problem.tests[0].input)) == repr(meant)


def test_every_comparison_of_a_task_exists() -> None:
    from ssd_ray.evaluation.judging.comparison import same

    for name in {*evalplus._MBPP_COMPARISONS.values(), *evalplus._HUMANEVAL_COMPARISONS.values()}:
        same(name, 1, 1, 0.0, [[1], 1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**HUMANEVAL_PLUS, "task_id": "Other/1"}, "field 'task_id' must be HumanEval/N or Mbpp/N"),
        ({**HUMANEVAL_PLUS, "base_input": []}, "field 'base_input' is empty"),
        (
            {**HUMANEVAL_PLUS, "plus_input": [3]},
            "field 'plus_input', input 1: a list of arguments is needed",
        ),
        ({**HUMANEVAL_PLUS, "atol": None}, "field 'atol'"),
        (
            {**HUMANEVAL_PLUS, "canonical_solution": " "},
            "field 'canonical_solution' must hold text",
        ),
        (
            {**MBPP_PLUS, "task_id": "Mbpp/124", "base_input": [["x", "1j"]]},
            "field 'base_input', input 1",
        ),
        ({**MBPP_PLUS, "task_id": "Mbpp/307"}, "field 'base_input', input 1"),
        ({**HUMANEVAL, "test": "assert True"}, "field 'test' must define check"),
        ({**MBPP, "test_list": []}, "field 'test_list' is empty"),
        ({**MBPP, "test_list": ["shared(1)"]}, "is not one assertion"),
        ({**MBPP, "test_list": ["assert ("]}, "field 'test_list' is not Python"),
        (
            {**MBPP, "test_list": ["assert other(1) == 1"]},
            "no function of 'code' is named in every assertion",
        ),
        (
            {
                **MBPP,
                "code": "class Node:\n  pass\ndef f(n):\n  pass",
                "test_setup_code": "r = Node()",
                "test_list": ["assert f(r)"],
            },
            "field 'test_setup_code' builds objects of the solution's own class Node",
        ),
        (
            {
                **MBPP,
                "code": "class Pair:\n  pass\ndef f(p):\n  pass",
                "test_list": ["assert f(Pair())"],
            },
            "field 'test_list' builds objects of the solution's own class Pair",
        ),
        ({**MBPP, "test_imports": ["import"]}, "field 'test_imports' is not Python"),
        ({**MBPP, "test_list": ["assert shared((1,), str) == ()"]}, "passes str itself"),
        ({**GSM8K, "answer": "18"}, "must end in '#### number'"),
        ({**GSM8K, "answer": "#### many"}, "must end in '#### number'"),
        ({**GSM8K, "answer": "#### nan"}, "must end in '#### number'"),
        ({**OWN, "tests": []}, "field 'tests' is empty"),
        ({**OWN, "kind": "magic"}, "field 'kind' must be one of stdin"),
        ({**OWN, "entry_pont": "f"}, "field 'entry_pont' is unknown"),
        ({**OWN, "kind": "function"}, "field 'entry_point' must name"),
        ({**OWN, "comparison": "exact"}, "field 'comparison' must be one of value"),
        ({**OWN, "atol": -1}, "field 'atol'"),
        ({**OWN, "tests": [{"input": "1"}]}, "test 1: it must hold input and output"),
        ({**OWN, "tests": [{"input": "1", "output": 1}]}, "its output must be text"),
        (
            {
                **OWN,
                "kind": "function",
                "entry_point": "f",
                "tests": [{"input": "1", "output": "1"}],
            },
            "a list of arguments",
        ),
        (
            {
                **OWN,
                "kind": "function",
                "entry_point": "f",
                "tests": [{"arguments": 1, "expected": 1}],
            },
            "must be a list",
        ),
        (
            {
                **OWN,
                "kind": "function",
                "entry_point": "f",
                "tests": [{"input": "[1", "output": "1"}],
            },
            "not values on the wire",
        ),
        (
            {**OWN, "kind": "asserts", "entry_point": "f", "tests": [{"check": "x"}]},
            "defines check(candidate)",
        ),
        ({**OWN, "kind": "numeric", "tests": [{"answer": "many"}]}, "it must hold an answer"),
        ({**OWN, "problem_id": ""}, "field 'problem_id'"),
    ],
)
def test_a_bad_row_is_refused_with_its_field(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        _read(tmp_path, row)
    assert "p.jsonl, row 1: " in str(caught.value)
    assert message in str(caught.value)
    loaded = read_problems(tmp_path / "p.jsonl", skip_bad_rows=True)
    assert list(loaded) == []
    assert [bad.row for bad in loaded.bad_rows] == [1]


def test_an_mbpp_assertion_becomes_a_check_of_the_candidate(tmp_path: Path) -> None:
    (problem,) = _read(tmp_path, MBPP)
    assert (problem.problem_id, problem.kind, problem.entry_point) == (
        "mbpp/11",
        "asserts",
        "shared",
    )
    assert MBPP["test_list"][0] in problem.statement
    for test in problem.tests:
        namespace: dict[str, Any] = {}
        exec(test.input, namespace)
        namespace["check"](lambda a, b: tuple(set(a) & set(b)))
        with pytest.raises(AssertionError):
            namespace["check"](lambda a, b: None) if test is problem.tests[0] else namespace[
                "check"
            ](lambda a, b: ())


def test_sanitized_mbpp_has_imports_and_a_column_prompt(tmp_path: Path) -> None:
    row = {
        key: value
        for key, value in MBPP.items()
        if key not in {"text", "test_setup_code", "challenge_test_list"}
    }
    (problem,) = _read(
        tmp_path, {**row, "prompt": "Find.", "source_file": "x", "test_imports": ["import math"]}
    )
    assert problem.statement.startswith("Find.")
    assert problem.tests[0].input.startswith("import math\ndef check(candidate):")


def test_an_mbpp_split_has_its_published_size(tmp_path: Path) -> None:
    rows = [{**MBPP, "task_id": number} for number in range(5, 15)]
    file = str(_write(tmp_path / "m.jsonl", *rows))
    loaded = resolve.load(Benchmark(name="m", file=file, release="test"))
    assert [problem.problem_id for problem in loaded] == [
        f"mbpp/{number}" for number in range(11, 15)
    ]
    benchmark = Benchmark(name="m", file=file, release="test")
    with pytest.raises(UserError, match="split test has 500 problems and 4 were found"):
        list(resolve.counted(benchmark, resolve.load(benchmark)))


@pytest.mark.parametrize(
    ("answer", "gold"),
    [("#### 18", "18"), ("x\n#### 1,234", "1234"), ("#### -3", "-3"), ("#### $2.50", "2.50")],
)
def test_the_gold_number_follows_the_mark(answer: str, gold: str) -> None:
    assert gold_number(answer) == gold
    with pytest.raises(RowError):
        gold_number(answer.replace("####", "##"))


def test_custom_rows_of_every_kind_are_read(tmp_path: Path) -> None:
    problems = _read(
        tmp_path,
        OWN,
        {
            **OWN,
            "problem_id": 2,
            "difficulty": "hard",
            "source": "team",
            "tests": json.dumps(OWN["tests"]),
        },
        {
            **OWN,
            "problem_id": "f",
            "kind": "function",
            "entry_point": "f",
            "tests": [{"arguments": [{"a": [1]}], "expected": None}],
        },
        {
            **OWN,
            "problem_id": "a",
            "kind": "asserts",
            "entry_point": "f",
            "tests": [{"check": HUMANEVAL["test"]}],
        },
        {**OWN, "problem_id": "n", "kind": "numeric", "tests": [{"answer": 4.5}]},
    )
    assert [problem.problem_id for problem in problems] == ["mine/1", "2", "f", "a", "n"]
    assert [problem.source for problem in problems] == ["p", "team", "p", "p", "p"]
    assert wire.loads(problems[2].tests[0].input) == [{"a": [1]}]
    assert [problem.tests[0].output for problem in problems] == ["1\n", "1\n", "null", "", "4.5"]


def test_rows_of_a_runs_benchmark_are_read_back(tmp_path: Path) -> None:
    problems = list(sources.builtin("eval"))[:12]
    shards.write_shard(tmp_path, "problems", problems, Problem)
    assert list(read_problems(tmp_path)) == problems


def _evaluate(*benchmarks: object, **choices: object) -> EvaluateConfig:
    return EvaluateConfig.model_validate(
        {"arms": {"base": {"model": "base"}}, "benchmarks": benchmarks, **choices}
    )


def test_a_recipe_mixes_names_and_files_and_limits_each(tmp_path: Path) -> None:
    file = str(
        _write(
            tmp_path / "mine.jsonl", *({**OWN, "problem_id": str(number)} for number in range(5))
        )
    )
    chosen = _evaluate(
        "builtin", file, {"name": "sums", "file": str(_write(tmp_path / "g.jsonl", GSM8K))}, limit=3
    )
    problems = list(sources.benchmark_problems(chosen))
    assert Counter(problem.source for problem in problems) == {"builtin": 3, "mine": 3, "sums": 1}


def test_skipped_rows_of_a_benchmark_are_counted_and_listed(tmp_path: Path) -> None:
    file = str(_write(tmp_path / "mine.jsonl", OWN, {**OWN, "tests": []}))
    tally = sources.Tally()
    with pytest.raises(UserError, match="row 2"):
        list(sources.benchmark_problems(_evaluate(file)))
    assert (
        len(
            list(
                sources.benchmark_problems(_evaluate({"file": file, "skip_bad_rows": True}), tally)
            )
        )
        == 1
    )
    assert (tally.read, dict(tally.dropped)) == (1, {"bad row of mine": 1})
    assert [(bad.row, "is empty" in bad.reason) for bad in tally.bad_rows] == [(2, True)]


def test_a_problem_that_two_benchmarks_share_is_refused(tmp_path: Path) -> None:
    file = str(_write(tmp_path / "a.jsonl", OWN))
    with pytest.raises(UserError, match="mine/1 is in benchmark a and in b"):
        list(sources.benchmark_problems(_evaluate(file, {"name": "b", "file": file})))


def test_releases_and_dates_belong_to_formats_that_have_them(tmp_path: Path) -> None:
    file = str(_write(tmp_path / "g.jsonl", GSM8K))
    for chosen, message in (
        ({"window": "paper-v6"}, "only LiveCodeBench has contest dates"),
        ({"release": "v6"}, "has no releases"),
    ):
        with pytest.raises(UserError, match=message):
            list(sources.benchmark_problems(_evaluate({"file": file, **chosen})))


def test_a_benchmarks_identity_follows_its_files_and_choices(tmp_path: Path) -> None:
    file = _write(tmp_path / "g.jsonl", GSM8K)
    first = sources.identify(Benchmark(name="g", file=str(file)))
    assert first == sources.identify(Benchmark(name="other", file=str(file)))
    assert sources.identify(Benchmark(name="g", file=str(file), end="2025-01")) != first
    assert sources.identify(Benchmark(name="g", file=str(file), skip_bad_rows=True)) != first
    _write(file, {**GSM8K, "question": "How few?"})
    assert sources.identify(Benchmark(name="g", file=str(file))) != first
    assert sources.identify(Benchmark(name="builtin")) == sources.identify("builtin")
    with pytest.raises(UserError, match=r"benchmark g: file .*: no JSONL or Parquet file there"):
        sources.identify(Benchmark(name="g", file=str(tmp_path / "none.jsonl")))


STDIN = Problem(problem_id="s", source="s", statement="Add.")
STARTER = Problem(
    problem_id="f",
    source="s",
    statement="Add.",
    kind="function",
    starter_code="class Solution:",
    entry_point="f",
)


def test_livecodebench_has_its_published_prompt() -> None:
    system, user = published(STDIN)
    assert (system["role"], user["role"]) == ("system", "user")
    assert system["content"].startswith(
        "You are an expert Python programmer. You will be given a question"
    )
    assert user["content"].startswith(
        "### Question:\nAdd.\n\n### Format: Read the inputs from stdin"
    )
    assert user["content"].endswith(
        "```python\n# YOUR CODE HERE\n```\n\n"
        "### Answer: (use the provided format with backticks)\n\n"
    )
    assert "will use the following starter code" in published(STARTER)[1]["content"]
    assert "```python\nclass Solution:\n```" in published(STARTER)[1]["content"]


def test_each_benchmark_has_its_published_prompt(tmp_path: Path) -> None:
    tests = {name: _read(tmp_path, row)[0] for name, row in {**ROWS, "mbpp+": MBPP_PLUS}.items()}
    for name in ("evalplus", "humaneval", "mbpp+"):
        (turn,) = published(tests[name])
        assert turn["content"].startswith(
            "Please provide a self-contained Python script that solves"
        )
        assert turn["content"].endswith(f"```python\n{tests[name].statement.strip()}\n```")
    (turn,) = published(tests["mbpp"])
    assert turn["content"].startswith(
        "You are an expert Python programmer, and here is your task: Write a function"
    )
    (turn,) = published(tests["gsm8k"])
    assert (
        turn["content"]
        == "How many?\nPlease reason step by step, and put your final answer within \\boxed{}."
    )


def test_the_authors_evaluation_is_one_user_turn_with_its_slips() -> None:
    (stdin,), (starter,) = released_evaluation(STDIN), released_evaluation(STARTER)
    assert (
        "NOT return anything except for the program.\n\nQuestion: Add.\n\nRead the inputs"
        in stdin["content"]
    )
    assert stdin["content"].endswith("STDOUT.\n```python\n  # YOUR CODE HERE\n```")
    assert starter["content"].endswith('within delimiters."\n```python\nclass Solution:\n')
    assert messages(STDIN, "release-eval", "unused") == [stdin]
    with pytest.raises(UserError, match="has no words for n, of kind numeric"):
        released_evaluation(Problem(problem_id="n", source="s", statement="?", kind="numeric"))


def test_every_kind_states_in_a_chat_how_it_is_judged(tmp_path: Path) -> None:
    evalplus_row, humaneval, mbpp, gsm8k, own = (_read(tmp_path, row)[0] for row in ROWS.values())
    assert user_message(evalplus_row) == user_message(humaneval)
    assert user_message(humaneval).startswith("Complete this function.")
    assert "`shared`" in user_message(mbpp)
    assert "standard input" in user_message(own)
    assert "\\boxed{}" in user_message(gsm8k)
    assert [turn["role"] for turn in messages(gsm8k, "paper", "Write a program.")] == ["user"]
    assert [turn["role"] for turn in messages(own, "paper", "Write a program.")] == [
        "system",
        "user",
    ]
    assert "similar_elements" in user_message(_read(tmp_path, MBPP_PLUS)[0])


def test_reading_problems_loads_no_engine() -> None:
    import subprocess

    code = (
        "import sys, ssd_ray.problems.benchmarks, ssd_ray.problems.rendering, "
        "ssd_ray.evaluation.judging.expected_outputs, "
        "ssd_ray.evaluation.judging.comparison\n"
        "print([n for n in ('torch', 'vllm', 'transformers', 'numpy', 'ray') if n in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "form", "count", "kind"),
    [
        ("HumanEvalPlus.jsonl.gz", "evalplus", 164, "function"),
        ("MbppPlus.jsonl.gz", "evalplus", 378, "function"),
        ("gsm8k_test.jsonl", "gsm8k", 1319, "numeric"),
    ],
)
def test_the_published_files_are_read_completely(
    name: str, form: str, count: int, kind: str
) -> None:
    if not (DATA / name).exists():
        pytest.skip("the development data are not here")
    loaded = read_problems(DATA / name)
    problems = list(loaded)
    assert (loaded.format, len(problems), {problem.kind for problem in problems}) == (
        form,
        count,
        {kind},
    )
    assert all(problem.tests for problem in problems)


def test_only_four_mbpp_problems_cannot_be_judged() -> None:
    if not (DATA / "mbpp.jsonl").exists():
        pytest.skip("the development data are not here")
    loaded = read_problems(DATA / "mbpp.jsonl", skip_bad_rows=True)
    assert len(list(loaded)) == 970
    assert [bad.row for bad in loaded.bad_rows] == [367, 533, 601, 927]
    assert all("in its own process" in bad.reason for bad in loaded.bad_rows)
