"""Directories are renamed into place when complete, even with two processes at once."""

from __future__ import annotations

import ast
import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ssd_ray.artifacts import audit, directory_lock, files
from ssd_ray.config import TrainConfig
from ssd_ray.errors import OutsideError, UserError
from ssd_ray.training.state import export, resume

PACKAGE = Path(__file__).parents[2] / "ssd_ray"

CONVERTS = """
import sys, time
from pathlib import Path
from ssd_ray import models
from ssd_ray.models import gguf_file
own, other, file = sys.argv[1], sys.argv[2], Path(sys.argv[3])
def convert(file, out):
    (out / "config.json").write_text("{}")
    (out / "model.safetensors").write_text("weights")
rename = Path.rename
def together(path, target):
    (file.parent / own).touch()
    while not (file.parent / other).exists():
        time.sleep(0.001)
    return rename(path, target)
gguf_file.convert, Path.rename = convert, together
print(models._convert_once(file))
"""


def test_two_processes_can_convert_one_model_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSD_RAY_CACHE", str(tmp_path / "cache"))
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for attempt in range(3):
        pair = [f"{attempt}-one", f"{attempt}-two"]
        command = [sys.executable, "-c", CONVERTS]
        processes = [
            subprocess.Popen(
                [*command, *names, str(tmp_path / "model.gguf")], stdout=-1, stderr=-1, text=True
            )
            for names in (pair, pair[::-1])
        ]
        shown = [process.communicate(timeout=120) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], shown
        (model,) = (tmp_path / "cache" / "models").iterdir()
        assert [out.strip() for out, _ in shown] == [str(model)] * 2
        assert {path.name for path in model.iterdir()} == {"config.json", "model.safetensors"}
        for path in (*model.iterdir(), model):
            path.rmdir() if path.is_dir() else path.unlink()


def _full(path: Path, text: str) -> Path:
    path.mkdir(parents=True)
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("there", ["nothing", "empty", "full", "file"])
def test_a_published_directory_never_replaces_another_one(tmp_path: Path, there: str) -> None:
    aside, target = _full(tmp_path / "aside", "new"), tmp_path / "target"
    if there == "file":
        target.write_text("old")
        with pytest.raises(
            UserError,
            match=r"cannot rename .*aside to .*target: Not a directory; move .*target away",
        ):
            files.publish_directory(aside, target)
        return
    if there != "nothing":
        target.mkdir()
    if there == "full":
        (target / "file").write_text("old")
    files.publish_directory(aside, target)
    assert (target / "file").read_text() == ("old" if there == "full" else "new")


@pytest.mark.parametrize("there", ["nothing", "empty", "full", "file"])
def test_a_directory_can_replace_anything_at_its_target(tmp_path: Path, there: str) -> None:
    aside, target = _full(tmp_path / "aside", "new"), tmp_path / "target"
    if there == "file":
        target.write_text("old")
    elif there != "nothing":
        target.mkdir()
    if there == "full":
        (target / "file").write_text("old")
    files.replace_directory(aside, target)
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_directory_that_cannot_be_emptied_does_not_end_a_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Network storage renames a removed file while a process holds it open."""
    import shutil

    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
    target = _full(tmp_path / "step-2", "old")
    files.replace_directory(_full(tmp_path / ".step-2.partial", "new"), target)
    assert (target / "file").read_text() == "new"


def _engine() -> Any:
    def save_checkpoint(folder: str, tag: str, **_: Any) -> None:
        (Path(folder) / tag).mkdir(parents=True, exist_ok=True)

    return SimpleNamespace(
        global_rank=0,
        world_size=1,
        save_checkpoint=save_checkpoint,
        zero_optimization_stage=lambda: 2,
        zero_sub_group_size=lambda: 10,
    )


def test_an_unfinished_state_or_export_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    _full(tmp_path / "resume" / "step-3", "lost its state.json")
    resume.save(_engine(), tmp_path, 3)
    assert resume.latest(tmp_path)[0] == 3
    monkeypatch.setattr(export, "export", lambda engine, base, out, *_: _full(out, "new"))
    _full(export.step_directory(tmp_path, 3), "old")
    export.export_step(_engine(), tmp_path, tmp_path, TrainConfig(), 3)
    assert (export.step_directory(tmp_path, 3) / "file").read_text() == "new"
    assert [path.name for path in (tmp_path / export.STEPS).iterdir()] == ["step-3"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_files_moved_away_never_overwrite_earlier_ones(tmp_path: Path, kind: str) -> None:
    for number in range(4):
        if kind == "file":
            (tmp_path / "a.parquet").write_text(str(number))
        else:
            _full(tmp_path / "a.parquet", str(number))
        audit._move_away(tmp_path / "a.parquet")
        if number == 1:  # the user looked at the first one and took it away
            first = tmp_path / "set-aside" / "a.parquet.0"
            first.unlink() if kind == "file" else first.rename(tmp_path / "taken")
    assert {path.name for path in (tmp_path / "set-aside").iterdir()} == {
        f"a.parquet.{number}" for number in range(3)
    }


MAY_RENAME = {
    "artifacts/files.py",
    "artifacts/audit.py",
    "inference/crashes/heartbeat.py",
    "machine/storage.py",
}
"""Callers of `rename`. Only artifacts/files.py publishes directories with it."""


@pytest.mark.slow
def test_directories_are_published_by_one_module() -> None:
    sources = {
        path.relative_to(PACKAGE): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")
    }
    renaming = {
        str(path)
        for path, tree in sources.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr in {"rename", "renames", "move"}
        and "sandbox" not in path.parts
    }
    assert renaming == MAY_RENAME


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/proc/x/run", "/proc takes no directory"),
        ("/sys/x", "Operation not permitted|Permission denied|Read-only file system"),
        ("file", "file is no directory"),
        ("file/run", "file is no directory"),
        ("x" * 300, "File name too long"),
        ("loop/run", "Too many levels of symbolic links"),
    ],
)
def test_a_directory_that_cannot_be_made_is_refused(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("mine\n")
    (tmp_path / "loop").symlink_to("loop")
    for make in (files.make_directory, directory_lock.try_lock):
        with pytest.raises(OutsideError) as caught:
            make(tmp_path / name)
        assert re.fullmatch(
            rf"the directory {re.escape(str(tmp_path / name))} cannot be made "
            rf"\(.*({reason})\): choose another --out",
            str(caught.value),
        )


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "No space left on device; make room and run again, or choose another --out"),
        (errno.EDQUOT, "Disk quota exceeded; make room and run again, or choose another --out"),
        (errno.EROFS, "(Read-only file system): choose another --out"),
        (errno.EACCES, "(Permission denied): choose another --out"),
    ],
)
def test_only_full_storage_is_to_be_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, remedy: str
) -> None:
    def mkdir(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(OutsideError) as caught:
        files.make_directory(tmp_path / "run")
    assert str(caught.value).endswith(remedy)


def test_a_directory_of_another_user_gets_no_advice_to_make_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(OutsideError, match=r"Permission denied; choose another --out$"):
        files.make_directory(tmp_path)
