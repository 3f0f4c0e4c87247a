"""The stand-alone grader: files in, verdicts and scores out, with kills in between."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest
from rich.table import Table

from ssd_ray.artifacts import files, identity, manifests, shards
from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.artifacts.facts import VerdictFacts
from ssd_ray.cli.app import main
from ssd_ray.cli.grading import _add_rows
from ssd_ray.errors import UserError
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.lcb_official import GRADER
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Verdict, from_table
from ssd_ray.standalone.grade_files import Job, grade_files
from ssd_ray.standalone.scores import GroupScores
from ssd_ray.statistics.metrics import Interval
from tests.support.commands import exit_status
from tests.support.processes import command_of, descendants, kill_all

RULES = Rules(limits=Limits(time_s=2, memory_mib=256, output_kib=64))
DOUBLE = "print(2 * int(input()))"


def _write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def problems(tmp_path: Path) -> Path:
    return _problems(tmp_path)


def _problems(place: Path) -> Path:
    tests = [{"input": f"{number}\n", "output": f"{2 * number}\n"} for number in range(3)]
    rows = [
        {"problem_id": f"p{number}", "statement": "Double it.", "kind": "stdin", "tests": tests}
        for number in range(4)
    ]
    return _write(place / "problems.jsonl", rows)


def _job(tmp_path: Path, problems: Path, rows: list[dict[str, Any]], **options: Any) -> Job:
    completions = _write(tmp_path / "completions.jsonl", rows)
    options = {"rules": RULES, "workers": 2, **options}
    return Job(problems=problems, completions=completions, out=tmp_path / "out", **options)


def _verdicts(job: Job) -> list[dict[str, Any]]:
    return pq.read_table(job.out / "verdicts.parquet").to_pylist()  # type: ignore[no-any-return]


@pytest.mark.slow
def test_programs_are_graded_and_scored_with_intervals(tmp_path: Path, problems: Path) -> None:
    codes = [DOUBLE, "print(input())", "1 / 0", "while True: pass"]
    job = _job(
        tmp_path,
        problems,
        [{"task_id": f"p{number}", "code": code} for number, code in enumerate(codes)],
    )
    scores = grade_files(job, LineProgress())
    rows = _verdicts(job)
    assert [row["problem_id"] for row in rows] == ["p0", "p1", "p2", "p3"]
    assert [row["outcome"] for row in rows] == [
        "accepted",
        "wrong_answer",
        "runtime_error",
        "time_limit",
    ]
    assert [row["failed_test"] for row in rows] == [-1, 1, 0, 0]
    assert all(
        row["peak_bytes"] > 1 << 20 and row["seconds"] > 0 and row["sandbox_level"] >= "L1"
        for row in rows
    )
    result = scores.benchmarks["problems"].all.metrics["pass@1"]
    assert result.estimate == 0.25
    assert 0 < result.low < 0.25 < result.high < 1
    stored = json.loads((job.out / "scores.json").read_text())
    assert stored == json.loads(json.dumps(scores.document()))
    assert stored["benchmarks"]["problems"]["all"]["pass@1"]["estimate"] == 0.25


@pytest.mark.slow
def test_answers_are_extracted_by_the_rule_that_is_named(tmp_path: Path, problems: Path) -> None:
    text = f"First:\n```python\n{DOUBLE}\n```\nor\n```python\nprint(0)\n```\n"
    rows = [{"problem_id": "p0", "index": 5, "text": text}, {"problem_id": "p1", "text": "no code"}]
    job = _job(tmp_path, problems, rows, rules=Rules(limits=RULES.limits, extract="first-block"))
    grade_files(job, LineProgress())
    assert [(row["index"], row["outcome"]) for row in _verdicts(job)] == [
        (5, "accepted"),
        (0, "no_code"),
    ]


@pytest.mark.slow
def test_text_inside_open_reasoning_is_no_answer(tmp_path: Path, problems: Path) -> None:
    texts = [
        f"Try\n```python\n{DOUBLE}\n```\n{end}"
        for end in ("but no", f"</think>\n```python\n{DOUBLE}\n```")
    ]
    job = _job(
        tmp_path,
        problems,
        [{"task_id": f"p{number}", "text": text} for number, text in enumerate(texts)],
        thinking=True,
    )
    scores = grade_files(job, LineProgress())
    assert [row["outcome"] for row in _verdicts(job)] == ["no_code", "accepted"]
    assert scores.rules["thinking"]
    with pytest.raises(UserError, match="thinking"):
        grade_files(dataclasses.replace(job, thinking=False), LineProgress())
    programs = _write(tmp_path / "programs.jsonl", [{"task_id": "p0", "code": DOUBLE}])
    with pytest.raises(UserError, match="holds programs"):
        grade_files(
            dataclasses.replace(job, completions=programs, out=tmp_path / "code"), LineProgress()
        )


@pytest.mark.slow
def test_a_second_call_regrades_nothing(tmp_path: Path, problems: Path) -> None:
    job = _job(tmp_path, problems, [{"task_id": "p0", "code": DOUBLE}])
    first = grade_files(job, LineProgress())
    stamps = {path: path.stat().st_mtime_ns for path in (job.out / "verdicts").rglob("*.parquet")}
    assert grade_files(job, LineProgress()) == first
    assert {
        path: path.stat().st_mtime_ns for path in (job.out / "verdicts").rglob("*.parquet")
    } == stamps
    other = Rules(limits=Limits(time_s=1, memory_mib=256, output_kib=64))
    with pytest.raises(UserError, match="time_s"):
        grade_files(
            Job(problems=problems, completions=job.completions, out=job.out, rules=other),
            LineProgress(),
        )


@pytest.mark.slow
def test_infrastructure_errors_are_graded_again(tmp_path: Path, problems: Path) -> None:
    job = _job(
        tmp_path, problems, [{"task_id": f"p{number % 4}", "code": DOUBLE} for number in range(40)]
    )
    first = grade_files(job, LineProgress())
    out = job.out / "verdicts"
    path, *others = shards.shard_paths(out)
    spoilt = from_table(pq.read_table(path), Verdict)
    shards.write_shard(
        out,
        path.stem,
        [dataclasses.replace(row, outcome="infrastructure_error") for row in spoilt],
        Verdict,
    )
    manifest = files.read_json(out / "manifest.json")
    for shard in manifest["shards"]:
        shard["bytes"] = (out / shard["name"]).stat().st_size
    manifest["facts"]["infrastructure_errors"] = 1
    (out / "manifest.json").write_text(json.dumps(manifest))
    stamps = {other: other.stat().st_mtime_ns for other in others}
    assert others
    assert grade_files(job, LineProgress()) == first
    assert {row["outcome"] for row in _verdicts(job)} == {"accepted"}
    assert len(_verdicts(job)) == 40
    assert {other: other.stat().st_mtime_ns for other in others} == stamps


def _left_open(job: Job) -> None:
    """Count one infrastructure error in the manifest of the verdicts."""
    path = job.out / "verdicts" / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["facts"]["infrastructure_errors"] = 1
    path.write_text(json.dumps(manifest))


def _other_rules(job: Job) -> Job:
    return dataclasses.replace(job, rules=Rules(limits=RULES.limits, profile="lcb-compat"))


def _other_extraction(job: Job) -> Job:
    return dataclasses.replace(job, rules=Rules(limits=RULES.limits, extract="first-block"))


def _other_programs(job: Job) -> Job:
    return dataclasses.replace(
        job,
        completions=_write(job.completions.with_name("o.jsonl"), [{"task_id": "p1", "text": "x"}]),
    )


def _other_problems(job: Job) -> Job:
    rows = [json.loads(line) for line in job.problems.read_text().splitlines()]
    return dataclasses.replace(job, problems=_write(job.problems.with_name("q.jsonl"), rows[:2]))


def _bad_rows_skipped(job: Job) -> Job:
    return dataclasses.replace(job, skip_bad_rows=True)


def _thinking(job: Job) -> Job:
    return dataclasses.replace(job, thinking=True)


OTHERS = (
    _other_rules,
    _other_extraction,
    _other_programs,
    _other_problems,
    _bad_rows_skipped,
    _thinking,
)


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Grade one answer; tests work on copies of the directory."""
    place = tmp_path_factory.mktemp("graded")
    job = _job(place, _problems(place), [{"task_id": "p0", "text": DOUBLE}])
    grade_files(job, LineProgress())
    return job


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("is_left_open", [False, True])
def test_a_refused_call_leaves_a_directory_as_it_was(
    tmp_path: Path, graded: Job, other: Callable[[Job], Job], is_left_open: bool
) -> None:
    place = Path(shutil.copytree(graded.out.parent, tmp_path / "copy"))
    job = dataclasses.replace(
        graded,
        problems=place / graded.problems.name,
        completions=place / graded.completions.name,
        out=place / graded.out.name,
    )
    if is_left_open:
        _left_open(job)
    before = {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()}
    with pytest.raises(
        UserError, match=r"was made with other choices .*: choose another --out, or delete "
    ) as error:
        grade_files(other(job), LineProgress())
    assert {path: path.read_bytes() for path in job.out.rglob("*") if path.is_file()} == before
    for path in str(error.value).rpartition("or delete ")[2].split(" and "):
        shutil.rmtree(path)
    assert grade_files(other(job), LineProgress()).rows == 1, "the remedy in the message is enough"


