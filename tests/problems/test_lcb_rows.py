"""LiveCodeBench rows: every test is decoded or the row refused, and releases are complete."""

from __future__ import annotations

import base64
import contextlib
import datetime
import json
import os
import pickle
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd_ray import wire
from ssd_ray.config import Benchmark
from ssd_ray.errors import UserError
from ssd_ray.problems.benchmarks import livecodebench, read_problems, resolve
from ssd_ray.problems.benchmarks.files import RowError
from ssd_ray.problems.benchmarks.livecodebench import pickled_text

REBUILT = Path(__file__).parents[3] / "shared" / "data" / "lcb_release_v5_rebuilt.jsonl"


def _case(given_input: str, output: str, testtype: str = "stdin") -> dict[str, str]:
    return {"input": given_input, "output": output, "testtype": testtype}


def _packed(cases: object, protocol: int = 4) -> str:
    return base64.b64encode(
        zlib.compress(pickle.dumps(json.dumps(cases), protocol=protocol))
    ).decode()


def _row(number: int = 1, **changes: Any) -> dict[str, Any]:
    return {
        "question_title": "Sum",
        "question_content": "Add the numbers.",
        "platform": "atcoder",
        "question_id": f"abc{number}_a",
        "contest_id": f"abc{number}",
        "contest_date": "2025-02-08T00:00:00",
        "starter_code": "",
        "difficulty": "easy",
        "public_test_cases": json.dumps([_case("1 2\n", "3\n")]),
        "private_test_cases": _packed([_case("4 5\n", "9\n")]),
        "metadata": "{}",
        **changes,
    }


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _complaint(tmp_path: Path, **changes: Any) -> str:
    with pytest.raises(UserError) as caught:
        list(read_problems(_write(tmp_path / "t.jsonl", [_row(), _row(2, **changes)])))
    assert str(caught.value).startswith(f"{tmp_path / 't.jsonl'}, row 2: ")
    return str(caught.value)


def test_public_tests_come_before_private_ones(tmp_path: Path) -> None:
    (problem,) = read_problems(_write(tmp_path / "t.jsonl", [_row()]))
    assert (problem.problem_id, problem.kind, problem.difficulty, problem.source) == (
        "abc1_a",
        "stdin",
        "easy",
        "livecodebench",
    )
    assert [(test.input, test.output) for test in problem.tests] == [
        ("1 2\n", "3\n"),
        ("4 5\n", "9\n"),
    ]
    assert (problem.starter_code, problem.comparison) == (None, "lcb")


def test_a_function_takes_one_json_argument_a_line(
    tmp_path: Path,
) -> None:
    functional = [_case('[1, 2]\n"a\\nb"\nnull', "[true, 1.0]", "functional")]
    row = _row(
        starter_code="class Solution:\n    def f(self, a, b, c):\n        ",
        metadata=json.dumps({"func_name": "f"}),
        public_test_cases=json.dumps(functional),
        private_test_cases=_packed([_case("1" + "0" * 5000, "-" + "9" * 5000, "functional")]),
    )
    (problem,) = read_problems(_write(tmp_path / "t.jsonl", [row]))
    assert (problem.kind, problem.entry_point, problem.comparison) == ("function", "f", "lcb")
    assert wire.loads(problem.tests[0].input) == [[1, 2], "a\nb", None]
    assert repr(wire.loads(problem.tests[0].output)) == "[True, 1.0]"
    assert wire.loads(problem.tests[1].input) == [10**5000]
    assert wire.loads(problem.tests[1].output) == 1 - 10**5000


@pytest.mark.parametrize(
    "private",
    [
        json.dumps([_case("4 5\n", "9\n")]),
        *(_packed([_case("4 5\n", "9\n")], protocol) for protocol in range(6)),
    ],
)
def test_private_tests_are_json_or_packed_in_any_protocol(tmp_path: Path, private: str) -> None:
    (problem,) = read_problems(_write(tmp_path / "t.jsonl", [_row(private_test_cases=private)]))
    assert [test.output for test in problem.tests] == ["3\n", "9\n"]


