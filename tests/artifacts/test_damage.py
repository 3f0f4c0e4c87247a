"""Every reader of shards reports every kind of damage with the file and a remedy."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.artifacts import shards, slices
from ssd_ray.artifacts.ledger import Span
from ssd_ray.artifacts.slices import Slice
from ssd_ray.config import PrepareConfig
from ssd_ray.errors import UserError
from ssd_ray.evaluation import verdicts
from ssd_ray.evaluation.grader import GradingSpec
from ssd_ray.evaluation.judging.judge import Rules
from ssd_ray.evaluation.sandbox import Limits
from ssd_ray.inference.work.queue import prompt_rows
from ssd_ray.inference.work.unit import read_prompts
from ssd_ray.schema import Completion, Example, Problem, Prompt, Row, Verdict
from ssd_ray.standalone import scores
from ssd_ray.training.data.dataset import prepare
from ssd_ray.training.data.examples import Examples
from ssd_ray.training.data.health import ParseOptions

PACKAGE = Path(__file__).parents[2] / "ssd_ray"
NUMBER = 64
KEY = {"source": "s", "difficulty": "d"}


def _prompt(number: int) -> Prompt:
    return Prompt(prompt_id=f"p{number}", text=f"Print {number}.", token_ids=(1, number), **KEY)


def _completion(number: int) -> Completion:
    ids = {"prompt_token_ids": (1, number), "output_token_ids": tuple(range(number))}
    return Completion(
        prompt_id=f"p{number}",
        sample_index=0,
        seed=1,
        text=f"é\n{number}\n",
        finish_reason="stop",
        **ids,
        **KEY,
    )


def _example(number: int) -> Example:
    return Example(
        prompt_id=f"p{number}",
        sample_index=0,
        input_ids=tuple(range(1, number + 3)),
        num_prompt_tokens=1,
    )


def _verdict(number: int) -> Verdict:
    counts = {
        "num_tests": 1,
        "num_passed": 1,
        "time_s": 0.1,
        "code": f"print({number})",
        "detail": "",
    }
    return Verdict(prompt_id=f"p{number}", sample_index=0, outcome="accepted", **counts, **KEY)


def _problem(number: int) -> Problem:
    return Problem(problem_id=f"p{number}", source="s", statement=f"Print {number}.", tests=())


MAKE: dict[type[Row], Callable[[int], Any]] = {
    Prompt: _prompt,
    Completion: _completion,
    Example: _example,
    Verdict: _verdict,
    Problem: _problem,
}


def _order(out: Path) -> GradingSpec:
    return GradingSpec(
        benchmark=out,
        rules=Rules(limits=Limits(time_s=1, memory_mib=64, output_kib=1)),
        floor="L1",
        out=out,
    )


def _prepare_with(samples: Path, graded: Path) -> None:
    prepare(
        samples,
        PrepareConfig(select="accepted"),
        ParseOptions(),
        verdicts=graded,
        out=samples.parent / "dataset",
    )


def _beside(damaged: Path, row_type: type[Row]) -> Path:
    """Write a directory of good rows next to the damaged one."""
    out = damaged.parent / "good"
    shards.write_shard(out, "good", [MAKE[row_type](number) for number in range(NUMBER)], row_type)
    return out


def _slice(path: Path) -> Slice:
    return Slice(file=path / "shard.parquet", rows=(0, NUMBER - 1))


READERS: dict[str, tuple[type[Row], Callable[[Path], Any]]] = {
    **{
        f"rows of {kind.__name__}": (
            kind,
            lambda path, kind=kind: list(shards.read_rows(path, kind)),
        )
        for kind in MAKE
    },
    "columns": (Completion, lambda path: list(shards.read_columns(path, "prompt_id", "text"))),
    "keys": (Verdict, slices.keys_on_disk),
    "slices": (Completion, lambda path: list(slices.slices_of(path / "shard.parquet", set(), 4))),
    "slice": (Completion, lambda path: slices.read_slice(_slice(path)).to_pylist()),
    "graded keys": (Verdict, verdicts.graded_keys),
    "facts of verdicts": (Verdict, lambda path: verdicts.facts(_order(path))),
    "table of verdicts": (Verdict, lambda path: scores._write_table(path.parent)),
    "scores": (Verdict, lambda path: scores._benchmarks(path.parent, 0.1)),
    "unit": (Prompt, lambda path: read_prompts(path, Span("shard", 0, NUMBER), 1)),
    "footer": (Prompt, lambda path: prompt_rows(path / "shard.parquet")),
    "examples": (Example, lambda path: Examples(path)),
    "prompts of examples": (Example, lambda path: Examples(path).prompt_ids()),
    "samples": (
        Completion,
        lambda path: prepare(path, PrepareConfig(), ParseOptions(), out=path.parent / "dataset"),
    ),
    "selection": (Verdict, lambda path: _prepare_with(_beside(path, Completion), path)),
}


def _garbled(data: bytes, start: int, stop: int) -> bytes:
    return data[:start] + bytes(byte ^ 0x55 for byte in data[start:stop]) + data[stop:]


def _footer(data: bytes) -> int:
    """Return the offset of the footer; its length and a magic word come last."""
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "cut by a byte": lambda data: data[:-1],
    "cut in half": lambda data: data[: len(data) // 2],
    "without its beginning": lambda data: data[100:],
    "garbled page": lambda data: _garbled(data, 4, _footer(data)),
    "garbled footer": lambda data: _garbled(data, _footer(data), _footer(data) + 40),
    "other file": lambda data: b"PK a zip, say\n" * 9,
    "zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("harm", DAMAGE)
@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_shard_is_refused_in_one_sentence(tmp_path: Path, reader: str, harm: str) -> None:
    row_type, read = READERS[reader]
    out = tmp_path / "verdicts"
    shard = shards.write_shard(
        out, "shard", [MAKE[row_type](number) for number in range(NUMBER)], row_type
    )
    if reader not in {"scores", "selection"}:
        read(out)
    shard.write_bytes(DAMAGE[harm](shard.read_bytes()))
    if reader == "footer" and harm in {"garbled page", "without its beginning"}:
        return  # nothing but the footer is read there
    with pytest.raises(
        UserError, match=r"verdicts/shard\.parquet cannot be read \(.+\): delete that file and run"
    ) as raised:
        read(out)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "reader",
    [
        "slices",
        "keys",
        "graded keys",
        "facts of verdicts",
        "table of verdicts",
        "examples",
        "rows of Verdict",
    ],
)
def test_a_shard_that_lacks_a_column_is_refused_in_one_sentence(
    tmp_path: Path, reader: str
) -> None:
    shards.write_shard(
        tmp_path / "verdicts", "shard", [_prompt(number) for number in range(NUMBER)], Prompt
    )
    with pytest.raises(
        UserError, match=r"verdicts/shard\.parquet cannot be read \(.+\): delete that file and run"
    ):
        READERS[reader][1](tmp_path / "verdicts")


def test_no_flipped_bit_goes_unseen(tmp_path: Path) -> None:
    """Without checksums, most flipped bits would be read as other token ids or another text."""
    rows = [
        dataclasses.replace(_completion(number), text="word " * number) for number in range(NUMBER)
    ]
    shard = shards.write_shard(tmp_path, "shard", rows, Completion)
    data, noise = shard.read_bytes(), random.Random(0)
    for _ in range(300):
        place = noise.randrange(len(data))
        shard.write_bytes(
            data[:place] + bytes([data[place] ^ 1 << noise.randrange(8)]) + data[place + 1 :]
        )
        with contextlib.suppress(UserError):
            assert list(shards.read_rows(tmp_path, Completion)) == rows


def test_a_shard_without_checksums_is_read_as_before(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    from ssd_ray.schema import to_table

    rows = [_completion(number) for number in range(NUMBER)]
    pq.write_table(to_table(rows, Completion), tmp_path / "shard.parquet", compression="zstd")
    assert list(shards.read_rows(tmp_path, Completion)) == rows


READS_USERS_FILES = {"problems/benchmarks/files.py"}
"""Readers of the user's files, with their own messages (`test_benchmarks.py`)."""

WRITES_USERS_FILES = {"view/takeaway.py"}
"""Writers of files that the user takes away (`tests/view`)."""


def test_shards_are_read_and_written_in_one_place() -> None:
    bare = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
        if name in {"pyarrow.parquet", "pyarrow.dataset", "parquet", "dataset", "read_parquet"}
    }
    assert bare == {"artifacts/shards.py", *READS_USERS_FILES, *WRITES_USERS_FILES}
