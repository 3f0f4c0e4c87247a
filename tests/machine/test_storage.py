"""Storage is tried out by real operations, and a host's memory is bounded by its container."""

from __future__ import annotations

import fcntl
import socket
from pathlib import Path

import pytest

from ssd_ray.machine.findings import storage_finding, tool_findings
from ssd_ray.machine.host import read_host
from ssd_ray.machine.installed import Tools, hub_failure, torch_build
from ssd_ray.machine.storage import read_storage


def test_working_storage_is_left_as_it_was(tmp_path: Path) -> None:
    storage = read_storage(tmp_path / "not" / "yet")
    assert (storage.path, storage.failure) == (tmp_path, "")
    assert storage.free > 0
    assert storage.kind
    assert list(tmp_path.iterdir()) == []
    assert storage_finding("runs", storage).state == "ok"


def test_storage_without_locks_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    storage = read_storage(tmp_path)
    assert storage.failure == "locking fails there (No locks available)"
    assert storage_finding("runs", storage).state == "fault"


def test_storage_that_grants_a_lock_twice_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    assert "a second lock was granted" in read_storage(tmp_path).failure


def test_storage_without_renames_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "replace", refuse)
    assert read_storage(tmp_path).failure == (
        "renaming over a file fails there (Operation not permitted)"
    )


def test_storage_that_cannot_be_written_is_a_fault() -> None:
    assert read_storage(Path("/proc")).failure.startswith("writing fails there")


def test_a_file_in_place_of_the_directory_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/hub"):
        assert read_storage(path).failure == f"{tmp_path / 'file'} is not a directory"


MEMINFO = """MemTotal:       2113409304 kB
MemFree:        1903211288 kB
MemAvailable:   2081204324 kB
HugePages_Total:       0
"""


@pytest.mark.parametrize(
    ("limits", "gib"),
    [
        ({}, 2015),
        ({"sys/fs/cgroup/memory.max": "max"}, 2015),
        ({"sys/fs/cgroup/memory.max": str(64 << 30)}, 64),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": str(32 << 30)}, 32),
        ({"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"}, 2015),
    ],
)
def test_memory_is_bounded_by_the_container(
    tmp_path: Path, limits: dict[str, str], gib: int
) -> None:
    for name, text in {"proc/meminfo": MEMINFO, **limits}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text.strip()}\n")
    host = read_host(tmp_path)
    assert host.memory >> 30 == gib
    assert host.available <= host.memory


@pytest.mark.parametrize(
    ("cgroup", "gib"),
    [
        ({"memory.max": 64 << 30, "memory.current": 50 << 30}, 14),
        (
            {
                "memory.max": 64 << 30,
                "memory.current": 50 << 30,
                "memory.stat": f"anon {20 << 30}\ninactive_file {30 << 30}",
            },
            44,
        ),
        (
            {
                "memory/memory.limit_in_bytes": 64 << 30,
                "memory/memory.usage_in_bytes": 60 << 30,
                "memory/memory.stat": f"inactive_file 5\ntotal_inactive_file {10 << 30}",
            },
            14,
        ),
        ({"memory.max": 4 << 30, "memory.current": 5 << 30}, 0),
        ({"memory.max": "max", "memory.current": 50 << 30}, 1984),
    ],
)
def test_available_memory_is_what_the_container_has_left(
    tmp_path: Path, cgroup: dict[str, object], gib: int
) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text(MEMINFO)
    for name, value in cgroup.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    assert read_host(tmp_path).available >> 30 == gib


def test_the_build_of_torch_is_read_without_importing_it() -> None:
    import torch

    build = torch_build()
    assert (build.version, build.cuda) == (torch.__version__, torch.version.cuda)


def test_missing_compilers_are_faults() -> None:
    none = Tools(ninja=None, c=None, cxx=None, headers=None)
    sentences = [finding.sentence for finding in tool_findings(none)]
    assert "a C compiler is missing" in sentences[0]
    assert "apt install gcc python3-dev" in sentences[0]
    assert "a C++ compiler is missing" in sentences[1]
    without_ninja = Tools(ninja=None, c="/bin/cc", cxx="/bin/c++", headers=Path("/Python.h"))
    states = {finding.subject: finding for finding in tool_findings(without_ninja)}
    assert states["C compiler"].state == "ok"
    assert "ninja is missing" in states["C++ compiler"].sentence


def test_an_offline_hub_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub_failure(1.0) == "HF_HUB_OFFLINE is set"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # A port that refuses at once.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert hub_failure(5.0) == "ConnectError"
    # A server that accepts and never answers.
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert hub_failure(0.3)
