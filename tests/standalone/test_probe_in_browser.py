"""A browser without network renders the page of a probe, without console messages."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.browser import BROWSER, FLAGS, assert_fits
from tests.support.commands import exit_status
from tests.support.planted import answers, write_answers
from tests.support.tiny import tiny_model

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH"),
]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of two models."""
    folder = tmp_path_factory.mktemp("probe")
    models = [tiny_model(folder / f"model{seed}", seed=seed) for seed in (0, 1)]
    contexts = write_answers(folder / "answers.jsonl", answers())
    out = folder / "out"
    assert exit_status("probe", *models, "--contexts", contexts, "--out", out, "--quiet") == 0
    return out / "probe.html"


@pytest.mark.parametrize("width", [400, 1280])
def test_pictures_load_and_nothing_overflows_at(width: int, page: Path, tmp_path: Path) -> None:
    assert_fits(page, width, tmp_path, images=6)


def test_the_page_renders_with_its_layers_and_panels(page: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    dom = done.stdout
    assert len(re.findall(r'type="radio" name="layer"', dom)) == 2
    tokens = sum(context.num_positions for context in answers()[:6])
    assert dom.count('class="tip"') == tokens
    assert dom.count('class="row') == tokens * 2 * 6
    assert dom.count("<img ") == 6
