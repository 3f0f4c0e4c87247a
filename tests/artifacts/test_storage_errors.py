"""An error of storage comes from outside: a rerun tries again once it is repaired."""

from __future__ import annotations

import ast
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from ssd_ray.artifacts import files, ledger, shards
from ssd_ray.artifacts.directory_lock import try_lock
from ssd_ray.artifacts.ledger import Span
from ssd_ray.errors import LastingError, OutsideError, UserError, kind_of_mistake
from ssd_ray.evaluation.tests_on_disk import TestStore
from ssd_ray.inference.crashes import heartbeat
from ssd_ray.inference.vllm.engine import Answer
from ssd_ray.inference.work.journal import Journal
from ssd_ray.schema import Completion, Problem
from ssd_ray.submissions import mistakes
from ssd_ray.training.state import resharding, resume

TOP = Path(__file__).parents[2]
INPUTS = {
    "cluster/cluster_files.py",
    "models/__init__.py",
    "models/architecture.py",
    "models/templates.py",
    "problems/benchmarks/files.py",
    "recipes/__init__.py",
}
"""Modules with paths of the recipe or the command line: another path is the remedy."""
ANSWER = Answer(output_token_ids=(3,), text="x", finish_reason="stop")


def _plain_mistakes() -> Iterator[str]:
    """Yield each plain `UserError` raised for an error of the system."""
    for path in sorted((TOP / "ssd_ray").rglob("*.py")):
        name = path.relative_to(TOP / "ssd_ray").as_posix()
        for handler in ast.walk(ast.parse(path.read_text())):
            if not isinstance(handler, ast.ExceptHandler) or handler.type is None:
                continue
            if "OSError" not in ast.unparse(handler.type) or name in INPUTS:
                continue
            for node in ast.walk(handler):
                if isinstance(node, ast.Raise) and "UserError(" in ast.unparse(node):
                    yield f"{name}:{node.lineno}"


def test_no_error_of_the_system_is_a_mistake_in_the_input() -> None:
    """A mistake on record would be refused again after the storage is repaired."""
    assert list(_plain_mistakes()) == []


def _full(path: Path) -> None:
    """Put a device without room at a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/full")


def _append_to_journal(place: Path) -> None:
    span = Span("prompts-0", 0, 4)
    _full(place / ".journal" / f"{span.name}.engine.jsonl")
    Journal(place, span, "engine").append(0, ANSWER)


def _append_to_ledger(place: Path) -> None:
    _full(place / "ledger" / "engine.jsonl")
    ledger.append_line(place / "ledger" / "engine.jsonl", b"{}")


def _write_state(place: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resume, "free_bytes", lambda _: 0)
        resume.write(SimpleNamespace(save_checkpoint=fail), place / "step-1")


def _write_on_read_only_storage(place: Path) -> None:
    """The storage becomes read-only between the first byte and the rename."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        patch.setattr(Path, "unlink", refuse)
        files.write_atomic(place / "file", "text")


def _join_on_read_only_storage(place: Path) -> None:
    answer = dict(prompt_id="p", sample_index=0, seed=1, source="s", difficulty="d")
    row = Completion(
        prompt_token_ids=(1,), output_token_ids=(2,), text="", finish_reason="stop", **answer
    )
    part = shards.write_shard(place, "part", [row], Completion)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", refuse)
        patch.setattr(Path, "unlink", refuse)
        shards.join_shards([[part]], place / "all.parquet")


def _lock_without_room(place: Path) -> None:
    (place / ".lock").mkdir()
    try_lock(place)


@pytest.mark.parametrize(
    "act",
    [
        _append_to_journal,
        _append_to_ledger,
        _write_state,
        _write_on_read_only_storage,
        _join_on_read_only_storage,
        _lock_without_room,
    ],
)
def test_storage_that_refuses_may_take_the_next_attempt(
    act: Callable[[Path], None], tmp_path: Path
) -> None:
    with (
        pytest.raises(OutsideError) as raised,
        mistakes.remembered(tmp_path, lambda: "same", lambda _: None),
    ):
        act(tmp_path)
    assert kind_of_mistake(raised.value) is OutsideError
    assert not (tmp_path / mistakes.FILE).exists()


def _read_torn_json(place: Path) -> None:
    (place / "state.json").write_text('{"a"')
    files.read_json(place / "state.json")


def _read_torn_shard(place: Path) -> None:
    (place / "part.parquet").write_bytes(b"PAR1")
    shards.read_table(place / "part.parquet")


def _read_lost_tests(place: Path) -> None:
    problem = Problem(problem_id="p", source="s", statement="", tests=(), tests_digest="0" * 32)
    TestStore(place, 1000).get(problem)


def _read_torn_state(place: Path) -> None:
    (place / "resume" / "step-5").mkdir(parents=True)
    (place / "resume" / "step-5" / "state.json").write_text('{"a"')
    resume.latest(place)


def _read_torn_weights(place: Path) -> None:
    torch.save({"a": 1}, place / "mp_rank_00.pt")
    (place / "mp_rank_00.pt").write_bytes((place / "mp_rank_00.pt").read_bytes()[:100])
    resharding.read(place, "mp_rank*")


def _read_no_weights(place: Path) -> None:
    resharding.read(place, "mp_rank*")


@pytest.mark.parametrize(
    "act",
    [
        _read_torn_json,
        _read_torn_shard,
        _read_lost_tests,
        _read_torn_state,
        _read_torn_weights,
        _read_no_weights,
    ],
)
def test_a_damaged_file_lasts_until_it_is_deleted(
    act: Callable[[Path], None], tmp_path: Path
) -> None:
    """The remedy is to delete it, which no recipe shows: on record, it would be refused again."""
    with (
        pytest.raises(LastingError, match="delete"),
        mistakes.remembered(tmp_path, lambda: "same", lambda _: None),
    ):
        act(tmp_path)
    assert not (tmp_path / mistakes.FILE).exists()


def test_heartbeats_go_on_once_storage_has_room_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, refused = heartbeat._put, threading.Event()
    rounds = []

    def refuse(*_: object) -> None:
        rounds.append(time.monotonic())
        if len(rounds) > 1:
            refused.set()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(heartbeat, "PERIOD_S", 0.01)
    reporter = heartbeat.Reporter(tmp_path, "actor")
    monkeypatch.setattr(heartbeat, "_put", refuse)
    reporter.answered("job", 3)
    assert refused.wait(20), "the thread ended at the first refusal"
    monkeypatch.setattr(heartbeat, "_put", put)
    until = time.monotonic() + 20
    while heartbeat.read(tmp_path)[0].rows != 1:
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("kind", [UserError, OutsideError, LastingError])
def test_a_heartbeat_keeps_the_kind_of_a_mistake(kind: type[UserError], tmp_path: Path) -> None:
    reporter = heartbeat.Reporter(tmp_path, "actor")
    reporter.become("failed", "no room", mistake=kind("no room"))
    (status,) = heartbeat.read(tmp_path)
    assert status.kind_of_mistake is kind

    class Wrapped(kind):  # type: ignore[misc, valid-type]
        """Ray derives the class of an error from a worker from that of the error."""

    assert kind_of_mistake(Wrapped("no room")) is kind
