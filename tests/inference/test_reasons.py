"""The reason on record has the exception's type; its cause decides if a start is retried."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from ssd_ray import errors
from ssd_ray.errors import InfrastructureError, UserError, first_line, one_line
from ssd_ray.inference.crashes import start_failure
from ssd_ray.inference.crashes.start_failure import explain

PACKAGE = Path(errors.__file__).parent


@pytest.fixture
def model(tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(start_failure, "CONFIRM_S", 0.0)
    return Path(shutil.copytree(tiny_llama, tmp_path / "model"))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "MemoryError"),
        (KeyError("lm_head.weight"), "KeyError: 'lm_head.weight'"),
        (AssertionError(), "AssertionError"),
        (RuntimeError("two\n  lines "), "RuntimeError: two lines"),
        (OSError(5, "Input/output error"), "OSError: [Errno 5] Input/output error"),
        (UserError("a sentence"), "a sentence"),
        (InfrastructureError("a sentence"), "a sentence"),
    ],
)
def test_a_reason_has_the_type_of_the_exception(error: Exception, reason: str) -> None:
    assert one_line(error) == reason


def test_a_reason_is_short_and_one_line() -> None:
    assert len(one_line(ValueError("x" * 9999))) == 400
    assert one_line(ValueError("x" * 9999), 20) == "ValueError: " + "x" * 8
    assert first_line(RuntimeError("died\nTraceback\n  more")) == "RuntimeError: died"
    assert first_line(MemoryError()) == "MemoryError"


def test_the_text_of_an_exception_is_made_in_one_place() -> None:
    idiom = re.compile(r'" "\.join\(f?"?[^"]*str\(error\)|str\(error\)\.(strip|splitlines)')
    places = {path.name for path in PACKAGE.rglob("*.py") if idiom.search(path.read_text())}
    assert places == {"errors.py"}


MISTAKES = [
    ValueError("unsupported architecture"),
    TypeError("unexpected keyword"),
    KeyError("layers.0.foo"),
    AttributeError("no attribute"),
    AssertionError("Attempted to load weight of another shape"),
    NotImplementedError("no kernel"),
    ImportError("cannot import name 'EngineArgs' from 'vllm' (/home/me/vllm.py)"),
    ModuleNotFoundError("No module named 'vllm'"),
    OSError("it does not appear to have a file named preprocessor_config.json"),
    FileNotFoundError(errno.ENOENT, "No such file", "/nowhere/model.safetensors"),
    OSError(errno.ENOSPC, "No space left on device"),
]
FAILURES = [
    MemoryError(),
    RuntimeError("CUDA error: device-side assert"),
    ValueError("Free memory on device cuda:0 (1/80 GiB) is less than desired"),
    AssertionError("Error in memory profiling. Initial free memory 9, current free memory 12"),
    OSError(errno.EIO, "Input/output error"),
    OSError(errno.ESTALE, "Stale file handle", "/mnt/shared/model/config.json"),
    OSError(errno.EMFILE, "Too many open files"),
    TimeoutError("no answer"),
    ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
    OSError("We couldn't connect to 'https://huggingface.co'"),
    InfrastructureError("a machine failed"),
]


@pytest.mark.parametrize("error", MISTAKES, ids=str)
def test_a_start_that_always_fails_alike_is_a_mistake(model: Path, error: Exception) -> None:
    explanation = explain(error, model)
    assert isinstance(explanation, UserError)
    assert one_line(error)[:40] in str(explanation)


@pytest.mark.parametrize("error", FAILURES, ids=str)
def test_a_start_that_may_succeed_later_is_retried(model: Path, error: Exception) -> None:
    explanation = explain(error, model)
    assert isinstance(explanation, InfrastructureError)
    assert one_line(error)[:40] in str(explanation)


def test_a_file_that_appears_late_is_no_mistake(model: Path, tmp_path: Path) -> None:
    late = tmp_path / "late"
    error = FileNotFoundError(errno.ENOENT, "No such file", str(late))
    late.touch()
    assert isinstance(explain(error, model), InfrastructureError)


def test_damage_after_the_check_is_reported_as_the_mistake(model: Path) -> None:
    os.truncate(model / "model.safetensors", 5000)
    explanation = explain(MemoryError(), model)
    assert isinstance(explanation, UserError)
    assert "model.safetensors is cut short" in str(explanation)


def test_a_model_that_is_complete_after_a_pause_is_no_mistake(
    model: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(model / "model.safetensors", 5000)
    pauses = []

    def arrive(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            shutil.copy(tiny_llama / "model.safetensors", model)

    monkeypatch.setattr(start_failure, "time", Mock(wraps=time, sleep=arrive))
    assert isinstance(explain(MemoryError(), model), InfrastructureError)


@pytest.mark.slow
def test_a_start_without_room_for_the_kv_cache_names_the_field(model: Path) -> None:
    error = ValueError(
        "Available memory on node 0 (9.1/16.0 GiB) on kv cache allocation is less than requested "
        "memory for kv (500.0 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE"
    )
    explanation = explain(error, model)
    assert isinstance(explanation, UserError)
    assert str(explanation).startswith("lower engine.kv_cache_gib, or free memory on the engine's")
    from vllm.v1.worker import cpu_worker

    assert start_failure._TOO_LARGE_CACHE in Path(str(cpu_worker.__file__)).read_text()


def test_advice_on_options_that_no_recipe_has_is_left_out(model: Path) -> None:
    error = ValueError(
        "Failed to load the model config. Use the `--trust-remote-code` flag in the CLI."
    )
    assert "never run here" in str(explain(error, model))
    assert "flag" not in str(explain(error, model))


ENDING = """
import sys, time
from ssd_ray.inference.crashes.ending import end_process, record_reasons
import ssd_ray.inference.crashes.ending as ending
ending._RECORD_S = 0.3
record_reasons(lambda reason: open(sys.argv[1], "w").write(reason))
record_reasons(lambda reason: time.sleep(600))
end_process("nothing came back")
"""


def test_an_engine_that_ends_itself_records_the_reason(tmp_path: Path) -> None:
    """Hanging storage must not keep the process alive."""
    command = [sys.executable, "-c", ENDING, str(tmp_path / "reason")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 70
    assert (tmp_path / "reason").read_text() == "nothing came back"
    assert process.stderr == "engine: nothing came back\n"