def test_parquet_gives_the_same_problems_also_with_real_dates(tmp_path: Path) -> None:
    rows = [_row(), _row(2)]
    (tmp_path / "a").mkdir()
    _write(tmp_path / "a" / "t.jsonl", rows)
    dated = [
        {**row, "contest_date": datetime.datetime.fromisoformat(row["contest_date"])}
        for row in rows
    ]
    pq.write_table(pa.Table.from_pylist(dated), tmp_path / "t.parquet")
    assert list(read_problems(tmp_path / "a")) == list(read_problems(tmp_path / "t.parquet"))
    loaded = resolve.load(
        Benchmark(name="x", file=str(tmp_path / "t.parquet"), start="2025-02-08", end="2025-02-08")
    )
    assert len(list(loaded)) == 2


def test_missing_private_tests_are_counted(tmp_path: Path) -> None:
    rows = [
        _row(),
        _row(2, private_test_cases="[]"),
        _row(3, private_test_cases=""),
        _row(4, private_test_cases=None),
    ]
    loaded = read_problems(_write(tmp_path / "t.jsonl", rows))
    assert [len(problem.tests) for problem in loaded] == [2, 1, 1, 1]
    assert (loaded.format, loaded.num_read, loaded.num_public_only) == ("livecodebench", 4, 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question_id": ""}, "field 'question_id'"),
        ({"question_content": None}, "field 'question_content' must hold text, not nothing"),
        (
            {"public_test_cases": "[]", "private_test_cases": "[]"},
            "neither public nor private tests",
        ),
        ({"public_test_cases": "{"}, "field 'public_test_cases' is not JSON"),
        ({"public_test_cases": "[1]"}, "a test must be an object"),
        ({"public_test_cases": json.dumps([_case("1", "2", "magic")])}, "testtype"),
        (
            {"public_test_cases": json.dumps([{"input": "1", "testtype": "stdin"}])},
            "text 'input' and 'output'",
        ),
        ({"private_test_cases": "!!!"}, "field 'private_test_cases' is cut off"),
        ({"private_test_cases": "[1"}, "field 'private_test_cases' is not JSON"),
        (
            {"private_test_cases": base64.b64encode(b"xx").decode()},
            "neither JSON nor base64 of zlib",
        ),
        ({"private_test_cases": _packed([_case("1", "2")])[:-12]}, "field 'private_test_cases'"),
        ({"private_test_cases": _packed("text")}, "must hold a list"),
        ({"metadata": "[]"}, "field 'metadata' must hold a JSON object"),
        (
            {"metadata": json.dumps({"func_name": "f"})},
            "test 1: its input lines and its output must each be JSON",
        ),
        ({"question_id": "abc1_a"}, "id 'abc1_a' occurs twice"),
        ({"question_content": "a\ud800"}, "not Unicode"),
        ({"private_test_cases": json.dumps([_case("\udfff", "1")])}, "not Unicode"),
    ],
)
def test_an_undecodable_row_is_refused_by_number_and_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    assert message in _complaint(tmp_path, **changes)


