"""A node without the run directory, its locks or the driver's software is refused by name."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ray.exceptions import RpcError

from ssd_ray.artifacts.directory_lock import locked
from ssd_ray.cluster import sameness
from ssd_ray.cluster.sameness import Expected
from ssd_ray.errors import OutsideError
from ssd_ray.machine import storage
from ssd_ray.pipeline import run_storage


@pytest.fixture
def expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Expected]:
    """Observations of a driver that holds the lock of its run directory."""
    monkeypatch.setattr(sameness, "_LATE_S", 0.1)
    with locked(tmp_path / "run"):
        (tmp_path / "run" / ".nonce").write_text("n0nce")
        yield Expected(run=tmp_path / "run", nonce="n0nce", software=sameness.software())


def test_a_node_like_the_drivers_has_no_fault(expected: Expected) -> None:
    assert sameness.fault(expected, "worker-1") == ""


@pytest.mark.parametrize("name", ["Python", "Ray", "ssd-ray"])
def test_other_software_on_a_node_is_a_fault(expected: Expected, name: str) -> None:
    other = replace(expected, software=expected.software | {name: "9.9"})
    here = expected.software[name]
    assert sameness.fault(other, "worker-1").startswith(
        f"node worker-1 runs {name} {here} and the driver {name} 9.9: use one state of image"
    )


def test_a_claim_that_is_not_mounted_is_a_fault(expected: Expected) -> None:
    run = expected.run.with_name("elsewhere")
    assert sameness.fault(replace(expected, run=run), "worker-1").startswith(
        f"{run} does not exist on node worker-1: mount the same shared volume there"
    )


def test_another_claim_under_the_same_path_is_a_fault(expected: Expected) -> None:
    assert f"{expected.run} differs on node worker-1" in sameness.fault(
        replace(expected, nonce="other"), "worker-1"
    )


def test_a_grader_sees_the_answers_of_the_run_alone(expected: Expected) -> None:
    """Its pod mounts directories of the run, and no file next to them."""
    (expected.run / ".nonce").unlink()
    (expected.run / "generations").mkdir()
    assert sameness.fault(expected, "worker-1").startswith(f"{expected.run} differs on node")
    (expected.run / "generations" / ".nonce").write_text("n0nce")
    assert sameness.fault(expected, "worker-1") == ""


def test_locks_of_one_node_alone_are_a_fault(tmp_path: Path) -> None:
    """With `nolock`, the lock that the driver holds is granted on another node too."""
    (tmp_path / ".nonce").write_text("n0nce")
    (tmp_path / ".lock").touch()
    unlocked = Expected(run=tmp_path, nonce="n0nce", software=sameness.software())
    assert "node worker-1 is granted the lock of" in sameness.fault(unlocked, "worker-1")


def test_a_pod_that_sees_no_lock_makes_none(tmp_path: Path) -> None:
    (tmp_path / ".nonce").write_text("n0nce")
    seen = Expected(run=tmp_path, nonce="n0nce", software=sameness.software())
    assert sameness.fault(seen, "grader-1") == ""
    assert not (tmp_path / ".lock").exists()


class Cluster:
    """A cluster whose nodes join one by one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nodes = ["head"]
        self.asked: list[str] = []
        self.faults: dict[str, str] = {}
        self.error: Exception | None = None
        monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
        monkeypatch.setattr(sameness, "_POLL_S", 0.05)
        monkeypatch.setattr(sameness, "_ask", self._ask)
        monkeypatch.setattr("ray.nodes", self._nodes)

    def _nodes(self) -> list[dict[str, object]]:
        return [{"NodeID": name, "NodeManagerHostname": name, "Alive": True} for name in self.nodes]

    def _ask(self, _: Expected, nodes: dict[str, str]) -> str:
        if self.error is not None:
            raise self.error
        self.asked += nodes
        return next((self.faults[name] for name in nodes if name in self.faults), "")


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_a_fault_of_a_present_node_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Cluster(monkeypatch).faults["head"] = "no volume on head"
    with pytest.raises(OutsideError, match="no volume on head"), sameness.required(tmp_path, print):
        raise AssertionError("the work has begun")
    assert list(tmp_path.rglob(".nonce")) == []


