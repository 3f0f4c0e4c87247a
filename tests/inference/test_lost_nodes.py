"""Units of a lost node go to an idle engine, and a run needs no other node."""

from __future__ import annotations

import functools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import psutil
import pytest

from ssd_ray import cluster
from ssd_ray.artifacts import shards
from ssd_ray.artifacts.ledger import Span
from ssd_ray.config import Decoding
from ssd_ray.inference.crashes import cluster_state, heartbeat
from ssd_ray.inference.crashes.engine_status import EngineStatus
from ssd_ray.inference.crashes.heartbeat import Reporter
from ssd_ray.inference.engine_pool import EnginePool
from ssd_ray.inference.generation import SamplingRun
from ssd_ray.inference.pool import Pool
from ssd_ray.inference.vllm.placement import Resources
from ssd_ray.inference.work import jobs, queue
from ssd_ray.inference.work.jobs import JobSpan, JobSpec, OpenJob
from ssd_ray.inference.work.queue import QueuePlan, lost_units
from ssd_ray.inference.worker import EngineSpec
from ssd_ray.progress import LineProgress
from ssd_ray.schema import Completion, Prompt
from tests.support.doubles import TimedEngine
from tests.support.sample_rows import write_unit

PROMPTS = 24
SOURCE = "prompts-00000000"
FIRST, SECOND = (JobSpan("out.", Span(SOURCE, start, start + 4)) for start in (0, 4))


def _status(node: str, *held: JobSpan, state: str = "ready", crashed: bool = False) -> EngineStatus:
    return EngineStatus(
        engine=f"engine on {node}",
        actor=f"actor on {node}",
        pid=1,
        state=state,  # type: ignore[arg-type]
        began=0.0,
        node=node,
        held=held,
        crashed=crashed,
    )


@pytest.mark.parametrize(
    ("statuses", "expected"),
    [
        # The unit of a lost node, with an idle engine.
        ((_status("gone", FIRST), _status("here")), [FIRST]),
        ((_status("gone", FIRST, crashed=True), _status("here")), [FIRST]),
        # The other engines are busy, starting, about to leave, or lost too.
        ((_status("gone", FIRST), _status("here", SECOND)), []),
        ((_status("gone", FIRST), _status("here", state="starting")), []),
        ((_status("gone", FIRST), _status("here", state="draining")), []),
        ((_status("gone", FIRST), _status("away")), []),
        # Another engine has the unit already.
        ((_status("gone", FIRST, SECOND), _status("here"), _status("there", FIRST)), [SECOND]),
        # A crash on a live node keeps its units: they may be the reason.
        ((_status("here", FIRST, crashed=True), _status("there")), []),
    ],
)
def test_units_of_lost_nodes_go_to_idle_engines(
    statuses: tuple[EngineStatus, ...], expected: list[JobSpan]
) -> None:
    lost = lost_units(statuses, {"here", "there"})
    assert [unit for _, unit in lost] == expected


@pytest.fixture
def job(tmp_path: Path) -> JobSpec:
    """A job of `PROMPTS` answers."""
    rows = [
        Prompt(prompt_id=f"p{n}", source="s", difficulty="d", text="t", token_ids=(n, 3))
        for n in range(PROMPTS)
    ]
    shards.write_shard(tmp_path / "prompts", SOURCE, rows, Prompt)
    (tmp_path / "prompts" / "manifest.json").touch()
    (tmp_path / "out").mkdir()
    return JobSpec(
        stage="samples",
        key="out.",
        prompts=tmp_path / "prompts",
        out=tmp_path / "out",
        samples=1,
        seed=0,
        decoding=Decoding(),
        max_tokens=8,
        shard_rows=4,
    )


def test_the_queue_hands_a_lost_unit_out_once_more(
    job: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    control = tmp_path / "control"
    jobs.begin(control)
    jobs.open_job(control, OpenJob(number=0, spec=job, covered={}))
    jobs.close(control)
    monkeypatch.setattr(cluster_state, "nodes", lambda: {"here"})
    monkeypatch.setattr(queue, "time", Mock(wraps=time, sleep=lambda _: None))
    monkeypatch.setattr(queue, "_LOST_PERIOD_S", 0.0)
    units = queue.paced(QueuePlan(control=control, window=100))
    handed_out = [next(units) for _ in range(PROMPTS // 4)]
    lost = Reporter(control, "actor on gone", node="gone")
    Reporter(control, "actor on here", node="here").become("ready")
    with lost.holding(handed_out[0]), lost.holding(handed_out[1]):
        lost.become("ready")
        for unit in handed_out[1:]:
            write_unit(job.out, unit.span)
        assert next(units) == handed_out[0]
        threading.Timer(0.5, write_unit, (job.out, handed_out[0].span)).start()
        assert list(units) == []
    assert queue.all_drawn(control).exists()


def test_heartbeats_of_an_earlier_version_hold_no_unit(tmp_path: Path) -> None:
    Reporter(tmp_path, "actor")
    (path,) = tmp_path.glob("*.json")
    record = json.loads(path.read_text())
    del record["held"]
    path.write_text(json.dumps(record))
    (status,) = heartbeat.read(tmp_path)
    assert status.held == ()


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[psutil.Process]]:
    """Two nodes of one core; the raylet of each."""
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": 80_000_000}
    made = Cluster(initialize_head=True, head_node_args=head)
    added = [made.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    monkeypatch.setenv("RAY_ADDRESS", made.address)
    yield [psutil.Process(each.all_processes["raylet"][0].process.pid) for each in added]
    made.shutdown()


@pytest.mark.real
@pytest.mark.slow
def test_a_lost_node_without_another_ends_no_progress(
    job: JobSpec, nodes: list[psutil.Process], tmp_path: Path
) -> None:
    """The lost engine waits for a node to the end."""
    spec = EngineSpec(
        make_engine=functools.partial(TimedEngine, 0.5),
        control=tmp_path / "control",
        logs=tmp_path / "logs",
    )
    size = Pool(
        min_engines=2,
        max_engines=2,
        concurrent_units=2,
        resources=Resources(1, 0, {"num_cpus": 1}),
    )

    def both_at_work() -> bool:
        at_work = [each for each in heartbeat.read(spec.control) if each.held and each.rows]
        return len(at_work) == 2

    def lose_a_node() -> None:
        while not both_at_work():
            time.sleep(0.1)
        nodes[0].kill()

    loss = threading.Thread(target=lose_a_node, daemon=True)
    loss.start()
    progress = LineProgress()
    with cluster.connected(), EnginePool(spec, size, max_failures=3, progress=progress) as engines:
        run = SamplingRun(job=job, engines=engines, ended=lambda: True, progress=progress)
        facts = run.draw()
    loss.join()
    assert facts.rows == PROMPTS
    keys = [row.prompt_id for row in shards.read_rows(job.out, Completion)]
    assert sorted(keys) == sorted(f"p{n}" for n in range(PROMPTS))
