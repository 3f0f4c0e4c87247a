"""A browser without network renders the page of a probe, without console messages."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.commands import exit_status
from tests.support.planted import answers, write_answers
from tests.support.tiny import tiny_model

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--virtual-time-budget=3000",
    "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BROWSER, reason="no chromium or google-chrome on PATH"),
]


def test_the_page_renders_with_its_layers_and_panels(tmp_path: Path) -> None:
    models = [tiny_model(tmp_path / f"model{seed}", seed=seed) for seed in (0, 1)]
    contexts = write_answers(tmp_path / "answers.jsonl", answers())
    out = tmp_path / "out"
    assert exit_status("probe", *models, "--contexts", contexts, "--out", out, "--quiet") == 0
    done = subprocess.run(
        [
            BROWSER,
            *FLAGS,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (out / "probe.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    page = done.stdout
    assert len(re.findall(r'type="radio" name="layer"', page)) == 2
    tokens = sum(context.num_positions for context in answers()[:6])
    assert page.count('class="tip"') == tokens
    assert page.count('class="row') == tokens * 2 * 6
    assert page.count("<img ") == 6