def test_verdicts_of_an_earlier_version_are_refused_as_such(
    tmp_path: Path, problems: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = _job(tmp_path, problems, [{"task_id": "p0", "code": DOUBLE}])
    grade_files(job, LineProgress())
    raised = {stage: identity.REVISIONS[stage] + 1 for stage in ("completions", "verdicts")}
    monkeypatch.setattr(identity, "REVISIONS", {**identity.REVISIONS, **raised})
    delete = " and ".join(str(job.out / stage) for stage in raised)
    with pytest.raises(
        UserError,
        match=rf"completions was made by an earlier version of ssd_ray .* or delete {delete}$",
    ):
        grade_files(job, LineProgress())


def test_two_calls_do_not_fill_one_directory(tmp_path: Path, problems: Path) -> None:
    job = _job(tmp_path, problems, [{"task_id": "p0", "code": DOUBLE}])
    with locked(job.out), pytest.raises(UserError, match="another process is using"):
        grade_files(job, LineProgress())
    assert [path.name for path in job.out.iterdir()] == [".lock"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "output"),
    [
        ({"task_id": "nobody", "code": DOUBLE}, "'nobody' is not a problem"),
        ({"code": DOUBLE}, "needs one of the columns"),
        ({"task_id": "p0", "code": 3}, "'code' holds no text"),
        ({"task_id": "p0", "index": -1, "code": DOUBLE}, "integer from 0"),
        ({"task_id": "p0", "index": 0, "code": DOUBLE}, "two completions of index 0"),
    ],
)
def test_a_bad_completion_is_named_by_row_or_counted(
    tmp_path: Path, problems: Path, row: dict[str, Any], output: str
) -> None:
    rows = [{"task_id": "p0", "code": DOUBLE}, row]
    with pytest.raises(UserError, match=output) as error:
        grade_files(_job(tmp_path, problems, rows), LineProgress())
    assert "completions.jsonl, row 2" in str(error.value)
    job = _job(tmp_path, problems, rows, skip_bad_rows=True)
    scores = grade_files(Job(**{**vars(job), "out": tmp_path / "skipping"}), LineProgress())
    assert [bad.row for bad in scores.bad_rows] == [2]
    assert scores.rows == 1


