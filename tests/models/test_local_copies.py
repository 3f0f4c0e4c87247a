"""One copy of a model for all processes of a node, complete and checked."""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import yaml
from pydantic import ValidationError

from ssd_ray.artifacts import files
from ssd_ray.config import ClusterConfig, TrainConfig
from ssd_ray.errors import OutsideError
from ssd_ray.inference.vllm import engine, placement
from ssd_ray.machine import storage
from ssd_ray.models import local_copies
from ssd_ray.models.local_copies import local_copy
from ssd_ray.training.job import Job
from tests.support.loading_engine import settings

ROOT = Path(__file__).parents[2]
LOADED = {
    "config.json": b"{}",
    "generation_config.json": b"{ }",
    "tokenizer.json": b"[]",
    "model.safetensors.index.json": b"{  }",
    "chat_template.jinja": b"{{ messages }}",
    "additional_chat_templates/tools.jinja": b"{{ tools }}",
    "model-00001-of-00002.safetensors": b"first" * 1000,
    "model-00002-of-00002.safetensors": b"second" * 1000,
}
OTHERS = {
    "pytorch_model.bin": b"pickled",
    "loss.jsonl": b"{}\n",
    "resume/step-1/model.safetensors": b"state",
    "manifest.json": b"{}",
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A directory with files of a model and others."""
    directory = tmp_path / "shared" / "checkpoint"
    for name, content in {**LOADED, **OTHERS}.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_bytes(content)
    return directory


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "nvme"


def in_child(action: Callable[[], object]) -> int:
    """Run an action in a process of its own, and return its wait status."""
    child = os.fork()
    if not child:
        try:
            action()
            os._exit(0)
        # Printed in any case: pytest must not go on in the child.
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitpid(child, 0)[1]


def content(directory: Path) -> dict[str, bytes]:
    """Return the files of a copy, without its record."""
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and path.name != ".copy.json"
    }


def copies(disk: Path) -> list[Path]:
    """Return the directories that any process would take for complete copies."""
    place = disk / f"ssd-ray-weights-{os.getuid()}"
    listed = place.iterdir() if place.is_dir() else ()
    return [path for path in listed if path.is_dir() and not path.name.startswith(".")]


def test_a_copy_has_the_files_that_are_loaded_and_is_made_once(model: Path, disk: Path) -> None:
    copy = local_copy(model, disk)
    assert content(copy) == LOADED
    assert copy.parent.stat().st_mode & 0o777 == 0o700
    before = copy.stat().st_ino
    assert local_copy(model, disk) == copy
    assert in_child(lambda: local_copy(model, disk)) == 0
    assert copy.stat().st_ino == before
    assert copies(disk) == [copy]


def kill_at(number: int, disk: Path) -> None:
    """Kill this process before its n-th operation on the disk."""
    left = iter(range(number))

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        touches = event in ("open", "fcntl.flock") or event.startswith(("os.", "shutil."))
        on_disk = event == "fcntl.flock" or str(disk) in str(arguments[:1])
        if touches and on_disk and next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(audit)


@pytest.mark.parametrize("is_clean", [True, False], ids=["an empty disk", "left by the last kill"])
@pytest.mark.slow
def test_a_kill_leaves_nothing_that_is_taken_for_complete(
    model: Path, disk: Path, is_clean: bool
) -> None:
    def copy_until(number: int) -> None:
        kill_at(number, disk)
        local_copy(model, disk)

    kills = 0
    while status := in_child(functools.partial(copy_until, kills)):
        assert os.WIFSIGNALED(status), "the copy fails"
        for copy in copies(disk):
            assert content(copy) == LOADED, f"killed at operation {kills}"
        if is_clean:
            shutil.rmtree(disk, ignore_errors=True)
        kills += 1
    assert kills > 20
    assert content(local_copy(model, disk)) == LOADED
    assert not list(disk.rglob("*.partial"))


def test_processes_of_a_node_copy_together_once(
    model: Path, disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    children = []
    for _ in range(8):
        child = os.fork()
        if not child:
            os._exit(content(local_copy(model, disk)) != LOADED)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
    assert capfd.readouterr().err.count("weights: ") == 1


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _change(path: Path) -> None:
    with path.open("r+b") as handle:
        handle.seek(100)
        handle.write(b"x")


@pytest.mark.parametrize("harm", [_cut, _change, Path.unlink])
@pytest.mark.parametrize("name", ["model-00002-of-00002.safetensors", ".copy.json"])
def test_a_damaged_copy_is_replaced(
    model: Path, disk: Path, name: str, harm: Callable[[Path], None]
) -> None:
    copy = local_copy(model, disk)
    if (name, harm) == (".copy.json", _change):
        (copy / name).write_text("{}")
    else:
        harm(copy / name)
    assert local_copy(model, disk) == copy
    assert content(copy) == LOADED


def test_another_model_at_the_same_path_is_another_copy(model: Path, disk: Path) -> None:
    before = local_copy(model, disk)
    (model / "model-00001-of-00002.safetensors").write_bytes(b"other" * 1000)
    after = local_copy(model, disk)
    assert after != before
    assert (after / "model-00001-of-00002.safetensors").read_bytes() == b"other" * 1000
    assert content(before) == LOADED, "this process uses it"


def test_unused_copies_are_removed_before_another_is_made(model: Path, disk: Path) -> None:
    used = local_copy(model, disk)
    others = []
    for name in ("base", "naive"):
        others.append(shutil.copytree(model, model.with_name(name)))
        assert in_child(lambda: local_copy(others[-1], disk)) == 0
    assert {path.name.rpartition("-")[0] for path in copies(disk)} == {used.name[:10], "naive"}
    assert len(list(used.parent.glob("*.lock"))) == 2


def test_a_disk_without_room_is_named_with_node_and_remedy(
    model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(map(len, LOADED.values()))
    monkeypatch.setattr(local_copies.socket, "gethostname", lambda: "worker-1")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size - 1))
    with pytest.raises(OutsideError) as refusal:
        local_copy(model, disk)
    assert str(refusal.value) == (
        f"{disk}/ssd-ray-weights-{os.getuid()} has 0.0 GiB left on node worker-1, and the copy of "
        f"the model {model} needs 0.0 GiB: free some, or set cluster.local_weights to a directory "
        "on another disk of every node, or to off"
    )
    assert not copies(disk)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=size))
    assert content(local_copy(model, disk)) == LOADED


def test_a_disk_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutsideError, match=r"/file on node .* failed: .*; set cluster.local_weig"):
        local_copy(model, tmp_path / "file")


def test_a_place_of_another_user_is_refused(
    model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (disk / "ssd-ray-weights-12345").mkdir(parents=True)
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(OutsideError, match="belongs to another user"):
        local_copy(model, disk)


def test_a_file_of_the_hub_has_the_digest_that_the_hub_states(model: Path, disk: Path) -> None:
    weights = model / "model-00001-of-00002.safetensors"
    blob = model.parent / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    assert content(local_copy(model, disk)) == LOADED
    _change(blob)
    with pytest.raises(OutsideError, match=rf"another SHA-256 .*; delete {blob} and run again"):
        local_copy(model, disk)
    assert len(copies(disk)) == 1


def test_a_model_that_changes_while_it_is_copied_is_refused(
    model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.copy_file

    def slow(source: Path, target: Path) -> str:
        digest = real(source, target)
        (model / "tokenizer.json").write_bytes(b"[1]")
        return digest

    monkeypatch.setattr(files, "copy_file", slow)
    with pytest.raises(OutsideError, match=r"checkpoint changed while it was copied: run again"):
        local_copy(model, disk)
    assert not copies(disk)


def test_a_disk_that_returns_other_bytes_is_refused(
    model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "copy_file", lambda source, target: target.touch() or "0" * 64)
    with pytest.raises(OutsideError, match="returns other bytes than were written"):
        local_copy(model, disk)
    assert not copies(disk)


@pytest.mark.parametrize(
    ("choice", "kinds", "names_disk", "copied"),
    [
        ("off", ("nfs4", "ext4"), True, False),
        ("auto", ("nfs4", "ext4"), True, True),
        ("auto", ("fuse.gcsfuse", "xfs"), True, True),
        ("auto", ("nfs4", "ext4"), False, False),
        ("auto", ("ext4", "ext4"), True, False),
        ("auto", ("nfs4", "nfs4"), True, False),
        ("DIR", ("ext4", "ext4"), False, True),
    ],
)
def test_auto_copies_from_shared_storage_to_a_named_disk(
    choice: str,
    kinds: tuple[str, str],
    names_disk: bool,
    copied: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, disk = tmp_path / "shared", tmp_path / "nvme"
    shared.mkdir()
    disk.mkdir()
    monkeypatch.setattr(storage, "_kind", lambda path: kinds[path == disk.resolve()])
    monkeypatch.delenv(storage.LOCAL, raising=False)
    if names_disk:
        monkeypatch.setenv(storage.LOCAL, str(disk))
    field = str(disk) if choice == "DIR" else choice
    assert storage.disk_for_copies(field, shared) == (disk if copied else None)


def test_the_choice_is_a_path_or_a_word() -> None:
    assert ClusterConfig().local_weights == "auto"
    assert ClusterConfig(**yaml.safe_load("local_weights: off")).local_weights == "off"
    with pytest.raises(ValidationError, match="'nvme' is no absolute path: give one, auto or off"):
        ClusterConfig(local_weights="nvme")


def test_an_engine_on_several_nodes_loads_from_the_model(
    model: Path, disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers on other nodes get the same path."""
    monkeypatch.setattr(engine, "Engine", lambda directory, **_: directory)
    nodes = {0: "one", 1: "one"}
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray.util, "get_current_placement_group", lambda: "group")
    monkeypatch.setattr(ray.util, "placement_group_table", lambda _: {"bundles_to_node_id": nodes})
    assert settings(model, str(disk)).make()() == copies(disk)[0]
    nodes[1] = "two"
    assert placement.spans_nodes()
    assert settings(model, str(disk)).make()() == model


