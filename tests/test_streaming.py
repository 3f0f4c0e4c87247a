"""Rows in, shards out, exactly once: real Ray, with workers that are quick, crash, or refuse."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import artifacts, streaming
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Prompt

pytestmark = pytest.mark.real


class Worker:
    """Answers each prompt with its own id; dies or refuses where the test says so."""

    def __init__(self, *, out: Path, crash_once: str = "", crash_always: str = "", refuse: str = "") -> None:
        self._out, self._once, self._always, self._refuse = out, crash_once, crash_always, refuse
        self._heartbeat = streaming.Heartbeat(out)

    def __call__(self, batch: Any) -> Any:
        import pyarrow as pa

        rows = streaming.read_slice(batch.to_pylist()[0]).to_pylist()
        ids = {row["prompt_id"] for row in rows}
        marker = self._out.parent / "crashed"
        if self._always in ids or (self._once in ids and not marker.exists()):
            marker.touch()
            os._exit(70)
        if self._refuse in ids:
            raise UserError(f"prompt {self._refuse} is no good: leave it out")
        done = [
            Completion(
                prompt_id=row["prompt_id"],
                sample_index=row["sample_index"],
                seed=0,
                source="s",
                difficulty="d",
                prompt_token_ids=tuple(row["token_ids"]),
                output_token_ids=(1,),
                text=row["prompt_id"],
                finish_reason="stop",
            )
            for row in rows
        ]
        artifacts.write_shard(
            self._out, streaming.shard_name([(row.prompt_id, row.sample_index) for row in done]), done, Completion
        )
        self._heartbeat.add(len(done), len(done))
        self._heartbeat.flush()
        return pa.table({"rows": [len(done)]})


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    from ssd_ray import cluster
    from ssd_ray.config import ClusterConfig

    with cluster.connected(ClusterConfig(device="cpu")):
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    prompts = [Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n,)) for n in range(20)]
    for start in (0, 13):
        artifacts.write_shard(tmp_path / "prompts", f"{start:02}", prompts[start : 13 if not start else 20], Prompt)
    return tmp_path / "prompts"


def _stream(source: Path, out: Path, **behaviour: str) -> None:
    out.mkdir(exist_ok=True)
    pool = streaming.Pool(
        worker=Worker,
        arguments={"out": out, **behaviour},
        min_size=2,
        max_size=2,
        concurrent_batches=2,
        remote_args={"num_cpus": 0.5},
        max_failures=2,
    )
    streaming.stream_shards(
        source, pool, samples=2, shard_rows=3, total=40, out=out, stage="samples", unit="answers", progress=LineProgress()
    )


def _check_whole(out: Path) -> None:
    rows = list(artifacts.read_rows(out, Completion))
    assert sorted((row.prompt_id, row.sample_index) for row in rows) == sorted((f"p{n}", i) for n in range(20) for i in range(2))
    assert all(row.prompt_token_ids == (int(row.prompt_id[1:]),) for row in rows)


def test_every_key_comes_out_once(source: Path, tmp_path: Path) -> None:
    _stream(source, tmp_path / "out")
    _check_whole(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*"))


def test_a_rerun_draws_only_what_is_missing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _stream(source, out)
    first = {path.name: path.stat().st_mtime_ns for path in artifacts.shard_paths(out)}
    for path in artifacts.shard_paths(out)[::3]:
        path.unlink()
        first.pop(path.name)
    (out / ".half.parquet.1.partial").write_bytes(b"PAR1")
    _stream(source, out)
    _check_whole(out)
    second = {path.name: path.stat().st_mtime_ns for path in artifacts.shard_paths(out)}
    assert first.items() <= second.items()


def test_a_worker_that_crashes_is_replaced(source: Path, tmp_path: Path) -> None:
    _stream(source, tmp_path / "out", crash_once="p7")
    _check_whole(tmp_path / "out")


def test_a_worker_that_keeps_crashing_ends_the_stage_and_loses_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InfrastructureError, match="samples: workers kept failing"):
        _stream(source, out, crash_always="p19")
    kept = {path.name: path.stat().st_mtime_ns for path in artifacts.shard_paths(out)}
    _stream(source, out)
    _check_whole(out)
    assert kept.items() <= {path.name: path.stat().st_mtime_ns for path in artifacts.shard_paths(out)}.items()


def test_a_mistake_found_by_a_worker_is_one_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        _stream(source, tmp_path / "out", refuse="p3")
    assert str(caught.value) == "prompt p3 is no good: leave it out"
