"""Prompts in, shards out, exactly once: real Ray with engines that answer, crash or refuse."""

from __future__ import annotations

import functools
import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd_ray.artifacts import audit, shards
from ssd_ray.config import Decoding
from ssd_ray.errors import InfrastructureError, UserError
from ssd_ray.inference import pool
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.engine import sample_seed
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work.jobs import JobSpec, key_of
from ssd_ray.inference.work.queue import all_out
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Prompt
from tests.support.doubles import (
    FaultyBesideGood,
    InstantEngine,
    MortalEngine,
    TimedEngine,
    breaks_at_start,
    cannot_start,
    hangs_at_start,
    lacks_memory_at_start,
    loses_storage,
)
from tests.support.sample_rows import completion

pytestmark = pytest.mark.real
PROMPTS, SAMPLES = 20, 2


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    from ssd_ray import cluster

    with cluster.connected():
        yield


def prompt(number: int) -> Prompt:
    return Prompt(
        prompt_id=f"p{number}", source="s", difficulty="d", text="t", token_ids=(number, 3)
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [prompt(number) for number in range(PROMPTS)]
    for start, stop in ((0, 13), (13, PROMPTS)):
        shards.write_shard(tmp_path / "prompts", f"prompts-{start:08}", rows[start:stop], Prompt)
    return tmp_path / "prompts"


class Said(LineProgress):
    """Progress that keeps its lines."""

    def __init__(self) -> None:
        super().__init__(period_s=0)
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


def _draw(
    source: Path,
    out: Path,
    make_engine: Callable[[], Any] = InstantEngine,
    *,
    shard_rows: int = 3,
    max_failures: int = 2,
    ended: Callable[[], bool] = lambda: True,
    progress: Said | None = None,
    engines: int = 2,
) -> dict[str, Any]:
    out.mkdir(exist_ok=True)
    if ended():
        (source / "manifest.json").touch()
    shown = progress or Said()
    with _pool(out, make_engine, max_failures, engines, shown) as workers:
        job = _job(source, out, shard_rows=shard_rows)
        return SamplingRun(job=job, engines=workers, ended=ended, progress=shown).draw()


def _pool(
    out: Path, make_engine: Callable[[], Any], max_failures: int, engines: int, progress: Said
) -> EnginePool:
    spec = EngineSpec(make_engine=make_engine, control=_control(out), logs=out.parent / "logs")
    size = Pool(
        min_engines=1,
        max_engines=engines,
        concurrent_units=2,
        resources=Resources(0.5, 0, {"num_cpus": 0.5}),
    )
    return EnginePool(spec, size, max_failures=max_failures, progress=progress)


def _control(out: Path) -> Path:
    return out.parent / ".engines"


def _job(source: Path, out: Path, *, shard_rows: int = 3, seed: int = 5) -> JobSpec:
    return JobSpec(
        stage="samples",
        key=key_of("samples", out),
        prompts=source,
        out=out,
        samples=SAMPLES,
        seed=seed,
        decoding=Decoding(),
        max_tokens=64,
        shard_rows=shard_rows,
    )


def _check_whole(out: Path, without: frozenset[int] = frozenset()) -> None:
    rows = list(shards.read_rows(out, Completion))
    expected = {
        (f"p{number}", index): number
        for number in range(PROMPTS)
        for index in range(SAMPLES)
        if number not in without
    }
    assert sorted((row.prompt_id, row.sample_index) for row in rows) == sorted(expected)
    for row in rows:
        seed = sample_seed(5, row.prompt_id, row.sample_index)
        assert row.prompt_token_ids == (expected[row.prompt_id, row.sample_index], 3)
        assert (row.seed, row.text) == (seed, f"seed {seed}")


def test_every_key_comes_out_once(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = _shown(monkeypatch)
    facts = _draw(source, tmp_path / "out")
    _check_whole(tmp_path / "out")
    assert [shard.name for shard in facts.shards] == [
        path.name for path in shards.shard_paths(tmp_path / "out")
    ]
    assert facts.document() == {
        "rows": 40,
        "prompt_tokens": 80,
        "output_tokens": 120,
        "finish_reasons": {"stop": 40},
        "failed": (),
        "engine_losses": 0,
    }
    assert not list((tmp_path / "out").glob(".*"))
    assert not _control(tmp_path / "out").exists()
    assert json.loads((tmp_path / "out" / "pace.json").read_text())["rows"] == 40
    for name in (
        "tokens_per_second",
        "engines",
        "engine_tokens_per_second",
        "engine_load_seconds",
    ):
        assert max(shown[f"ssd_ray_{name}"]) > 0
    figures = _metrics('stage="samples"')
    assert figures.pop("ssd_ray_answers") == 40
    assert set(figures.values()) == {0}, "rates are zero after the end of the stage"
    assert figures.keys() >= {
        f"ssd_ray_{name}" for name in ("retries", "answers_failed", "seconds_left", "engine_losses")
    }


def _shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Return a list of the values that gauges are set to from now on."""
    from ray.util.metrics import Gauge

    shown: dict[str, list[float]] = {}
    put = Gauge.set

    def note(gauge: Gauge, value: float, tags: dict[str, str] | None = None) -> None:
        shown.setdefault(gauge.info["name"], []).append(value)
        put(gauge, value, tags)

    monkeypatch.setattr(Gauge, "set", note)
    return shown


def _metrics(label: str) -> dict[str, float]:
    """Read this package's gauges at Ray's metrics endpoint, the highest of all engines."""
    import ray

    (node,) = ray.nodes()
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    deadline = time.monotonic() + 60
    while True:
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = [line for line in answer.read().decode().splitlines() if label in line]
        pairs = [
            (line.partition("{")[0].removeprefix("ray_"), float(line.rpartition(" ")[2]))
            for line in lines
        ]
        figures = dict(sorted(pairs))
        if (figures.get("ssd_ray_answers"), figures.get("ssd_ray_engines")) == (
            40,
            0,
        ) or time.monotonic() > deadline:
            return figures
        time.sleep(1)


def test_a_rerun_draws_only_missing_or_broken_samples(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    _draw(source, out)
    kept = {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(out)}
    lost, cut, empty, changed, garbled, *_ = shards.shard_paths(out)
    lost.unlink()
    cut.write_bytes(cut.read_bytes()[:-9])
    empty.write_bytes(b"")
    middle = bytearray(changed.read_bytes())
    middle[len(middle) // 2] ^= 1
    changed.write_bytes(middle)
    garbled.write_bytes(b"x" * garbled.stat().st_size)
    shards.write_shard(out, "foreign", [completion("p0")], Completion)
    (out / ".half.parquet.1.partial").write_bytes(b"PAR1")
    messages = Said()
    _draw(source, out, progress=messages, shard_rows=2)
    _check_whole(out)
    output = "\n".join(messages.lines)
    for path, why in (
        (cut, "bytes and was written with"),
        (empty, "has 0 bytes"),
        (garbled, "is not a Parquet file"),
    ):
        assert any(path.name in line and why in line for line in messages.lines), output
    assert f"{changed.name} has other bytes than were written" in output
    assert "foreign.parquet is in no ledger" in output
    assert len(list((out / "set-aside").iterdir())) == 5
    for path in (lost, cut, empty, changed, garbled):
        del kept[path.name]
    assert (
        kept.items()
        <= {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(out)}.items()
    )
    assert not list(out.glob(".*"))


def test_the_first_shard_is_written_before_the_last_prompt(tmp_path: Path) -> None:
    source, out = tmp_path / "prompts", tmp_path / "out"
    source.mkdir()
    seen: list[int] = []

    def render() -> None:
        for start in range(0, PROMPTS, 5):
            rows = [prompt(number) for number in range(start, start + 5)]
            shards.write_shard(source, f"prompts-{start:08}", rows, Prompt)
            while start == 10 and len(shards.shard_paths(out)) < 8:
                time.sleep(0.05)
            seen.append(len(shards.shard_paths(out)))
        (source / "manifest.json").touch()

    out.mkdir()
    thread = threading.Thread(target=render, daemon=True)
    thread.start()
    _draw(source, out, ended=lambda: (source / "manifest.json").exists())
    _check_whole(out)
    assert seen[2] >= 8


def test_a_failure_of_the_followed_stage_ends_sampling(source: Path, tmp_path: Path) -> None:
    def ended() -> bool:
        if (tmp_path / "out").exists() and shards.shard_paths(tmp_path / "out"):
            raise InfrastructureError("prompts was stopped")
        return False

    with pytest.raises(InfrastructureError, match="prompts was stopped"):
        _draw(source, tmp_path / "out", ended=ended)


def test_a_crashed_engine_is_replaced_and_counted(source: Path, tmp_path: Path) -> None:
    engine = functools.partial(MortalEngine, kills_once=frozenset({7}), marker=tmp_path / "died")
    messages = Said()
    facts = _draw(source, tmp_path / "out", engine, progress=messages)
    _check_whole(tmp_path / "out")
    assert facts.engine_losses == 1
    assert any("1 engine crashed" in line for line in messages.lines)


def test_a_termination_notice_drains_an_engine(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended: list[EngineStatus] = []

    def notify() -> None:
        while not (there := [one for one in heartbeat.read(_control(out)) if one.rows >= 4]):
            time.sleep(0.02)
        os.kill(there[0].pid, signal.SIGTERM)
        while not ended and out.exists():
            ended.extend(
                one
                for one in heartbeat.read(_control(out))
                if one.engine == there[0].engine and one.state == "ended"
            )
            time.sleep(0.02)

    thread = threading.Thread(target=notify, daemon=True)
    thread.start()
    facts = _draw(source, out, functools.partial(TimedEngine, 0.1), engines=1)
    thread.join(5)
    _check_whole(out)
    assert facts.engine_losses == 0, "it ended by itself"
    assert len(ended) == 1
    assert 4 <= ended[0].rows < 40


def test_units_returned_late_by_a_draining_engine_go_to_others(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, runs, noted, drawn = tmp_path / "out", list[float](), list[EngineStatus](), list[int]()
    run = pool.run
    monkeypatch.setattr(
        pool, "run", lambda *arguments: (runs.append(time.monotonic()), run(*arguments))
    )

    def notify() -> None:
        while not (
            all_out(_control(out)).exists()
            and len(there := [one for one in heartbeat.read(_control(out)) if one.rows]) == 2
        ):
            time.sleep(0.02)
        # The one that began last is farthest from a third unit.
        last = min(there, key=lambda one: one.rows)
        os.kill(last.pid, signal.SIGTERM)
        noted.append(last)
        drawn.append(units_of(last))

    def units_of(one: EngineStatus) -> int:
        record = out / "ledger" / f"{one.engine}.jsonl"
        return len(record.read_text().splitlines()) if record.exists() else 0

    out.mkdir()
    thread = threading.Thread(target=notify, daemon=True)
    thread.start()
    # Six units, and each of two engines is given three, of which it draws two.
    facts = _draw(source, out, functools.partial(TimedEngine, 0.4), shard_rows=7)
    thread.join(5)
    _check_whole(out)
    assert facts.engine_losses == 0
    assert len(noted) == 1
    assert len(runs) == 1, "the pool was not started again"
    assert units_of(noted[0]) <= drawn[0] + 2, "units not begun at the notice were not drawn"


def test_prompts_that_crash_engines_are_left_out_alone(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    messages, shown = Said(), _shown(monkeypatch)
    engine = functools.partial(MortalEngine, kills=frozenset({7}), refuses=frozenset({3}))
    facts = _draw(source, tmp_path / "out", engine, progress=messages)
    _check_whole(tmp_path / "out", without=frozenset({3, 7}))
    keys = [(failure.prompt_id, failure.sample_index) for failure in facts.failed]
    assert keys == [("p3", 0), ("p3", 1), ("p7", 0), ("p7", 1)]
    assert {failure.reason for failure in facts.failed[:2]} == {
        "refused 3 times: ValueError: no answer to 3"
    }
    assert "alone" in facts.failed[2].reason
    assert facts.rows == 36
    assert any("prompt 'p7' is left out" in line for line in messages.lines)
    assert shown["ssd_ray_answers_failed"][-1] == 4
    assert shown["ssd_ray_retries"][-1] >= 2 * 2 + facts.engine_losses, (
        "two more tries of each refused answer, and p7's"
    )


def test_a_crash_at_the_first_step_loses_no_prompt(source: Path, tmp_path: Path) -> None:
    (tmp_path / "actors").mkdir()
    messages = Said()
    facts = _draw(
        source,
        tmp_path / "out",
        functools.partial(FaultyBesideGood, tmp_path / "actors"),
        max_failures=3,
        progress=messages,
    )
    _check_whole(tmp_path / "out")
    assert len(list((tmp_path / "actors").iterdir())) == 2
    assert facts.failed == ()
    assert 4 <= facts.engine_losses <= 6
    assert any(
        "times in a row without an answer while others answer" in line for line in messages.lines
    )


def test_a_node_that_does_not_see_the_storage_is_named(source: Path, tmp_path: Path) -> None:
    engine = functools.partial(MortalEngine, start=functools.partial(loses_storage, source))
    with pytest.raises(
        UserError,
        match=(
            r"^\S+/prompts is not there on node \S+: --out must lie on storage that every node "
            r"sees$"
        ),
    ):
        _draw(source, tmp_path / "out", engine, engines=1)


def test_engines_that_always_crash_end_the_stage_safely(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InfrastructureError, match=r"crashes engines|an engine crashed"):
        _draw(source, out, functools.partial(MortalEngine, kills=frozenset(range(13, PROMPTS))))
    kept = {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(out)}
    assert kept
    assert not (out / "manifest.json").exists()
    assert (
        kept.items()
        <= {path.name: path.stat().st_mtime_ns for path in shards.shard_paths(out)}.items()
    )


def test_an_engine_that_refuses_all_prompts_ends_each_attempt(source: Path, tmp_path: Path) -> None:
    engine, out = (
        functools.partial(MortalEngine, refuses=frozenset(range(PROMPTS))),
        tmp_path / "out",
    )
    for _ in range(6):
        with pytest.raises(
            UserError, match=r"refused 3 times: ValueError: no answer to \d+.*delete"
        ):
            _draw(source, out, engine)
    assert audit.audit(out).positions == PROMPTS * SAMPLES, (
        "six attempts are enough to refuse them all"
    )


@pytest.mark.parametrize(
    ("start", "kind", "output"),
    [
        (cannot_start, UserError, "vLLM does not take this model: it is no good"),
        (
            breaks_at_start,
            InfrastructureError,
            r"crashed 3 times in a row without an answer \(RuntimeError: no device\)",
        ),
        (
            lacks_memory_at_start,
            InfrastructureError,
            r"crashed 3 times in a row without an answer \(MemoryError\)",
        ),
        (hangs_at_start, InfrastructureError, "crashed 3 times in a row without an answer"),
    ],
)
def test_an_engine_that_never_starts_ends_with_its_reason(
    source: Path, tmp_path: Path, start: Callable[[], None], kind: type[Exception], output: str
) -> None:
    began = time.monotonic()
    with pytest.raises(kind, match=output):
        _draw(source, tmp_path / "out", functools.partial(MortalEngine, start=start))
    assert time.monotonic() - began < 60


def test_finished_answers_of_a_killed_engine_are_taken_over(source: Path, tmp_path: Path) -> None:
    """Prompt 12 crashes its engine after the others answer; only it is asked for again."""
    asked = tmp_path / "asked"
    asked.mkdir()
    engine = functools.partial(Counting, asked=asked, marker=tmp_path / "died")
    _draw(source, tmp_path / "out", engine, shard_rows=26, engines=1)
    _check_whole(tmp_path / "out")
    counts = {int(path.name.split(".")[0]): 0 for path in asked.iterdir()}
    for path in asked.iterdir():
        counts[int(path.name.split(".")[0])] += 1
    assert all(
        counts[number] <= SAMPLES + (2 * SAMPLES if number >= 12 else 0) for number in counts
    ), counts


class Counting(InstantEngine):
    """Writes a file per request; crashes once at prompt 12, after all earlier answers."""

    def __init__(self, asked: Path, marker: Path) -> None:
        super().__init__()
        self._asked, self._marker = asked, marker

    def submit(self, request: Any) -> Any:
        first = request.prompt_token_ids[0]
        (self._asked / f"{first}.{time.monotonic_ns()}").touch()
        if first == 12 and not self._marker.exists():
            self._marker.touch()
            os._exit(70)
        return super().submit(request)