def test_a_bad_problem_is_refused_with_the_name_of_the_option(
    tmp_path: Path, problems: Path
) -> None:
    with problems.open("a") as file:
        file.write("{broken\n")
    job = _job(tmp_path, problems, [{"task_id": "p0", "code": DOUBLE}])
    with pytest.raises(UserError, match=r"\(--skip-bad-rows leaves such rows out\)"):
        grade_files(job, LineProgress())


def test_a_file_of_broken_rows_is_refused_with_the_first_of_them(
    tmp_path: Path, problems: Path
) -> None:
    job = _job(tmp_path, problems, [])
    job.completions.write_text("\n{broken\n{worse\n")
    for skips in (False, True):
        with pytest.raises(UserError, match=r"completions.jsonl, row 2: not JSONL in UTF-8"):
            grade_files(dataclasses.replace(job, skip_bad_rows=skips), LineProgress())
    job.completions.write_text("")
    with pytest.raises(UserError, match=r"completions.jsonl: no completion in it"):
        grade_files(job, LineProgress())


def test_the_name_of_a_benchmark_is_refused_in_place_of_a_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = ["--completions", tmp_path / "a.jsonl", "--out", tmp_path / "out"]
    assert exit_status("grade", "--problems", "humaneval", *paths) == 2
    assert capfd.readouterr().err == (
        "error: --problems 'humaneval': there is no such file or directory, and names of "
        "benchmarks work in recipes only; give a JSONL or Parquet file, or a directory of them\n"
    )


