"""Fixtures and settings of all tests: tiny models made once a session, import paths, order."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same examples at every run; `pytest --hypothesis-profile=default` looks for new ones. Time
# limits would fail on a busy machine.
settings.register_profile(
    "steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("steady")

# Background jobs of a shell ignore Ctrl-C, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray's workers and child processes import `tests.support` and classes of test modules.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Threads that wait for one another sleep. By default they spin, and several processes share the
# cores here: two threads then take seven times the CPU time of one.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

# Tables and lines have their default widths, whatever terminal started the tests.
for name in ("COLUMNS", "LINES"):
    os.environ.pop(name, None)


LONGEST = (
    "test_run",
    "test_training",
    "test_resume",
    "test_gpu_benchmark",
    "test_jobs",
    "test_kills",
    "test_streaming",
)
"""Files that take minutes, the longest first.

Started late, they would run alone at the end while other processes are idle.
"""
LONG = (
    "test_renewal",
    "test_attacks",
    "test_standalone",
    "test_statistics",
    "test_checks_by_proxy",
    "test_custom_code",
    "test_values",
    "test_sandbox",
    "test_truncation",
    "test_reporting",
)
"""The longest files without real engines, by their CPU time."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leave the objects of imports and collection, which stay, out of garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, then those with real engines, then all others."""

    def place(item: pytest.Item) -> tuple[int, int]:
        name = item.path.stem
        if name in LONGEST:
            return 0, LONGEST.index(name)
        if item.get_closest_marker("real"):
            return 1, 0
        return 2, LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


def pytest_runtest_setup() -> None:
    """Give torch one thread where several processes of tests share the cores.

    Threads of one process would wait, spinning, for those that another process delays. Child
    processes keep their own number of threads.
    """
    if "PYTEST_XDIST_WORKER" in os.environ and "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(autouse=True)
def scripts_import_their_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `import_path.keep_children_safe` of an earlier test in this process."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of reports blank, which takes a third of a report's time."""
    from tests.support.blank_figures import leave_blank

    leave_blank(monkeypatch)


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-llama", "llama")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.support.tiny import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-qwen3", "qwen3")
