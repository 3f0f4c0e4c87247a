"""Sockets get short paths: a long TMPDIR is replaced, or named with the remedy."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ssd_ray.cluster import short_paths
from ssd_ray.cluster.short_paths import ray_directory, vllm_environment
from ssd_ray.errors import UserError

LONG = "users/jobs/1355700.cluster-batch-04/node-local/tmp.t0016/and/more/of/it"


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short directory in the place of /tmp; TMPDIR and similar variables are not set."""
    for name in ("TMPDIR", "RAY_TMPDIR", "VLLM_RPC_BASE_PATH"):
        monkeypatch.delenv(name, raising=False)
    short = Path(os.path.realpath(f"/tmp/sp{os.getpid()}"))
    short.mkdir(exist_ok=True)
    monkeypatch.setattr(short_paths, "_PLACES", (str(short),))
    monkeypatch.setattr(short_paths.tempfile, "tempdir", None)
    yield short
    shutil.rmtree(short)


@pytest.mark.parametrize(
    "kind", ["long", "missing", "empty", "relative", "closed", "a file", "not ascii", "not utf-8"]
)
def test_a_tmpdir_that_cannot_hold_sockets_is_worked_around(
    place: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / LONG).mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("ü", "\udcff"):
        (place / name).mkdir(exist_ok=True)
    values = {
        "long": str(tmp_path / LONG),
        "missing": "/nowhere/x",
        "empty": "",
        "relative": "here",
        "closed": "/proc",
        "a file": str(tmp_path / "file"),
        "not ascii": str(place / "ü"),
        "not utf-8": str(place / "\udcff"),
    }
    monkeypatch.setenv("TMPDIR", values[kind])
    messages: list[str] = []
    assert ray_directory(messages.append) == f"{place}/ssd-ray-{os.getuid()}/ray"
    (line,) = messages
    assert f"TMPDIR={values[kind]} cannot hold its sockets (" in line
    assert (place / f"ssd-ray-{os.getuid()}").stat().st_mode & 0o077 == 0


def test_a_usual_tmpdir_is_left_to_ray(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    assert ray_directory(messages.append) is None
    monkeypatch.setenv("TMPDIR", str(place))
    assert ray_directory(messages.append) is None
    monkeypatch.setenv("RAY_TMPDIR", str(place / "new"))
    assert ray_directory(messages.append) is None
    monkeypatch.chdir(place)
    monkeypatch.setenv("RAY_TMPDIR", "relative")
    assert ray_directory(messages.append) == str(place / "relative" / "ray")
    assert messages == []


@pytest.mark.parametrize("value", [f"/tmp/{LONG}", "/proc/x", "/tmp/ü", "/dev/null"])
def test_a_ray_tmpdir_that_cannot_hold_sockets_is_a_mistake(
    place: Path, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was set for Ray alone, so it is not passed over in silence."""
    monkeypatch.setenv("RAY_TMPDIR", value)
    with pytest.raises(
        UserError,
        match=rf"RAY_TMPDIR={value} cannot hold Ray's sockets \(.*\): set it to a short path",
    ):
        ray_directory(print)


def test_without_a_usable_directory_both_variables_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(short_paths, "_PLACES", ("/proc", "/nowhere"))
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(
        UserError,
        match=r"TMPDIR=/nowhere cannot .*\(no such directory\).*set RAY_TMPDIR to a short path",
    ):
        ray_directory(print)


def test_a_directory_that_others_can_enter_is_not_used(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever made it could put sockets there."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    own = place / f"ssd-ray-{os.getuid()}"
    own.mkdir(exist_ok=True)
    own.chmod(0o777)
    with pytest.raises(UserError, match="neither can"):
        ray_directory(print)
    own.chmod(0o700)
    assert ray_directory(print)
    for path in sorted(own.rglob("*"), reverse=True):
        path.rmdir()
    own.rmdir()
    own.symlink_to("/tmp")
    with pytest.raises(UserError, match="neither can"):
        ray_directory(print)
    own.unlink()


def test_no_directory_for_temporary_files_is_a_mistake(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing() -> str:
        raise FileNotFoundError("No usable temporary directory found")

    monkeypatch.setattr(short_paths.tempfile, "gettempdir", nothing)
    with pytest.raises(
        UserError, match=r"no directory for temporary files can be written .*set TMPDIR"
    ):
        ray_directory(print)


def test_sockets_of_vllm_fit(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert vllm_environment() == {}
    (tmp_path / LONG).mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path / LONG))
    monkeypatch.setattr(short_paths.tempfile, "tempdir", None)
    base = vllm_environment()["VLLM_RPC_BASE_PATH"]
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(f"{base}/{'0' * 36}")
    os.unlink(f"{base}/{'0' * 36}")
    monkeypatch.setenv("VLLM_RPC_BASE_PATH", "/elsewhere")
    assert vllm_environment() == {}