class _Run:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(6))
def test_a_pickle_with_a_global_is_refused_unexecuted(tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    blob = base64.b64encode(
        zlib.compress(pickle.dumps(_Run(str(marker)), protocol=protocol))
    ).decode()
    assert "only one text is allowed" in _complaint(tmp_path, private_test_cases=blob)
    assert not marker.exists()


@given(st.text(), st.integers(0, 5))
def test_every_pickled_text_is_read_back(text: str, protocol: int) -> None:
    assert pickled_text(pickle.dumps(text, protocol=protocol)) == text


@given(st.binary() | st.lists(st.integers() | st.text()).map(pickle.dumps))
def test_nothing_but_a_text_or_an_error_comes_out_of_a_pickle(data: bytes) -> None:
    with contextlib.suppress(RowError):
        assert isinstance(pickled_text(data), str)


def test_a_pickle_with_forged_lengths_is_refused() -> None:
    # A length of 4 GiB, a memo of 2**32 entries, a frame beyond the end: none may be allocated.
    for data in (
        b"\x80\x04\x8d\xff\xff\xff\xff\x00\x00\x00\x00a.",
        b"\x80\x04\x95" + b"\xff" * 8,
        b"X\xff\xff\xff\xffa.",
    ):
        with pytest.raises(RowError):
            pickled_text(data)


def test_a_bomb_is_cut_at_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(livecodebench, "MAX_DECODED_BYTES", 1 << 20)
    bomb = base64.b64encode(zlib.compress(b" " * (1 << 24))).decode()
    assert "unpacks to more than 1 MiB" in _complaint(tmp_path, private_test_cases=bomb)


def test_skipped_rows_are_listed_with_their_reasons(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.jsonl", [_row(), _row(2, private_test_cases="?"), _row(1), _row(3)])
    with path.open("a") as handle:
        handle.write('{"question_id": \n\n[1]\n')
    loaded = read_problems(path, skip_bad_rows=True)
    for _ in range(2):
        assert [problem.problem_id for problem in loaded] == ["abc1_a", "abc3_a"]
        assert [(bad.file, bad.row) for bad in loaded.bad_rows] == [
            (str(path), number) for number in (2, 3, 5, 7)
        ]
        assert all(bad.reason for bad in loaded.bad_rows)


def test_release_and_window_counts_match_published_ones() -> None:
    totals = [livecodebench.release_rows(f"release_v{version}") for version in range(1, 7)]
    assert totals == [400, 511, 612, 713, 880, 1055]
    assert livecodebench.release_rows("release_latest") == 1055
    assert livecodebench.release_rows("v6") == 175
    assert livecodebench.release_rows("v4_v6") == 101 + 167 + 175
    rows = {
        name: (window.start, window.end, window.rows)
        for name, window in livecodebench.WINDOWS.items()
    }
    assert rows == {
        "paper-v6": ("2025-02", "2025-05", 131),
        "paper-v5": ("2024-08", "2025-02", 374),
        "nemo-v6": ("2024-08", "2025-05", 454),
        "nemo-v5": ("2024-08", "2025-01", 279),
    }


@pytest.mark.parametrize(
    "release", ["release_v7", "v0", "v6_v4", "release_v4_v6", "6", "latest", "v", "", "release_v"]
)
def test_another_release_is_refused(release: str) -> None:
    with pytest.raises(UserError, match="there is no LiveCodeBench release"):
        livecodebench.release_files(release)


def _release(directory: Path) -> Path:
    """Write all six files with their numbers of rows.

    test6 has 44 contests in January 2025 and 131 from February to April.
    """
    directory.mkdir()
    number = 0
    for name, count in zip(livecodebench.FILES, livecodebench.FILE_ROWS, strict=True):
        rows = []
        for index in range(count):
            number += 1
            date = (
                "2024-05-31"
                if name != "test6.jsonl"
                else "2025-01-04"
                if index < 44
                else "2025-04-06"
            )
            rows.append(_row(number, contest_date=f"{date}T00:00:00", private_test_cases="[]"))
        _write(directory / name, rows)
    return directory


def test_a_release_is_its_files_and_a_window_its_dates(tmp_path: Path) -> None:
    directory = str(_release(tmp_path / "lcb"))
    for release, window, count in [
        ("release_v5", None, 880),
        ("v6", None, 175),
        ("v6", "paper-v6", 131),
        ("release_v6", "paper-v6", 131),
        (None, "2025-01..2025-01", 44),
        (None, None, 1055),
    ]:
        benchmark = Benchmark(name="livecodebench", file=directory, release=release, window=window)
        assert len(list(resolve.counted(benchmark, resolve.load(benchmark)))) == count
    with pytest.raises(
        UserError, match="window paper-v5 of release_v6 has 374 problems and 44 were found"
    ):
        _count(name="x", file=directory, window="paper-v5")
    (tmp_path / "lcb" / "test2.jsonl").unlink()
    with pytest.raises(UserError, match="test2 not found"):
        _count(name="x", file=directory, release="release_v5")
    assert _count(name="x", file=directory, release="v5") == 167


def _count(**chosen: Any) -> int:
    benchmark = Benchmark(**chosen)
    return len(list(resolve.counted(benchmark, resolve.load(benchmark))))


def test_part_of_a_release_is_refused_under_its_name(tmp_path: Path) -> None:
    file = str(_write(tmp_path / "t.jsonl", [_row(number) for number in range(5)]))
    with pytest.raises(
        UserError, match=r"benchmark x: release release_v6 has 1055 problems and 5 were found"
    ):
        _count(name="x", file=file, release="release_v6")
    with pytest.raises(UserError, match="has 131 problems and 5 were found"):
        _count(name="x", file=file, window="paper-v6")
    with pytest.raises(UserError, match="none of its 5 rows is in the window"):
        _count(name="x", file=file, end="2025-01")
    for chosen in (
        {},
        {"window": "2025-02..2025-05"},
        {"start": "2025-02-08"},
        {"end": "2025-02-08"},
        {"end": "2025-02"},
    ):
        assert _count(name="x", file=file, **chosen) == 5
    assert _count(name="x", file=file, skip_bad_rows=True) == 5


def test_a_row_without_a_date_is_refused_where_dates_choose(tmp_path: Path) -> None:
    file = str(_write(tmp_path / "t.jsonl", [_row(), _row(2, contest_date="soon")]))
    assert _count(name="x", file=file) == 2
    with pytest.raises(
        UserError, match="row 2: field 'contest_date' must hold an ISO date, not 'soon'"
    ):
        _count(name="x", file=file, start="2024-01")


def test_an_unknown_window_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UserError, match="there is no window 'paper-v9': use paper-v6"):
        resolve.identify(Benchmark(name="livecodebench", window="paper-v9"))


def test_the_hub_is_named_by_its_files_and_not_asked() -> None:
    assert resolve.identify(Benchmark(name="livecodebench", release="v6", window="paper-v6")) == (
        "hub livecodebench/code_generation_lite test6.jsonl release=v6 window=paper-v6"
    )
    whole = resolve.identify(Benchmark(name="livecodebench", window="paper-v5"))
    assert "test.jsonl test2.jsonl" in whole
    assert "test6.jsonl" in whole


def test_the_files_of_a_release_come_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, asked = _release(tmp_path / "lcb"), []

    def hf_hub_download(repository: str, name: str, repo_type: str) -> str:
        asked.append((repository, name, repo_type))
        return str(directory / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", hf_hub_download)
    assert _count(name="livecodebench", release="v6", window="paper-v6") == 131
    assert asked == [("livecodebench/code_generation_lite", "test6.jsonl", "dataset")]

    def refuse(repository: str, name: str, repo_type: str) -> str:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(UserError, match="cannot be downloaded from the hub"):
        _count(name="livecodebench", release="v6")


def test_the_rebuilt_release_v5_loads_and_reports_gaps() -> None:
    if not REBUILT.exists():
        pytest.skip("the development data are not here")
    benchmark = Benchmark(name="livecodebench", file=str(REBUILT), release="release_v5")
    loaded = resolve.load(benchmark)
    problems = list(resolve.counted(benchmark, loaded))
    assert (len(problems), loaded.num_public_only) == (880, 511)
    assert {problem.kind for problem in problems} == {"stdin", "function"}
    assert (
        _count(name="livecodebench", file=str(REBUILT), release="release_v5", window="nemo-v5")
        == 279
    )
