"""Fixtures and settings of all tests: tiny models made once a session, import paths, order."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from hypothesis import settings

# The same examples at every run; `pytest --hypothesis-profile=default` looks for new ones.
settings.register_profile("steady", derandomize=True)
settings.load_profile("steady")

# Background jobs of a shell ignore Ctrl-C, and child processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Ray's workers and child processes import `tests.support` and classes of test modules.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")])
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")


LONGEST = ("test_run", "test_training", "test_resume", "test_heldout", "test_kills", "test_jobs")
"""Files of minutes each, the longest first, or one process would run them alone at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, then those with real engines, then all others."""

    def place(item: pytest.Item) -> tuple[int, bool]:
        name = item.path.stem
        return LONGEST.index(name) if name in LONGEST else len(LONGEST), item.get_closest_marker(
            "real"
        ) is None

    items.sort(key=place)


@pytest.fixture(autouse=True)
def scripts_import_their_neighbors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo `import_path.keep_children_safe` of an earlier test in this process."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)


@pytest.fixture
def blank_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures of reports blank."""
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
