"""Models on machines that do not see the driver's cache: the same revision, or one sentence."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ssd_ray import models
from ssd_ray.config import ClusterConfig, EngineConfig, ModelConfig, TrainConfig
from ssd_ray.errors import UserError
from ssd_ray.inference.engines import EngineSettings
from ssd_ray.training.job import Job
from tests.support.processes import kill_all

COMMIT = "0123456789abcdef0123456789abcdef01234567"
MODEL = ModelConfig(source="someone/tiny")


def _cached(cache: Path, model: Path) -> Path:
    """Put a model into a cache of the hub's client and return its directory."""
    directory = cache / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    shutil.copytree(model, directory)
    return directory


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_llama: Path) -> list[str]:
    """Revisions that the hub was asked for."""
    asked: list[str] = []

    def download(source: str, *, revision: str, **_: Any) -> str:
        asked.append(f"{source}@{revision}")
        return str(_cached(tmp_path / "downloaded", tiny_llama))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return asked


def test_a_directory_that_is_here_is_used(
    tmp_path: Path, tiny_llama: Path, downloads: list[str]
) -> None:
    here = _cached(tmp_path, tiny_llama)
    assert models.on_this_machine(MODEL, here) == here
    assert models.on_this_machine(ModelConfig(source=str(tiny_llama)), tiny_llama) == tiny_llama
    assert not downloads


@pytest.mark.parametrize("harm", ["absent", "unfinished"])
def test_a_model_of_the_hub_is_fetched_at_the_same_commit(
    tmp_path: Path, tiny_llama: Path, downloads: list[str], harm: str
) -> None:
    there = _cached(tmp_path, tiny_llama)
    if harm == "absent":
        shutil.rmtree(tmp_path / "hub")
    else:
        (there / "model.safetensors").unlink()
    fetched = models.on_this_machine(MODEL, there)
    assert fetched == tmp_path / "downloaded" / there.relative_to(tmp_path)
    assert downloads == [f"someone/tiny@{COMMIT}"]


def test_a_model_that_is_not_on_a_machine_is_named_with_it(tmp_path: Path) -> None:
    missing = tmp_path / "checkpoint"
    with pytest.raises(UserError) as caught:
        models.on_this_machine(ModelConfig(source=str(tmp_path)), missing)
    assert str(caught.value) == (
        f"the model {missing} is not on node {socket.gethostname()}: copy it there, or give a "
        "directory on storage that every node sees"
    )
    snapshot = tmp_path / "hub" / "models--someone--tiny" / "snapshots" / COMMIT
    with pytest.raises(UserError) as caught:
        models.on_this_machine(MODEL, snapshot)
    assert str(caught.value).startswith(
        f"on node {socket.gethostname()}, model.source 'someone/tiny' is no directory here, "
    )


def _no_room() -> Exception:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _no_room_in_the_hubs_storage() -> Exception:
    return RuntimeError("Data processing error: I/O error: No space left on device (os error 28)")


def _no_room_behind_another() -> Exception:
    error = FileNotFoundError("An error happened while trying to locate the files on the Hub")
    error.__cause__ = _no_room()
    return error


@pytest.mark.parametrize("error", [_no_room, _no_room_in_the_hubs_storage, _no_room_behind_another])
def test_a_full_cache_is_named_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, error: Callable[[], Exception]
) -> None:
    from huggingface_hub import constants

    def download(*_: Any, **__: Any) -> str:
        raise error()

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError) as caught:
        models.fetch(MODEL)
    assert str(caught.value) == (
        f"model.source 'someone/tiny' does not fit into {constants.HF_HUB_CACHE}, where the hub's "
        "client keeps models: make room, or set HF_HOME to a directory with more"
    )


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR])
def test_a_cache_that_cannot_be_written_is_named(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = os.strerror(number)

    def download(*_: Any, **__: Any) -> str:
        raise OSError(number, reason, "/cache/models--someone--tiny")

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UserError, match=rf"{reason}.*set HF_HOME to a directory that can"):
        models.fetch(MODEL)


def _can_hide() -> bool:
    """Return True if a process here may have directories of its own."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    return bool(shutil.which("unshare")) and not subprocess.run(command, check=False).returncode


def directory_of_engine(settings: EngineSettings) -> str:
    """Start an engine that only reports its directory."""
    from ssd_ray.inference.vllm import engine

    engine.Engine = lambda directory, **_: directory  # type: ignore[assignment, misc]
    return str(settings.make()())


def directory_of_training(job: Job) -> str:
    """Return the directory of the model that a training worker loads."""
    return str(job.on_this_machine().model)


@pytest.fixture
def two_nodes(tmp_path: Path) -> Iterator[None]:
    """A cluster of two nodes; the node `other` sees an empty directory in place of `first`."""
    import ray
    from ray.cluster_utils import Cluster

    (tmp_path / "first").mkdir()
    head = {"num_cpus": 1, "object_store_memory": 10**8, "resources": {"first": 1}}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    start = f"{sys.executable} -m ray.scripts.scripts start --address={cluster.address} --block"
    start += " --num-cpus=1 --object-store-memory=100000000 --resources='{\"other\": 1}'"
    hidden = f"mount -t tmpfs none {tmp_path / 'first'} && exec {start}"
    environment = os.environ | {"HF_HOME": str(tmp_path / "other")}
    log = (tmp_path / "other.log").open("w")
    other = subprocess.Popen(
        ["unshare", "-rm", "sh", "-c", hidden], env=environment, stdout=log, stderr=log
    )
    try:
        ray.init(address=cluster.address, log_to_driver=False)
        deadline = time.monotonic() + 120
        while not ray.cluster_resources().get("other"):
            assert other.poll() is None, (tmp_path / "other.log").read_text()
            assert time.monotonic() < deadline, "the other node did not start"
            time.sleep(0.2)
        yield
    finally:
        import psutil

        kill_all([*psutil.Process(other.pid).children(recursive=True), psutil.Process(other.pid)])
        other.wait()
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.real
@pytest.mark.skipif(not _can_hide(), reason="no process may hide directories here")
def test_nodes_with_caches_of_their_own_use_the_same_revision(
    two_nodes: None, tmp_path: Path, tiny_llama: Path
) -> None:
    import ray

    theirs = _cached(tmp_path / "first", tiny_llama)
    settings = EngineSettings(directory=theirs, model=MODEL, engine=EngineConfig(), device="cpu")
    job = Job(
        dataset=tmp_path,
        model=theirs,
        base=MODEL,
        out=tmp_path,
        logs=tmp_path,
        train=TrainConfig(),
        cluster=ClusterConfig(device="cpu"),
        seed=0,
    )
    engine, training = ray.remote(directory_of_engine), ray.remote(directory_of_training)

    def on(node: str) -> list[str]:
        place: Any = {"num_cpus": 0, "resources": {node: 0.1}}
        directories: list[str] = ray.get(
            [engine.options(**place).remote(settings), training.options(**place).remote(job)]
        )
        return directories

    assert on("first") == [str(theirs)] * 2
    with pytest.raises(UserError, match=r"on node \S+, model.source 'someone/tiny' is no"):
        on("other")
    own = _cached(tmp_path / "other", tiny_llama)
    assert on("other") == [str(own)] * 2
