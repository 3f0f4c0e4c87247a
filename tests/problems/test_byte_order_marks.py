"""Byte order marks are skipped, and files in another encoding are refused in one sentence."""

from __future__ import annotations

import codecs
import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ssd_ray import recipes
from ssd_ray.config import PromptsConfig
from ssd_ray.errors import UserError
from ssd_ray.problems import sources
from ssd_ray.problems.benchmarks import read_problems
from ssd_ray.schema import Problem
from ssd_ray.standalone.completions import open_completions

BOM = codecs.BOM_UTF8
ROWS = [{"question": "Print é."}, {"question": "Print b."}]
LINES = [json.dumps(row, ensure_ascii=False).encode() for row in ROWS]
BENCH = (
    b'{"problem_id": "b-1", "statement": "Print 1.", "kind": "stdin", "tests": [{"input": "", '
    b'"output": "1"}]}\n'
)


def _statements(file: Path) -> list[str]:
    choices = PromptsConfig(source=str(file), split="all")
    return [problem.statement for problem in sources.training_problems(choices, sources.Tally())]


@pytest.mark.parametrize(
    "content",
    [
        BOM + b"\n".join(LINES),
        BOM + b"\n" + b"\n".join(LINES),
        b"\r\n".join([BOM + LINES[0], BOM + LINES[1], BOM]),
        b"\n".join(LINES).replace(b"question", BOM + b"question"),
    ],
    ids=["before a file", "alone in a line", "of joined files", "before a column"],
)
@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
def test_prompt_files_may_have_byte_order_marks(
    tmp_path: Path, content: bytes, suffix: str
) -> None:
    file = tmp_path / f"p{suffix}"
    file.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    assert _statements(file) == ["Print é.", "Print b."]


def test_a_parquet_column_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    pq.write_table(pa.table({"\ufeffquestion": ["Print a."], "id": ["x"]}), tmp_path / "p.parquet")
    assert _statements(tmp_path / "p.parquet") == ["Print a."]


def test_benchmarks_and_completions_may_have_byte_order_marks(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_bytes(BOM + BENCH)
    assert [problem.problem_id for problem in read_problems(tmp_path / "b.jsonl")] == ["b-1"]
    (tmp_path / "c.jsonl").write_bytes(BOM + b'{"problem_id": "b-1", "text": "1"}\n')
    known = {"b-1": Problem(problem_id="b-1", source="b", statement="Print 1.")}
    assert [
        row.text for row in open_completions(tmp_path / "c.jsonl", known, skip_bad_rows=False)
    ] == ["1"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_prompt_files_in_another_encoding_are_refused(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "p.jsonl").write_bytes(b"\n".join(LINES).decode().encode(encoding))
    with pytest.raises(UserError, match=r"p.jsonl, row 1: not JSONL in UTF-8 \("):
        _statements(tmp_path / "p.jsonl")


def test_a_recipe_may_have_a_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(BOM + (Path(recipes.__file__).parent / "quickstart.yaml").read_bytes())
    assert recipes.load(path) == recipes.load("quickstart")
