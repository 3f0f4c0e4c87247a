"""A synthetic run and its report, made once; no test changes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.synthetic_run import Made, make_run, reported


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A synthetic run."""
    return make_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="session")
def shown(made: Made) -> tuple[Path, dict[str, Any], dict[str, Any], str]:
    """Directory, facts, scores and page of its report."""
    out, facts, scores = reported(made)
    return out, facts, scores, (out / "report.html").read_text()