def test_training_loads_from_the_copy_and_exports_from_the_model(model: Path, disk: Path) -> None:
    job = Job(
        dataset=model,
        model=model,
        out=model,
        logs=model,
        train=TrainConfig(),
        cluster=ClusterConfig(device="cpu", local_weights=str(disk)),
        seed=0,
    ).on_this_machine()
    assert job.weights == copies(disk)[0]
    assert job.model == model


@pytest.mark.parametrize(("is_copied", "readers"), [(True, 1), (False, 2)])
def test_two_engines_of_a_node_read_the_shared_storage_once(
    tiny_llama: Path, tmp_path: Path, disk: Path, is_copied: bool, readers: int
) -> None:
    """`benchmarks/slow_storage.c` writes down each open file of the shared directory."""
    library, log = tmp_path / "slow_storage.so", tmp_path / "log"
    source = ROOT / "benchmarks" / "slow_storage.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
    program = ROOT / "tests" / "support" / "loading_engine.py"
    shared = shutil.copytree(tiny_llama, tmp_path / "shared" / "model")
    environment = {
        "LD_PRELOAD": str(library),
        "SLOW_DIRECTORY": f"{shared}/",
        "SLOW_MS": "20",
        "SLOW_LOG": str(log),
    }
    engines = [
        subprocess.Popen(
            [sys.executable, str(program), str(shared), str(disk) if is_copied else "off"],
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    loaded = [int(each.communicate(timeout=120)[0]) for each in engines]
    assert loaded[0] == loaded[1] > 1
    lines = [line.split(maxsplit=4) for line in log.read_text().splitlines()]
    opened = [
        process
        for _, process, _, operation, path in lines
        if operation.startswith("open") and path.endswith(".safetensors")
    ]
    assert len(set(opened)) == readers
    assert not is_copied or len(opened) == 1