@pytest.mark.slow
def test_a_lone_surrogate_and_foreign_bytes_get_a_verdict(tmp_path: Path, problems: Path) -> None:
    codes = [
        "print('\ud800' and 2 * int(input()))",
        r"import os; os.write(1, b'\xff\x00\n')",
        "\x00",
    ]
    job = _job(
        tmp_path,
        problems,
        [{"task_id": f"p{number}", "code": code} for number, code in enumerate(codes)],
    )
    grade_files(job, LineProgress())
    assert [row["outcome"] for row in _verdicts(job)] == [
        "accepted",
        "wrong_answer",
        "runtime_error",
    ]


@pytest.mark.parametrize(
    ("problems", "score", "interval"),
    [
        (9, "pass@1 2.3 of 9", "0.9 to 4.6 of 9"),
        (10, "pass@1 25\N{NO-BREAK SPACE}%", "10\N{NO-BREAK SPACE}% to 51\N{NO-BREAK SPACE}%"),
        (1, "pass@1 0.3 of 1", "0.1 to 0.5 of 1"),
    ],
)
def test_scores_of_few_problems_are_printed_as_counts(
    problems: int, score: str, interval: str
) -> None:
    result = Interval(estimate=0.25, low=0.1, high=0.51)
    group = GroupScores(
        problems=problems,
        infrastructure_error_rate=0.0,
        metrics={"pass@1": result, "base pass@1": result},
    )
    table = Table("benchmark", "problems", "score", "interval")
    _add_rows(table, "b", group)
    assert [[*column.cells] for column in table.columns[2:]] == [
        [score, f"base {score}"],
        [interval, interval],
    ]


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("ssd_ray.cli.grading", {"torch", "vllm", "transformers", "ray"}),
        ("ssd_ray.standalone.workers", {"torch", "vllm", "transformers", "ray", "ssd_ray.config"}),
    ],
)
def test_a_process_that_grades_imports_no_model_library(module: str, heavy: set[str]) -> None:
    code = f"import sys, {module}; print({heavy} & set(sys.modules))"
    command = [sys.executable, "-c", code]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