def test_a_fault_of_a_node_that_joins_later_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch)
    cluster.faults["sampler-1"] = "no volume on sampler-1"

    def work() -> None:
        with sameness.required(tmp_path, print):
            cluster.nodes += ["grader-1", "sampler-1"]
            time.sleep(60)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    # An earlier test of this process may have left Ray's handler, which ends the process.
    terminates = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(OutsideError, match="no volume on sampler-1"):
            work()
    finally:
        signal.signal(signal.SIGINT, before)
        signal.signal(signal.SIGTERM, terminates)


def test_each_node_is_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    with sameness.required(tmp_path, print):
        cluster.nodes.append("grader-1")
        _wait(lambda: "grader-1" in cluster.asked)
        time.sleep(0.2)
    assert cluster.asked == ["head", "grader-1"]


@pytest.mark.parametrize(
    "error", [RpcError("GCS is away"), ConnectionError("refused"), TimeoutError("no answer")]
)
def test_nodes_that_join_while_ray_is_away_are_examined_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    cluster = Cluster(monkeypatch)
    lines: list[str] = []
    with sameness.required(tmp_path, lines.append):
        cluster.error = error
        cluster.nodes.append("grader-1")
        _wait(lambda: len(lines) > 0)
        time.sleep(0.2)
        cluster.error = None
        _wait(lambda: "grader-1" in cluster.asked)
    assert cluster.asked == ["head", "grader-1"]
    (line,) = lines
    assert line.startswith("nodes that join wait for their examination: ")
    assert str(error) in line


def test_another_error_of_the_examination_is_not_hidden(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Cluster(monkeypatch)
    raised: list[str] = []
    monkeypatch.setattr("threading.excepthook", lambda args: raised.append(str(args.exc_value)))
    with sameness.required(tmp_path, print):
        cluster.error = ValueError("a defect")
        cluster.nodes.append("grader-1")
        _wait(lambda: len(raised) > 0)
    assert raised == ["a defect"]


def test_ctrl_c_stays_ctrl_c(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Cluster(monkeypatch)
    with pytest.raises(KeyboardInterrupt), sameness.required(tmp_path, print):
        raise KeyboardInterrupt


def test_a_local_ray_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch)
    monkeypatch.delenv("RAY_ADDRESS")
    with sameness.required(tmp_path, print):
        assert list(tmp_path.rglob(".nonce")) == []
    assert cluster.asked == []


def test_storage_without_renames_is_refused_before_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_storage.check(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutsideError, match=r"because renaming over a file fails there .* another"):
        run_storage.check(tmp_path)


def test_the_heads_own_disk_is_refused_in_a_pod(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_kind", lambda _: "overlay")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setenv("SSD_RAY_RUNS", "/mnt/claim")
    monkeypatch.delenv("KUBERAY_GEN_RAY_START_CMD", raising=False)
    run_storage.check(tmp_path / "mine")
    monkeypatch.setenv("KUBERAY_GEN_RAY_START_CMD", "ray start --head")
    with pytest.raises(OutsideError, match=r"own disk \(overlay\), .* such as /mnt/claim/mine$"):
        run_storage.check(tmp_path / "mine")
    monkeypatch.setattr(storage, "_kind", lambda _: "nfs4")
    run_storage.check(tmp_path / "mine")


@pytest.mark.real
def test_the_nodes_of_a_real_ray_answer(
    expected: Expected, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from ssd_ray import cluster

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster.connected():
        monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)
        with sameness.required(expected.run, print):
            assert (expected.run / ".nonce").exists()
        (node,) = ray.nodes()
        nodes = {node["NodeID"]: "worker-1"}
        assert "differs on node worker-1" in sameness._ask(expected, nodes)
