"""The ledger of shards, without Ray: records, gaps, torn lines and foreign shards."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd_ray.artifacts import audit, ledger, manifests, shards
from ssd_ray.artifacts.audit import Arrivals
from ssd_ray.artifacts.facts import AnswerFacts
from ssd_ray.artifacts.files import check_disk
from ssd_ray.artifacts.ledger import Failure, Span
from ssd_ray.artifacts.manifests import Identity
from ssd_ray.errors import UserError
from ssd_ray.schema import Completion
from tests.support.sample_rows import write_unit


@given(
    total=st.integers(0, 60),
    covered=st.lists(st.tuples(st.integers(0, 70), st.integers(1, 20)), max_size=6),
    rows=st.integers(1, 25),
)
def test_uncovered_positions_are_missing_exactly_once(
    total: int, covered: list[tuple[int, int]], rows: int
) -> None:
    runs = sorted((start, start + length) for start, length in covered)
    spans = list(ledger.uncovered(Span("s", 0, total), runs, rows))
    assert all(0 < span.rows <= rows for span in spans)
    positions = [position for span in spans for position in range(span.start, span.stop)]
    expected = [
        position
        for position in range(total)
        if not any(start <= position < stop for start, stop in runs)
    ]
    assert positions == expected


def test_a_shard_counts_from_its_line_on(tmp_path: Path) -> None:
    write_unit(tmp_path, Span("prompts-0", 0, 4))
    write_unit(
        tmp_path,
        Span("prompts-0", 4, 6),
        writer="v",
        failed=(Failure(prompt_id="p", sample_index=5, reason="refused"),),
    )
    result = audit.audit(tmp_path, digests=True)
    assert result.coverage == {"prompts-0": [(0, 6)]}
    assert result.positions == 6
    assert result.moved == ()
    assert AnswerFacts.of(result, engine_losses=0).document() == {
        "rows": 5,
        "prompt_tokens": 10,
        "output_tokens": 5,
        "finish_reasons": {"stop": 5},
        "failed": ({"prompt_id": "p", "sample_index": 5, "reason": "refused"},),
        "engine_losses": 0,
    }
    assert [row.seed for row in shards.read_rows(tmp_path, Completion)] == [0, 1, 2, 3, 4]


@pytest.mark.slow
@settings(deadline=None)
@given(cut=st.integers(0, 400))
def test_a_torn_last_line_is_no_record_and_hides_none(
    tmp_path_factory: pytest.TempPathFactory, cut: int
) -> None:
    out = tmp_path_factory.mktemp("ledger")
    for start in (0, 2):
        write_unit(out, Span("p", start, start + 2))
    path = out / "ledger" / "w.jsonl"
    data = path.read_bytes()
    first = len(data.splitlines(keepends=True)[0])
    kept = first + min(cut, len(data) - first - 1)
    path.write_bytes(data[:kept])
    assert [record.span.start for record in ledger.tail(out).new()] == [0]


def test_a_tail_yields_each_record_once_even_if_half_written(tmp_path: Path) -> None:
    tail = ledger.tail(tmp_path)
    assert list(tail.new()) == []
    write_unit(tmp_path, Span("p", 0, 2))
    path = tmp_path / "ledger" / "w.jsonl"
    line = path.read_bytes()
    path.write_bytes(line[:20])
    assert list(tail.new()) == []
    path.write_bytes(line)
    assert [record.span for record in tail.new()] == [Span("p", 0, 2)]
    assert list(tail.new()) == []


def test_each_shard_is_checked_and_reported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    complaint = audit._problem

    def look(path: Path, *arguments: Any) -> str | None:
        looked.append(path.name)
        return complaint(path, *arguments)

    monkeypatch.setattr(audit, "_problem", look)
    arrivals = Arrivals(tmp_path)
    assert arrivals.new() == []
    for start in (0, 2):
        write_unit(tmp_path, Span("p", start, start + 2))
    late, there = shards.shard_paths(tmp_path)
    late.rename(tmp_path / "aside")
    assert arrivals.new() == [there]
    write_unit(tmp_path, Span("q", 0, 2))
    assert [path.name for path in arrivals.new()] == ["q.00000000-00000002.parquet"]
    (tmp_path / "aside").rename(late)
    assert arrivals.new() == [late], "a shard is reported once its file appears"
    write_unit(tmp_path, Span("p", 2, 4), writer="v")
    assert arrivals.new() == [], "a shard drawn again is not reported twice"
    assert looked.count(there.name) == 1


def test_lost_cut_foreign_and_doubled_shards_are_named_and_moved(tmp_path: Path) -> None:
    for start in range(0, 12, 2):
        write_unit(tmp_path, Span("p", start, start + 2))
    lost, cut, wrong, *_ = shards.shard_paths(tmp_path)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    wrong.write_bytes(b"\0" * wrong.stat().st_size)
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    write_unit(tmp_path, Span("p", 9, 11))
    result = audit.audit(tmp_path)
    assert result.coverage == {"p": [(6, 10), (10, 12)]} or result.coverage == {"p": [(6, 12)]}
    output = "\n".join(result.moved)
    assert f"{cut.name} has" in output
    assert f"{wrong.name} is not a Parquet file" in output
    assert "other.parquet is in no ledger" in output
    assert "p.00000009-00000011.parquet holds rows that" in output
    assert lost.name not in output
    assert not (tmp_path / cut.name).exists()
    assert len(list((tmp_path / "set-aside").iterdir())) == 4
    assert audit.audit(tmp_path).moved == ()


@pytest.mark.parametrize("digests", [True, False])
@pytest.mark.parametrize("writers", [("a", "b"), ("b", "a")])
def test_a_redrawn_shard_is_checked_against_all_its_records(
    tmp_path: Path, writers: tuple[str, str], digests: bool
) -> None:
    """Ledgers have no order, and an answer redrawn on another machine may differ."""
    for writer, text in zip(writers, ("first", "second, and longer"), strict=True):
        write_unit(tmp_path, Span("p", 0, 4), writer=writer, text=text)
    result = audit.audit(tmp_path, digests=digests)
    assert (result.positions, result.moved) == (4, ())
    assert Arrivals(tmp_path).new() == shards.shard_paths(tmp_path)


def test_a_shard_with_the_ledger_of_another_run_is_foreign(tmp_path: Path) -> None:
    for name in ("own", "other"):
        manifests.claim(tmp_path / name, Identity(stage="samples", choices={"run": name}))
        write_unit(tmp_path / name, Span("p", 0, 4), writer=name)
    write_unit(tmp_path / "other", Span("p", 4, 8), writer="other")
    shutil.copytree(tmp_path / "other" / "ledger", tmp_path / "own" / "ledger", dirs_exist_ok=True)
    foreign = Span("p", 4, 8).name + ".parquet"
    shutil.copy(tmp_path / "other" / foreign, tmp_path / "own")
    assert Arrivals(tmp_path / "own").new() == [tmp_path / "own" / "p.00000000-00000004.parquet"]
    result = audit.audit(tmp_path / "own")
    assert result.coverage == {"p": [(0, 4)]}
    assert result.moved == (f"{foreign} was drawn for another run",)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "other.parquet"},
        {"file": "../p.00000000-00000004.parquet"},
        {"span": {"source": "p", "start": 0, "stop": 900}},
        {"span": {"source": "p", "start": 4, "stop": 0}},
        {"span": {"source": "p", "start": "a", "stop": 4}},
        {"rows": 3},
        {"bytes": None},
        {"failed": None},
    ],
)
def test_an_inconsistent_line_is_no_record(tmp_path: Path, change: dict[str, object]) -> None:
    write_unit(tmp_path, Span("p", 0, 4))
    path = tmp_path / "ledger" / "w.jsonl"
    path.write_text(
        json.dumps({**json.loads(path.read_text()), **change}) + "\n[" + "[" * 9999 + "\n\0\n"
    )
    assert audit.audit(tmp_path).moved == ("p.00000000-00000004.parquet is in no ledger",)


def test_only_a_digest_reveals_a_changed_byte(tmp_path: Path) -> None:
    write_unit(tmp_path, Span("p", 0, 2))
    (path,) = shards.shard_paths(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    assert audit.audit(tmp_path).positions == 2
    assert audit.audit(tmp_path, digests=True).positions == 0


def test_a_full_disk_is_a_users_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.write", lambda handle, data: len(data) - 1)
    with pytest.raises(UserError, match="No space left on device"):
        ledger.append_line(tmp_path / "x", b"line")


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    write_unit(
        tmp_path, Span("p", 0, 3), failed=(Failure(prompt_id="p", sample_index=2, reason="r"),)
    )
    (record,) = ledger.tail(tmp_path).new()
    line = json.loads((tmp_path / "ledger" / "w.jsonl").read_text())
    assert json.loads(json.dumps(dataclasses.asdict(record))) == line


def test_the_driver_notices_a_full_disk_that_silences_engines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_disk(tmp_path)
    assert not list(tmp_path.iterdir())

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*make room"):
        check_disk(tmp_path)
    assert not list(tmp_path.iterdir())