@pytest.mark.slow
def test_killed_workers_zygotes_and_drivers_change_no_verdict(
    tmp_path: Path, problems: Path
) -> None:
    slow = "import time; time.sleep(0.05); " + DOUBLE
    rows = [
        {"task_id": f"p{number % 4}", "code": (slow, "print(1)")[number % 3 == 0]}
        for number in range(160)
    ]
    calm = _job(tmp_path, problems, rows)
    grade_files(calm, LineProgress())
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-m",
        "ssd_ray",
        "grade",
        "--problems",
        str(problems),
        "--completions",
        str(calm.completions),
    ]
    command += [
        "--out",
        str(out),
        "--workers",
        "2",
        "--timeout-s",
        "2",
        "--memory-mib",
        "256",
        "--quiet",
    ]

    def start() -> psutil.Popen:
        return psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    driver = start()
    _until(lambda: len(list((out / "verdicts").glob("*.parquet"))) >= 1)
    for wanted in ("zygote", "worker"):
        for process in descendants(driver.pid):
            words = command_of(process)
            if ("sys.modules" in words) == (wanted == "zygote") and ("spawn_main" in words) == (
                wanted == "worker"
            ):
                kill_all([process])
                break
    _until(
        lambda: len(list((out / "verdicts").glob("*.parquet"))) >= 4 or driver.poll() is not None
    )
    below = descendants(driver.pid)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    _until(
        lambda: not any(process.is_running() and process.status() != "zombie" for process in below)
    )
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0

    def essence(path: Path) -> list[tuple[Any, ...]]:
        names = ("problem_id", "index", "outcome", "failed_test", "detail")
        return [
            tuple(row[name] for name in names)
            for row in pq.read_table(path / "verdicts.parquet").to_pylist()
        ]

    assert essence(out) == essence(calm.out)


def _until(condition: Any, timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


@pytest.mark.slow
def test_the_output_limit_is_an_option_of_the_command(tmp_path: Path) -> None:
    tests = [{"input": "", "output": "1"}]
    row = {"problem_id": "p", "statement": "One.", "kind": "stdin", "tests": tests}
    problems = _write(tmp_path / "problems.jsonl", [row])
    completions = _write(
        tmp_path / "completions.jsonl",
        [{"problem_id": "p", "code": "print('1' + ' ' * (2 << 20))"}],
    )
    for options, outcome in (([], "output_limit"), (["--output-kib", "4096"], "accepted")):
        out = tmp_path / outcome
        words = [
            "grade",
            "--problems",
            str(problems),
            "--completions",
            str(completions),
            "--out",
            str(out),
            *options,
        ]
        with pytest.raises(SystemExit) as ending:
            main(words)
        assert not ending.value.code
        assert pq.read_table(out / "verdicts.parquet").column("outcome").to_pylist() == [outcome]


@pytest.mark.slow
def test_the_official_grader_is_named_where_its_profile_graded(tmp_path: Path) -> None:
    case = {"input": "1\n2\n", "output": "3", "testtype": "stdin"}
    row = {
        "question_id": "q",
        "question_content": "Add.",
        "contest_date": "2025-03-01",
        "metadata": "{}",
    }
    row |= {
        "public_test_cases": json.dumps([case]),
        "private_test_cases": "[]",
        "platform": "atcoder",
    }
    problems = _write(tmp_path / "problems.jsonl", [row])
    rows = [{"question_id": "q", "code": "import sys\nprint(sum(map(int, sys.stdin)))"}]
    job = _job(tmp_path, problems, rows, rules=Rules(limits=RULES.limits, profile="lcb-compat"))
    scores = grade_files(job, LineProgress())
    assert scores.official_grader == dict(GRADER)
    assert manifests.load_facts(job.out / "verdicts", VerdictFacts).official_grader == dict(GRADER)
    (verdict,) = _verdicts(job)
    assert (
        "official -4, by the stand-in for sys.stdin: it cannot be iterated over;"
        in verdict["detail"]
    )
    job = dataclasses.replace(job, out=tmp_path / "strict", rules=RULES)
    assert "official_grader" not in grade_files(job, LineProgress()).document()
    assert _verdicts(job)[0]["outcome"] == "accepted"
